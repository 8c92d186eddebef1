"""The best graphs judged by other preparations of the proxy: on made-up graphs, and once for real."""

from pathlib import Path

import pytest

from detector.coco import load_split
from detector.config_files import load_config
from nas.config import Config
from nas.other_preparation import OtherPreparation
from nas.prepared import other_preparation, shared_by_trials
from nas.proxy import choose_device, load_proxy
from nas.results import prior_episode, verdicts
from nas.space import load_prior
from nas.store import Cause, Outcome, Purpose, State, Store
from tests.nas.fakes import BUDGET, reward_of, run, schedule
from tests.nas.test_confirm import confirmation, drive
from tests.nas.test_search import finish, start


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "s.db"))
    run(schedule(store, 40), workers=1)
    drive(confirmation(store), noise=0.01)
    return store


def preparation(store: Store, seed: int) -> OtherPreparation:
    return OtherPreparation(store, 1, BUDGET, confirmation(store).sound, seed=seed, steps=3)


def judge(store: Store, seed: int, favourite: str | None = None, stop_after: int = 100) -> list[str]:
    """Graphs in the order in which they were judged. Preparations differ by 0.1 each, and may have a favourite."""
    plan, judged = preparation(store, seed), []
    while len(judged) < stop_after and (job := plan.next()) is not None:
        assert (job.measurement.seed, job.measurement.budget) == (seed, 3)
        reward = reward_of(job.architecture.hash) + 0.1 * seed + 10.0 * (job.architecture.hash == favourite)
        plan.finish(job.evaluation_id, Outcome(reward, None, 0.1, "here"))
        judged.append(job.architecture.hash)
    return judged


def test_every_graph_runs_once_and_an_interruption_costs_nothing(store: Store) -> None:
    arms = [episode.architecture_hash for episode in confirmation(store).sound]
    assert not preparation(store, 1).is_finished
    assert judge(store, 1, stop_after=4) + judge(store, 1) == arms
    assert len(arms) == 9
    plan = preparation(store, 1)
    assert plan.is_finished
    assert plan.settled == plan.total == 9
    assert not preparation(store, 2).is_finished


def test_two_preparations_say_what_counts_and_one_does_not(store: Store) -> None:
    """Their own level is taken off: the second one gives everything 0.1 more."""
    prior = prior_episode(store.episodes(1))
    before = verdicts(store, 1, prior)
    worst = [graph_hash for graph_hash in before if graph_hash != prior.architecture_hash][-1]
    judge(store, 1, favourite=worst)
    assert verdicts(store, 1, prior) == before
    judge(store, 2, favourite=worst)
    found = verdicts(store, 1, prior)
    assert next(iter(found)) == worst
    assert {verdict.preparations for verdict in found.values()} == {2}
    assert found[worst].mean == pytest.approx(reward_of(worst) + 10.15)
    assert found[worst].spread == pytest.approx(0.0, abs=1e-9)
    assert found[worst].beats_prior == pytest.approx(1.0)
    assert "of 2 other preparations, a run of 3 steps" in str(found[worst])


def test_their_disagreement_is_the_noise(store: Store) -> None:
    """However often each of them would agree with itself."""
    prior = prior_episode(store.episodes(1))
    best = next(iter(verdicts(store, 1, prior)))
    judge(store, 1, favourite=best)
    for seed in (2, 3):
        judge(store, seed)
    assert verdicts(store, 1, prior)[best].beats_prior < 0.95


def test_a_graph_that_fails_has_no_verdict_and_the_lost_is_tried_again(store: Store) -> None:
    plan = preparation(store, 1)
    first, second = plan.next(), plan.next()
    plan.finish(first.evaluation_id, Outcome(None, Cause.LOST))
    assert plan.next() == first
    plan.finish(first.evaluation_id, Outcome(None, Cause.NAN))
    plan.finish(second.evaluation_id, Outcome(None, Cause.OOM))
    again = judge(store, 1)
    assert second.architecture.hash in again
    assert first.architecture.hash not in again
    judge(store, 2)
    assert first.architecture.hash not in verdicts(store, 1, prior_episode(store.episodes(1)))


@pytest.mark.ray
@pytest.mark.slow
def test_the_service_asks_other_preparations_after_the_search(tmp_path: Path) -> None:
    """Later, of a search that has ended; each reward is that of the preparation whose seed it bears."""
    asked = "--episodes", "8", "--workers", "2", "--confirm", "6"
    folder = tmp_path / "run"
    finish(start(folder, *asked), folder)
    log = finish(start(folder, *asked, "--confirm-preparations", "2"), folder)
    assert "by other preparations" in log
    assert finish(start(folder, *asked, "--confirm-preparations", "2"), folder).count("nothing to do") == 1
    store, config = Store(str(folder / "nas.db"), read_only=True), load_config("smoke", Config)
    found = store.evaluations(1, Purpose.PREPARATION)
    assert {evaluation.state for evaluation in found} == {State.DONE}
    assert {evaluation.measurement.seed for evaluation in found} == {1, 2}
    data, prior = load_split(config.data, None, "train"), load_prior(config.search.prior)
    names = {shared_by_trials(other_preparation(config, number), data, prior).pool for number in (0, 1, 2)}
    assert len(names) == 3
    for evaluation in found:
        other = other_preparation(config, evaluation.measurement.seed)
        proxy = load_proxy(other, data, prior, choose_device(), lambda what, step, steps: None)
        graph = store.architecture(evaluation.architecture_hash)
        assert evaluation.ap == proxy.evaluate(graph, evaluation.measurement.seed, config.proxy.confirm_steps)
