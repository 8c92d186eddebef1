"""What rewards are to be expected of graphs that were never trained: Gaussian-process regression on their features."""

import math

import torch
from torch import Tensor

LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)  # squared lengths of the kernel, in medians of the squared distance
NOISES = torch.logspace(-2, 1, 13, dtype=torch.float64)  # variances of the noise, in those of the signal


class RewardModel:
    """Posterior mean of a Gaussian process (Rasmussen & Williams 2006, chapters 2 and 5): squared exponential kernel on
    standardised features; its length, variance and noise are those of the highest evidence on a grid.

    Deterministic for a number of threads. O(n^3) for n rewards.
    """

    def __init__(self, features: Tensor, rewards: Tensor) -> None:
        """features (n, F), rewards (n,), both float64; n >= 2."""
        spread = features.std(dim=0)
        self._shift = features.mean(dim=0)
        self._scale = spread.where(spread > 0, torch.ones_like(spread))  # what never varied counts as it is
        self._known = (features - self._shift) / self._scale
        self._mean, self._unit = float(rewards.mean()), max(float(rewards.std()), 1e-9)
        targets = (rewards - self._mean) / self._unit
        distances = _squared_distances(self._known, self._known)
        pairs = torch.triu_indices(len(rewards), len(rewards), offset=1)
        median = max(float(distances[pairs[0], pairs[1]].median()), 1e-9)
        best = -math.inf
        for length in LENGTHS:
            values, vectors = torch.linalg.eigh(torch.exp(-distances / (2 * median * length)))
            variances = values.clamp(min=0.0) + NOISES[:, None]  # (noises, n), in units of the signal's
            signals = ((vectors.T @ targets).square() / variances).mean(dim=1).clamp(min=1e-12)
            evidence = -0.5 * (len(targets) * signals.log() + variances.log().sum(dim=1))
            index = int(evidence.argmax())
            if float(evidence[index]) > best:
                best = float(evidence[index])
                self._length, self._noise = median * length, float(NOISES[index])
                self._weights = vectors @ (vectors.T @ targets / variances[index])

    def expected(self, features: Tensor) -> Tensor:
        """features (N, F) -> (N,)."""
        distances = _squared_distances((features - self._shift) / self._scale, self._known)
        targets: Tensor = torch.exp(-distances / (2 * self._length)) @ self._weights
        return self._mean + self._unit * targets


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, F) and (M, F) -> (N, M)."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
