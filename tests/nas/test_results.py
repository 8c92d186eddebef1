import numpy as np
import pytest

from detector.cost import Cost
from nas.results import Spread, judged, pareto_front, probability_above, shared_spread
from nas.store import Cause, Episode, Evaluation, Measurement, Purpose, State


def runs(graph: str, *rewards: float | None) -> list[Evaluation]:
    return [
        Evaluation(
            i,
            graph,
            Measurement(Purpose.CONFIRM, i, 3),
            Cost(1.0, 10),
            reward,
            State.FAILED if reward is None else State.DONE,
            Cause.NAN if reward is None else None,
            reward,
            2.5 if i == 0 else None,
        )
        for i, reward in enumerate(rewards)
    ]


def test_a_verdict_holds_mean_spread_runs_and_what_beats_the_prior() -> None:
    found = judged([*runs("prior", 0.3, 0.32), *runs("better", 0.4, 0.42), *runs("bad", 0.5, None)], "prior")
    assert list(found) == ["better", "prior"]
    better = found["better"]
    assert (better.mean, better.runs, better.latency_ms) == (pytest.approx(0.41), 2, 2.5)
    assert better.spread == pytest.approx(0.02 / 2**0.5)
    assert better.beats_prior == pytest.approx(0.9903, abs=1e-4)  # t = 7.07 with 2 degrees of freedom
    assert found["prior"].beats_prior is None


def test_of_equal_means_the_one_with_more_runs_wins() -> None:
    found = judged([*runs("few", 0.41, 0.39), *runs("many", 0.41, 0.39, 0.41, 0.39, 0.41, 0.39)], None)
    assert list(found) == ["many", "few"]
    assert found["many"].beats_prior is None


def test_shared_spread_pools_what_varies_within_graphs() -> None:
    assert shared_spread([[1.0, 1.2], [5.0, 5.2, 5.1]]) == (pytest.approx(((0.02 + 0.02) / 3) ** 0.5), 3)
    assert shared_spread([[1.0], [2.0]]) is None


def test_probability_is_that_of_student_s_t() -> None:
    spread = Spread(0.1, 4)
    assert probability_above([0.5], [0.5], spread) == 0.5
    error = 0.1 * (1 / 4 + 1 / 1) ** 0.5
    assert probability_above([0.5 + 2.132 * error] * 4, [0.5], spread) == pytest.approx(0.95, abs=1e-3)  # t tables
    assert probability_above([0.4], [0.5], Spread(0.0, 4)) == 0.0


def test_of_equal_graphs_the_best_looking_one_is_rarely_sure() -> None:
    """Eight candidates and the prior, all the same: how often the first of the verdicts claims 95 % and more."""
    stream, sure = np.random.default_rng(0), 0
    for _ in range(300):
        graphs = {f"g{i}": stream.normal(0.3, 0.01, 6).tolist() for i in range(8)}
        found = judged(
            [*runs("prior", *stream.normal(0.3, 0.01, 6)), *(e for g, r in graphs.items() for e in runs(g, *r))],
            "prior",
        )
        winner = next(iter(found.values()))
        sure += winner.beats_prior is not None and winner.beats_prior >= 0.95
    assert sure / 300 <= 0.08  # one in five without drawing them together


def test_a_candidate_that_is_better_is_still_seen_to_be() -> None:
    stream = np.random.default_rng(1)
    graphs = {f"g{i}": stream.normal(0.33 if i == 3 else 0.3, 0.01, 6).tolist() for i in range(8)}
    found = judged(
        [*runs("prior", *stream.normal(0.3, 0.01, 6)), *(e for g, r in graphs.items() for e in runs(g, *r))], "prior"
    )
    assert next(iter(found)) == "g3"
    assert found["g3"].beats_prior > 0.99


def test_nothing_on_the_front_is_beaten_and_everything_off_it_is() -> None:
    measured = [(1.0, 0.2), (2.0, 0.3), (2.0, 0.1), (3.0, 0.3), (4.0, 0.35), (0.5, 0.2)]
    evaluations = {
        i: Evaluation(i, str(i), Measurement(Purpose.SEARCH, 0, 3), Cost(cost, 1), ap, State.DONE, None, ap, None)
        for i, (cost, ap) in enumerate(measured)
    }
    episodes = [Episode(i, str(i), i, (), 0.0, 0, State.DONE, None, ap) for i, (_, ap) in enumerate(measured)]
    assert [episode.number for episode in pareto_front(episodes, evaluations)] == [5, 1, 4]
