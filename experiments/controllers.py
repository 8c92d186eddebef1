"""Who searches best? python -m experiments.controllers --folder runs/controllers --jobs 2 --plot docs/controllers.png

REINFORCE (ours; with its model of rewards, and without), random draws from its first policy, regularised evolution,
local search, and Optuna's TPE, through the same controller (batches of 10, lag 1), on the tabular benchmark: 400
episodes, 50 seeds, the same noise for all, with the published prior and without. Printed, from the true (noise-free)
rewards of what was proposed:

* without a prior: episodes until a graph of the 99th and 99.9th percentile of uniformly random graphs was proposed;
* with it: episodes to half and to 90 % of the way from the prior to the best measured graph;
* the best after 400 episodes, and the mean of the last 50 proposals;

medians over seeds; a seed that does not arrive within its episodes counts as later than all others.

Restartable: ten seeds are one file in --folder.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from controller.controller import Controller
from controller.decisions import Decisions, uniform
from controller.proposer import Proposer, Rewarded
from detector.architecture import PRIORS, Architecture
from experiments.rivals import LocalSearch, Tpe
from experiments.runs import Run, Runs
from nas.algorithms import make_controller
from nas.config import SearchConfig
from nas.space import NasFpnSpace, space_around
from nas.tabular import Tabular, load_tabular, table_digest

PRIOR = PRIORS["nas-fpn"]
SEEDS_A_RUN = 10
UNIFORM_GRAPHS = 20_000
LAST = 50
MISSED = 10**6

Make = Callable[[NasFpnSpace, Architecture | None, int], Controller]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/controllers"))
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=50, help=f"a multiple of {SEEDS_A_RUN}")
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--only", nargs=2, metavar=("RUN", "BLOCK"), help="one run, in this process")
    args = parser.parse_args()
    arguments = ["--folder", str(args.folder), "--episodes", str(args.episodes)]
    runs = Runs(args.folder, f"episodes{args.episodes}-{table_digest()}", "experiments.controllers", arguments)
    if args.only:
        torch.set_num_threads(1)
        run = Run(args.only[0], int(args.only[1]))
        runs.write(run, make_run(load_tabular(), run, args.episodes))
        return
    blocks = range(args.seeds // SEEDS_A_RUN)
    names = [f"{name} {start}" for start in STARTS for name in args.algorithms]
    runs.make([Run(name, block) for block in blocks for name in names], args.jobs)
    curves = {
        name: np.array([curve for block in blocks for curve in runs.read(Run(name, block))["curves"]]) for name in names
    }
    report(load_tabular(), curves)
    if args.plot is not None:
        plot(load_tabular(), curves, args.plot)


SEARCH = SearchConfig()
STARTS = ("from the prior", "from nothing")


def ours(algorithm: str, **settings: Any) -> Make:
    """One that nas-search has."""
    search = SEARCH.model_copy(update={"algorithm": algorithm, **settings})
    return partial(make_controller, search)


def rival(kind: Callable[[NasFpnSpace, Decisions | None], Proposer]) -> Make:
    """Another one, in the same controller."""

    def make(space: NasFpnSpace, prior: Architecture | None, seed: int) -> Controller:
        proposer = kind(space, space.decisions(prior) if prior is not None else None)
        return Controller(proposer, batch=SEARCH.batch, lag=SEARCH.lag, seed=seed)

    return make


ALGORITHMS: Mapping[str, Make] = {
    "reinforce": ours("reinforce"),
    "without model": ours("reinforce", model_steps=0),
    "random": ours("random"),
    "evolution": ours("evolution"),
    "local search": rival(LocalSearch),
    "tpe": rival(Tpe),
}


def make_run(tabular: Tabular, run: Run, episodes: int) -> dict[str, Any]:
    """True rewards of what was proposed, episode by episode, for ten seeds."""
    name, _, start = run.name.partition(" from ")
    has_prior = start == "the prior"
    seeds = range(run.seed * SEEDS_A_RUN, (run.seed + 1) * SEEDS_A_RUN)
    searches = (search(tabular, ALGORITHMS[name], has_prior, seed, episodes) for seed in seeds)
    return {"curves": [[estimate.mean for estimate in tabular.estimates(graphs)] for graphs in searches]}


def search(tabular: Tabular, make: Make, has_prior: bool, seed: int, episodes: int) -> list[Architecture]:
    """What one search proposes, episode by episode. A graph that comes again has the same reward."""
    space = space_around(PRIOR)
    controller = make(space, PRIOR if has_prior else None, seed)
    proposed: list[Architecture] = []
    for first in range(0, episodes, SEARCH.batch):
        proposals = [controller.propose(episode) for episode in range(first, min(first + SEARCH.batch, episodes))]
        drawn = [(proposal.decisions, proposal.log_prob) for proposal in proposals]
        given: list[tuple[Decisions, float | None]] = list(drawn)
        if first == 0 and has_prior:
            given[0] = space.decisions(PRIOR), None
        graphs = [space.architecture(decisions) for decisions, _ in given]
        proposed += graphs
        tabular.estimates(graphs)  # sooner than one by one
        rewards = [tabular.reward(graph, seed) for graph in graphs]
        controller.update([Rewarded(*of, reward) for of, reward in zip(given, rewards, strict=True)])
    return proposed


class Goals(NamedTuple):
    """True rewards to be reached."""

    without_prior: Mapping[str, float]
    with_prior: Mapping[str, float]


def goals(tabular: Tabular) -> Goals:
    space, stream = space_around(PRIOR), np.random.default_rng(0)
    drawn = [space.architecture(uniform(space, stream)) for _ in range(UNIFORM_GRAPHS)]
    rewards = np.array([estimate.mean for estimate in tabular.estimates(drawn)])
    prior = tabular.estimate(PRIOR).mean
    best = max(estimate.mean for estimate in tabular.estimates(row.graph for row in tabular.rows))
    return Goals(
        {f"{share} %": float(np.quantile(rewards, share / 100)) for share in (99.0, 99.9)},
        {f"{share} % of the gap": prior + share / 100 * (best - prior) for share in (50, 90)},
    )


def episodes_to(curves: NDArray[np.float64], goal: float) -> NDArray[np.int64]:
    """(seeds, episodes) -> (seeds,): how many episodes until the goal was reached; MISSED if never."""
    reached = curves >= goal
    return np.where(reached.any(1), reached.argmax(1) + 1, MISSED)


def report(tabular: Tabular, curves: Mapping[str, NDArray[np.float64]]) -> None:
    found = goals(tabular)
    print(f"prior {tabular.estimate(PRIOR).mean:.4f}, noise {tabular.sd:.4f}")
    for start, wanted in zip(STARTS, (found.with_prior, found.without_prior), strict=True):
        shown = ", ".join(f"{name}: {goal:.4f}" for name, goal in wanted.items())
        print(f"\n{start}; goals {shown}")
        columns = [f"episodes to {name}" for name in wanted]
        print("| algorithm | " + " | ".join(columns) + " | best of all | last 50 |")
        print("|---" * (len(columns) + 3) + "|")
        for name, of_seeds in curves.items():
            if name.endswith(start):
                cells = [name.removesuffix(" " + start)]
                cells += [median_and_quartiles(episodes_to(of_seeds, goal)) for goal in wanted.values()]
                cells += [mean_and_error(of_seeds.max(1).tolist())]
                cells.append(mean_and_error(of_seeds[:, -LAST:].mean(1).tolist()))
                print("| " + " | ".join(cells) + " |")


def median_and_quartiles(episodes: NDArray[np.int64]) -> str:
    values = [float(np.quantile(episodes, q, method="inverted_cdf")) for q in (0.5, 0.25, 0.75)]
    median, low, high = ("never" if value >= MISSED else f"{value:.0f}" for value in values)
    return f"{median} ({low} to {high})"


def mean_and_error(values: Sequence[float]) -> str:
    """The mean, and its standard error, which one value does not have."""
    error = f" ({statistics.stdev(values) / math.sqrt(len(values)):.4f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{error}"


def plot(tabular: Tabular, curves: Mapping[str, NDArray[np.float64]], path: Path) -> None:
    """The best true reward so far: means over seeds, with bands of two standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, start in zip(figure.subplots(1, 2), STARTS, strict=True):
        for name, of_seeds in curves.items():
            if name.endswith(start):
                best = np.maximum.accumulate(of_seeds, axis=1)
                mean, error = best.mean(0), 2 * best.std(0, ddof=1) / len(best) ** 0.5
                axes.plot(mean, label=name.removesuffix(" " + start))
                axes.fill_between(range(len(mean)), mean - error, mean + error, alpha=0.2)
        axes.axhline(tabular.estimate(PRIOR).mean, color="grey", lw=0.8, ls="--", label="the prior")
        axes.set(title=start, xlabel="episode", ylabel="best true reward so far")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
