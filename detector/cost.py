"""What a graph costs: multiply-adds and parameters of its pyramid, without building it."""

from collections.abc import Sequence
from typing import NamedTuple

from detector.architecture import LEVELS, Architecture
from detector.levels import Size


class Cost(NamedTuple):
    """Of one image through one pyramid. gflops: billions of multiply-adds in convolutions, which is what the detection
    literature calls FLOPs (Ghiasi et al. 2019, arXiv:1904.07392, table 1); params: weights, biases, scales, shifts.
    """

    gflops: float
    params: int


def cost_of(architecture: Architecture, channels: int, sizes: Sequence[Size]) -> Cost:
    """The cost of a graph on maps P3..P7 of `sizes`, each of `channels`. Exact: a cell is one 3x3 convolution with bias
    and one norm; resizing, merging and gates multiply nothing with weights.
    """
    cells_of = {level: height * width for level, (height, width) in zip(LEVELS, sizes, strict=True)}
    weights = 9 * channels * channels
    multiply_adds = weights * sum(cells_of[cell.level] for cell in architecture.cells) * architecture.repeats
    params = (weights + 3 * channels) * len(architecture.cells) * architecture.repeats
    return Cost(multiply_adds / 1e9, params)
