"""Rivals propose valid sequences, from their own stream and what they were told only, and get better."""

import copy

import numpy as np
import pytest

from controller.decisions import uniform
from controller.proposer import Proposer, Rewarded
from detector.architecture import PRIORS
from experiments.rivals import LocalSearch, Tpe
from nas.space import space_around

PRIOR = PRIORS["nas-fpn"]
SPACE = space_around(PRIOR)
GOAL = SPACE.decisions(PRIOR)


def closeness(decisions: tuple[int, ...]) -> float:
    """The share of decisions that are the published graph's."""
    return float(np.mean(np.array(decisions) == GOAL))


def searched(proposer: Proposer, batches: int) -> list[float]:
    rewards = []
    for batch in range(batches):
        drawn = [proposer.propose(np.random.default_rng([batch, i])).decisions for i in range(10)]
        for decisions in drawn:
            assert all(SPACE.mask(decisions[:t])[value] for t, value in enumerate(decisions))
        rewards += [closeness(decisions) for decisions in drawn]
        proposer.update([Rewarded(decisions, 0.0, closeness(decisions)) for decisions in drawn])
    return rewards


@pytest.mark.parametrize("kind", [LocalSearch, Tpe])
def test_it_gets_better_than_random(kind: type) -> None:
    rewards = searched(kind(SPACE, None), 12)
    chance = np.mean([closeness(uniform(SPACE, np.random.default_rng(i))) for i in range(300)])
    assert np.mean(rewards[-30:]) > chance + 0.1


@pytest.mark.parametrize("kind", [LocalSearch, Tpe])
def test_it_starts_near_a_prior(kind: type) -> None:
    assert np.mean(searched(kind(SPACE, GOAL), 1)) > 0.7


@pytest.mark.parametrize("kind", [LocalSearch, Tpe])
def test_a_restored_rival_proposes_the_same(kind: type) -> None:
    first = kind(SPACE, None)
    searched(first, 4)
    second = kind(SPACE, None)
    second.load(first.state())
    third = copy.deepcopy(first)
    streams = [np.random.default_rng(7) for _ in range(3)]
    proposals = [rival.propose(stream) for rival, stream in zip((first, second, third), streams, strict=True)]
    assert proposals[0] == proposals[1] == proposals[2]
