import numpy as np
import pytest

from detector.cost import Cost
from nas.results import Spread, judged, pareto_front, probability_above, without_seeds
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
    found = judged([*runs("prior", 0.3, 0.32), *runs("better", 0.42, 0.4), *runs("bad", 0.5, None)], "prior")
    assert list(found) == ["better", "prior"]
    better = found["better"]
    assert (better.mean, better.runs, better.latency_ms) == (pytest.approx(0.41), 2, 2.5)
    assert better.spread == pytest.approx(0.02 / 2**0.5)
    assert better.steps == 3
    assert better.beats_prior == pytest.approx(0.9372, abs=1e-4)  # t = 5 with 1 degree of freedom
    assert found["prior"].beats_prior is None


def test_of_equal_means_the_one_with_more_runs_wins() -> None:
    found = judged([*runs("few", 0.41, 0.39), *runs("many", 0.41, 0.39, 0.41, 0.39, 0.41, 0.39)], None)
    assert list(found) == ["many", "few"]
    assert found["many"].beats_prior is None


def test_what_a_seed_does_to_all_graphs_alike_is_taken_off() -> None:
    """b has run with the two kind seeds only; it is worse than a."""
    kind = {0: 0.1, 1: 0.1, 2: -0.1, 3: -0.1}
    rewards = {"a": {seed: 0.5 + effect for seed, effect in kind.items()}, "b": {0: 0.55, 1: 0.55}}
    samples, spread = without_seeds(rewards)
    assert samples["a"] == pytest.approx([0.5] * 4)
    assert samples["b"] == pytest.approx([0.45] * 2)
    assert spread is not None
    assert spread.deviation == pytest.approx(0.0, abs=1e-9)
    assert spread.degrees == 6 - (2 + 4 - 1)


def test_what_is_left_is_the_noise() -> None:
    stream = np.random.default_rng(0)
    effects = stream.normal(0, 0.5, 40)
    rewards = {
        str(graph): {seed: graph + effects[seed] + stream.normal(0, 0.02) for seed in range(10 * (graph % 4) + 5)}
        for graph in range(40)
    }
    samples, spread = without_seeds(rewards)
    assert spread is not None
    assert spread.deviation == pytest.approx(0.02, rel=0.1)
    assert all(abs(np.mean(samples[str(g)]) - np.mean(samples["0"]) - g) < 0.05 for g in range(40))


def test_of_a_single_run_each_there_is_no_spread() -> None:
    assert without_seeds({"a": {0: 1.0}, "b": {0: 2.0}})[1] is None
    assert without_seeds({"a": {0: 1.0}})[1] is None
    assert without_seeds({}) == ({}, None)


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
