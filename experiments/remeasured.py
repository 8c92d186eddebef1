"""Are the winners on the tabular benchmark winners indeed? python -m experiments.remeasured

Optimisers exploit a benchmark's errors. So the best graph of each search of experiments.controllers from the prior, by
the benchmark's own means, is measured anew by real trials with new seeds. Printed for every algorithm: how many of its
winners the benchmark knows, and by how much they are ahead of the published graph, as the benchmark says and as trials
say (means and standard errors over searches); then the same for all winners, known and predicted ones apart.

Takes a few minutes, and the proxy's preparation on top where the cache does not hold it.
"""

import argparse
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from detector.architecture import Architecture
from detector.coco import load_split
from detector.config_files import load_config
from experiments.controllers import ALGORITHMS, PRIOR, search
from experiments.fidelity import load_frozen
from nas.config import Config
from nas.proxy import Proxy
from nas.tabular import Tabular, load_tabular


class Winner(NamedTuple):
    """The best graph of one search. leads over the published graph: the benchmark's, and that of real trials."""

    algorithm: str
    is_known: bool
    said: float
    measured: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--searches", type=int, default=5, help="of each algorithm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22], help="of real trials")
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config("shapes", Config)
    proxy = load_frozen(config, load_split(config.data, None, "train"))
    tabular = load_tabular()
    found: list[Winner] = []
    for name in args.algorithms:
        graphs = [best_of_search(tabular, name, seed, args.episodes) for seed in range(args.searches)]
        found += winners(tabular, proxy, name, graphs, args.seeds)
    report(found)


def best_of_search(tabular: Tabular, algorithm: str, seed: int, episodes: int) -> Architecture:
    """By the benchmark's means, among all that one search from the prior proposes."""
    graphs = search(tabular, ALGORITHMS[algorithm], True, seed, episodes)
    means = [estimate.mean for estimate in tabular.estimates(graphs)]
    return graphs[means.index(max(means))]


def winners(
    tabular: Tabular, proxy: Proxy, algorithm: str, graphs: Sequence[Architecture], seeds: Sequence[int]
) -> list[Winner]:
    """Measured with the same seeds as the published graph."""

    def mean(graph: Architecture) -> float:
        return statistics.fmean(proxy.evaluate(graph, seed) for seed in seeds)

    published, said = mean(PRIOR), tabular.estimate(PRIOR).mean
    estimates = tabular.estimates(graphs)
    return [
        Winner(algorithm, estimate.is_known, estimate.mean - said, mean(graph) - published)
        for graph, estimate in zip(graphs, estimates, strict=True)
    ]


def report(found: Sequence[Winner]) -> None:
    print(
        "| winners of | searches | known | lead over the published graph, as the benchmark says | as real trials say |"
    )
    print("|---|---|---|---|---|")
    for name in dict.fromkeys(winner.algorithm for winner in found):
        _row(name, [winner for winner in found if winner.algorithm == name])
    for name, is_known in (("all, known", True), ("all, predicted", False)):
        _row(name, [winner for winner in found if winner.is_known == is_known])


def _row(name: str, of: Sequence[Winner]) -> None:
    if of:
        known = sum(winner.is_known for winner in of)
        leads = [_mean_and_error(winner.said for winner in of), _mean_and_error(winner.measured for winner in of)]
        print(f"| {name} | {len(of)} | {known} | {leads[0]} | {leads[1]} |")


def _mean_and_error(values: Iterable[float]) -> str:
    numbers = list(values)
    error = f" ({statistics.stdev(numbers) / math.sqrt(len(numbers)):.4f})" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):+.4f}{error}"


if __name__ == "__main__":
    main()
