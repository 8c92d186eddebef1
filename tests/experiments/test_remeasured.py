import numpy as np
import pytest

from controller.decisions import mutate
from detector.architecture import Architecture
from experiments.controllers import ALGORITHMS, PRIOR, search
from experiments.remeasured import Trials, Winner, best_of_search, report, winners
from nas.space import space_around
from nas.tabular import Row, Tabular

SPACE = space_around(PRIOR)
SEEDS = (7, 8)


def neighbours(count: int) -> list[Architecture]:
    stream = np.random.default_rng(0)
    return [SPACE.architecture(mutate(SPACE, SPACE.decisions(PRIOR), 2, stream)) for _ in range(count)]


@pytest.fixture(scope="module")
def tabular() -> Tabular:
    graphs = [PRIOR, *neighbours(60)]
    rewards = [{0: 0.3 + 0.001 * place, 1: 0.3 + 0.0011 * place} for place in range(len(graphs))]
    rows = [Row(graph, "made up", of_seeds) for graph, of_seeds in zip(graphs, rewards, strict=True)]
    return Tabular.measured(rows)


class Proxy:
    """Knows what the benchmark does not."""

    def __init__(self, graph: Architecture, lead: float) -> None:
        self.graph = graph
        self.lead = lead
        self.asked: list[int] = []

    def evaluate(self, architecture: Architecture, seed: int, steps: int | None = None) -> float:
        self.asked.append(seed)
        return 0.4 + 0.001 * seed + (self.lead if architecture.hash == self.graph.hash else 0.0)


def test_leads_are_over_the_published_graph_with_the_same_seeds_and_pools(tabular: Tabular) -> None:
    known, unknown = tabular.rows[40].graph, neighbours(200)[-1]
    proxies = [Proxy(unknown, 0.05), Proxy(unknown, -0.01)]
    found = winners(tabular, Trials(proxies, SEEDS), [known, unknown, known])
    assert list(found) == [known.hash, unknown.hash]
    assert [winner.is_known for winner in found.values()] == [True, False]
    assert found[known.hash].measured == pytest.approx([0.0, 0.0])
    assert found[unknown.hash].measured == pytest.approx([0.05, -0.01])
    assert found[known.hash].said == pytest.approx(tabular.estimate(known).mean - tabular.estimate(PRIOR).mean)
    assert [proxy.asked for proxy in proxies] == [[*SEEDS] * 3] * 2


def test_the_best_of_a_search_is_the_best_it_proposed(tabular: Tabular) -> None:
    proposed = search(tabular, ALGORITHMS["local search"], True, 0, 40)
    means = [tabular.estimate(graph).mean for graph in proposed]
    assert tabular.estimate(best_of_search(tabular, "local search", 0, 40)).mean == max(means)
    assert max(means) > max(means[0], means[-1])


def test_known_and_predicted_winners_are_told_apart_and_each_graph_counts_once(capsys) -> None:
    first, second = Winner(True, 0.01, [0.02, 0.0]), Winner(True, 0.03, [0.02, 0.01])
    report({"tpe": {"a": first, "b": second}, "random": {"c": Winner(False, 0.01, [-0.01, 0.0]), "a": first}}, [0, 5])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("| by trials, pool 0 | by trials, pool 5 |")
    assert lines[2:] == [
        "| tpe | 2 | 2 | 0.0200 (0.0100) | 0.0200 (0.0000) | 0.0050 (0.0050) |",
        "| random | 2 | 1 | 0.0100 (0.0000) | 0.0050 (0.0150) | 0.0000 (0.0000) |",
        "| all, known | 2 | 2 | 0.0200 (0.0100) | 0.0200 (0.0000) | 0.0050 (0.0050) |",
        "| all, predicted | 1 | 0 | 0.0100 | -0.0100 | 0.0000 |",
    ]
