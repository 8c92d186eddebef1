from pathlib import Path

import numpy as np
import pytest

from controller.decisions import uniform
from detector.architecture import PRIORS
from detector.config_files import load_config
from detector.errors import UserError
from nas.algorithms import make_controller
from nas.budget import Budget
from nas.commands import search
from nas.config import Config
from nas.store import Cause, Purpose, State, Store
from tests.nas.fakes import BUDGET, PRIOR, SEARCH, SPACE, reward_of, run, schedule


def limited(**limits: float) -> Budget:
    return Budget(BUDGET.image_hw, BUDGET.base_stride, BUDGET.channels, **limits)


def test_costs_are_those_of_the_final_test_size() -> None:
    config = load_config("coco", Config)
    budget = Budget.of(config)
    assert budget.image_hw == (800, 1333)
    assert budget.level_sizes[0] == (100, 168)  # padded to whole cells of P5
    assert budget.channels == config.detector.channels == 256
    published = budget.cost(PRIORS["nas-fpn"])
    assert published.params == 7 * (9 * 256 * 256 + 3 * 256)


def test_graphs_over_the_limit_are_drawn_again_and_never_trained(tmp_path: Path) -> None:
    free, limit = Store(str(tmp_path / "free.db")), BUDGET.cost(PRIOR).gflops
    run(schedule(free, 40, "random"), workers=2)
    assert any(evaluation.cost.gflops > limit for evaluation in free.evaluations(1, Purpose.SEARCH))
    budget, store = limited(max_gflops=limit), Store(str(tmp_path / "s.db"))
    plan = schedule(store, 40, "random", budget=budget)
    plan.controller = make_controller(SEARCH.model_copy(update={"algorithm": "random"}), SPACE, PRIOR, 0, budget)
    run(plan, workers=2)
    evaluations = store.evaluations(1, Purpose.SEARCH)
    assert all(evaluation.cost.gflops <= limit for evaluation in evaluations)
    assert {episode.state for episode in store.episodes(1)} <= {State.DONE, State.REUSED}


def test_the_model_of_rewards_is_not_asked_about_graphs_over_the_limit() -> None:
    proposer = make_controller(SEARCH, SPACE, PRIOR, 0, limited(max_gflops=BUDGET.cost(PRIOR).gflops)).versions[0]
    stream = np.random.default_rng(0)
    drawn = [uniform(SPACE, stream) for _ in range(50)]
    costly = [BUDGET.cost(SPACE.architecture(decisions)).gflops > BUDGET.cost(PRIOR).gflops for decisions in drawn]
    assert 0 < sum(costly) < 50
    assert [proposer.describe(decisions) is None for decisions in drawn] == costly


def test_what_is_still_over_the_limit_is_invalid_and_stops_the_search_with_the_reason(tmp_path: Path) -> None:
    cheapest = min(BUDGET.cost(graph).gflops for graph in PRIORS.values())
    store = Store(str(tmp_path / "s.db"))
    plan = schedule(store, 40, "random", budget=limited(max_gflops=cheapest / 100))
    plan.prior = None  # a search without one: the prior's own excess is refused before anything starts
    assert plan.next() is None
    episodes = store.episodes(1)
    assert {(episode.state, episode.cause, episode.reward) for episode in episodes} == {
        (State.FAILED, Cause.INVALID, None)
    }
    assert "GFLOPs, max_gflops is" in plan.stopped
    assert plan.is_finished


def test_a_target_prices_cost_into_the_reward_and_keeps_the_ap(tmp_path: Path) -> None:
    target = BUDGET.cost(PRIOR).gflops / 2
    store = Store(str(tmp_path / "s.db"))
    run(schedule(store, 12, budget=limited(target_gflops=target)), workers=2)
    by_id = {evaluation.id: evaluation for evaluation in store.evaluations(1, Purpose.SEARCH)}
    first = store.episodes(1)[0]
    assert first.reward == pytest.approx(reward_of(PRIOR.hash) * 2**-0.07)
    for episode in store.episodes(1):
        evaluation = by_id[episode.evaluation_id]
        assert evaluation.ap == reward_of(episode.architecture_hash)
        assert episode.reward == pytest.approx(evaluation.ap * (evaluation.cost.gflops / target) ** -0.07)
        assert episode.reward == evaluation.reward


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-params", "100"], "the cheapest graph of 7 cells has 16464 parameters, max_params is 100; raise that"),
        (["--max-gflops", "1e-7", "--prior", "none"], "the cheapest graph of 7 cells has 0.00079"),
        (["--confirm", "5"], "--confirm: 5 given, must be 6 or more, or 0 for none"),
        (["--max-gflops", "0"], "--max-gflops: 0 given, must be a number above 0"),
        (["--max-gflops", "nan"], "--max-gflops: nan given, must be a number above 0"),
    ],
)
def test_budgets_that_cannot_be_kept_are_refused(tmp_path, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert search(["--config", "smoke", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_prior_over_the_limit_is_refused_and_the_cheapest_graph_is_not() -> None:
    stream = np.random.default_rng(0)
    costs = [BUDGET.cost(SPACE.architecture(uniform(SPACE, stream))).gflops for _ in range(300)]
    with pytest.raises(UserError, match="the cheapest graph of 7 cells has"):
        limited(max_gflops=0.999 * min(costs)).check(SPACE, None)  # 300 draws hold one of the cheapest
    limited(max_gflops=1.001 * min(costs)).check(SPACE, None)
    with pytest.raises(UserError, match=r"the prior has .* GFLOPs, .*; raise that, or start elsewhere with --prior"):
        limited(max_gflops=1.001 * min(costs)).check(SPACE, PRIOR)
