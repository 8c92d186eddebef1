import numpy as np
import pytest

from experiments.learning import first_proposed, mean_of, report_learning, resampled
from nas.store import Episode, State


def episode(number: int, graph: str, reward: float | None = 0.5) -> Episode:
    return Episode(number, graph, 1, (0,), -1.0, 0, State.DONE, None, reward)


def test_only_graphs_that_are_new_count_and_the_prior_does_not() -> None:
    study = [episode(0, "prior"), episode(1, "a"), episode(2, "a"), episode(3, "b"), episode(4, "prior")]
    study += [episode(5, "c", None), episode(6, "d"), episode(7, "d"), episode(8, "a")]
    assert [e.number for e in first_proposed(study, 0, 4)] == [1, 3]
    assert [e.number for e in first_proposed(study, 4, 9)] == [6]


def test_resampling_keeps_batches_whole() -> None:
    study = [episode(n, str(n), float(n // 10)) for n in range(40)]
    for seed in range(5):
        drawn = resampled(study, np.random.default_rng(seed))
        assert len(drawn) == 40
        counts = np.bincount([e.number // 10 for e in drawn], minlength=4)
        assert (counts % 10 == 0).all()


def test_report_states_means_and_their_difference(capsys: pytest.CaptureFixture[str]) -> None:
    stream = np.random.default_rng(0)
    untrained = [episode(n, f"u{n}", 0.3 + 0.01 * stream.normal()) for n in range(150)]
    learned = [episode(n, f"l{n}", (0.3 if n < 300 else 0.4) + 0.01 * stream.normal()) for n in range(400)]
    report_learning(0, learned, untrained)
    shown = capsys.readouterr().out
    assert "100 graphs of the first policy 0.30" in shown
    assert "100 new graphs of episodes 300-399 0.39" in shown
    assert mean_of(learned[300:]) - mean_of(untrained) == pytest.approx(0.1, abs=0.01)
