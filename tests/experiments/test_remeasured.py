import numpy as np
import pytest

from controller.decisions import mutate
from detector.architecture import Architecture
from experiments.controllers import ALGORITHMS, PRIOR, search
from experiments.remeasured import Winner, best_of_search, report, winners
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


class Trials:
    """A proxy that knows what the benchmark does not."""

    def __init__(self, graph: Architecture) -> None:
        self.graph = graph
        self.asked: list[int] = []

    def evaluate(self, architecture: Architecture, seed: int, steps: int | None = None) -> float:
        self.asked.append(seed)
        return 0.4 + 0.001 * seed + (0.05 if architecture.hash == self.graph.hash else 0.0)


def test_leads_are_over_the_published_graph_with_the_same_seeds(tabular: Tabular) -> None:
    known, unknown = tabular.rows[40].graph, neighbours(200)[-1]
    trials = Trials(unknown)
    found = winners(tabular, trials, "random", [known, unknown], SEEDS)
    assert [winner.is_known for winner in found] == [True, False]
    assert [winner.measured for winner in found] == pytest.approx([0.0, 0.05])
    assert found[0].said == pytest.approx(tabular.estimate(known).mean - tabular.estimate(PRIOR).mean)
    assert trials.asked == [*SEEDS] * 3


def test_the_best_of_a_search_is_the_best_it_proposed(tabular: Tabular) -> None:
    proposed = search(tabular, ALGORITHMS["local search"], True, 0, 40)
    means = [tabular.estimate(graph).mean for graph in proposed]
    assert tabular.estimate(best_of_search(tabular, "local search", 0, 40)).mean == max(means)
    assert max(means) > max(means[0], means[-1])


def test_known_and_predicted_winners_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    report([Winner("tpe", True, 0.01, 0.02), Winner("tpe", True, 0.03, 0.02), Winner("random", False, 0.01, -0.01)])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines == [
        "| tpe | 2 | 2 | +0.0200 (0.0100) | +0.0200 (0.0000) |",
        "| random | 1 | 0 | +0.0100 | -0.0100 |",
        "| all, known | 2 | 2 | +0.0200 (0.0100) | +0.0200 (0.0000) |",
        "| all, predicted | 1 | 0 | +0.0100 | -0.0100 |",
    ]
