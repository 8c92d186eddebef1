import numpy as np

from controller.decisions import mutate, uniform
from controller.evolution import Evolution
from controller.proposer import Rewarded
from detector.architecture import PRIORS
from nas.space import space_around

SPACE = space_around(PRIORS["nas-fpn"])
PRIOR = SPACE.decisions(PRIORS["nas-fpn"])


def is_valid(decisions: tuple[int, ...]) -> bool:
    return all(SPACE.mask(decisions[:t])[value] for t, value in enumerate(decisions))


def test_uniform_and_mutated_sequences_are_valid() -> None:
    stream = np.random.default_rng(0)
    for _ in range(200):
        assert is_valid(uniform(SPACE, stream))
        assert is_valid(mutate(SPACE, PRIOR, int(stream.integers(1, 9)), stream))


def test_a_mutation_changes_something_unless_it_was_forced() -> None:
    stream = np.random.default_rng(0)
    changed = [sum(a != b for a, b in zip(PRIOR, mutate(SPACE, PRIOR, 1, stream), strict=True)) for _ in range(300)]
    # one of 28 decisions, the last output's level, has one option only
    assert sum(count == 0 for count in changed) < 25
    assert np.mean([count == 1 for count in changed]) > 0.7


def test_evolution_climbs_and_forgets_the_oldest() -> None:
    evolution, goal = Evolution(SPACE, population=20, tournament=5, prior=None), np.array(PRIOR)
    means = []
    for batch in range(60):
        proposals = [evolution.propose(np.random.default_rng([batch, i])).decisions for i in range(10)]
        rewards = [float((np.array(p) == goal).mean()) for p in proposals]
        evolution.update([Rewarded(p, 0.0, r) for p, r in zip(proposals, rewards, strict=True)])
        means.append(np.mean(rewards))
    assert len(evolution.members) == 20
    assert np.mean(means[-5:]) > np.mean(means[:2]) + 0.25


def test_state_round_trip() -> None:
    first, second = (Evolution(SPACE, population=3, tournament=2, prior=PRIOR) for _ in range(2))
    first.update([Rewarded(PRIOR, None, 0.1 * i) for i in range(5)])
    second.load(first.state())
    assert second.members == first.members
    assert second.propose(np.random.default_rng(1)) == first.propose(np.random.default_rng(1))
