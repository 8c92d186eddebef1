import itertools

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from detector.architecture import LEVELS
from detector.coco import load_split
from detector.config_files import load_config
from experiments import fidelity, full_training
from experiments.runs import Run
from nas.config import PROXY_VERSION, Config
from nas.preparation import DETECTOR_FILE, features_folder


def rewards(graphs: int, seeds: int, spread: float, noise: float) -> np.ndarray:
    stream = np.random.default_rng(0)
    truth = stream.normal(0.3, spread, (graphs, 1))
    return truth + stream.normal(0, noise, (graphs, seeds))


def test_graphs_are_different_and_of_the_published_size() -> None:
    graphs = fidelity.graphs()
    assert len({graph.hash for graph in graphs.values()}) == len(graphs) == 16
    assert {len(graph.cells) for graph in graphs.values()} == {7}


@pytest.mark.parametrize("level", [5, 7])
def test_what_throws_information_away_does(level: int) -> None:
    """No leaf and no input brings a finer map to an output than the level that all goes through."""
    graph = fidelity.graphs()[f"all through P{level}"]
    for cell in graph.cells[2:]:
        assert {graph.feature_levels[i] for i in cell.inputs} == {level}
    leaves = [leaf for index in range(7) for leaf in graph.leaves_into(index)]
    assert all(LEVELS[leaf] >= 5 for leaf in leaves)


def test_noise_and_spread_are_told_apart() -> None:
    of_seeds = np.array([0.3, -0.1, 0.0])  # common to all graphs: no noise
    noise, spread = fidelity.noise_and_spread(rewards(4000, 3, spread=0.05, noise=0.02) + of_seeds)
    assert noise == pytest.approx(0.02, rel=0.05)
    assert spread == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_the_ceiling_is_the_tau_of_a_perfect_proxy(noise: float) -> None:
    stream = np.random.default_rng(0)
    truth = stream.normal(0, 0.05, 3000)
    reference = truth[:, None] + stream.normal(0, noise, (3000, 3))
    measured = kendalltau(truth, reference.mean(1)).statistic
    assert fidelity.ceiling(reference) == pytest.approx(measured, abs=0.02)


def test_the_ceiling_knows_that_equals_cannot_be_ranked() -> None:
    """A few bad graphs spread the whole; among the many others there is nothing but noise."""
    stream = np.random.default_rng(0)
    truth = np.where(np.arange(2000) % 4 == 0, stream.uniform(0, 0.3, 2000), 0.4)
    reference = truth[:, None] + stream.normal(0, 0.01, (2000, 2))
    measured = kendalltau(truth + 1e-6 * stream.standard_normal(2000), reference.mean(1)).statistic
    assert fidelity.ceiling(reference) < 0.75
    assert measured < 0.6
    assert fidelity.ceiling(reference[truth == 0.4]) < 0.2


def test_tau_is_that_of_one_seed() -> None:
    truth = np.arange(5.0)
    assert fidelity.tau(np.stack([truth, -truth], axis=1), truth) == 0.0
    assert fidelity.tau(np.stack([truth, 2 * truth], axis=1), truth) == pytest.approx(1.0)
    assert fidelity.tau(np.ones((5, 1)), truth) == 0.0


def test_graphs_are_told_apart_by_differences_larger_than_those_of_seeds() -> None:
    """What a seed does to all graphs alike does not count; of equal graphs one pair in twenty is told apart."""
    of_seeds = np.array([0.0, 0.2, -0.1, 0.05])
    noise = 0.001 * np.array([[1, 0, -1, 1], [0, 1, 1, -1], [-1, 0, 1, 0]])
    apart = fidelity.told_apart(np.array([[0.5], [0.4], [0.4005]]) + of_seeds + noise)
    assert apart.tolist() == [[0, 1, 1], [-1, 0, 0], [-1, 0, 0]]
    stream = np.random.default_rng(0)
    equal = [fidelity.told_apart(stream.normal(0, 1, (6, 4)) + of_seeds) for _ in range(500)]
    others = ~np.eye(6, dtype=bool)
    assert np.mean([(apart != 0)[others].mean() for apart in equal]) == pytest.approx(fidelity.SIGNIFICANCE, abs=0.01)


def test_tau_of_pairs_counts_no_others() -> None:
    apart = np.array([[0.0, 1, 1], [-1, 0, 0], [-1, 0, 0]])
    right = np.array([0.3, 0.1, 0.2])
    half = np.array([0.15, 0.1, 0.2])
    assert fidelity.tau_of_pairs(right[:, None], apart) == 1.0
    assert fidelity.tau_of_pairs(-right[:, None], apart) == -1.0
    assert fidelity.tau_of_pairs(np.stack([right, half], axis=1), apart) == 0.5
    truth = np.arange(6.0)
    every = np.sign(truth[:, None] - truth[None, :])
    drawn = np.random.default_rng(0).normal(0, 1, (6, 3))
    assert fidelity.tau_of_pairs(drawn, every) == pytest.approx(fidelity.tau(drawn, truth))


def test_the_interval_covers_the_truth() -> None:
    sample = np.random.default_rng(0).normal(0, 1, 40)
    low, high = fidelity.interval(lambda chosen: float(sample[chosen].mean()), 40)
    assert low < sample.mean() < high
    assert high - low == pytest.approx(2 * 1.645 * sample.std() / 40**0.5, rel=0.15)


def test_runs_measure_and_are_reported(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(fidelity, "load_config", lambda name, model: load_config("smoke", model))
    monkeypatch.setattr(fidelity, "RESAMPLES", 20)
    monkeypatch.setattr(
        fidelity,
        "PROXIES",
        (fidelity.Proxied("frozen", 1, 0.001), fidelity.Proxied("frozen", 8, 0.1), fidelity.Proxied("full", 2, 0.003)),
    )
    names = list(fidelity.graphs())[:4]
    full = fidelity.make_run(Run("full training of top-down", 0), 3)
    assert 0 <= full["ap"] <= full["ap50"] + 1e-9
    measured = {p: [fidelity.make_run(Run(f"{p} of {n}", 1), 3) for n in names] for p in ("frozen", "full")}
    runs = {p: [[run, run] for run in of_graphs] for p, of_graphs in measured.items()}
    reference = rewards(4, 2, 0.05, 0.01)
    fidelity.report("full training", names, reference, runs, 3)
    out = capsys.readouterr().out
    assert "| frozen, 8 steps at 0.1, AP averaged |" in out
    assert "| full, 2 steps at 0.003, AP |" in out
    gentle, hard = ([run[str(proxied)] for run in measured["frozen"]] for proxied in fidelity.PROXIES[:2])
    assert all(a["-loss"] != b["-loss"] for a, b in zip(gentle, hard, strict=True))
    assert any(b["AP averaged"] != b["AP"] for b in hard)
    config = load_config("smoke", Config)
    trial = config.proxy.trial.model_copy(update={"steps": 8, "learning_rate": 0.1})
    proxy = fidelity.load_frozen(
        config.model_copy(update={"proxy": config.proxy.model_copy(update={"trial": trial})}),
        load_split(config.data, None, "train"),
    )
    assert proxy.evaluate(fidelity.graphs()[names[1]], 1) == hard[1]["AP"]  # what a search would have been told
    fidelity.plot({"full training": reference}, runs, tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 5000


def test_a_reference_from_a_backbone_starts_from_one_of_another_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained in the detector that proxies share with other seeds, and all its weights are taken."""
    config = load_config("smoke", Config)
    monkeypatch.setattr(fidelity, "load_config", lambda name, model: config)
    started = []

    def no_training(model, *_rest: object) -> None:
        started.append({name: weight.clone() for name, weight in model.backbone.state_dict().items()})

    with monkeypatch.context() as patched:
        patched.setattr(full_training, "train", no_training)
        for seed in (0, 1):
            fidelity.make_run(Run("full training from a backbone of top-down", seed), 3)
        fidelity.make_run(Run("full training of top-down", 0), 3)
    data = load_split(config.data, None, "train")
    own = fidelity.load_frozen(config, data)
    of_proxy = torch.load(features_folder(own.folder) / DETECTOR_FILE, weights_only=True)
    backbones = [*started, {name: of_proxy[f"backbone.{name}"] for name in started[0]}]
    for one, other in itertools.combinations(backbones, 2):
        assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("conv1.0.weight"))
    others = [full_training.trained_backbone(config, seed) for seed in (0, 1)]
    for given, used in zip(others, started[:2], strict=True):
        assert given.keys() == used.keys()
        assert all(torch.equal(weight, used[name]) for name, weight in given.items())


def test_what_is_kept_is_printed_without_any_preparation(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(fidelity, "RESAMPLES", 20)
    for needless in ("load_frozen", "trained_backbone"):
        monkeypatch.setattr(fidelity, needless, lambda *_given: pytest.fail("it prepares"))
    monkeypatch.setattr("sys.argv", ["fidelity", "--folder", str(tmp_path)])
    fidelity.main()
    out = capsys.readouterr().out
    assert out.count("| published | ") == 2
    assert f"| {fidelity.default_proxy(load_config('shapes', Config))}, AP |" in out


def test_what_is_said_of_the_default_proxy() -> None:
    """It is one of those that are measured, and a perfect one agrees with its reference."""
    assert str(fidelity.default_proxy(load_config("shapes", Config))) in [str(proxied) for proxied in fidelity.PROXIES]
    reference = rewards(16, 3, 0.1, 0.001)
    said = fidelity.fidelity_of(reference, reference)
    assert (said.graphs, said.trainings, said.proxy_version) == (16, 3, PROXY_VERSION)
    assert said.low <= said.tau <= said.high <= 1.0
    assert said.tau > 0.9
    assert said.ceiling > 0.9
