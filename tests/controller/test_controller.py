import pytest

from controller.controller import Controller, version_of
from controller.proposer import Rewarded
from controller.reinforce import Reinforce
from tests.small_space import SmallSpace


def controller(lag: int = 1) -> Controller:
    learner = Reinforce(
        SmallSpace(),
        hidden=8,
        learning_rate=0.05,
        entropy_weight=0.0,
        baseline_decay=0.5,
        prior=None,
        prior_distance=1.0,
        seed=0,
    )
    return Controller(learner, batch=4, lag=lag, seed=3)


def batches(count: int) -> list[list[Rewarded]]:
    return [[Rewarded((0, 1, 2), -1.0, 0.1 * b), Rewarded((2, 1, 0), -2.0, 0.5)] for b in range(count)]


def test_versions_follow_the_schedule_rule() -> None:
    assert [version_of(e, 4, 1) for e in (0, 3, 4, 7, 8, 11, 12)] == [0, 0, 0, 0, 1, 1, 2]
    assert [version_of(e, 4, 0) for e in (0, 3, 4, 8)] == [0, 0, 1, 2]


def test_proposals_do_not_depend_on_when_they_are_asked_for() -> None:
    early, late = controller(), controller()
    early_answers = {e: early.propose(e) for e in range(8)}
    for batch in batches(2):
        early.update(batch)
    early_answers |= {e: early.propose(e) for e in range(8, 12)}
    late.update(batches(2)[0])
    answers = {e: late.propose(e) for e in (9, 8, 11, 10, 5, 4, 7, 6)}
    assert answers == {e: early_answers[e] for e in answers}


def test_a_proposal_that_depends_on_an_unused_batch_is_refused() -> None:
    with pytest.raises(LookupError, match="episode 8 needs version 1"):
        controller().propose(8)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_restored_versions_propose_and_learn_the_same(lag: int) -> None:
    first, states = controller(lag), {}
    for version, batch in enumerate(batches(4), start=1):
        states[version] = first.update(batch)
    second = controller(lag)
    second.restore({version: states[version] for version in list(states)[-(lag + 2) :]})
    episodes = range(4 * 4, 4 * 4 + 4)
    assert [second.propose(e) for e in episodes] == [first.propose(e) for e in episodes]
    assert second.update(batches(5)[4]) == first.update(batches(5)[4])


def test_proposals_that_are_not_acceptable_are_drawn_again_from_the_same_stream() -> None:
    free, picky = controller(), controller()
    picky.accepts = lambda decisions: decisions[0] == 2
    for episode in range(8):
        first, accepted = free.propose(episode), picky.propose(episode)
        assert accepted.decisions[0] == 2
        assert picky.propose(episode) == accepted
        if first.decisions[0] == 2:
            assert accepted == first
    hopeless = controller()
    hopeless.accepts = lambda decisions: False
    assert hopeless.propose(0).decisions in SmallSpace().sequences()
