import pytest

pytest.importorskip("ray.tune")

from experiments.scale import Setting, Trial, simulated, utilisation


def test_utilisation_counts_from_the_first_start_to_the_last() -> None:
    trials = [Trial(0.0, 4.0), Trial(0.0, 2.0), Trial(2.0, 3.0), Trial(4.0, 9.0)]
    assert utilisation(trials, workers=2) == pytest.approx((4 + 2 + 1) / 8)


def test_a_longer_lag_keeps_workers_busy_where_trials_differ_in_length() -> None:
    """Sixteen workers: a batch waits for its longest trial, some batches wait for nobody."""
    share = {lag: utilisation(simulated(Setting(16, lag, 5, "measured", 1e4)).trials, 16) for lag in (0, 4)}
    assert share[0] < 0.6
    assert share[4] > 0.9


@pytest.mark.parametrize("workers", [1, 20])
def test_every_episode_runs_once_and_no_more_than_workers_at_a_time(workers: int) -> None:
    cost = simulated(Setting(workers, 1, 2, "even", 60.0))
    assert cost.episodes == 2 * max(workers, 10)
    assert len(cost.trials) <= cost.episodes  # graphs that come again are not trained
    ends: list[float] = []
    for trial in cost.trials:
        ends = [end for end in ends if end > trial.start]
        ends.append(trial.end)
        assert len(ends) <= workers
