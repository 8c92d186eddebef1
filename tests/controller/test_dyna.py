import numpy as np
import pytest

from controller.dyna import MAX_KNOWN, Dyna
from controller.proposer import Rewarded
from controller.reinforce import Reinforce
from tests.small_space import SmallSpace

SPACE = SmallSpace()
BEST = (2, 1, 0)


def describe(decisions):
    """One hot."""
    return np.concatenate([np.eye(3)[value] for value in decisions])


def dyna(describe=describe, steps=4, seed=0, **changes) -> Dyna:
    settings = {
        "hidden": 16,
        "learning_rate": 0.01,
        "entropy_weight": 0.01,
        "baseline_decay": 0.8,
        "prior": None,
        "prior_distance": 1.0,
    }
    learner = Reinforce(SPACE, seed=seed, **(settings | changes))
    return Dyna(learner, describe, steps=steps, samples=16, seed=seed)


def reward(decisions, noise=0.0) -> float:
    return sum(a == b for a, b in zip(decisions, BEST, strict=True)) / 3 + noise


def batch_of(learner, number: int) -> list[Rewarded]:
    streams = [np.random.default_rng([number, i]) for i in range(6)]
    proposals = [learner.propose(stream) for stream in streams]
    return [Rewarded(p.decisions, p.log_prob, reward(p.decisions, 0.1 * s.standard_normal())) for p, s in
            zip(proposals, streams, strict=True)]  # fmt: skip


def share_of_best(learner) -> float:
    samples = [learner.propose(np.random.default_rng([1000, i])).decisions for i in range(100)]
    return sum(sample == BEST for sample in samples) / 100


def test_steps_on_the_model_learn_more_from_the_same_number_of_rewards() -> None:
    shares = {}
    for steps in (0, 10):
        learner = dyna(steps=steps)
        for number in range(12):
            learner.update(batch_of(learner, number))
        shares[steps] = share_of_best(learner)
    assert shares[10] > 0.8
    assert shares[10] > shares[0] + 0.3


def test_without_steps_it_is_its_learner() -> None:
    ours, plain = dyna(steps=0), dyna().learner
    for number in range(3):
        batch = batch_of(ours, number)
        ours.update(batch)
        plain.update(batch)
    assert ours.state().weights == plain.state().weights


def test_state_round_trip_goes_on_exactly() -> None:
    first, second = dyna(), dyna(seed=0, learning_rate=0.01)
    for number in range(4):
        first.update(batch_of(first, number))
    second.load(first.state())
    batch = batch_of(first, 4)
    for learner in (first, second):
        learner.update(batch)
    assert first.state() == second.state()
    assert first.state().weights != dyna().state().weights


def judged_by_the_model(learner: Dyna, updates: int) -> list[list]:
    """The sequences of every step that the model judged. Batches are the same, and of one sequence each."""
    steps: list[list] = []
    plain = learner.learner.descend
    learner.learner.descend = lambda sequences, *rest: (steps.append(sequences), plain(sequences, *rest))
    learner.update([Rewarded(sequence, -2.0, reward(sequence)) for sequence in SPACE.sequences()])
    for _ in range(updates):
        learner.update([Rewarded(BEST, -2.0, reward(BEST))])
    return [sequences for sequences in steps if len(sequences) > 1 and sequences != SPACE.sequences()]


def test_what_may_not_be_proposed_is_not_learned_from_the_model() -> None:
    allowed = dyna(lambda d: None if d[0] == 2 else describe(d))
    judged = judged_by_the_model(allowed, 3)
    assert len(judged) == 12
    assert all(sequence[0] != 2 for sequences in judged for sequence in sequences)
    assert all(decisions[0] != 2 for decisions, _, _ in allowed.known.values())


def test_a_single_batch_is_too_little_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, steps = dyna(), []
    monkeypatch.setattr(learner.learner, "descend", lambda *batch: steps.append(batch))
    batch = [Rewarded(BEST, None, 1.0), *(Rewarded(sequence, -2.0, reward(sequence)) for sequence in SPACE.sequences())]
    learner.update(batch)
    assert len(steps) == 1
    learner.update(batch)
    assert len(steps) == 1 + 1 + 4


def test_every_step_on_the_model_draws_anew() -> None:
    judged = judged_by_the_model(dyna(learning_rate=1e-9), 3)
    assert len({tuple(sequences) for sequences in judged}) == len(judged) == 12


def test_assumed_rewards_do_not_enter_the_model() -> None:
    learner = dyna()
    learner.update([Rewarded(BEST, -1.0, 0.5, is_measured=False), Rewarded((0, 1, 2), -1.0, 0.2)])
    assert [decisions for decisions, _, _ in learner.known.values()] == [(0, 1, 2)]


def test_equal_graphs_are_known_once_and_the_oldest_are_forgotten() -> None:
    learner = dyna(lambda decisions: np.array(decisions, float), steps=0)
    learner.update([Rewarded((0, 0, 1), -1.0, 0.1), Rewarded((0, 0, 1), -1.0, 0.1)])
    assert len(learner.known) == 1
    learner.update([Rewarded((i, 1, 0), None, 0.2) for i in range(1, MAX_KNOWN + 1)])
    assert len(learner.known) == MAX_KNOWN
    assert (0, 0, 1) not in [decisions for decisions, _, _ in learner.known.values()]


def test_what_was_measured_already_is_worth_less() -> None:
    """All that is known begins with 0 or 1, and nothing is better than anything else."""
    known = [sequence for sequence in SPACE.sequences() if sequence[0] != 2]
    learner = dyna(steps=10)
    stream = np.random.default_rng(0)
    for _ in range(6):
        learner.update([Rewarded(d, -2.0, 0.5 + 0.01 * stream.standard_normal()) for d in known])
    drawn = [learner.propose(np.random.default_rng([7, i])).decisions[0] for i in range(200)]
    assert drawn.count(2) > 120


def test_better_neighbours_of_the_best_are_imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy hardly ever draws the best, nor anything near it; its neighbours are drawn for it."""
    shares = {}
    for imitates in (True, False):
        learner = dyna(prior=(0, 0, 1), prior_distance=0.1, steps=12)
        if not imitates:
            monkeypatch.setattr(learner, "_neighbours", lambda best, stream: [])
        given = [Rewarded(sequence, None, reward(sequence)) for sequence in SPACE.sequences()]
        for _ in range(4):
            learner.update([*given, Rewarded((0, 0, 1), -0.1, reward((0, 0, 1)))])
        shares[imitates] = share_of_best(learner)
    assert shares[True] > shares[False] + 0.2


def test_worse_neighbours_are_not_pushed_away() -> None:
    """They say nothing about what the policy draws, and a weight below zero has no bound."""
    learner = dyna(steps=3)
    seen: list[np.ndarray] = []
    plain = learner.learner.descend
    learner.learner.descend = lambda s, log_probs, advantage, i: (
        seen.append(advantage),
        plain(s, log_probs, advantage, i),
    )
    for _ in range(3):
        learner.update([Rewarded(sequence, -2.0, reward(sequence)) for sequence in SPACE.sequences()])
    judged = [advantage for advantage in seen if len(advantage) == 32]
    assert judged
    assert all((advantage[16:] >= 0).all() for advantage in judged)
    assert any((advantage[:16] < 0).any() for advantage in judged)
