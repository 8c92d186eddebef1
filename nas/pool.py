"""The pool: one set of cell weights for every (cell position, target level), which trials start from.

Trained once with a new graph each step, so that a trial measures the graph and not how fast new convolutions learn
(weight sharing as in Pham et al. 2018, arXiv:1802.03268, but every trial then trains its own copy).
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from controller.decisions import mutate, uniform
from detector.architecture import LEVELS, Architecture
from detector.nas_fpn import NasFpn, ReluConvNorm
from detector.norm import Norm, batch_norms
from nas.space import NasFpnSpace

MAX_MUTATIONS = 8


class HasFeatures(Protocol):
    """P3..P7 of some images."""

    @property
    def features(self) -> list[Tensor]: ...


class CellPool(nn.Module):
    """Weights for the cells of any graph of one space."""

    def __init__(self, num_cells: int, repeats: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.channels = channels
        self.norm: Norm = norm
        self.cells = nn.ModuleDict(
            {
                _key(repeat, position, level): ReluConvNorm(channels, norm)
                for repeat in range(repeats)
                for position in range(num_cells)
                for level in LEVELS
            }
        )

    def pyramid(self, architecture: Architecture) -> NasFpn:
        """The pyramid of a graph that uses the pool's own weights: training it trains the pool."""
        cells = [
            self.cells[_key(repeat, position, cell.level)]
            for repeat in range(architecture.repeats)
            for position, cell in enumerate(architecture.cells)
        ]
        return NasFpn(architecture, self.channels, self.norm, cells)


def _key(repeat: int, position: int, level: int) -> str:
    return f"repeat{repeat}_cell{position}_p{level}"


def draw_graph(space: NasFpnSpace, prior: Architecture | None, stream: np.random.Generator) -> Architecture:
    """A graph to train the pool with: uniform, or with a prior half of the time one of its neighbours."""
    if prior is None or stream.random() < 0.5:
        decisions = uniform(space, stream)
    else:
        count = int(stream.integers(1, MAX_MUTATIONS + 1))
        decisions = mutate(space, space.decisions(prior), count, stream)
    return space.architecture(decisions).canonical()


def reset_statistics(module: nn.Module) -> None:
    """Forget batch norm's running statistics: the pool's are a mixture over all graphs."""
    for norm in batch_norms(module):
        norm.reset_running_stats()


@torch.no_grad()
def estimate_statistics(pyramid: nn.Module, batches: Iterable[HasFeatures]) -> None:
    """Set batch norm's statistics to plain means over some batches, under the weights as they are.

    Those that training keeps are moving means, which lag behind the last of few steps.
    """
    for norm in batch_norms(pyramid):
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    pyramid.train()
    for batch in batches:
        pyramid(batch.features)
