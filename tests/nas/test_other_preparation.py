"""The best graphs judged by other preparations of the proxy: on made-up graphs, and once for real."""

import argparse
from pathlib import Path

import pytest

from detector.coco import load_split
from detector.config_files import load_config
from nas.config import Config
from nas.control import Controlled
from nas.other_preparation import OtherPreparation
from nas.prepared import other_preparation, shared_by_trials
from nas.proxy import choose_device, load_proxy
from nas.results import Verdict, by_reward, prior_episode, verdicts
from nas.service import other_preparations
from nas.session import EndedError, _listening
from nas.space import load_prior
from nas.store import Action, Cause, Measurement, Outcome, Purpose, State, Store
from tests.nas.fakes import BUDGET, COST, reward_of, run, schedule
from tests.nas.test_confirm import confirmation, drive
from tests.nas.test_search import finish, start

CONFIG = load_config("smoke", Config)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "s.db"))
    run(schedule(store, 40), workers=1)
    drive(confirmation(store), noise=0.01)
    return store


def preparation(store: Store, seed: int) -> OtherPreparation:
    args = argparse.Namespace(confirm_preparations=3)
    return other_preparations(args, store, 1, BUDGET, CONFIG)[seed - 1]


def judge(store: Store, seed: int, favourite: str | None = None, stop_after: int = 100) -> list[str]:
    """Graphs in the order in which they were judged. Preparations differ by 0.1 each, and may have a favourite."""
    plan, judged = preparation(store, seed), []
    while len(judged) < stop_after and (job := plan.next()) is not None:
        assert (job.measurement.seed, job.measurement.budget, job.is_timed) == (seed, 4, False)
        reward = reward_of(job.architecture.hash) + 0.1 * seed + 10.0 * (job.architecture.hash == favourite)
        plan.finish(job.evaluation_id, Outcome(reward, None, 0.1, "here"))
        judged.append(job.architecture.hash)
    return judged


def found(store: Store) -> dict[str, Verdict]:
    return verdicts(store, 1, prior_episode(store.episodes(1)))


def worst_of(store: Store) -> str:
    prior = prior_episode(store.episodes(1))
    return [graph_hash for graph_hash in found(store) if graph_hash != prior.architecture_hash][-1]


def test_every_confirmed_graph_runs_once_and_an_interruption_costs_nothing(store: Store) -> None:
    assert not preparation(store, 1).is_finished
    judged = judge(store, 1, stop_after=4) + judge(store, 1)
    assert judged == list(found(store))
    assert len(judged) == 9
    plan = preparation(store, 1)
    assert plan.is_finished
    assert plan.settled == plan.total == 9
    assert not preparation(store, 2).is_finished


def test_three_preparations_that_have_judged_every_graph_decide(store: Store) -> None:
    """And nothing before. What one of them gives to all graphs alike is taken off."""
    before, worst = found(store), worst_of(store)
    for seed in (1, 2):
        judge(store, seed, favourite=worst)
    judge(store, 3, favourite=worst, stop_after=8)
    assert found(store) == before
    judge(store, 3, favourite=worst)
    now = found(store)
    assert next(iter(now)) == worst
    assert {verdict.preparations for verdict in now.values()} == {3}
    assert now[worst].mean == pytest.approx(reward_of(worst) + 10.2)
    assert now[worst].spread == pytest.approx(0.0, abs=1e-9)
    assert now[worst].beats_prior == pytest.approx(1.0)
    assert "of 3 other preparations, one run of 4 steps each" in str(now[worst])


def test_a_graph_that_is_confirmed_later_has_the_word_back_to_new_seeds(store: Store) -> None:
    """Until the others have judged it, too."""
    for seed in (1, 2, 3):
        judge(store, seed)
    assert next(iter(found(store).values())).preparations == 3
    late = next(e for e in by_reward(store.episodes(1)) if e.architecture_hash not in found(store))
    for seed in (7, 8):
        measurement = Measurement(Purpose.CONFIRM, seed, 3)
        evaluation = store.start_evaluation(1, late.architecture_hash, measurement, COST, 1.0)
        store.finish_evaluation(evaluation.id, Outcome(0.5))
    assert {verdict.preparations for verdict in found(store).values()} == {0}
    assert late.architecture_hash in found(store)
    for seed in (1, 2, 3):
        assert judge(store, seed) == [late.architecture_hash]
    assert {verdict.preparations for verdict in found(store).values()} == {3}


def test_their_disagreement_is_the_noise(store: Store) -> None:
    """However often each of them would agree with itself."""
    best = next(iter(found(store)))
    judge(store, 1, favourite=best)
    for seed in (2, 3):
        judge(store, seed)
    assert found(store)[best].beats_prior < 0.95


def test_what_can_be_mended_is_tried_again_and_takes_nothing_away(store: Store) -> None:
    before, plan = found(store), preparation(store, 1)
    while (job := plan.next()) is not None:
        plan.finish(job.evaluation_id, Outcome(None, Cause.TIMEOUT) if plan.settled == 3 else Outcome(0.5))
    assert plan.stopped == (
        "1 of 9 runs by another preparation failed, the last one with timeout; the same command tries them again"
    )
    assert found(store) == before
    assert len(judge(store, 1)) == 1
    assert preparation(store, 1).stopped is None


def test_a_graph_that_cannot_be_trained_on_one_of_them_is_left_out(store: Store) -> None:
    plan, graphs = preparation(store, 1), list(found(store))
    first = plan.next()
    plan.finish(first.evaluation_id, Outcome(None, Cause.LOST))
    assert plan.next() == first
    plan.finish(first.evaluation_id, Outcome(None, Cause.NAN))
    assert len(judge(store, 1)) == 8
    for seed in (2, 3):
        judge(store, seed)
    assert set(found(store)) == set(graphs) - {first.architecture.hash}
    assert {verdict.preparations for verdict in found(store).values()} == {3}


def test_requests_are_heard_while_another_preparation_is_made(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.session.LISTEN_EVERY_S", 0.0)
    plan = Controlled(confirmation(store), store, 1)
    plan.turn_to(preparation(store, 1))
    shown = []
    on_progress = _listening(plan, lambda *of: shown.append(of), "other preparation 1 of 3")
    on_progress("training the detector", 1, 10)
    assert shown == [("other preparation 1 of 3: training the detector", 1, 10)]
    store.ask(1, Action.PAUSE)
    asked = store.ask(1, Action.STOP)
    with pytest.raises(EndedError):
        on_progress("training the detector", 2, 10)
    assert plan.ending == Action.STOP
    assert "the same nas-search command continues" in store.answer_of(asked)


@pytest.mark.ray
@pytest.mark.slow
def test_the_service_asks_other_preparations_after_the_search(tmp_path: Path) -> None:
    """Later, of a search that has ended; each reward is that of the preparation whose seed it bears."""
    asked = "--episodes", "8", "--workers", "2", "--confirm", "6"
    folder = tmp_path / "run"
    finish(start(folder, *asked), folder)
    log = finish(start(folder, *asked, "--confirm-preparations", "3"), folder)
    assert "by other preparations" in log
    assert finish(start(folder, *asked, "--confirm-preparations", "3"), folder).count("nothing to do") == 1
    store, config = Store(str(folder / "nas.db"), read_only=True), load_config("smoke", Config)
    by_others = store.evaluations(1, Purpose.PREPARATION)
    assert {evaluation.state for evaluation in by_others} == {State.DONE}
    assert {evaluation.measurement.seed for evaluation in by_others} == {1, 2, 3}
    data, prior = load_split(config.data, None, "train"), load_prior(config.search.prior)
    names = {shared_by_trials(other_preparation(config, number), data, prior).pool for number in range(4)}
    assert len(names) == 4
    for evaluation in by_others:
        other = other_preparation(config, evaluation.measurement.seed)
        proxy = load_proxy(other, data, prior, choose_device(), lambda what, step, steps: None)
        graph = store.architecture(evaluation.architecture_hash)
        assert evaluation.ap == proxy.evaluate(graph, evaluation.measurement.seed, config.proxy.confirm_steps)
