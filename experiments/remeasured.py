"""Are the winners on the tabular benchmark winners indeed? python -m experiments.remeasured

Optimisers exploit a benchmark's errors. So the best graph of each search of experiments.controllers from the prior, by
the benchmark's own means, is measured anew by real trials: with new seeds, and with pools of cell weights that were
prepared anew, with several seeds. Printed for every algorithm: how many different winners it has, how
many of them the benchmark knows, and by how much they are ahead of the published graph, as the benchmark says and as
trials with each pool say (means and standard errors over winners); then the same for all winners, known and predicted
ones apart. What the published graph itself has is printed below, with the error that all leads of a pool share.

Takes minutes, and as many for each pool that the cache does not hold.
"""

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from detector.architecture import Architecture
from detector.coco import load_split
from detector.config_files import load_config
from experiments.controllers import ALGORITHMS, PRIOR, mean_and_error, search
from experiments.fidelity import load_frozen
from nas.config import Config
from nas.proxy import Proxy
from nas.tabular import Tabular, load_tabular


class Winner(NamedTuple):
    """The best graph of a search. Its leads over the published graph: what the benchmark said, and by pool."""

    is_known: bool
    said: float
    measured: Sequence[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--searches", type=int, default=5, help="of each algorithm")
    parser.add_argument("--pools", type=int, nargs="+", default=[0, 1, 2], help="values of proxy.seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22], help="of real trials")
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    args = parser.parse_args()
    if len(args.seeds) < 2:
        parser.error("give two seeds at least: from one, noise cannot be told")
    torch.set_num_threads(1)
    configs = [load_config("shapes", Config, [f"proxy.seed={pool}"]) for pool in args.pools]
    proxies = [load_frozen(config, load_split(config.data, None, "train")) for config in configs]
    tabular = load_tabular()
    searches = range(args.searches)
    graphs = {
        name: [best_of_search(tabular, name, seed, args.episodes) for seed in searches] for name in args.algorithms
    }
    trials = Trials(proxies, args.seeds)
    report({name: winners(tabular, trials, found) for name, found in graphs.items()}, args.pools)
    print(f"\nThe published graph: {tabular.estimate(PRIOR).mean:.4f} by the benchmark; by trials, pool by pool,")
    print(", ".join(mean_and_error(rewards) for rewards in trials.rewards(PRIOR)))


class Trials:
    """Real trials of graphs, each with the same seeds and pools."""

    def __init__(self, proxies: Sequence[Proxy], seeds: Sequence[int]) -> None:
        self.proxies = proxies
        self.seeds = seeds
        self._known: dict[str, list[list[float]]] = {}

    def rewards(self, graph: Architecture) -> list[list[float]]:
        """By pool and seed."""
        if graph.hash not in self._known:
            self._known[graph.hash] = [[proxy.evaluate(graph, seed) for seed in self.seeds] for proxy in self.proxies]
        return self._known[graph.hash]


def best_of_search(tabular: Tabular, algorithm: str, seed: int, episodes: int) -> Architecture:
    """By the benchmark's means, among all that one search from the prior proposes."""
    graphs = search(tabular, ALGORITHMS[algorithm], True, seed, episodes)
    means = [estimate.mean for estimate in tabular.estimates(graphs)]
    return graphs[means.index(max(means))]


def winners(tabular: Tabular, trials: Trials, graphs: Iterable[Architecture]) -> dict[str, Winner]:
    """By hash: a graph that several searches found is one."""
    published, said = trials.rewards(PRIOR), tabular.estimate(PRIOR).mean
    found = {}
    for graph in graphs:
        estimate = tabular.estimate(graph)
        of_pools = zip(trials.rewards(graph), published, strict=True)
        leads = [statistics.fmean(own) - statistics.fmean(its) for own, its in of_pools]
        found[graph.hash] = Winner(estimate.is_known, estimate.mean - said, leads)
    return found


def report(found: Mapping[str, Mapping[str, Winner]], pools: Sequence[int]) -> None:
    columns = ["winners of", "graphs", "known", "lead by the benchmark", *(f"by trials, pool {pool}" for pool in pools)]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    every = {graph_hash: winner for of in found.values() for graph_hash, winner in of.items()}
    rows = {name: list(of.values()) for name, of in found.items()}
    rows |= {"all, known": [winner for winner in every.values() if winner.is_known]}
    rows |= {"all, predicted": [winner for winner in every.values() if not winner.is_known]}
    for name, of in rows.items():
        if of:
            known = sum(winner.is_known for winner in of)
            leads = [[winner.said for winner in of], *zip(*(winner.measured for winner in of), strict=True)]
            cells = [name, str(len(of)), str(known), *map(mean_and_error, leads)]
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
