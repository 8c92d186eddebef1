"""Tune's side of a schedule, called as Tune calls it, without starting Ray."""

from pathlib import Path

import pytest

pytest.importorskip("ray.tune")

from ray.tune.search import Searcher

from detector.errors import UserError
from nas.control import Controlled
from nas.search import PlanSearcher, Trial
from nas.store import Action, Cause, Outcome, Purpose, State, Store
from tests.nas.fakes import schedule


def searching(store: Store, episodes: int) -> PlanSearcher:
    return PlanSearcher(Controlled(schedule(store, episodes), store, 1), lambda: 100, lambda episodes: None)


@pytest.fixture
def searcher(tmp_path: Path) -> PlanSearcher:
    return searching(Store(str(tmp_path / "s.db")), 12)


def done(ap: float) -> dict:
    return {"outcome": tuple(Outcome(ap, None, 0.1, "here"))}


def test_proposes_until_a_batch_must_end_then_finishes(searcher: PlanSearcher) -> None:
    waiting, number = [], 0
    while isinstance(searcher.suggest(f"t{number}"), dict):
        waiting.append(f"t{number}")
        number += 1
    assert searcher.suggest("x") is None
    while waiting:
        searcher.on_trial_complete(waiting.pop(), done(0.1 + 0.01 * len(waiting)))
        while isinstance(searcher.suggest(f"t{number}"), dict):
            waiting.append(f"t{number}")
            number += 1
    assert searcher.suggest("x") == Searcher.FINISHED
    assert [e.state for e in searcher.plan.store.episodes(1)].count(State.RUNNING) == 0


def test_hands_out_no_more_than_there_is_room_for(tmp_path: Path) -> None:
    room = 2
    searcher = searching(Store(str(tmp_path / "s.db")), 12)
    searcher.room = lambda: room
    assert isinstance(searcher.suggest("a"), dict)
    assert isinstance(searcher.suggest("b"), dict)
    assert searcher.suggest("c") is None
    searcher.on_trial_complete("a", done(0.1))
    assert isinstance(searcher.suggest("c"), dict)
    assert searcher.suggest("d") is None
    room = 3  # a machine has joined
    assert isinstance(searcher.suggest("d"), dict)


def test_a_graph_that_needs_a_gpu_of_its_own_gets_one(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s.db"))
    plan = schedule(store, 12, shares_gpu=True)
    searcher = PlanSearcher(Controlled(plan, store, 1), lambda: 100, lambda episodes: None, gpus_per_trial=0.25)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert Trial.default_resource_request(first).required_resources == {"CPU": 1, "GPU": 0.25}
    searcher.on_trial_complete("b", {"outcome": tuple(Outcome(None, Cause.OOM, 0.1, "here"))})
    again = searcher.suggest("c")
    assert again["graph"] == second["graph"]
    assert Trial.default_resource_request(again).required_resources == {"CPU": 1, "GPU": 1.0}
    searcher.on_trial_complete("a", done(0.1))
    searcher.on_trial_complete("c", done(0.2))
    assert [trial.gpus for trial in store.evaluations(1, Purpose.SEARCH)[:2]] == [0.25, 1.0]


def test_a_graph_whose_workers_die_is_tried_again_then_lost_and_no_reward(searcher: PlanSearcher) -> None:
    searcher.suggest("a")
    lost = searcher.suggest("b")
    searcher.on_trial_complete("a", done(0.5))
    for trial in ("b", "c", "d"):
        assert searcher.plan.store.episodes(1)[1].state == State.RUNNING
        searcher.on_trial_complete(trial, None, error=True)
        searcher.on_trial_death(trial, None)
        if trial != "d":
            assert searcher.suggest(chr(ord(trial) + 1)) == lost
    first, second = searcher.plan.store.episodes(1)[:2]
    assert first.reward == 0.5
    assert (second.state, second.cause, second.reward) == (State.FAILED, Cause.LOST, None)


def test_the_last_episode_may_be_lost_and_is_tried_again(tmp_path: Path) -> None:
    searcher = searching(Store(str(tmp_path / "s.db")), 1)
    searcher.suggest("a")
    assert searcher.suggest("b") is None
    searcher.on_trial_complete("a", None, error=True)
    searcher.on_trial_death("a", None)
    assert isinstance(searcher.suggest("b"), dict)
    searcher.on_trial_complete("b", done(0.5))
    assert searcher.suggest("c") == Searcher.FINISHED
    assert searcher.plan.store.episodes(1)[0].reward == 0.5


def test_a_user_s_mistake_found_by_a_worker_ends_the_search_and_fails_no_graph(searcher: PlanSearcher) -> None:
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"mistake": "x.jpg (image 3): cannot be decoded"})
    assert isinstance(searcher.error, UserError)
    assert searcher.plan.store.episodes(1)[0].state == State.RUNNING


def test_an_error_of_our_own_ends_the_search_and_is_kept(searcher: PlanSearcher, monkeypatch) -> None:
    searcher.suggest("a")
    monkeypatch.setattr(searcher.plan.store, "finish_evaluation", lambda *args: 1 / 0)
    searcher.on_trial_complete("a", done(0.5))
    assert isinstance(searcher.error, ZeroDivisionError)
    assert searcher.suggest("b") == Searcher.FINISHED


def test_requests_are_heard_while_nothing_can_run(searcher: PlanSearcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune then does nothing but ask for suggestions."""
    monkeypatch.setattr("nas.search.LISTEN_EVERY_S", 0.0)
    store = searcher.plan.store
    store.ask(1, Action.PAUSE)
    assert searcher.suggest("a") is None
    request = store.ask(1, Action.CONTINUE)
    assert isinstance(searcher.suggest("a"), dict)
    assert store.answer_of(request) == "goes on"
    store.ask(1, Action.STOP)
    assert searcher.suggest("b") is None
    searcher.on_trial_complete("a", done(0.5))
    assert searcher.suggest("b") == Searcher.FINISHED
