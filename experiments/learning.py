"""Does the search learn? python -m experiments.learning --database learning.db

For each seed, two studies on the same proxy: `reinforce` (400 episodes) and `random` (the same first policy, never
updated). Printed:

* the mean reward of distinct graphs first proposed in episodes 300-399, against that of 100 distinct samples of the
  first policy (the prior excluded), with the standard error of the difference bootstrapped over batches;
* the winner: the best of the five highest rewards on 3 new seeds, then compared with the prior on 5 further seeds.

Restartable: studies continue, and every re-run is kept in a file beside the database.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.architecture import Architecture
from detector.coco import load_split
from detector.command import write_json
from detector.config_files import load_config
from nas.config import Config
from nas.proxy import Proxy, choose_device, load_proxy
from nas.space import load_prior
from nas.store import Episode, Store, Study

EPISODES, LATE = 400, 300
INITIAL_SAMPLES = 100
INITIAL_EPISODES = 150  # of the untrained policy: enough for 100 distinct graphs
LEAST_LATE = 40
CANDIDATES = 5
CHOOSING_SEEDS = (1001, 1002, 1003)
TESTING_SEEDS = (2001, 2002, 2003, 2004, 2005)
RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="shapes")
    parser.add_argument("--database", type=Path, default=Path("learning.db"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw rewards over episodes")
    args = parser.parse_args()
    for seed in args.seeds:
        search(args.config, args.database, f"random-{seed}", "random", seed, INITIAL_EPISODES)
        search(args.config, args.database, f"reinforce-{seed}", "reinforce", seed, EPISODES)
    config = load_config(args.config, Config)
    prior = load_prior(config.search.prior)
    if prior is None:
        raise SystemExit("the comparison needs a configuration with a prior")
    data = load_split(config.data, None, "train")
    proxy = load_proxy(config, data, prior, choose_device(), lambda what, step, steps: None)
    store = Store(str(args.database), read_only=True)
    _, study = store.find_study(f"reinforce-{args.seeds[0]}")
    runs = Remeasured(proxy, study, args.database.with_suffix(".runs.json"))
    if args.plot is not None:
        plot(store, args.seeds, args.plot)
    for seed in args.seeds:
        learned = episodes(store, f"reinforce-{seed}")
        report_learning(seed, learned, episodes(store, f"random-{seed}"))
        report_winner(seed, learned, store, prior, runs)


def search(config: str, database: Path, study: str, algorithm: str, seed: int, count: int) -> None:
    """One study, continued if it is there; its best graphs are looked at here, so it is not to confirm them."""
    command = [sys.executable, "-c", "import sys; from nas.commands import search; sys.exit(search())"]
    command += ["--config", config, "--database", str(database), "--study", study, "--confirm", "0"]
    command += ["--algorithm", algorithm, "--seed", str(seed), "--episodes", str(count)]
    subprocess.run(command, check=True)


def episodes(store: Store, study: str) -> list[Episode]:
    return store.episodes(store.find_study(study)[0])


class Remeasured:
    """Rewards of graphs under further seeds, each measured once for the configuration and data of a study."""

    def __init__(self, proxy: Proxy, study: Study, path: Path) -> None:
        self.proxy = proxy
        self.path = path
        identity = json.dumps([study.config, study.data_hash], sort_keys=True)
        self.of = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.rewards: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def rewards_of(self, architecture: Architecture, seeds: Sequence[int]) -> list[float]:
        for seed in seeds:
            key = self._key(architecture, seed)
            if key not in self.rewards:
                self.rewards[key] = self.proxy.evaluate(architecture, seed)
                write_json(self.path, self.rewards)
        return [self.rewards[self._key(architecture, seed)] for seed in seeds]

    def _key(self, architecture: Architecture, seed: int) -> str:
        return f"{self.of} {architecture.hash} {seed}"


def first_proposed(of_study: Sequence[Episode], start: int, stop: int) -> list[Episode]:
    """Episodes of [start, stop) whose graph no earlier episode had, with a reward; the prior excluded."""
    seen = {episode.architecture_hash for episode in of_study[:start]} | {of_study[0].architecture_hash}
    fresh = []
    for episode in of_study[start:stop]:
        if episode.architecture_hash not in seen and episode.reward is not None:
            fresh.append(episode)
        seen.add(episode.architecture_hash)
    return fresh


def report_learning(seed: int, learned: Sequence[Episode], untrained: Sequence[Episode]) -> None:
    late = first_proposed(learned, LATE, EPISODES)
    initial = first_proposed(untrained, 0, INITIAL_EPISODES)[:INITIAL_SAMPLES]
    if min(len(late), len(initial)) < 2:
        print(f"seed {seed}: {len(initial)} graphs of the first policy, {len(late)} new late ones: too few to compare")
        return
    stream = np.random.default_rng(0)
    differences = [mean_of(resampled(late, stream)) - mean_of(resampled(initial, stream)) for _ in range(RESAMPLES)]
    difference, error = mean_of(late) - mean_of(initial), statistics.stdev(differences)
    is_met = len(late) >= LEAST_LATE and len(initial) == INITIAL_SAMPLES and difference >= 3 * error
    print(
        f"seed {seed}: {len(initial)} graphs of the first policy {mean_of(initial):.4f}, {len(late)} new graphs of "
        f"episodes {LATE}-{EPISODES - 1} {mean_of(late):.4f}: difference {difference:.4f}, "
        f"standard error {error:.4f}, {difference / error:.1f} of them; "
        f"{LEAST_LATE} new graphs and 3 standard errors: {'met' if is_met else 'not met'}"
    )


def resampled(of_study: Sequence[Episode], stream: np.random.Generator) -> list[Episode]:
    """Whole batches of ten, drawn with replacement: episodes of one batch share a policy."""
    batches: dict[int, list[Episode]] = {}
    for episode in of_study:
        batches.setdefault(episode.number // 10, []).append(episode)
    chosen: NDArray[np.int64] = stream.choice(sorted(batches), size=len(batches))
    return [episode for number in chosen.tolist() for episode in batches[number]]


def mean_of(of_study: Sequence[Episode]) -> float:
    return statistics.fmean(episode.reward or 0.0 for episode in of_study)


def report_winner(seed: int, learned: Sequence[Episode], store: Store, prior: Architecture, runs: Remeasured) -> None:
    distinct = {episode.architecture_hash: episode for episode in learned if episode.reward is not None}
    best = sorted(distinct.values(), key=lambda episode: -(episode.reward or 0.0))[:CANDIDATES]
    candidates = [store.architecture(episode.architecture_hash) for episode in best]
    winner = max(candidates, key=lambda graph: statistics.fmean(runs.rewards_of(graph, CHOOSING_SEEDS)))
    ours, theirs = (runs.rewards_of(graph, TESTING_SEEDS) for graph in (winner, prior))
    error = (statistics.variance(ours) / len(ours) + statistics.variance(theirs) / len(theirs)) ** 0.5
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    print(
        f"seed {seed}: winner {winner.hash[:8]} {shown(ours)}, prior {shown(theirs)}, {len(ours)} seeds: "
        f"difference {difference:.4f}, standard error {error:.4f}"
    )


def plot(store: Store, seeds: Sequence[int], path: Path) -> None:
    """Mean reward of each ten episodes, of the learning search and of the untrained policy, a line for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for algorithm, colour in (("random", "0.65"), ("reinforce", "tab:blue")):
        for seed in seeds:
            of_study = episodes(store, f"{algorithm}-{seed}")
            batches = [of_study[start : start + 10] for start in range(0, len(of_study), 10)]
            means = [statistics.fmean(e.reward for e in batch if e.reward is not None) for batch in batches]
            label = {"random": "first policy, never updated", "reinforce": "REINFORCE"}[algorithm]
            numbers = [10 * i + 5 for i in range(len(means))]
            axes.plot(numbers, means, color=colour, lw=1.3, label=label if seed == seeds[0] else None)
    prior = episodes(store, f"reinforce-{seeds[0]}")[0].reward or 0.0
    axes.axhline(prior, color="tab:red", lw=1, ls="--", label="prior (published NAS-FPN)")
    axes.set(xlabel="episode", ylabel="proxy AP, mean of 10")
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=130)


def shown(rewards: Sequence[float]) -> str:
    return f"{statistics.fmean(rewards):.4f} (sd {statistics.stdev(rewards):.4f})"


if __name__ == "__main__":
    main()
