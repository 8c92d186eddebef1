"""Early stopping: batches are halved after a short training, and nothing depends on who ends first."""

from pathlib import Path

import pytest

from detector.config_files import load_config
from nas.commands import search
from nas.config import Config
from nas.proxy import trial_of
from nas.store import Cause, Outcome, Purpose, State, Store
from nas.study import Schedule, _rewarded
from tests.nas.fakes import PRIOR, SEARCH, outcome_of, reward_of, run, schedule
from tests.nas.test_study import table

BATCH = SEARCH.batch


def halved(path: Path, workers: int, episodes: int = 40, order_seed: int = 0, **options) -> Store:
    store = Store(str(path))
    run(schedule(store, episodes, rung_steps=1), workers, order_seed, **options)
    return store


def test_half_of_each_batch_is_pruned_and_the_better_half_rewarded(tmp_path: Path) -> None:
    episodes = halved(tmp_path / "s.db", 2).episodes(1)
    assert episodes[0].state == State.DONE
    seen = {PRIOR.hash}
    for first in range(0, 40, BATCH):
        batch = [e for e in episodes[first : first + BATCH] if e.architecture_hash not in seen]
        kept = {e.architecture_hash for e in batch if e.reward is not None}
        pruned = {e.architecture_hash for e in batch if e.state == State.PRUNED}
        assert kept | pruned == {e.architecture_hash for e in batch}
        assert len(kept) - len(pruned) in (0, 1)
        assert not pruned or min(map(reward_of, kept)) > max(map(reward_of, pruned))
        seen |= kept | pruned
    assert all((e.reward is None) == (e.state == State.PRUNED) for e in episodes)


def test_a_pruned_graph_counts_as_the_worst_survivor_and_is_not_taken_for_measured(tmp_path: Path) -> None:
    batch = halved(tmp_path / "s.db", 2).episodes(1)[BATCH : 2 * BATCH]
    told = _rewarded(batch)
    worst = min(episode.reward for episode in batch if episode.reward is not None)
    assert any(episode.state == State.PRUNED for episode in batch)
    for episode, rewarded in zip(batch, told, strict=True):
        is_pruned = episode.state == State.PRUNED
        assert rewarded.is_measured == (not is_pruned)
        assert rewarded.reward == (worst if is_pruned else episode.reward)


def test_a_graph_proposed_again_in_a_later_batch_is_trained(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s.db"))
    plan = schedule(store, 12, rung_steps=1)
    drawn = [plan.controller.propose(number) for number in range(BATCH)]
    worst = min(range(1, BATCH), key=lambda i: reward_of(plan.space.architecture(drawn[i].decisions).hash))
    propose = plan.controller.propose
    plan.controller.propose = lambda number: drawn[worst] if number in (worst, BATCH + 1) else propose(number)
    run(plan, workers=1)
    episodes = store.episodes(1)
    assert episodes[worst].state == State.PRUNED
    assert episodes[BATCH + 1].architecture_hash == episodes[worst].architecture_hash
    assert episodes[BATCH + 1].reward == reward_of(episodes[worst].architecture_hash)


@pytest.mark.parametrize("later_first", [False, True])
def test_the_first_batch_that_trains_a_graph_again_owns_its_reward(tmp_path: Path, later_first: bool) -> None:
    """Pruned in the first batch and proposed by the next two, whichever of their rungs ends first."""
    store = Store(str(tmp_path / "s.db"))
    plan = schedule(store, 3 * BATCH, rung_steps=1)
    drawn = [plan.controller.propose(number) for number in range(BATCH)]
    worst = min(range(1, BATCH), key=lambda i: reward_of(plan.space.architecture(drawn[i].decisions).hash))
    again = BATCH, 2 * BATCH
    propose = plan.controller.propose
    plan.controller.propose = lambda number: drawn[worst] if number in (worst, *again) else propose(number)
    waiting = []
    while not plan.is_finished:
        while (job := plan.next()) is not None:
            waiting.append(job)
        first_batch = [job for job in waiting if job.episode < BATCH]
        job = first_batch[0] if first_batch else waiting[-1 if later_first else 0]
        waiting.remove(job)
        plan.finish(job.evaluation_id, outcome_of(job))
    episodes = store.episodes(1)
    assert [episodes[number].state for number in (worst, *again)] == [State.PRUNED, State.DONE, State.REUSED]


@pytest.mark.parametrize("failing", [0.0, 0.2])
@pytest.mark.slow
def test_table_and_policy_do_not_depend_on_workers_order_or_kills(tmp_path: Path, failing: float) -> None:
    whole = halved(tmp_path / "1.db", 1, failing=failing)
    for workers in (2, 3, 7):
        other = halved(tmp_path / f"{workers}.db", workers, order_seed=workers, failing=failing)
        assert table(other) == table(whole)
        assert other.policies(1) == whole.policies(1)
    killed = Store(str(tmp_path / "killed.db"))
    for attempt in range(60):
        run(schedule(killed, 40, rung_steps=1), 3, attempt, failing=failing, stop_after=1 + attempt % 4)
    run(schedule(killed, 40, rung_steps=1), 2, failing=failing)
    assert table(killed) == table(whole)
    assert killed.policies(1) == whole.policies(1)


def test_a_kill_around_the_end_of_a_rung_loses_nothing(tmp_path: Path) -> None:
    whole = halved(tmp_path / "whole.db", 1)
    store = Store(str(tmp_path / "killed.db"))
    plan = schedule(store, 40, rung_steps=1)
    plan.store.end_rung = None  # the process dies when it comes to prune
    with pytest.raises(TypeError):
        run(plan, 1)
    del plan.store.end_rung
    run(schedule(store, 40, rung_steps=1), 2)
    assert table(store) == table(whole)


def test_the_policy_learns_of_pruned_graphs_as_the_worst_that_survived(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s.db"))
    plan = schedule(store, BATCH, rung_steps=1)
    told = []
    update = plan.controller.update
    plan.controller.update = lambda batch: told.append(list(batch)) or update(batch)
    run(plan, workers=2)
    episodes = store.episodes(1)
    least = min(e.reward for e in episodes if e.reward is not None)
    assert [r.reward for r in told[0]] == [least if e.reward is None else e.reward for e in episodes]
    assert any(e.state == State.PRUNED for e in episodes)


def test_rungs_take_fewer_steps_and_failures_there_are_failures(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s.db"))
    plan: Schedule = schedule(store, BATCH, rung_steps=1)
    jobs = [plan.next() for _ in range(BATCH)]
    assert {(job.measurement.purpose, job.measurement.budget) for job in jobs} == {(Purpose.RUNG, 1)}
    assert plan.next() is None
    for job in jobs:
        plan.finish(job.evaluation_id, Outcome(None, Cause.NAN) if job.episode == 2 else outcome_of(job))
    later = []
    while (job := plan.next()) is not None:
        later.append(job)
        plan.finish(job.evaluation_id, outcome_of(job))
    assert {(job.measurement.purpose, job.measurement.budget) for job in later} == {(Purpose.SEARCH, 3)}
    assert store.episodes(1)[2].cause == Cause.NAN
    assert plan.is_finished


def test_a_shorter_trial_draws_its_schedule_together() -> None:
    config = load_config("shapes", Config)
    trial = config.proxy.trial
    assert trial_of(config, None) is trial_of(config, trial.steps) is trial
    short = trial_of(config, 5)
    assert (short.steps, short.batch_size) == (5, trial.batch_size)
    assert 0 <= short.warmup_steps < 5
    assert trial_of(config, 1).warmup_steps == 0


@pytest.mark.parametrize(
    ("rung", "episodes", "message"),
    [(3, "12", "must be below proxy.trial.steps, 3"), (1, "14", "must be a multiple of 4, a batch")],
)
def test_rungs_that_cannot_be_are_refused(here: Path, capsys, rung: int, episodes: str, message: str) -> None:
    text = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
    (here / "c.yaml").write_text(text.replace("search: {", f"search: {{rung_steps: {rung}, "))
    assert search(["--config", "c.yaml", "--episodes", episodes]) == 2
    assert message in capsys.readouterr().err
