"""Does the proxy rank graphs as full training does? python -m experiments.fidelity --folder runs/fidelity --jobs 2

Sixteen graphs of `shapes` (the published one, hand-made ones, two that throw information away, neighbours of the
published one, random ones) are trained in full: the whole detector on the training split, judged on the validation
split; once from scratch, and once from a backbone that was trained before, as final trainings start (not the one whose
maps the proxies have, but others, one a seed). Proxies judge the same graphs. Printed for each reference and proxy: its
cost (CPU seconds a trial), the noise (what a seed does to one graph and not to all), the spread between graphs, and
Kendall's tau of its single-seed rewards with the reference, over all graphs, over the pairs of graphs that the
reference tells apart, and among the third that it holds for best; intervals (90 %) by bootstrap over graphs.

The noise of the reference caps tau, since it puts graphs that are equal in some order. Two graphs are told apart if
their difference would be that large in one of twenty cases by chance (Fisher's least significant difference, with what
a seed does to one graph and not to all as noise). ceiling: the tau that a proxy without noise or bias would reach, as
estimated from how well the reference's seeds agree with each other. Pearson's correlation, which ranks among equals do
not spoil, is printed beside tau.

Restartable: each run is one file in --folder. --jobs runs several at a time. Runs that are kept with the code, in
experiments/fidelity.json, are not made again; --keep adds those of --folder, and once all are there writes what they
say of the default proxy to experiments/proxy_fidelity.json, for nas-report.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau, t

from controller.decisions import mutate, uniform
from detector.architecture import PRIORS, Architecture, MergeCell, Op
from detector.cascade_rcnn import DetectionHeads
from detector.coco import CocoData, load_split
from detector.command import write_json
from detector.config_files import load_config
from detector.evaluate import ap_and_ap50
from detector.train import Training
from experiments.full_training import (
    CPU,
    FROM_BACKBONE,
    LEARNING_RATE,
    WARMUP_STEPS,
    full_training,
    trained_backbone,
)
from experiments.full_training import NAME as FULL_TRAINING
from experiments.runs import Run, Runs
from nas.config import PROXY_VERSION, Config
from nas.fidelity import FILE, Fidelity
from nas.preparation import FeatureCache
from nas.proxy import EVALUATION_BATCH, FrozenProxy, FullProxy, load_proxy
from nas.space import load_prior, space_around

RESAMPLES = 500
AVERAGED_PARTS = 5  # the moving average of weights spans a fifth of a trial
SIGNIFICANCE = 0.05  # of a difference between two graphs that a reference tells apart


class Reference(NamedTuple):
    """A kind of full training, and how many of each graph there are by default."""

    kind: str
    seeds: int


REFERENCES = {"scratch": Reference(FULL_TRAINING, 3), "backbone": Reference(FROM_BACKBONE, 4)}
KEPT = Path(__file__).with_suffix(".json")


class Proxied(NamedTuple):
    """One way to judge a graph: a protocol, and a trial's steps and learning rate. What one run measures has several
    metrics.
    """

    protocol: str
    steps: int
    learning_rate: float

    def __str__(self) -> str:
        return f"{self.protocol}, {self.steps} steps" + (f" at {self.learning_rate:g}" if self.steps else "")


PROXIES = (
    Proxied("frozen", 0, 0.001),
    Proxied("frozen", 5, 0.001),
    Proxied("frozen", 5, 0.003),
    Proxied("frozen", 20, 0.001),
    Proxied("frozen", 20, 0.003),
    Proxied("frozen", 100, 0.001),
    Proxied("full", 100, 0.003),
    Proxied("full", 200, 0.003),
)


def graphs() -> dict[str, Architecture]:
    """All of seven cells, as the published one."""
    space, prior = space_around(PRIORS["nas-fpn"]), PRIORS["nas-fpn"]
    stream = np.random.default_rng(0)
    found = {"published": prior}
    found |= {name: _graph(cells) for name, cells in HAND_MADE.items()}
    for count in (1, 1, 2, 3, 4):
        decisions = mutate(space, space.decisions(prior), count, stream)
        found[f"neighbour {len(found)}, {count} changed"] = space.architecture(decisions)
    while len(found) < 16:
        found[f"random {len(found)}"] = space.architecture(uniform(space, stream))
    return found


Cells = Sequence[tuple[int, Op, tuple[int, int]]]
HAND_MADE: Mapping[str, Cells] = {
    # P6 and P5 on the way down are the two intermediate cells; outputs then mix what came down with what was there.
    "top-down": [
        (6, "sum", (3, 4)),
        (5, "sum", (2, 5)),
        (4, "sum", (1, 6)),
        (3, "sum", (0, 7)),
        (5, "sum", (2, 6)),
        (6, "sum", (3, 5)),
        (7, "sum", (4, 5)),
    ],
    "bottom-up": [
        (4, "sum", (0, 1)),
        (5, "sum", (5, 2)),
        (3, "sum", (0, 1)),
        (4, "sum", (5, 2)),
        (5, "sum", (6, 3)),
        (6, "sum", (6, 3)),
        (7, "sum", (10, 4)),
    ],
    "down, then up": [
        (5, "sum", (2, 3)),
        (4, "sum", (1, 5)),
        (3, "sum", (0, 6)),
        (4, "sum", (6, 7)),
        (5, "sum", (5, 8)),
        (6, "sum", (9, 3)),
        (7, "sum", (10, 4)),
    ],
    # Every input is consumed on the way to one level, so that no leaf brings its detail back.
    "all through P5": [
        (5, "sum", (0, 1)),
        (5, "sum", (3, 4)),
        (3, "sum", (5, 6)),
        (4, "sum", (5, 6)),
        (5, "sum", (5, 6)),
        (6, "sum", (5, 6)),
        (7, "sum", (5, 6)),
    ],
    "all through P7": [
        (7, "sum", (0, 1)),
        (7, "sum", (2, 3)),
        (3, "sum", (5, 6)),
        (4, "sum", (5, 6)),
        (5, "sum", (5, 6)),
        (6, "sum", (5, 6)),
        (7, "sum", (5, 6)),
    ],
}


def _graph(cells: Cells) -> Architecture:
    return Architecture(tuple(MergeCell(inputs, level, op) for level, op, inputs in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/fidelity"))
    parser.add_argument("--steps", type=int, default=2000, help="of full training, 16 images each")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="of full training; default: 3 from scratch, 4 from a backbone"
    )
    parser.add_argument("--proxy-seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--references", nargs="+", choices=REFERENCES, default=list(REFERENCES), help="where it starts")
    parser.add_argument("--proxies", nargs="+", default=["frozen", "full"], help="protocols to measure")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--keep", action="store_true", help=f"add the runs that were made to {KEPT.name}, make none")
    parser.add_argument("--only", nargs=2, metavar=("RUN", "SEED"), help="one run, in this process")
    args = parser.parse_args()
    if min(len(seeds) for seeds in (args.seeds, args.proxy_seeds) if seeds) < 2:
        parser.error("give two seeds at least: from one, noise cannot be told")
    runs = Runs(
        args.folder,
        f"v{PROXY_VERSION}-steps{args.steps}-rate{LEARNING_RATE}-warmup{WARMUP_STEPS}",
        "experiments.fidelity",
        _arguments(args),
        KEPT,
    )
    if args.only:
        run = Run(args.only[0], int(args.only[1]))
        torch.set_num_threads(1)
        runs.write(run, make_run(run, args.steps))
        return
    names = list(graphs())
    config = load_config("shapes", Config)
    proxied = [Run(f"{p} of {name}", s) for s in args.proxy_seeds for p in args.proxies for name in names]
    seeds_of = {
        kind: args.seeds or list(range(seeds)) for kind, seeds in (REFERENCES[name] for name in args.references)
    }
    trained = [Run(f"{kind} of {name}", seed) for kind, seeds in seeds_of.items() for seed in seeds for name in names]
    if args.keep:
        runs.keep([*proxied, *trained])
        if not all(runs.has(run) for run in [*proxied, *trained]):
            return
    prepare_for(config, [run for run in [*proxied, *trained] if not runs.has(run)])
    runs.make([*proxied, *trained], args.jobs)
    trainings = {
        kind: np.array([[runs.read(Run(f"{kind} of {n}", s))["ap"] for s in seeds] for n in names])
        for kind, seeds in seeds_of.items()
    }
    measured = {
        protocol: [[runs.read(Run(f"{protocol} of {n}", s)) for s in args.proxy_seeds] for n in names]
        for protocol in args.proxies
    }
    for kind, reference in trainings.items():
        report(kind, names, reference, measured, args.steps)
    if args.keep and FROM_BACKBONE in trainings:
        of_default = judged(measured)[str(default_proxy(config)) + ", AP"].rewards
        write_json(KEPT.with_name(FILE), fidelity_of(of_default, trainings[FROM_BACKBONE])._asdict())
    if args.plot is not None:
        plot(trainings, measured, args.plot)


def prepare_for(config: Config, missing: Sequence[Run]) -> None:
    """Once, before several jobs need it."""
    if any(run.name.startswith("frozen of ") for run in missing):
        load_frozen(config, load_split(config.data, None, "train"))
    for seed in sorted({run.seed for run in missing if run.name.startswith(f"{FROM_BACKBONE} of ")}):
        trained_backbone(config, seed)


def default_proxy(config: Config) -> Proxied:
    """The trial of a configuration."""
    trial = config.proxy.trial
    return Proxied(config.proxy.protocol, trial.steps, trial.learning_rate)


def fidelity_of(rewards: NDArray[np.float64], reference: NDArray[np.float64]) -> Fidelity:
    """Of rewards (graphs, seeds) with a reference (graphs, seeds)."""
    means = reference.mean(axis=1)
    low, high = interval(lambda chosen: tau(rewards[chosen], means[chosen]), len(means))
    count, trainings = reference.shape
    apart = told_apart(reference)

    def right(chosen: NDArray[np.int64]) -> float:
        return (1 + tau_of_pairs(rewards[chosen], apart[np.ix_(chosen, chosen)])) / 2

    right_low, right_high = interval(right, count)
    return Fidelity(
        preset="shapes",
        proxy_version=PROXY_VERSION,
        graphs=count,
        trainings=trainings,
        tau=tau(rewards, means),
        low=low,
        high=high,
        ceiling=ceiling(reference),
        pairs=int(np.triu(apart != 0).sum()),
        right=right(np.arange(count)),
        right_low=right_low,
        right_high=right_high,
    )


def _arguments(args: argparse.Namespace) -> list[str]:
    return ["--folder", str(args.folder), "--steps", str(args.steps)]


def make_run(run: Run, steps: int) -> dict[str, Any]:
    """What one run measures: AP of full training, or the metrics of a protocol at each of its budgets."""
    kind, _, name = run.name.partition(" of ")
    graph = graphs()[name].canonical()
    config = load_config("shapes", Config)
    if kind == FULL_TRAINING:
        return full_training(config, graph, run.seed, steps)
    if kind == FROM_BACKBONE:
        return full_training(config, graph, run.seed, steps, backbone=trained_backbone(config, run.seed))
    data = load_split(config.data, None, "train")
    measure = frozen_metrics if kind == "frozen" else full_metrics
    return {str(p): measure(_with_trial(config, p), data, graph, run.seed) for p in PROXIES if p.protocol == kind}


def _with_trial(config: Config, proxied: Proxied) -> Config:
    given = {"steps": proxied.steps, "learning_rate": proxied.learning_rate}
    trial = config.proxy.trial.model_copy(update=given)
    return config.model_copy(update={"proxy": config.proxy.model_copy(update={"trial": trial})})


def load_frozen(config: Config, data: CocoData) -> FrozenProxy:
    proxy = load_proxy(config, data, load_prior(config.search.prior), CPU, lambda what, step, steps: None)
    assert isinstance(proxy, FrozenProxy)
    return proxy


def frozen_metrics(config: Config, data: CocoData, graph: Architecture, seed: int) -> dict[str, float]:
    """A trial's AP, AP50 and loss; of more than a few steps, also AP with the moving average of its weights."""
    proxy, trial = load_frozen(config, data), config.proxy.trial
    decay = 1 - AVERAGED_PARTS / trial.steps if trial.steps > AVERAGED_PARTS else None
    start = time.process_time()
    training = Training(proxy.initial(graph, seed), trial, CPU, average_decay=decay)
    training.run(proxy.batches(trial, seed))
    proxy.fit_norms(training.model, seed)
    ap, ap50 = ap_and_ap50(proxy.reward, proxy.detections(training.model))
    seconds = time.process_time() - start
    metrics = {"AP": ap, "AP50": ap50, "-loss": -reward_loss(training.model, proxy.reward_cache)}
    if decay is not None:
        proxy.fit_norms(training.result, seed)
        metrics["AP averaged"], _ = ap_and_ap50(proxy.reward, proxy.detections(training.result))
    return metrics | {"seconds": seconds}


def full_metrics(config: Config, data: CocoData, graph: Architecture, seed: int) -> dict[str, float]:
    """The whole detector from scratch, on the proxy's parts."""
    proxy = FullProxy(config, data, CPU)
    start = time.process_time()
    ap = proxy.evaluate(graph, seed)
    return {"AP": ap, "seconds": time.process_time() - start}


@torch.no_grad()
def reward_loss(heads: DetectionHeads, cache: FeatureCache) -> float:
    """Mean of the training loss over the reward part, norms as in testing."""
    heads.eval()
    torch.manual_seed(0)  # it draws samples of regions
    losses = []
    for batch in cache.ordered(EVALUATION_BATCH):
        losses.append(float(torch.stack(list(heads(*batch).values())).sum()))
    return statistics.fmean(losses)


class Judged(NamedTuple):
    """What one metric of one budget says of every graph: rewards (graphs, seeds), and CPU seconds a trial."""

    rewards: NDArray[np.float64]
    seconds: float


def judged(measured: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> dict[str, Judged]:
    """By budget and metric."""
    found = {}
    for protocol, of_graphs in measured.items():
        for proxied in (p for p in PROXIES if p.protocol == protocol):
            for metric in (m for m in of_graphs[0][0][str(proxied)] if m != "seconds"):
                rewards = np.array([[run[str(proxied)][metric] for run in seeds] for seeds in of_graphs])
                seconds = statistics.fmean(run[str(proxied)]["seconds"] for seeds in of_graphs for run in seeds)
                found[f"{proxied}, {metric}"] = Judged(rewards, seconds)
    return found


def noise_and_spread(rewards: NDArray[np.float64]) -> tuple[float, float]:
    """Standard deviation from seed to seed, and between the true means of graphs: (graphs, seeds) -> two numbers.

    What a seed does to all graphs alike is not noise: a search trains all of its graphs with one seed.
    """
    graphs, seeds = rewards.shape
    of_graphs, of_seeds = rewards.mean(axis=1), rewards.mean(axis=0)
    rest = rewards - of_graphs[:, None] - of_seeds[None, :] + rewards.mean()
    within = float((rest**2).sum()) / ((graphs - 1) * (seeds - 1))
    between = float(of_graphs.var(ddof=1)) - within / seeds
    return within**0.5, max(0.0, between) ** 0.5


def ceiling(reference: NDArray[np.float64]) -> float:
    """The tau of a perfect proxy with the mean of a noisy reference (graphs, seeds).

    From ranks alone, since graphs are not spread normally: the tau of one seed with another gives their correlation
    (sin(pi / 2 * tau), Kruskal 1958), the Spearman-Brown formula that of the mean with the truth.
    """
    seeds = reference.shape[1]
    pairs = [kendalltau(reference[:, a], reference[:, b]).statistic for a in range(seeds) for b in range(a)]
    one = max(0.0, math.sin(math.pi / 2 * statistics.fmean(map(float, pairs))))
    reliability = seeds * one / (1 + (seeds - 1) * one)
    return 2 / math.pi * math.asin(reliability**0.5)


def tau(rewards: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Kendall's tau of single-seed rewards (graphs, seeds) with a reference (graphs,): the mean over seeds."""
    taus = [float(kendalltau(column, reference).statistic) for column in rewards.T]
    return statistics.fmean(0.0 if math.isnan(value) else value for value in taus)


def told_apart(reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Which of two graphs is better by a reference (graphs, seeds): 1 if it is the first, -1 if the second, 0 if that
    cannot be told (graphs, graphs).
    """
    count, seeds = reference.shape
    noise, _ = noise_and_spread(reference)
    least = float(t.ppf(1 - SIGNIFICANCE / 2, (count - 1) * (seeds - 1))) * noise * (2 / seeds) ** 0.5
    means = reference.mean(axis=1)
    differences = means[:, None] - means[None, :]
    found: NDArray[np.float64] = np.where(np.abs(differences) > least, np.sign(differences), 0.0)
    return found


def tau_of_pairs(rewards: NDArray[np.float64], apart: NDArray[np.float64]) -> float:
    """Kendall's tau of single-seed rewards (graphs, seeds) over pairs that are told apart (graphs, graphs): the share
    of them that is in the right order, less that in the wrong one; the mean over seeds.
    """
    order = np.sign(rewards[:, None] - rewards[None, :])  # (graphs, graphs, seeds)
    agreeing, pairs = float((order * apart[:, :, None]).sum()), float(np.abs(apart).sum())
    return agreeing / (rewards.shape[1] * pairs) if pairs else 0.0


def correlation(rewards: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Pearson's, of single-seed rewards (graphs, seeds) with a reference (graphs,): the mean over seeds."""
    values = [float(np.corrcoef(column, reference)[0, 1]) if column.std() > 0 else 0.0 for column in rewards.T]
    return statistics.fmean(values)


def best_third(reference: NDArray[np.float64]) -> NDArray[np.int64]:
    """The graphs that the reference (graphs,) holds for best."""
    return np.argsort(-reference)[: max(3, len(reference) // 3)]


def interval(statistic: Callable[[NDArray[np.int64]], float], count: int) -> tuple[float, float]:
    """90 %, by bootstrap over graphs. A draw of few different graphs says nothing and is drawn again."""
    stream = np.random.default_rng(0)
    values: list[float] = []
    while len(values) < RESAMPLES:
        chosen = stream.integers(0, count, count)
        if len(set(chosen.tolist())) > 2:
            values.append(statistic(chosen))
    low, high = np.quantile(values, [0.05, 0.95])
    return float(low), float(high)


def report(
    kind: str,
    names: Sequence[str],
    reference: NDArray[np.float64],
    measured: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    steps: int,
) -> None:
    means = reference.mean(axis=1)
    noise, spread = noise_and_spread(reference)
    low, high = interval(lambda chosen: ceiling(reference[chosen]), len(names))
    print(f"\n{kind}: {steps} steps of 16 images, {reference.shape[1]} seeds, AP on `val`")
    print(f"noise {noise:.4f}, spread {spread:.4f}, ceiling of tau {ceiling(reference):.2f} ({low:.2f} to {high:.2f})")
    third, apart = best_third(means), told_apart(reference)
    print(f"pairs that it tells apart: {int(np.triu(apart != 0).sum())} of {math.comb(len(names), 2)}")
    print(f"ceiling among the best {len(third)}: {ceiling(reference[third]):.2f}")
    print("\n| graph | full training | standard error |\n|---|---|---|")
    for index in np.argsort(-means):
        print(f"| {names[index]} | {means[index]:.4f} | {noise / reference.shape[1] ** 0.5:.4f} |")
    columns = ["proxy", "CPU s", "noise", "spread", "correlation", "tau", "90 %", "tau of pairs told apart", "90 %"]
    columns += [f"tau of the best {len(third)}", "90 %"]
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, (rewards, seconds) in judged(measured).items():
        noise, spread = noise_and_spread(rewards)
        cells = [name, f"{seconds:.1f}", f"{noise:.4f}", f"{spread:.4f}", f"{correlation(rewards, means):.3f}"]
        cells += taus(rewards, reference)
        print("| " + " | ".join(cells) + " |")


def taus(rewards: NDArray[np.float64], reference: NDArray[np.float64]) -> list[str]:
    """Of rewards (graphs, seeds) with a reference (graphs, seeds), each with its interval: of all graphs, of the pairs
    that are told apart, and of the best third.
    """
    means, apart = reference.mean(axis=1), told_apart(reference)
    every, third = np.arange(len(means)), best_third(means)

    def of_graphs(chosen: NDArray[np.int64]) -> float:
        return tau(rewards[chosen], means[chosen])

    def of_pairs(chosen: NDArray[np.int64]) -> float:
        return tau_of_pairs(rewards[chosen], apart[np.ix_(chosen, chosen)])

    return [*_estimated(of_graphs, every), *_estimated(of_pairs, every), *_estimated(of_graphs, third)]


def _estimated(statistic: Callable[[NDArray[np.int64]], float], graphs: NDArray[np.int64]) -> list[str]:
    low, high = interval(lambda chosen: statistic(graphs[chosen]), len(graphs))
    return [f"{statistic(graphs):.2f}", f"{low:.2f} to {high:.2f}"]


def plot(
    references: Mapping[str, NDArray[np.float64]],
    measured: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    path: Path,
) -> None:
    """Rewards of each budget over AP of each kind of full training."""
    from matplotlib.figure import Figure

    shown = {name: found for name, found in judged(measured).items() if name.endswith(", AP")}
    figure = Figure(figsize=(3 * len(shown), 3 * len(references)), layout="constrained")
    rows = figure.subplots(len(references), len(shown), squeeze=False)
    for row, (kind, reference) in zip(rows, references.items(), strict=True):
        for axes, (name, (rewards, seconds)) in zip(row, shown.items(), strict=True):
            axes.errorbar(reference.mean(1), rewards.mean(1), rewards.std(1, ddof=1), fmt="o", ms=4, lw=1)
            axes.set(title=f"{name.removesuffix(', AP')}\n{seconds:.1f} s", xlabel=f"AP of {kind}")
        row[0].set_ylabel("AP of the proxy")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
