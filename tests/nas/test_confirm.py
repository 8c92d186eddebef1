"""Successive rejects on made-up graphs whose true means are known."""

import random
import statistics
from pathlib import Path

import numpy as np
import pytest

from nas.attempts import MAX_FAILURES
from nas.budget import Budget
from nas.confirm import Confirmation, runs_each
from nas.results import by_reward, prior_episode, verdicts
from nas.store import Cause, Outcome, Purpose, State, Store
from nas.study import Job
from tests.nas.fakes import BUDGET, reward_of, run, schedule

RUNS = 60


def searched(path: Path) -> Store:
    """A finished search; graphs' rewards are those of tests/nas/fakes.py."""
    store = Store(str(path))
    run(schedule(store, 40), workers=1)
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return searched(tmp_path / "s.db")


@pytest.fixture
def close(monkeypatch: pytest.MonkeyPatch) -> None:
    """True means within a range of 0.02."""
    plain = reward_of
    monkeypatch.setattr("tests.nas.test_confirm.reward_of", lambda graph: 0.3 + 0.02 * plain(graph))


def confirmation(store: Store, runs: int = RUNS, budget: Budget = BUDGET) -> Confirmation:
    episodes = store.episodes(1)
    return Confirmation(store, 1, budget, by_reward(episodes), prior_episode(episodes), runs=runs, seed=0, steps=3)


def noisy(job: Job, noise: float) -> float:
    """The graph's reward with noise that depends on graph and seed only."""
    stream = np.random.default_rng([job.measurement.seed, int(job.architecture.hash[:8], 16)])
    return reward_of(job.architecture.hash) + noise * float(stream.standard_normal())


def drive(
    plan: Confirmation, noise: float = 0.05, workers: int = 2, order_seed: int = 0, stop_after: int = 10**6
) -> int:
    order, running, ended = random.Random(order_seed), [], 0
    while ended < stop_after:
        while len(running) < workers and (job := plan.next()) is not None:
            running.append(job)
        if not running:
            assert plan.is_finished
            break
        job = running.pop(order.randrange(len(running)))
        plan.finish(job.evaluation_id, Outcome(noisy(job, noise), None, 0.1, "here"))
        ended += 1
    return ended


def measured(store: Store) -> list[tuple]:
    evaluations = store.evaluations(1, Purpose.CONFIRM)
    return sorted((e.architecture_hash, e.measurement.seed, e.ap) for e in evaluations if e.state == State.DONE)


def test_phases_take_what_was_asked_for() -> None:
    """The published bound: the phases' pulls, one graph leaving after each, are no more than runs in all."""
    for arms in (2, 3, 9):
        for runs in (30, 60, 200):
            each = [runs_each(phase, arms, runs) for phase in range(1, arms)]
            assert each == sorted(each)
            pulls = sum(each) + each[-1]
            assert 0.8 * runs < pulls <= runs


def test_the_best_graph_wins_with_seeds_that_the_search_has_not_used(store: Store) -> None:
    spent = drive(confirmation(store))
    assert spent <= RUNS
    seeds = {evaluation.measurement.seed for evaluation in store.evaluations(1, Purpose.CONFIRM)}
    assert 0 not in seeds
    assert len(seeds) > 3
    prior = prior_episode(store.episodes(1))
    winner = next(iter(verdicts(store, 1, prior).values()))
    confirmed = {evaluation.architecture_hash for evaluation in store.evaluations(1, Purpose.CONFIRM)}
    assert len(confirmed) == 9
    assert reward_of(winner.architecture_hash) > max(map(reward_of, confirmed)) - 0.05  # what noise can hide
    assert winner.beats_prior == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("noise", [0.012, 0.05])
def test_runs_do_not_depend_on_workers_or_interruptions(tmp_path: Path, noise: float, close) -> None:
    """Means that noise can confuse, and a kill after every run."""
    whole = searched(tmp_path / "whole.db")
    drive(confirmation(whole), noise, workers=1)
    for workers in (1, 3):
        other = searched(tmp_path / f"{workers}.db")
        while not confirmation(other).is_finished:
            drive(confirmation(other), noise, workers, order_seed=len(measured(other)), stop_after=1)
        assert measured(other) == measured(whole)
        assert confirmation(other).next() is None


def test_graphs_that_are_close_need_more_seeds(store: Store, close: None) -> None:
    spent = drive(confirmation(store))
    seeds = {evaluation.measurement.seed for evaluation in store.evaluations(1, Purpose.CONFIRM)}
    assert len(seeds) > 3  # those of the first phase
    assert spent > 0.8 * RUNS


def test_it_ends_early_once_the_best_is_apart(store: Store) -> None:
    assert drive(confirmation(store), noise=1e-4) < 0.6 * RUNS


def test_a_prior_that_is_best_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "s.db"))
    run(schedule(store, 40), workers=1)
    prior = prior_episode(store.episodes(1))
    monkeypatch.setattr(
        "tests.nas.test_confirm.reward_of", lambda graph: 1.0 if graph == prior.architecture_hash else 0.5
    )
    drive(confirmation(store))
    found = verdicts(store, 1, prior)
    assert next(iter(found)) == prior.architecture_hash
    assert found[prior.architecture_hash].beats_prior is None


def test_a_graph_that_fails_is_left_out_at_once_and_decides_nothing(store: Store) -> None:
    """Its other runs would have made it the clear best."""
    plan, lucky, asked = confirmation(store), None, []
    while (job := plan.next()) is not None:
        lucky = lucky or job.architecture.hash
        asked.append(job.architecture.hash)
        is_failing = job.architecture.hash == lucky and asked.count(lucky) == 2
        reward = 5.0 if job.architecture.hash == lucky else noisy(job, 0.3)
        plan.finish(job.evaluation_id, Outcome(None, Cause.NAN) if is_failing else Outcome(reward))
    assert asked.count(lucky) == 2
    assert len(asked) > 0.7 * RUNS
    assert lucky not in verdicts(store, 1, prior_episode(store.episodes(1)))
    assert confirmation(store).is_finished


def test_the_lost_is_tried_again(store: Store) -> None:
    plan = confirmation(store)
    first = plan.next()
    plan.finish(first.evaluation_id, Outcome(None, Cause.LOST))
    assert plan.next() == first


def test_what_a_user_can_mend_is_tried_again_by_the_next_search(store: Store) -> None:
    plan = confirmation(store)
    for _ in range(MAX_FAILURES):
        plan.finish(plan.next().evaluation_id, Outcome(None, Cause.OOM))
    assert plan.is_finished
    assert "confirming runs failed, the last one with oom" in plan.stopped
    again = confirmation(store)
    assert not again.is_finished
    drive(again)
    assert again.stopped is None
    assert len(verdicts(store, 1, prior_episode(store.episodes(1)))) == 9


def test_if_every_graph_fails_that_is_said(store: Store) -> None:
    plan = confirmation(store, 12)
    while (job := plan.next()) is not None:
        plan.finish(job.evaluation_id, Outcome(None, Cause.ERROR))
    assert "every graph failed a confirming run" in plan.stopped


@pytest.mark.parametrize("runs", [0, 5])
def test_too_few_runs_confirm_nothing(store: Store, runs: int) -> None:
    plan = confirmation(store, runs)
    assert plan.is_finished
    assert plan.next() is None
    assert plan.settled == plan.total == runs


@pytest.mark.parametrize("runs", [6, 9, 12, 18])
def test_few_runs_are_two_at_least_for_each_graph(store: Store, runs: int) -> None:
    assert drive(confirmation(store, runs), noise=1.0) <= runs
    found = verdicts(store, 1, prior_episode(store.episodes(1)))
    assert len(found) >= 2
    assert min(verdict.runs for verdict in found.values()) >= 2


def test_only_the_first_run_of_a_graph_is_timed(store: Store) -> None:
    plan, timed = confirmation(store), {}
    while (job := plan.next()) is not None:
        timed.setdefault(job.architecture.hash, []).append(job.is_timed)
    assert len(timed) == 9
    assert all(flags[0] and not any(flags[1:]) for flags in timed.values())


@pytest.mark.slow
def test_the_winner_of_many_confirmations_is_better_than_that_of_one_reward(tmp_path: Path) -> None:
    """The reason for all this: the true mean of what one noisy reward picks, and of what this picks."""
    once, confirmed = [], []
    for trial in range(6):
        store = Store(str(tmp_path / f"{trial}.db"))
        plan = schedule(store, 40, algorithm="random")
        stream = np.random.default_rng(trial)
        while (job := plan.next()) is not None:
            plan.finish(job.evaluation_id, Outcome(reward_of(job.architecture.hash) + 0.3 * stream.standard_normal()))
        once.append(reward_of(by_reward(store.episodes(1))[0].architecture_hash))
        drive(confirmation(store), noise=0.3)
        confirmed.append(reward_of(next(iter(verdicts(store, 1, prior_episode(store.episodes(1)))))))
    assert statistics.fmean(confirmed) > statistics.fmean(once) + 0.02
