"""The search space: sequences of decisions <-> NAS-FPN graphs (Ghiasi et al. 2019, arXiv:1904.07392, section 3.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from detector.architecture import LEVELS, NUM_LEVELS, OPS, PRIORS, Architecture, MergeCell
from detector.errors import UserError

CELL_DECISIONS = ("input", "input", "level", "op")
PUBLISHED_CELLS = 7


@dataclass(frozen=True)
class NasFpnSpace:
    """All graphs of `num_cells` cells; repeats and attention are those of `like`.

    Each cell takes four decisions: input a, input b (not a), level (an output's must be free yet), op.
    """

    like: Architecture

    @property
    def num_cells(self) -> int:
        return len(self.like.cells)

    @cached_property
    def kinds(self) -> Sequence[str]:
        return CELL_DECISIONS * self.num_cells

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        return {"input": NUM_LEVELS + self.num_cells - 1, "level": NUM_LEVELS, "op": len(OPS)}

    def mask(self, prefix: Sequence[int]) -> NDArray[np.bool_]:
        """Read-only where it does not depend on the decisions: policies ask for hundreds a proposal."""
        cell, part = divmod(len(prefix), len(CELL_DECISIONS))
        if part == 0:
            return self._sources[cell]
        if part == 3:
            return self._ops
        if part == 1:
            others = self._sources[cell].copy()
            others[prefix[-1]] = False
            return others
        first_output = self.num_cells - NUM_LEVELS
        free = np.ones(NUM_LEVELS, bool)
        if cell > first_output:
            free[list(prefix[2 + 4 * first_output :: 4])] = False
        return free

    @cached_property
    def _sources(self) -> list[NDArray[np.bool_]]:
        """For each cell the features that are there before it: (inputs,)."""
        valid = [np.arange(self.sizes["input"]) < NUM_LEVELS + cell for cell in range(self.num_cells)]
        for mask in valid:
            mask.setflags(write=False)
        return valid

    @cached_property
    def _ops(self) -> NDArray[np.bool_]:
        valid = np.ones(len(OPS), bool)
        valid.setflags(write=False)
        return valid

    def architecture(self, decisions: Sequence[int]) -> Architecture:
        """The graph that the decisions spell, cells in the order of the decisions."""
        quadruples = zip(*(iter(decisions),) * len(CELL_DECISIONS), strict=True)
        cells = tuple(MergeCell((a, b), LEVELS[level], OPS[op]) for a, b, level, op in quadruples)
        return replace(self.like, cells=cells, found=None)

    def decisions(self, architecture: Architecture) -> tuple[int, ...]:
        """The inverse of architecture()."""
        return tuple(
            value
            for cell in architecture.cells
            for value in (*cell.inputs, LEVELS.index(cell.level), OPS.index(cell.op))
        )


def load_prior(name: str) -> Architecture | None:
    """A prior by name, a best.json by path, or `none`. Raises UserError."""
    if name == "none":
        return None
    if name in PRIORS:
        return PRIORS[name]
    try:
        return replace(Architecture.load(name), found=None)
    except UserError as error:
        raise UserError(f"prior {name}: {error}; give a file, none, or one of: {', '.join(PRIORS)}") from error


def space_around(prior: Architecture | None) -> NasFpnSpace:
    """The space a prior lies in; without one, that of the published graph."""
    return NasFpnSpace(prior or PRIORS["nas-fpn"])
