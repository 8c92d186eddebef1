"""The pyramid's graph: merging cells over five feature levels (Ghiasi et al. 2019, arXiv:1904.07392, section 3)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

from detector.documents import read_json
from detector.errors import UserError

LEVELS = (3, 4, 5, 6, 7)
NUM_LEVELS = len(LEVELS)
MAX_CELLS, MAX_REPEATS = 50, 50  # more than anyone has built; a file from others may ask for no more
Op = Literal["sum", "attention"]
Pool = Literal["max", "avg"]
Gate = Literal["coarser", "finer"]
OPS: tuple[Op, ...] = get_args(Op)

FORMAT = "nas-fpn"
VERSION = 1


class ArchitectureError(UserError, ValueError):
    """A graph that breaks a rule; the message names the cell and the rule."""


@dataclass(frozen=True)
class MergeCell:
    """One merging cell: two features, the level of its output, and how the two are combined.

    inputs count features from 0: the FPN's P3..P7 are 0..4, and cell i makes feature 5 + i.
    """

    inputs: tuple[int, int]
    level: int
    op: Op


@dataclass(frozen=True)
class Attention:
    """Which form of global-pooling attention: x + y * sigmoid(pool(x)).

    x comes from the coarser (or finer) source level; on a tie it is the first input. Defaults: the authors'
    code (tensorflow/tpu, max and coarser). ("avg", "finer") is mmdetection's form.
    """

    pool: Pool = "max"
    gate: Gate = "coarser"


@dataclass(frozen=True)
class Architecture:
    """A NAS-FPN graph. The last five cells are the outputs, one for each level, in any order.

    found says where the graph came from (study, episode, rewards, configuration); it is no part of the graph's
    identity. Raises ArchitectureError when a rule is broken.
    """

    cells: tuple[MergeCell, ...]
    repeats: int = 1
    attention: Attention = Attention()
    found: Mapping[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.cells) < NUM_LEVELS:
            raise ArchitectureError(
                f"cells: {len(self.cells)} given, at least {NUM_LEVELS} needed (one output for each level)"
            )
        if len(self.cells) > MAX_CELLS:
            raise ArchitectureError(f"cells: {len(self.cells)} given, must be {MAX_CELLS} at most")
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise ArchitectureError(f"repeats: {self.repeats} given, must be 1 to {MAX_REPEATS}")
        taken: dict[int, int] = {}
        for index, cell in enumerate(self.cells):
            _check_cell(index, cell)
            if index >= self.num_intermediate:
                if cell.level in taken:
                    raise ArchitectureError(
                        f"cell {index}: output level {cell.level} is already the output of cell {taken[cell.level]}; "
                        f"the last {NUM_LEVELS} cells must have different levels"
                    )
                taken[cell.level] = index

    @property
    def num_intermediate(self) -> int:
        return len(self.cells) - NUM_LEVELS

    @property
    def feature_levels(self) -> tuple[int, ...]:
        """The level of every feature: the five inputs, then one for each cell."""
        return LEVELS + tuple(cell.level for cell in self.cells)

    @property
    def leaves(self) -> tuple[int, ...]:
        """Features that no cell consumes and that are no outputs; each is summed into the output of its level."""
        consumed = {source for cell in self.cells for source in cell.inputs}
        return tuple(i for i in range(NUM_LEVELS + self.num_intermediate) if i not in consumed)

    def leaves_into(self, index: int) -> tuple[int, ...]:
        """The leaves that cell `index` adds, in index order; none for an intermediate cell."""
        if index < self.num_intermediate:
            return ()
        levels = self.feature_levels
        return tuple(leaf for leaf in self.leaves if levels[leaf] == self.cells[index].level)

    def canonical(self) -> "Architecture":
        """The one form of all isomorphic graphs: the smallest serialisation over the valid orders of cells.

        Inputs are sorted where their order has no meaning: for `sum`, and for `attention` across different levels.
        Cells compare as (inputs, level, op). The minimum is found greedily; where two cells look the same so far,
        both orders are followed.
        """
        return self._canonical

    @cached_property
    def _canonical(self) -> "Architecture":
        orders: list[tuple[int, ...]] = [()]  # orders of original cells whose serialisations are equal so far
        cells: list[MergeCell] = []
        for position in range(len(self.cells)):
            candidates: dict[tuple[int, ...], MergeCell] = {}
            for order in orders:
                for index in self._next(order, position):
                    candidates[(*order, index)] = self._renumbered(index, order)
            smallest = min(candidates.values(), key=_sort_key)
            orders = [order for order, cell in candidates.items() if cell == smallest]
            cells.append(smallest)
        return replace(self, cells=tuple(cells))

    def _next(self, order: tuple[int, ...], position: int) -> list[int]:
        """Cells that may stand at `position` after `order`: sources placed, intermediates before outputs."""
        is_intermediate = position < self.num_intermediate
        candidates = range(self.num_intermediate) if is_intermediate else range(self.num_intermediate, len(self.cells))
        placed = {*range(NUM_LEVELS), *(NUM_LEVELS + index for index in order)}
        return [i for i in candidates if i not in order and placed.issuperset(self.cells[i].inputs)]

    def _renumbered(self, index: int, order: tuple[int, ...]) -> MergeCell:
        number = {NUM_LEVELS + old: NUM_LEVELS + new for new, old in enumerate(order)}
        cell = self.cells[index]
        first, second = (number.get(source, source) for source in cell.inputs)
        levels = self.feature_levels
        is_symmetric = cell.op == "sum" or levels[cell.inputs[0]] != levels[cell.inputs[1]]
        if is_symmetric and second < first:
            first, second = second, first
        return replace(cell, inputs=(first, second))

    def aligned_with(self, other: "Architecture") -> "Architecture":
        """The isomorphic form whose cells differ least from those of `other`, place by place: for pictures and tables.

        Among equals the first in the order of canonical(). A graph with another number of cells stays canonical.
        """
        best = self.canonical()
        if len(self.cells) != len(other.cells) or self.num_intermediate != other.num_intermediate:
            return best
        least = sum(_distance(*pair) for pair in zip(best.cells, other.cells, strict=True))
        waiting: list[tuple[int, tuple[int, ...], tuple[MergeCell, ...]]] = [(0, (), ())]
        while waiting:
            distance, order, cells = waiting.pop()
            if distance >= least:
                continue
            if len(cells) == len(self.cells):
                least, best = distance, replace(self, cells=cells)
                continue
            for index in self._next(order, len(cells)):
                cell = self._renumbered(index, order)
                added = _distance(cell, other.cells[len(cells)])
                waiting.append((distance + added, (*order, index), (*cells, cell)))
            waiting.sort(key=lambda entry: (len(entry[1]), -entry[0]))  # the longest next, of these the closest
        return best

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical graph: equal exactly for isomorphic graphs."""
        graph = self.canonical().to_dict()
        identity = {key: graph[key] for key in ("attention", "cells", "levels", "repeats")}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The content of a best.json, cells in the written order."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "levels": list(LEVELS),
            "repeats": self.repeats,
            "attention": {"pool": self.attention.pool, "gate": self.attention.gate},
            "cells": [{"inputs": list(cell.inputs), "level": cell.level, "op": cell.op} for cell in self.cells],
        }
        if self.found is not None:
            content["found"] = dict(self.found)
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of to_dict. Raises ArchitectureError naming the key, or the cell and the rule."""
        if not isinstance(content, Mapping):
            raise ArchitectureError(f"expected a JSON object, found {type(content).__name__}")
        keys = {"format", "version", "levels", "repeats", "attention", "cells", "found"}
        _check_keys("the graph", content, required={"format", "version", "cells"}, allowed=keys)
        if content["format"] != FORMAT:
            raise ArchitectureError(f"format: {content['format']!r} given, must be {FORMAT!r}")
        if content["version"] != VERSION:
            raise ArchitectureError(f"version: {content['version']!r} given, this program reads {VERSION}")
        if content.get("levels", list(LEVELS)) != list(LEVELS):
            raise ArchitectureError(f"levels: {content['levels']!r} given, must be {list(LEVELS)}")
        repeats = content.get("repeats", 1)
        if not _is_int(repeats):
            raise ArchitectureError(f"repeats: {repeats!r} given, must be a whole number of 1 or more")
        found = content.get("found")
        if found is not None and not isinstance(found, Mapping):
            raise ArchitectureError(f"found: {found!r} given, must be an object")
        if not isinstance(content["cells"], list):
            raise ArchitectureError(f"cells: {type(content['cells']).__name__} given, must be a list")
        cells = tuple(_read_cell(index, cell) for index, cell in enumerate(content["cells"]))
        return cls(cells, repeats, _read_attention(content.get("attention", {})), found)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a best.json. Raises ArchitectureError naming the file and what is wrong in it."""
        try:
            document = read_json(Path(path))
        except UserError as error:
            raise ArchitectureError(str(error)) from error
        try:
            return cls.from_dict(document)
        except ArchitectureError as error:
            raise ArchitectureError(f"{path}: {error}") from error


def _sort_key(cell: MergeCell) -> tuple[tuple[int, int], int, str]:
    return cell.inputs, cell.level, cell.op


def _distance(ours: MergeCell, theirs: MergeCell) -> int:
    """In how many of the four decisions two cells differ, the order of inputs aside."""
    inputs = len({*ours.inputs} - {*theirs.inputs})
    return inputs + (ours.level != theirs.level) + (ours.op != theirs.op)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_keys(where: str, content: Mapping[str, Any], required: set[str], allowed: set[str]) -> None:
    for key in content:
        if key not in allowed:
            raise ArchitectureError(f"{where}: unknown key {key!r}; allowed are {', '.join(sorted(allowed))}")
    for key in sorted(required):
        if key not in content:
            raise ArchitectureError(f"{where}: key {key!r} is missing")


def _check_cell(index: int, cell: MergeCell) -> None:
    available = NUM_LEVELS + index
    for source in cell.inputs:
        if not 0 <= source < available:
            raise ArchitectureError(
                f"cell {index}: input {source} does not exist there; features 0..{available - 1} do "
                "(0..4 are P3..P7, then one for each earlier cell)"
            )
    if cell.inputs[0] == cell.inputs[1]:
        raise ArchitectureError(f"cell {index}: both inputs are {cell.inputs[0]}; they must differ")
    if cell.level not in LEVELS:
        raise ArchitectureError(f"cell {index}: level {cell.level!r} given, must be one of {list(LEVELS)}")
    if cell.op not in OPS:
        raise ArchitectureError(f"cell {index}: op {cell.op!r} given, must be one of {', '.join(OPS)}")


def _read_cell(index: int, content: Any) -> MergeCell:
    where = f"cell {index}"
    if not isinstance(content, Mapping):
        raise ArchitectureError(f"{where}: {content!r} given, must be an object with inputs, level and op")
    keys = {"inputs", "level", "op"}
    _check_keys(where, content, required=keys, allowed=keys)
    inputs = content["inputs"]
    if not (isinstance(inputs, list) and len(inputs) == 2 and all(map(_is_int, inputs))):
        raise ArchitectureError(f"{where}: inputs {inputs!r} given, must be two whole numbers")
    if not _is_int(content["level"]):
        raise ArchitectureError(f"{where}: level {content['level']!r} given, must be one of {list(LEVELS)}")
    return MergeCell((inputs[0], inputs[1]), content["level"], content["op"])


def _read_attention(content: Any) -> Attention:
    if not isinstance(content, Mapping):
        raise ArchitectureError(f"attention: {content!r} given, must be an object with pool and gate")
    _check_keys("attention", content, required=set(), allowed={"pool", "gate"})
    attention = Attention(**content)
    for key, value, allowed in (
        ("pool", attention.pool, get_args(Pool)),
        ("gate", attention.gate, get_args(Gate)),
    ):
        if value not in allowed:
            raise ArchitectureError(f"attention: {key} {value!r} given, must be one of {', '.join(allowed)}")
    return attention


def _prior(*cells: tuple[int, Op, tuple[int, int]]) -> Architecture:
    return Architecture(tuple(MergeCell(inputs, level, op) for level, op, inputs in cells))


PRIORS: Mapping[str, Architecture] = {
    # The graph found by Ghiasi et al. 2019, as published in tensorflow/tpu and tensorflow/models.
    "nas-fpn": _prior(
        (4, "attention", (1, 3)),
        (4, "sum", (1, 5)),
        (3, "sum", (0, 6)),
        (4, "sum", (6, 7)),
        (5, "attention", (7, 8)),
        (7, "attention", (6, 9)),
        (6, "attention", (9, 10)),
    ),
    # The top-down path of Lin et al. 2017, arXiv:1612.03144, in the same vocabulary.
    "fpn": _prior(
        (7, "sum", (3, 4)),
        (6, "sum", (3, 5)),
        (5, "sum", (2, 6)),
        (4, "sum", (1, 7)),
        (3, "sum", (0, 8)),
    ),
}
