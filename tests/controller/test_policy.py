from collections import Counter

import numpy as np
import pytest
import torch

from controller.policy import Policy, chosen_log_prob, draw, entropies, fit_to_prior
from detector.architecture import PRIORS
from nas.space import space_around
from tests.small_space import SmallSpace

SPACE = SmallSpace()


def probabilities(policy: Policy) -> dict[tuple[int, ...], float]:
    sequences = SPACE.sequences()
    log_probs = policy(torch.tensor(sequences), policy.masks_of(sequences))
    totals = chosen_log_prob(log_probs, torch.tensor(sequences)).sum(1).exp()
    return dict(zip(sequences, totals.tolist(), strict=True))


def test_the_valid_sequences_have_probability_one_together() -> None:
    assert sum(probabilities(Policy(SPACE, 8)).values()) == pytest.approx(1)


def test_samples_follow_the_probabilities_and_report_their_own() -> None:
    policy = Policy(SPACE, 8)
    with torch.no_grad():
        for layer in policy.choose.values():
            layer.bias.normal_(std=1.0)
    wanted, count = probabilities(policy), 20_000
    proposals = policy.sample([np.random.default_rng([0, i]) for i in range(count)])
    seen = Counter(proposal.decisions for proposal in proposals)
    assert seen.keys() <= wanted.keys()
    for sequence, probability in wanted.items():
        deviation = (probability * (1 - probability) / count) ** 0.5
        assert abs(seen[sequence] / count - probability) < 5 * deviation
    for proposal in proposals[:50]:
        assert np.exp(proposal.log_prob) == pytest.approx(wanted[proposal.decisions], rel=1e-4)


def test_a_sample_depends_on_its_own_stream_only() -> None:
    policy = Policy(SPACE, 8)
    many = policy.sample([np.random.default_rng([7, i]) for i in range(20)])
    one = policy.sample([np.random.default_rng([7, 13])])[0]
    assert one.decisions == many[13].decisions


def test_draw_never_takes_an_impossible_option() -> None:
    weights = np.array([0.0, 0.5, 0.5, 0.0])
    uniform = np.array([0.0, 0.49, 0.5, np.nextafter(1, 0)])
    assert draw(np.tile(weights, (4, 1)), uniform).tolist() == [1, 1, 2, 2]


def test_entropy_of_known_distributions_and_its_gradient() -> None:
    logits = torch.tensor([[[0.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]]], requires_grad=True)
    entropy = entropies(logits.log_softmax(-1))
    torch.testing.assert_close(entropy[0], torch.tensor([2.0, 3.0]).log())
    entropy.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ["nas-fpn", "fpn"])
def test_fit_brings_samples_near_the_prior_without_certainty(name: str) -> None:
    space = space_around(PRIORS[name])
    prior = space.decisions(PRIORS[name])
    policy = Policy(space, 32)
    fit_to_prior(policy, prior, 3.0, seed=1)
    samples = [p.decisions for p in policy.sample([np.random.default_rng([99, i]) for i in range(1500)])]
    differing = np.array(samples) != np.array(prior)
    assert differing.sum(1).mean() == pytest.approx(3.0, abs=0.35)
    log_probs = policy(torch.tensor([prior]), policy.masks_of([prior]))
    free = (log_probs[0] > -torch.inf).sum(1) > 1  # the last output's level is forced
    assert log_probs[0].exp().amax(1)[free].max() < 0.99
