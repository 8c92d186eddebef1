"""The benchmark on made-up measurements whose truth is known."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from controller.decisions import mutate, uniform
from detector.architecture import PRIORS
from detector.coco import load_split
from detector.config_files import load_config
from detector.errors import UserError
from nas.config import Config
from nas.graph_features import graph_features
from nas.prepared import is_prepared
from nas.proxy import choose_device, load_proxy
from nas.space import space_around
from nas.tabular import (
    Row,
    Tabular,
    from_text,
    noise_of,
    read_rows,
    table_digest,
    to_text,
    without_seed_effects,
    write_rows,
)
from tests.detector.test_architecture import relabelled, valid_orders

PRIOR = PRIORS["nas-fpn"]
SPACE = space_around(PRIOR)
NOISE = 0.02


def truth(graph) -> float:
    """Something that depends on the graph's structure, and not on how it is written."""
    levels = graph.feature_levels
    return (
        0.3 + 0.02 * sum(cell.op == "sum" for cell in graph.cells) - 0.03 * len(graph.leaves) + 0.01 * levels.count(4)
    )


@pytest.fixture(scope="module")
def tabular() -> Tabular:
    stream = np.random.default_rng(0)
    rows = []
    for index in range(150):
        graph = SPACE.architecture(uniform(SPACE, stream))
        seeds = (0, 1) if index % 3 == 0 else (0,)
        rows.append(Row(graph, "random", {seed: truth(graph) + NOISE * stream.standard_normal() for seed in seeds}))
    return Tabular.measured(rows)


def test_features_do_not_depend_on_how_a_graph_is_written(random_graphs) -> None:
    for graph in [PRIOR, *random_graphs(10)]:
        for order in valid_orders(graph)[:6]:
            other = relabelled(graph, order, swap=True)
            np.testing.assert_array_equal(graph_features(other), graph_features(graph))


def test_features_tell_most_neighbours_apart() -> None:
    stream = np.random.default_rng(1)
    graphs = {PRIOR.hash: PRIOR}
    for _ in range(200):
        graph = SPACE.architecture(mutate(SPACE, SPACE.decisions(PRIOR), 1, stream))
        graphs[graph.hash] = graph
    different = {graph_features(graph).tobytes() for graph in graphs.values()}
    assert len(different) > 0.9 * len(graphs)


def test_noise_and_error_of_prediction_are_those_of_the_measurements(tabular: Tabular) -> None:
    assert tabular.sd == pytest.approx(NOISE, rel=0.25)
    held_out = np.array([row.predicted for row in tabular.rows])
    true = np.array([truth(row.graph) for row in tabular.rows])
    assert tabular.off == pytest.approx(float(np.sqrt(np.mean((held_out - true) ** 2))), rel=0.35)


def test_estimates_of_new_graphs_follow_the_truth(tabular: Tabular) -> None:
    stream = np.random.default_rng(2)
    graphs = [SPACE.architecture(uniform(SPACE, stream)) for _ in range(100)]
    estimates = tabular.estimates(graphs)
    assert not any(estimate.is_known for estimate in estimates)
    assert np.corrcoef([e.mean for e in estimates], [truth(graph) for graph in graphs])[0, 1] > 0.8


def test_the_best_of_many_measured_graphs_are_not_overrated(tabular: Tabular) -> None:
    """The highest measurements are lucky ones; estimates are not, and are nearer to the truth than either part."""
    true = np.array([truth(row.graph) for row in tabular.rows])
    estimates = tabular.estimates(row.graph for row in tabular.rows)
    assert all(estimate.is_known for estimate in estimates)
    means = np.array([estimate.mean for estimate in estimates])
    lucky = (tabular.means - true)[np.argsort(-tabular.means)[:20]].mean()
    assert lucky > 0.5 * NOISE
    assert (means - true)[np.argsort(-means)[:20]].mean() < 0.5 * lucky
    error = np.sqrt(np.mean((means - true) ** 2))
    assert error < np.sqrt(np.mean((tabular.means - true) ** 2))
    assert error <= 1.02 * tabular.off


def test_rewards_depend_on_graph_and_seed_only_and_scatter_by_sd(tabular: Tabular) -> None:
    rewards = [tabular.reward(PRIOR, seed) for seed in range(400)]
    assert rewards[:3] == [tabular.reward(PRIOR.canonical(), seed) for seed in range(3)]
    assert np.std(rewards) == pytest.approx(tabular.sd, rel=0.1)
    assert np.mean(rewards) == pytest.approx(tabular.estimate(PRIOR).mean, abs=4 * tabular.sd / 20)


def test_rows_round_trip(tabular: Tabular, tmp_path: Path) -> None:
    write_rows(tmp_path / "t.csv", tabular.rows)
    for read, row in zip(read_rows((tmp_path / "t.csv").read_text()), tabular.rows, strict=True):
        assert read.graph.hash == row.graph.hash
        assert read.source == row.source
        assert read.rewards == pytest.approx(row.rewards, abs=5e-6)
        assert read.predicted == pytest.approx(row.predicted, abs=5e-6)
    assert from_text(to_text(PRIOR)).hash == PRIOR.hash
    assert to_text(PRIOR).startswith("1*3@4 ")


def test_what_a_seed_adds_to_all_graphs_is_taken_off(tabular: Tabular) -> None:
    moved = [row._replace(rewards={s: r + 0.1 * (s == 1) for s, r in row.rewards.items()}) for row in tabular.rows]
    plain, back = without_seed_effects(tabular.rows), without_seed_effects(moved)
    steady = [r.rewards[0] - b.rewards[0] for r, b in zip(plain, back, strict=True)]
    assert steady == pytest.approx([steady[0]] * len(steady))  # all by the same
    for one, other in zip(plain, back, strict=True):
        if 1 in one.rewards:
            assert other.rewards[1] - other.rewards[0] == pytest.approx(one.rewards[1] - one.rewards[0])
    assert noise_of(back) == pytest.approx(noise_of(plain))
    assert noise_of(moved) > 1.5 * noise_of(plain)


def test_a_table_without_repeated_graphs_knows_no_noise() -> None:
    with pytest.raises(ValueError, match="several seeds"):
        noise_of([Row(PRIOR, "prior", {0: 0.3})])


def test_it_serves_as_a_proxy_for_graphs_of_its_space(tabular: Tabular, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("proxy", "prepared"):
        monkeypatch.setattr(f"nas.{module}.load_tabular", lambda: tabular)
    config = load_config("smoke", Config)
    config = config.model_copy(update={"proxy": config.proxy.model_copy(update={"protocol": "tabular"})})
    data = load_split(config.data, None, "train")
    nothing = partial(load_proxy, config, data, PRIOR, choose_device(), lambda what, step, steps: None)
    assert is_prepared(config, data, PRIOR)
    assert nothing().evaluate(PRIOR, 3) == tabular.reward(PRIOR, 3)
    with pytest.raises(UserError, match=r"graphs of 7 cells as published, the prior has 5 cells"):
        is_prepared(config, data, PRIORS["fpn"])


def test_a_missing_table_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nas.tabular.resources.files", lambda package: tmp_path)
    with pytest.raises(UserError, match=r"experiments/tabular\.csv: cannot be read"):
        table_digest()
