"""A benchmark of the FPN search space: graph -> mean and noise of its reward, without training anything.

The table (experiments/tabular.csv) holds graphs whose rewards were measured with the default proxy of `shapes`; what is
not in it is predicted by regression on features of the graph. `tabular.json` beside it says with which proxy, seeds,
commands and machine.

    from nas.tabular import load_tabular
    load_tabular().estimate(Architecture.load("best.json"))   # mean, sd, is_known
"""

import csv
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.architecture import PRIORS, Architecture, MergeCell, Op
from detector.errors import UserError
from nas.graph_features import graph_features
from nas.graph_regression import fitted, fitted_once, out_of_fold, predict

TABLE, DESCRIPTION = "tabular.csv", "tabular.json"
OPS: Mapping[str, Op] = {"+": "sum", "*": "attention"}


class Estimate(NamedTuple):
    """Of a graph's rewards: their mean and their standard deviation from seed to seed. is_known: it was measured, and
    not only predicted.
    """

    mean: float
    sd: float
    is_known: bool


class Row(NamedTuple):
    """One measured graph: where it came from, its rewards by seed, and what a regression that did not see it predicts
    (None before that was asked).
    """

    graph: Architecture
    source: str
    rewards: Mapping[int, float]
    predicted: float | None = None


class Tabular:
    """The benchmark of some measured graphs.

    A measured reward is noisy, and the best of many the most: so a known graph's mean is between its measured mean and
    what a regression predicts that has not seen it, weighted by how far each is off on average.
    """

    def __init__(self, rows: Sequence[Row], sd: float, off: float, fit_as: str | None = None) -> None:
        """sd: of rewards, from seed to seed. off: by how much predictions miss true means (root mean square).
        fit_as: the name to keep the fitted regression under, in the cache.
        """
        self.rows = rows
        self.sd = sd
        self.off = off
        without_effects = without_seed_effects(rows)
        self.known = {row.graph.hash: row for row in without_effects}
        self.features = features_of(rows)
        self.means = means_of(without_effects)
        self.regression = (
            fitted(self.features, self.means) if fit_as is None else fitted_once(fit_as, self.features, self.means)
        )
        self._estimates: dict[str, Estimate] = {}

    @classmethod
    def measured(cls, rows: Sequence[Row]) -> "Tabular":
        """Of rows without predictions, which are added to them; takes ten times as long."""
        without_effects = without_seed_effects(rows)
        means, sd = means_of(without_effects), noise_of(without_effects)
        predicted = out_of_fold(features_of(rows), means)
        off = prediction_error(predicted, means, np.array([len(row.rewards) for row in rows]), sd)
        return cls([row._replace(predicted=p) for row, p in zip(rows, predicted.tolist(), strict=True)], sd, off)

    def estimate(self, architecture: Architecture) -> Estimate:
        return self.estimates([architecture])[0]

    def estimates(self, architectures: Iterable[Architecture]) -> list[Estimate]:
        """Of several graphs, sooner than one by one."""
        hashes, new = [], {}
        for architecture in architectures:
            hashes.append(architecture.hash)
            if hashes[-1] not in self._estimates:
                new[hashes[-1]] = architecture
        if new:
            predicted = predict(self.regression, np.array([graph_features(graph) for graph in new.values()]))
            for graph_hash, mean in zip(new, predicted.tolist(), strict=True):
                self._estimates[graph_hash] = self._combined(graph_hash, mean)
        return [self._estimates[graph_hash] for graph_hash in hashes]

    def _combined(self, graph_hash: str, predicted: float) -> Estimate:
        row = self.known.get(graph_hash)
        if row is None or row.predicted is None:
            return Estimate(predicted, self.sd, row is not None)
        measured = list(row.rewards.values())
        of_prediction, of_measured = 1 / self.off**2, len(measured) / self.sd**2
        total = of_prediction * row.predicted + of_measured * float(np.mean(measured))
        mean = total / (of_prediction + of_measured)
        return Estimate(mean, self.sd, True)

    def reward(self, architecture: Architecture, seed: int) -> float:
        """A reward as a trial would give it: noise depends on graph and seed only."""
        mean, sd, _ = self.estimate(architecture)
        stream = np.random.default_rng([seed, int(architecture.hash[:15], 16)])
        return min(1.0, max(0.0, mean + sd * float(stream.standard_normal())))


def without_seed_effects(rows: Sequence[Row]) -> list[Row]:
    """Rewards less what their seed adds to those of all graphs, as graphs show that were measured with several.

    Least squares of rewards as graph + seed, by turns; effects of seeds add up to nothing.
    """
    effects = {seed: 0.0 for row in rows for seed in row.rewards}
    several = [row.rewards for row in rows if len(row.rewards) > 1]
    for _ in range(30):
        left: dict[int, list[float]] = {seed: [] for seed in effects}
        for rewards in several:
            mean = np.mean([reward - effects[seed] for seed, reward in rewards.items()])
            for seed, reward in rewards.items():
                left[seed].append(float(reward - mean))
        effects = {seed: float(np.mean(values)) if values else 0.0 for seed, values in left.items()}
        middle = float(np.mean(list(effects.values()))) if effects else 0.0
        effects = {seed: effect - middle for seed, effect in effects.items()}
    return [row._replace(rewards={s: reward - effects[s] for s, reward in row.rewards.items()}) for row in rows]


def features_of(rows: Sequence[Row]) -> NDArray[np.float64]:
    return np.array([graph_features(row.graph) for row in rows])


def means_of(rows: Sequence[Row]) -> NDArray[np.float64]:
    return np.array([np.mean(list(row.rewards.values())) for row in rows])


def noise_of(rows: Sequence[Row]) -> float:
    """The standard deviation from seed to seed, pooled over graphs that have several. Raises ValueError if none has."""
    samples = [list(row.rewards.values()) for row in rows if len(row.rewards) > 1]
    if not samples:
        raise ValueError("no graph was measured with several seeds")
    squares = sum(float(np.var(sample, ddof=1)) * (len(sample) - 1) for sample in samples)
    return float((squares / sum(len(sample) - 1 for sample in samples)) ** 0.5)


def prediction_error(
    predicted: NDArray[np.float64], means: NDArray[np.float64], runs: NDArray[np.int64], sd: float
) -> float:
    """By how much (root mean square) out-of-fold predictions miss the true means: what is left of their error when the
    measured means' own noise is taken off. At least a tenth of that noise.
    """
    square = float(np.mean((predicted - means) ** 2)) - float(np.mean(sd**2 / runs))
    return float(max(square, (0.1 * sd) ** 2) ** 0.5)


def to_text(architecture: Architecture) -> str:
    """`1*3@4 1+5@4 ...`: for each cell its inputs, + for sum or * for attention between them, and its level."""
    signs = {op: sign for sign, op in OPS.items()}
    return " ".join(f"{c.inputs[0]}{signs[c.op]}{c.inputs[1]}@{c.level}" for c in architecture.canonical().cells)


def from_text(text: str) -> Architecture:
    """The inverse of to_text. Raises ValueError."""
    cells = []
    for word in text.split():
        inputs, _, level = word.partition("@")
        sign = "*" if "*" in inputs else "+"
        first, _, second = inputs.partition(sign)
        cells.append(MergeCell((int(first), int(second)), int(level), OPS[sign]))
    return Architecture(tuple(cells), PRIORS["nas-fpn"].repeats, PRIORS["nas-fpn"].attention)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        for row in rows:
            rewards = " ".join(f"{seed}:{reward:.5f}" for seed, reward in sorted(row.rewards.items()))
            predicted = "" if row.predicted is None else f"{row.predicted:.5f}"
            writer.writerow([to_text(row.graph), row.source, rewards, predicted])
    partial.replace(path)


def read_rows(text: str) -> list[Row]:
    """The inverse of write_rows."""
    rows = []
    for entry in csv.DictReader(text.splitlines()):
        pairs = (pair.split(":") for pair in entry["rewards"].split())
        rewards = {int(seed): float(reward) for seed, reward in pairs}
        predicted = float(entry["predicted"]) if entry["predicted"] else None
        rows.append(Row(from_text(entry["graph"]), entry["source"], rewards, predicted))
    return rows


@functools.lru_cache(maxsize=1)
def load_tabular() -> Tabular:
    """The benchmark that comes with the package; fitting its regression, once, takes seconds. Raises UserError."""
    rows, description = read_rows(_read(TABLE)), json.loads(_read(DESCRIPTION))
    return Tabular(rows, description["noise"], description["prediction error"], f"tabular-{table_digest()}")


def check_space(like: Architecture) -> None:
    """Raises UserError if a graph is of another space than the benchmark's."""
    ours = PRIORS["nas-fpn"]
    if (len(like.cells), like.repeats, like.attention) != (len(ours.cells), ours.repeats, ours.attention):
        raise UserError(
            f"the tabular benchmark knows graphs of {len(ours.cells)} cells as published, the prior has "
            f"{len(like.cells)} cells, repeats {like.repeats}, attention {like.attention.pool}/{like.attention.gate}; "
            "take --prior nas-fpn or none"
        )


def table_digest() -> str:
    """What the benchmark's rewards depend on."""
    return hashlib.sha256((_read(TABLE) + _read(DESCRIPTION)).encode()).hexdigest()[:16]


def _read(name: str) -> str:
    try:
        return (resources.files("experiments") / name).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"experiments/{name}: cannot be read ({error.strerror}); the benchmark needs it") from error
