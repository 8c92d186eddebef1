"""A space small enough to enumerate: three decisions, of two kinds, the second limited by the first."""

import itertools

import numpy as np


class SmallSpace:
    kinds = ("colour", "size", "colour")
    sizes = {"colour": 3, "size": 2}  # noqa: RUF012

    def mask(self, prefix) -> np.ndarray:
        if len(prefix) == 1:
            return np.array([True, prefix[0] != 1])
        valid = np.ones(3, bool)
        if len(prefix) == 2:
            valid[prefix[0]] = False
        return valid

    def sequences(self) -> list[tuple[int, ...]]:
        """All valid ones."""
        return [
            s for s in itertools.product(range(3), range(2), range(3)) if all(self.mask(s[:t])[s[t]] for t in range(3))
        ]
