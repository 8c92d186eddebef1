from pathlib import Path

import pytest
import torch

from detector.architecture import PRIORS
from detector.config_files import load_config
from experiments import full_training, winners
from experiments.runs import Run
from nas.confirm import Confirmation
from nas.results import by_reward, prior_episode
from nas.store import Store
from tests.nas.fakes import BUDGET, run, schedule


def test_stacks_are_as_deep_as_the_published_graph() -> None:
    """By hand: P3 is the third of the chain of cells that ends in P6, the seventh."""
    assert winners.depths_of(PRIORS["nas-fpn"]) == {3: 3, 4: 4, 5: 5, 7: 6, 6: 7}
    stacks = winners.PlainStacks(PRIORS["nas-fpn"], 8, "bn")
    assert [len(stack) for stack in stacks.stacks] == [3, 4, 5, 7, 6]
    features = [torch.randn(2, 8, 32 >> i, 32 >> i) for i in range(5)]
    out = stacks(features)
    assert [tuple(feature.shape) for feature in out] == [tuple(feature.shape) for feature in features]
    changed = [features[0], features[1] + 1, *features[2:]]
    same = [bool(torch.equal(a, b)) for a, b in zip(stacks.eval()(features), stacks(changed), strict=True)]
    assert same == [True, False, True, True, True]


def test_the_winner_is_the_confirmed_one_and_not_the_prior(tmp_path: Path) -> None:
    path = tmp_path / "w.db"
    store = Store(str(path))
    run(schedule(store, 20, "random", name="random-0"), workers=2)
    episodes = store.episodes(1)
    best, second = by_reward(episodes)[:2]
    assert winners.winner(path, "random", 0).hash == best.architecture_hash
    plan = Confirmation(store, 1, BUDGET, [second], prior_episode(episodes), runs=8, seed=0, steps=3)
    run(plan, workers=1)
    assert winners.winner(path, "random", 0).hash == second.architecture_hash
    assert winners.run_name("best of random", path) == f"best of random: {second.architecture_hash[:8]}"


def test_trainings_of_graphs_and_stacks_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winners, "load_config", lambda name, model: load_config("smoke", model))
    made = []
    monkeypatch.setattr(full_training, "train", lambda model, *_rest: made.append(type(model.heads.pyramid).__name__))
    for name in winners.FIXED:
        result = winners.make_run(Run(name, 0), tmp_path / "none.db", 2)
        assert 0 <= result["ap"] <= 1
    assert made == ["Identity", "PlainStacks", "NasFpn", "NasFpn"]


def test_the_report_compares_with_the_published_graph(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    aps = {name: [0.4, 0.42] for name in (*winners.FIXED, *winners.SEARCHES)}
    aps["REINFORCE, seed 1"] = [0.43, 0.47]
    winners.report(aps, 9)
    out = capsys.readouterr().out
    assert "| REINFORCE, seed 1 | 0.4500 | 0.0200 | +0.0400 | 0.0100 |" in out
    assert "mean over searches: 0.4233, +0.0133 to the published" in out
    winners.plot(aps, tmp_path / "w.png")
    assert (tmp_path / "w.png").stat().st_size > 5000
