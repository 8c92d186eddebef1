from collections import Counter
from pathlib import Path

import pytest

from nas.store import Cause, Episode, Outcome, State, Store
from tests.nas.fakes import PRIOR, SEARCH, controller, outcome_of, reward_of, run, schedule


def table(store: Store) -> list[tuple]:
    """What must not depend on workers, order and crashes: all but the numbering of evaluations, and who waited."""
    return [
        (e.number, e.architecture_hash, e.decisions, e.log_prob, e.policy_version, e.state, e.cause, e.reward)
        for e in store.episodes(1)
    ]


def finished(path: Path, workers: int, episodes: int = 40, order_seed: int = 0, **options) -> Store:
    store = Store(str(path))
    run(schedule(store, episodes, options.pop("algorithm", "reinforce")), workers, order_seed, **options)
    return store


@pytest.mark.parametrize("algorithm", ["reinforce", "random", "evolution"])
def test_table_and_policy_are_equal_for_any_number_of_workers(tmp_path: Path, algorithm: str) -> None:
    stores = [
        finished(tmp_path / f"{workers}.db", workers, order_seed=workers, algorithm=algorithm)
        for workers in (1, 2, 3, 7)
    ]
    assert all(table(store) == table(stores[0]) for store in stores)
    assert all(store.policies(1) == stores[0].policies(1) for store in stores)
    assert [episode.number for episode in stores[0].episodes(1)] == list(range(40))


@pytest.mark.parametrize("stop_after", [1, 3, 4, 7, 12, 20])
def test_a_search_killed_anywhere_continues_to_the_same_table(tmp_path: Path, stop_after: int) -> None:
    whole = finished(tmp_path / "whole.db", 2, failing=0.2)
    store = Store(str(tmp_path / "killed.db"))
    run(schedule(store, 40), 3, 1, failing=0.2, stop_after=stop_after)
    run(schedule(store, 40), 2, 2, failing=0.2, stop_after=5)
    run(schedule(store, 40), 2, 3, failing=0.2)
    assert table(store) == table(whole)
    assert store.policies(1) == whole.policies(1)


def test_a_kill_between_reward_and_policy_uses_each_reward_once(tmp_path: Path) -> None:
    whole = finished(tmp_path / "whole.db", 1)
    store = Store(str(tmp_path / "killed.db"))
    plan = schedule(store, 40)
    plan.store.save_policy = None  # the process dies when it comes to write a policy

    with pytest.raises(TypeError):
        run(plan, 1)
    del plan.store.save_policy
    assert store.policies(1) == {}
    run(schedule(store, 40), 2)
    assert table(store) == table(whole)
    assert store.policies(1) == whole.policies(1)


def test_extending_equals_having_asked_for_more(tmp_path: Path) -> None:
    store = finished(tmp_path / "grown.db", 2, episodes=18)
    run(schedule(store, 40), 2)
    assert table(store) == table(finished(tmp_path / "whole.db", 2))


def test_the_prior_is_episode_0_and_starts_the_baseline(tmp_path: Path) -> None:
    store = finished(tmp_path / "s.db", 2, episodes=4)
    first = store.episodes(1)[0]
    assert first.architecture_hash == PRIOR.hash
    assert first.log_prob is None
    rewards = [e.reward for e in store.episodes(1)]
    mean = sum(rewards[1:]) / 3
    assert store.policies(1)[1].baseline == pytest.approx(
        SEARCH.baseline_decay * rewards[0] + (1 - SEARCH.baseline_decay) * mean
    )


def test_a_graph_seen_before_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proposer that repeats itself: the lowest number owns the graph, even while it is still running."""
    store = Store(str(tmp_path / "s.db"))
    plan = schedule(store, 12)
    propose = plan.controller.propose
    monkeypatch.setattr(plan.controller, "propose", lambda e: propose(1 + e % 2))
    jobs = []
    while (job := plan.next()) is not None:
        jobs.append(job)
    assert [job.episode for job in jobs] == [0, 1, 2]
    assert plan.next() is None
    assert len(plan.episodes) == 8  # both batches that the first version may propose
    settled = plan.finish(jobs[1].evaluation_id, outcome_of(jobs[1]))
    assert [(e.number, e.state) for e in settled] == [(1, "done"), (3, "reused"), (5, "reused"), (7, "reused")]
    assert len({e.reward for e in settled}) == 1
    for job in (jobs[0], jobs[2]):
        plan.finish(job.evaluation_id, outcome_of(job))
    run(plan, 1)
    states = Counter(e.state for e in store.episodes(1))
    assert states == {State.DONE: 3, State.REUSED: 9}


def test_a_failure_is_copied_and_is_never_a_reward(tmp_path: Path) -> None:
    store = finished(tmp_path / "s.db", 2, failing=0.3)
    for episode in store.episodes(1):
        failed = episode.number > 0 and reward_of(episode.architecture_hash) < 0.3
        assert (episode.state == State.FAILED) == failed
        assert (episode.cause == Cause.NAN) == failed
        assert (episode.reward is None) == failed


def test_failed_prior_stops_the_search_for_good(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s.db"))
    plan = schedule(store, 12)
    job = plan.next()
    plan.finish(job.evaluation_id, Outcome(None, Cause.OOM, 1.0, "here"))
    assert plan.is_finished
    assert plan.next() is None
    assert "episode 0, the prior, failed with oom" in plan.stopped
    assert "failed with oom" in schedule(store, 12).stopped


def test_what_ends_after_a_failed_prior_does_not_change_its_cause(tmp_path: Path) -> None:
    plan = schedule(Store(str(tmp_path / "s.db")), 12)
    first, second = plan.next(), plan.next()
    plan.finish(first.evaluation_id, Outcome(None, Cause.OOM, 1.0, "here"))
    plan.finish(second.evaluation_id, Outcome(0.5))
    assert "failed with oom" in plan.stopped
    assert "--study NAME starts anew" in plan.stopped


def test_a_run_of_failures_stops_the_search_with_its_cause(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s.db"))
    plan = schedule(store, 40)
    run(plan, 1, failing=1.1)
    assert plan.stopped == "the last 5 evaluations failed, the last one with nan (NonFiniteLossError: made up)"
    assert sum(e.state == State.FAILED for e in store.episodes(1)) == 5


def test_a_batch_without_rewards_advances_the_version_unchanged() -> None:
    first = controller()
    before = first.versions[0].state()
    assert first.update([]) == before
    assert first.newest == 1


def test_episodes_are_plain_values(tmp_path: Path) -> None:
    episode = finished(tmp_path / "s.db", 1, episodes=2).episodes(1)[1]
    assert isinstance(episode, Episode)
    assert isinstance(episode.decisions, tuple)
    assert isinstance(episode.state, State)
