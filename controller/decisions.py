"""What the controller decides about: sequences of masked categorical choices."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Decisions = tuple[int, ...]


class DecisionSpace(Protocol):
    """T decisions, taken in order. kinds names what each chooses, sizes how many options a kind has.

    mask(prefix) tells which options of decision len(prefix) are valid after the decisions in prefix: at least one
    always is, so every sequence drawn within its masks is a valid one.
    """

    @property
    def kinds(self) -> Sequence[str]: ...

    @property
    def sizes(self) -> Mapping[str, int]: ...

    def mask(self, prefix: Sequence[int]) -> NDArray[np.bool_]: ...


def uniform(space: DecisionSpace, stream: np.random.Generator) -> Decisions:
    """Every decision uniform over its valid options."""
    drawn: list[int] = []
    for _ in space.kinds:
        drawn.append(int(stream.choice(np.flatnonzero(space.mask(drawn)))))
    return tuple(drawn)


def mutate(space: DecisionSpace, decisions: Decisions, count: int, stream: np.random.Generator) -> Decisions:
    """Change `count` decisions, chosen at random, to other valid options where there are any.

    Decisions that a change makes invalid are redrawn.
    """
    chosen = set(stream.choice(len(decisions), size=min(count, len(decisions)), replace=False).tolist())
    drawn: list[int] = []
    for t, old in enumerate(decisions):
        valid = np.flatnonzero(space.mask(drawn))
        if t not in chosen and old in valid:
            drawn.append(old)
        else:
            others = valid[valid != old]
            drawn.append(int(stream.choice(others if len(others) else valid)))
    return tuple(drawn)
