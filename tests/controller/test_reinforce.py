import numpy as np
import pytest
import torch

from controller.policy import chosen_log_prob
from controller.proposer import Rewarded
from controller.reinforce import Reinforce, Untrained, reinforce_loss
from tests.small_space import SmallSpace

SPACE = SmallSpace()


def proposer(kind=Reinforce, **changes) -> Reinforce:
    settings = {
        "hidden": 16,
        "learning_rate": 0.02,
        "entropy_weight": 0.01,
        "baseline_decay": 0.8,
        "prior": None,
        "prior_distance": 1.0,
        "seed": 0,
    }
    return kind(SPACE, **(settings | changes))


@pytest.mark.parametrize("baseline", [0.0, 0.7, -3.0])
def test_expected_gradient_is_exact_for_any_baseline(baseline: float) -> None:
    """Over all sequences of the small space, against the gradient of the expected reward itself."""
    policy, sequences = proposer().policy, SPACE.sequences()
    reward = torch.linspace(-1, 2, len(sequences)).square()
    decisions = torch.tensor(sequences)
    log_probs = chosen_log_prob(policy(decisions, policy.masks_of(sequences)), decisions)
    probability = log_probs.sum(1).exp()
    parameters = list(policy.parameters())
    exact = torch.autograd.grad(-(probability * reward).sum(), parameters, retain_graph=True, allow_unused=True)
    entropy, one = torch.zeros_like(log_probs), torch.ones(1)
    expected = sum(
        p * reinforce_loss(log_probs[i : i + 1], entropy[i : i + 1], reward[i : i + 1] - baseline, one, 0.0)
        for i, p in enumerate(probability.detach())
    )
    ours = torch.autograd.grad(expected, parameters, allow_unused=True)
    for mine, theirs in zip(ours, exact, strict=True):
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_importance_scales_an_episode_and_carries_no_gradient() -> None:
    log_prob = torch.tensor([[-1.0], [-2.0]], requires_grad=True)
    importance = torch.tensor([2.0, 0.5], requires_grad=True)
    loss = reinforce_loss(log_prob, torch.zeros(2, 1), torch.tensor([1.0, 1.0]), importance, 0.0)
    loss.backward()
    assert log_prob.grad.flatten().tolist() == pytest.approx([-1.0, -0.25])
    assert importance.grad is None


def test_entropy_bonus_raises_entropy() -> None:
    log_prob = torch.zeros(2, 3, requires_grad=True)
    entropy = torch.ones(2, 3, requires_grad=True)
    reinforce_loss(log_prob, entropy, torch.zeros(2), torch.ones(2), 0.5).backward()
    assert (entropy.grad < 0).all()


def test_learns_the_best_sequence() -> None:
    learner, best = proposer(), (2, 1, 0)
    for batch in range(150):
        streams = [np.random.default_rng([batch, i]) for i in range(10)]
        proposals = [learner.propose(stream) for stream in streams]
        rewards = [sum(a == b for a, b in zip(p.decisions, best, strict=True)) / 3 for p in proposals]
        learner.update([Rewarded(p.decisions, p.log_prob, r) for p, r in zip(proposals, rewards, strict=True)])
    samples = [learner.propose(np.random.default_rng([1000, i])).decisions for i in range(50)]
    assert sum(sample == best for sample in samples) > 35
    control = proposer(Untrained)
    before = control.state().weights
    control.update([Rewarded(best, -1.0, 1.0)])
    assert control.state().weights == before


def test_baseline_starts_at_the_prior_s_reward_and_the_prior_gives_no_gradient() -> None:
    learner = proposer()
    before = [p.clone() for p in learner.policy.parameters()]
    learner.update([Rewarded((0, 1, 2), None, 0.5)])
    assert learner.baseline == 0.5
    assert all(a.equal(b) for a, b in zip(before, learner.policy.parameters(), strict=True))
    learner.update([Rewarded((0, 1, 2), -1.0, 0.3), Rewarded((2, 1, 0), -1.0, 0.7)])
    assert learner.baseline == pytest.approx(0.5)
    learner.update([Rewarded((0, 1, 2), -1.0, 1.0)])
    assert learner.baseline == pytest.approx(0.8 * 0.5 + 0.2 * 1.0)


def test_without_a_prior_the_first_batch_sets_the_baseline_only() -> None:
    learner = proposer()
    before = [p.clone() for p in learner.policy.parameters()]
    learner.update([Rewarded((0, 1, 2), -1.0, 0.2), Rewarded((2, 1, 0), -1.0, 0.4)])
    assert learner.baseline == pytest.approx(0.3)
    assert all(a.equal(b) for a, b in zip(before, learner.policy.parameters(), strict=True))


def test_equal_rewards_and_an_empty_batch_leave_a_finite_policy() -> None:
    learner = proposer()
    learner.update([])
    for _ in range(5):
        learner.update([Rewarded((0, 1, 2), -1.0, 0.0), Rewarded((2, 1, 0), -1.0, 0.0)])
    assert all(p.isfinite().all() for p in learner.policy.parameters())


def test_state_round_trip_goes_on_exactly() -> None:
    first, second = proposer(), proposer(seed=5)
    batch = [Rewarded((0, 1, 2), -1.5, 0.1), Rewarded((2, 1, 0), -2.0, 0.6)]
    first.update(batch)
    first.update(batch)
    second.load(first.state())
    for learner in (first, second):
        learner.update(batch)
    assert first.state() == second.state()
    probabilities = first.state().probabilities
    assert [len(row) for row in probabilities] == [3, 2, 3]
    assert [sum(row) for row in probabilities] == pytest.approx([1, 1, 1])
