"""What a graph costs: multiply-adds and parameters of its pyramid, without building it, and its measured latency."""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from detector.architecture import LEVELS, Architecture
from detector.cascade_rcnn import padding_multiple

WARM_UP, TIMED_RUNS = 3, 10

Size = tuple[int, int]  # height and width


class Cost(NamedTuple):
    """Of one image through one pyramid. gflops: billions of multiply-adds in convolutions, which is what the detection
    literature calls FLOPs (Ghiasi et al. 2019, arXiv:1904.07392, table 1); params: weights, biases, scales, shifts.
    """

    gflops: float
    params: int


def level_sizes(image_hw: Size, base_stride: int) -> list[Size]:
    """The maps of P3..P7 for an image, once it is padded to whole cells of P5; odd sizes round up."""
    multiple = padding_multiple(base_stride)
    height, width = (-(-side // multiple) * multiple for side in image_hw)
    return [(-(-height // stride), -(-width // stride)) for stride in (base_stride << i for i in range(len(LEVELS)))]


def cost_of(architecture: Architecture, channels: int, sizes: Sequence[Size]) -> Cost:
    """The cost of a graph on maps P3..P7 of `sizes`, each of `channels`. Exact: a cell is one 3x3 convolution with bias
    and one norm; resizing, merging and gates multiply nothing with weights.
    """
    cells_of = {level: height * width for level, (height, width) in zip(LEVELS, sizes, strict=True)}
    weights = 9 * channels * channels
    multiply_adds = weights * sum(cells_of[cell.level] for cell in architecture.cells) * architecture.repeats
    params = (weights + 3 * channels) * len(architecture.cells) * architecture.repeats
    return Cost(multiply_adds / 1e9, params)


@torch.no_grad()
def latency_ms(pyramid: nn.Module, channels: int, sizes: Sequence[Size], device: torch.device) -> float:
    """Milliseconds of one forward pass on maps P3..P7 of one image: the median of TIMED_RUNS."""
    pyramid = pyramid.to(memory_format=torch.channels_last).to(device).eval()
    features = [torch.randn(1, channels, *size, device=device) for size in sizes]
    features = [feature.to(memory_format=torch.channels_last) for feature in features]
    seconds = []
    for _ in range(WARM_UP + TIMED_RUNS):
        _wait(device)
        start = time.perf_counter()
        pyramid(features)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[WARM_UP:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
