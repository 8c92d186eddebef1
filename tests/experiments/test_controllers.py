from pathlib import Path

import numpy as np
import pytest

from controller.decisions import mutate, uniform
from detector.architecture import Architecture
from experiments import controllers
from experiments.controllers import ALGORITHMS, MISSED, PRIOR, episodes_to, median_and_quartiles, search
from experiments.runs import Run
from nas.space import space_around
from nas.tabular import Row, Tabular

SPACE = space_around(PRIOR)


@pytest.fixture(scope="module")
def tabular() -> Tabular:
    """Graphs are the better the more of them is the published one."""
    stream, rows = np.random.default_rng(0), []
    for index in range(120):
        decisions = uniform(SPACE, stream) if index % 2 else mutate(SPACE, SPACE.decisions(PRIOR), 4, stream)
        reward = float(np.mean(np.array(decisions) == SPACE.decisions(PRIOR)))
        rewards = {0: reward, 1: reward + 0.01} if index < 10 else {0: reward}
        rows.append(Row(SPACE.architecture(decisions), "made up", rewards))
    return Tabular.measured(rows)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_searches_are_repeatable_and_start_at_the_prior(tabular: Tabular, name: str) -> None:
    proposed = search(tabular, ALGORITHMS[name], True, 3, 25)
    assert len(proposed) == 25
    assert proposed[0].hash == PRIOR.hash
    assert proposed == search(tabular, ALGORITHMS[name], True, 3, 25)
    assert proposed[1:] != search(tabular, ALGORITHMS[name], True, 4, 25)[1:]
    free = search(tabular, ALGORITHMS[name], False, 3, 25)
    assert mean_of(tabular, free[:10]) < mean_of(tabular, proposed[:10])


def mean_of(tabular: Tabular, graphs: list[Architecture]) -> float:
    return float(np.mean([estimate.mean for estimate in tabular.estimates(graphs)]))


def test_a_run_holds_the_true_rewards_of_ten_searches(tabular: Tabular) -> None:
    curves = controllers.make_run(tabular, Run("local search from the prior", 1), 12)["curves"]
    graphs = search(tabular, ALGORITHMS["local search"], True, 13, 12)
    assert len(curves) == 10
    assert curves[3] == [tabular.estimate(graph).mean for graph in graphs]


def test_episodes_to_a_goal() -> None:
    curves = np.array([[0.1, 0.3, 0.2], [0.1, 0.1, 0.1], [0.5, 0.1, 0.1]])
    assert episodes_to(curves, 0.3).tolist() == [2, MISSED, 1]
    assert median_and_quartiles(np.array([1, 2, 30, MISSED, MISSED])) == "30 (2 to never)"


def test_the_report_holds_every_algorithm_twice_and_the_plot_is_drawn(
    tabular: Tabular, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controllers, "UNIFORM_GRAPHS", 200)
    stream = np.random.default_rng(0)
    curves = {
        f"{name} {start}": stream.uniform(0.2, 0.9, (6, 60)) for start in controllers.STARTS for name in ALGORITHMS
    }
    controllers.report(tabular, curves)
    out = capsys.readouterr().out
    assert all(out.count(f"| {name} |") == 2 for name in ALGORITHMS)
    controllers.plot(tabular, curves, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000
