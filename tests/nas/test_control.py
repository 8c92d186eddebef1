"""Requests to a search that runs, without Ray."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nas.commands import control, status, stop
from nas.control import Controlled
from nas.lock import study_lock
from nas.status import rate
from nas.store import Action, Cause, Evaluation, Measurement, Outcome, Purpose, State, Store
from tests.nas.fakes import COST, SEARCH, outcome_of, refused, run, schedule


@pytest.fixture
def store(here: Path) -> Store:
    return Store("nas.db")


@pytest.fixture
def plan(store: Store) -> Controlled:
    return Controlled(schedule(store, 12), store, 1)


def asked(plan: Controlled, action: Action, episode: int | None = None) -> str:
    request = plan.store.ask(1, action, episode)
    plan.listen()
    answer = plan.store.answer_of(request)
    assert answer is not None
    return answer


def table(store: Store) -> list[tuple]:
    return [(e.number, e.architecture_hash, e.state, e.reward) for e in store.episodes(1)]


def test_a_pause_hands_out_nothing_and_changes_nothing(tmp_path: Path, plan: Controlled) -> None:
    first = plan.next()
    assert asked(plan, Action.PAUSE) == "paused; 1 trials still run to their end"
    assert plan.next() is None
    assert not plan.is_finished
    plan.finish(first.evaluation_id, outcome_of(first))
    assert plan.next() is None
    assert asked(plan, Action.CONTINUE) == "goes on"
    run(plan, 2)
    whole = Store(str(tmp_path / "whole.db"))
    run(schedule(whole, 12), 2)
    assert table(plan.store) == table(whole)


def test_a_stop_waits_for_what_runs_and_the_search_continues(tmp_path: Path, plan: Controlled) -> None:
    jobs = [plan.next(), plan.next()]
    assert asked(plan, Action.STOP).startswith("stops once 2 trials have ended")
    assert plan.next() is None
    assert not plan.is_finished
    for job in jobs:
        plan.finish(job.evaluation_id, outcome_of(job))
    assert plan.is_finished
    assert plan.settled == 2
    run(Controlled(schedule(plan.store, 12), plan.store, 1), 2)
    whole = Store(str(tmp_path / "whole.db"))
    run(schedule(whole, 12), 2)
    assert table(plan.store) == table(whole)


def test_requests_are_answered_once(plan: Controlled) -> None:
    request = plan.store.ask(1, Action.PAUSE)
    plan.listen()
    assert plan.store.requests(1) == []
    plan.is_paused = False
    plan.listen()
    assert not plan.is_paused
    assert plan.store.withdraw(request) == "paused; 0 trials still run to their end"


def test_a_skipped_episode_fails_at_once_and_its_trial_counts_for_nothing(plan: Controlled) -> None:
    first, second = plan.next(), plan.next()
    answer = asked(plan, Action.SKIP, second.episode)
    assert answer == "skipped episode 1; its trial runs on for nothing"
    episode = plan.store.episodes(1)[1]
    assert (episode.state, episode.cause, episode.reward) == (State.FAILED, Cause.SKIPPED, None)
    assert asked(plan, Action.RETRY, 1).startswith("refused: the trial of episode 1, which was skipped, still runs")
    assert plan.finish(second.evaluation_id, outcome_of(second)) == []
    assert plan.store.episodes(1)[1].reward is None
    plan.finish(first.evaluation_id, outcome_of(first))
    run(plan, 2)
    assert plan.store.episodes(1)[1].state == State.FAILED
    assert plan.settled == 12


def test_what_was_skipped_can_be_tried_again_once_its_trial_has_ended(plan: Controlled) -> None:
    plan.next()
    second = plan.next()
    asked(plan, Action.SKIP, 1)
    plan.finish(second.evaluation_id, outcome_of(second))
    assert asked(plan, Action.RETRY, 1) == "episode 1 is tried again"
    again = plan.next()
    assert again.evaluation_id == second.evaluation_id
    plan.finish(again.evaluation_id, outcome_of(again))
    assert plan.store.episodes(1)[1].state == State.DONE


@pytest.mark.parametrize(
    ("action", "episode", "answer"),
    [
        (Action.SKIP, 0, "refused: episode 0 is the prior: the search needs its reward"),
        (Action.SKIP, 7, "refused: episode 7 is not there yet, not running"),
        (Action.RETRY, 1, "refused: episode 1 is running, not failed"),
        (Action.RETRY, 7, "refused: episode 7 is not there yet, not failed"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(plan, action, episode, answer) -> None:
    plan.next(), plan.next()
    assert asked(plan, action, episode) == answer


def test_a_failed_episode_is_tried_again_unless_its_batch_was_used(plan: Controlled) -> None:
    jobs = [plan.next() for _ in range(SEARCH.batch)]
    failing = jobs[1]
    plan.finish(failing.evaluation_id, Outcome(None, Cause.ERROR, detail="OSError: a disk that was full"))
    assert asked(plan, Action.RETRY, failing.episode) == f"episode {failing.episode} is tried again"
    assert plan.store.episodes(1)[failing.episode].state == State.RUNNING
    again = plan.next()
    assert (again.episode, again.evaluation_id) == (failing.episode, failing.evaluation_id)
    plan.finish(again.evaluation_id, Outcome(None, Cause.ERROR))
    for job in jobs[:1] + jobs[2:]:
        plan.finish(job.evaluation_id, outcome_of(job))
    assert (
        asked(plan, Action.RETRY, 1)
        == "refused: the policy has learned from the batch of episode 1 already, without it"
    )


def test_a_prior_that_failed_is_tried_again_by_the_next_search(store: Store) -> None:
    plan = schedule(store, 12)
    plan.finish(plan.next().evaluation_id, Outcome(None, Cause.OOM))
    assert plan.stopped
    store.ask(1, Action.RETRY, 0)
    plan = Controlled(schedule(store, 12), store, 1)
    assert plan.stopped
    plan.listen()
    assert plan.stopped is None
    run(plan, 2)
    assert plan.settled == 12


@pytest.fixture
def search(store: Store) -> Iterator[Controlled]:
    """A search that listens, from a thread."""
    plan, over = Controlled(schedule(store, 12), store, 1), threading.Event()
    jobs = [plan.next(), plan.next()]
    plan.finish(jobs[0].evaluation_id, outcome_of(jobs[0]))

    def listen() -> None:
        while not over.wait(0.05):
            plan.listen()

    thread = threading.Thread(target=listen)
    with study_lock("nas.db", "default"):
        thread.start()
        yield plan
        over.set()
        thread.join()


def test_the_commands_get_their_answers(search: Controlled, capsys) -> None:
    assert control(["pause"]) == 0
    assert search.is_paused
    assert control(["continue"]) == 0
    assert control(["skip", "1"]) == 0
    assert stop(["--now"]) == 0
    assert search.ending == Action.STOP_NOW
    assert capsys.readouterr().out.splitlines() == [
        "study 'default' paused; 1 trials still run to their end",
        "study 'default' goes on",
        "study 'default' skipped episode 1; its trial runs on for nothing",
        "study 'default' stops; the same nas-search command continues",
    ]


def test_a_refusal_is_one_line_and_exit_2(search: Controlled, capsys) -> None:
    assert "study 'default': episode 0 is done, not running" in refused(capsys, control(["skip", "0"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["skip"], "skip needs an episode: nas-control skip 12"),
        (["pause", "3"], "pause takes no episode: nas-control pause"),
        (["retry", "0"], "episode 0 is running, not failed"),
        (["retry", "5"], "episode 5 is not there yet, not failed"),
        (["dance"], "invalid choice: 'dance'"),
        (["pause", "--study", "x"], "has no study 'x'; it holds default"),
        (["pause", "--database", "absent.db"], "absent.db: no such file"),
    ],
)
def test_mistakes_are_one_line(plan: Controlled, capsys, here: Path, arguments: list[str], message: str) -> None:
    plan.next()
    assert message in refused(capsys, control(arguments))
    assert not (here / "absent.db").exists()


def test_where_nobody_listens_requests_are_taken_back(plan: Controlled, capsys, monkeypatch) -> None:
    monkeypatch.setattr("nas.ask.ANSWER_WITHIN_S", 0.3)
    plan.next()
    with study_lock("nas.db", "default"):
        assert "no search answered" in refused(capsys, stop([]))
    assert plan.store.requests(1) == []


def test_where_no_search_runs_nobody_waits_for_its_answer(plan: Controlled, capsys, monkeypatch) -> None:
    monkeypatch.setattr("nas.ask.time.sleep", lambda seconds: pytest.fail("it waited"))
    plan.next()
    assert "study 'default' is not being searched; nas-search continues it" in refused(capsys, stop([]))
    assert plan.store.requests(1) == []


def test_an_interrupted_request_is_taken_back(plan: Controlled, monkeypatch) -> None:
    """Or the next search would stop for it."""
    plan.next()

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nas.ask.time.sleep", interrupt)
    with study_lock("nas.db", "default"):
        assert stop([]) == 130
    assert plan.store.requests(1) == []


def test_a_retry_waits_for_the_next_search(plan: Controlled, capsys) -> None:
    plan.finish(plan.next().evaluation_id, Outcome(None, Cause.OOM))
    assert control(["retry", "0"]) == 0
    assert "the next nas-search tries episode 0 again" in capsys.readouterr().out
    assert [request.action for request in plan.store.requests(1)] == [Action.RETRY]


def test_the_status_of_a_search(plan: Controlled, capsys) -> None:
    plan.store.set_target(1, 12)
    run(plan, 2, failing=0.2, stop_after=9)
    with study_lock("nas.db", "default"):
        assert status(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    episodes = plan.store.episodes(1)
    rewards = [e.reward for e in episodes if e.reward is not None]
    assert found["target"] == 12
    assert sum(found["episodes"].values()) == len(episodes)
    assert found["episodes"]["failed"] == sum(e.state == State.FAILED for e in episodes) == len(found["failures"]) > 0
    assert found["failures"][0]["cause"] == "nan"
    assert found["failures"][0]["detail"] == "NonFiniteLossError: made up"
    assert found["best"] == max(rewards)
    assert found["prior"] == episodes[0].reward
    assert found["policy_version"] == max(plan.store.policies(1)) > 0
    assert found["searched_by"].startswith("process ")
    assert found["winner"] is None
    assert status([]) == 0
    screen = capsys.readouterr().out
    assert f"best {max(rewards):.4f}" in screen
    assert "none runs here" in screen
    assert "NonFiniteLossError: made up" in screen


def test_the_status_before_the_first_episode(plan: Controlled, capsys) -> None:
    assert status([]) == 0
    assert "0 of 0" in capsys.readouterr().out
    assert status(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"] is None


def test_the_rate_forgets_pauses() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    minutes = [0, 1, 2, 3, 4, 600, 601, 602]  # a trial a minute, and a night
    ended = [
        Evaluation(
            i,
            "",
            Measurement(Purpose.SEARCH, 0, 3),
            COST,
            0.1,
            State.DONE,
            None,
            0.1,
            None,
            1.0,
            start + timedelta(minutes=minute),
        )
        for i, minute in enumerate(minutes)
    ]
    assert rate(ended) == pytest.approx(60.0)
    assert rate(ended[:1]) is None
    assert rate([]) is None
