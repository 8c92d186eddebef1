"""The pool: one set of cell weights for every level, which trials start from.

Trained once with a new graph each step, so that a trial measures the graph and not how fast new convolutions learn
(weight sharing as in Pham et al. 2018, arXiv:1802.03268, but every cell of a trial then trains its own copy). Keyed by
level and not by a cell's position too: so every set is trained at every step or nearly so, and graphs unlike the prior
are not judged by weights that hardly saw their like (docs/search.md).
"""

import copy
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from controller.decisions import mutate, uniform
from detector.architecture import LEVELS, Architecture
from detector.choices import Norm
from detector.nas_fpn import NasFpn, ReluConvNorm
from detector.norm import batch_norms
from nas.space import NasFpnSpace

MAX_MUTATIONS = 8


class HasFeatures(Protocol):
    """P3..P7 of some images."""

    @property
    def features(self) -> list[Tensor]: ...


class CellPool(nn.Module):
    """Weights for the cells of any graph."""

    def __init__(self, repeats: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.channels = channels
        self.norm: Norm = norm
        self.cells = nn.ModuleDict(
            {_key(repeat, level): ReluConvNorm(channels, norm) for repeat in range(repeats) for level in LEVELS}
        )

    def shared(self, architecture: Architecture) -> NasFpn:
        """The pyramid of a graph that uses the pool's own weights: training it trains the pool."""
        return self._pyramid(architecture, lambda cell: cell)

    def copied(self, architecture: Architecture) -> NasFpn:
        """The pyramid of a graph in which every cell has its own copy."""
        return self._pyramid(architecture, copy.deepcopy)

    def _pyramid(self, architecture: Architecture, take: Callable[[nn.Module], nn.Module]) -> NasFpn:
        repeats = range(architecture.repeats)
        cells = [take(self.cells[_key(repeat, cell.level)]) for repeat in repeats for cell in architecture.cells]
        return NasFpn(architecture, self.channels, self.norm, cells)


def _key(repeat: int, level: int) -> str:
    return f"repeat{repeat}_p{level}"


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
