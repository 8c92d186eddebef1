import numpy as np
import pytest
import torch

from controller.reward_model import RewardModel

NOISE = 0.05


def truth(features: torch.Tensor) -> torch.Tensor:
    return torch.sin(features[:, 0]) + 0.5 * features[:, 1]


def drawn(count: int, seed: int) -> torch.Tensor:
    """Two features that matter, one that does not, and one that never varies."""
    stream = np.random.default_rng(seed)
    return torch.from_numpy(np.c_[stream.uniform(-2, 2, (count, 3)), np.full(count, 3.0)])


def noisy(features: torch.Tensor) -> torch.Tensor:
    return truth(features) + NOISE * torch.from_numpy(np.random.default_rng(1).standard_normal(len(features)))


def test_predicts_what_it_has_not_seen() -> None:
    known, new = drawn(100, 0), drawn(200, 2)
    error = RewardModel(known, noisy(known)).expected(new) - truth(new)
    assert error.square().mean() < 0.05 * truth(new).var()


def test_noise_is_smoothed_away_where_rewards_are_known() -> None:
    known = drawn(150, 0)
    noise = 0.5 * torch.from_numpy(np.random.default_rng(4).standard_normal(150))
    mean = RewardModel(known, truth(known) + noise).expected(known)
    assert (mean - truth(known)).square().mean().sqrt() < 0.5 * noise.std()


def test_more_rewards_make_it_better() -> None:
    new = drawn(50, 2)
    models = [RewardModel(drawn(n, 0), noisy(drawn(n, 0))) for n in (15, 60, 240)]
    errors = [(model.expected(new) - truth(new)).abs().mean() for model in models]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("feature", [0, 3])
def test_far_from_all_that_is_known_it_expects_the_mean(feature: int) -> None:
    """Also where a feature differs that never varied."""
    known = drawn(100, 0)
    rewards = noisy(known)
    model = RewardModel(known, rewards)
    far = known[:1].clone()
    far[0, feature] += 100.0
    assert float(model.expected(far)) == pytest.approx(float(rewards.mean()))


def test_pure_noise_is_not_believed() -> None:
    features = drawn(100, 0)
    rewards = torch.from_numpy(np.random.default_rng(3).standard_normal(100))
    assert RewardModel(features, rewards).expected(drawn(100, 2)).std() < 0.5


def test_follows_scale_and_offset_of_rewards() -> None:
    known, new = drawn(60, 0), drawn(20, 2)
    scaled = RewardModel(known, 7 + 100 * noisy(known)).expected(new)
    torch.testing.assert_close(scaled, 7 + 100 * RewardModel(known, noisy(known)).expected(new))


def test_posterior_is_that_of_the_textbook() -> None:
    """Rasmussen & Williams 2006, equation 2.25, with the kernel and noise that it chose."""
    known, new = drawn(30, 0), drawn(5, 2)
    rewards = truth(known) + 10 * (noisy(known) - truth(known))
    model = RewardModel(known, rewards)
    scaled = [(features - known.mean(0)) / torch.tensor([*known[:, :3].std(0), 1.0]) for features in (known, new)]
    between = torch.exp(-((scaled[1][:, None] - scaled[0][None]) ** 2).sum(2) / (2 * model._length))
    kernel = torch.exp(-((scaled[0][:, None] - scaled[0][None]) ** 2).sum(2) / (2 * model._length))
    targets = (rewards - rewards.mean()) / rewards.std()
    solved = torch.linalg.solve(kernel + model._noise * torch.eye(30), targets[:, None])
    torch.testing.assert_close(model.expected(new), rewards.mean() + rewards.std() * (between @ solved)[:, 0])


@pytest.mark.parametrize("rewards", [[0.3] * 12, [0.3] * 11 + [0.4]])
def test_equal_rewards_and_equal_graphs_are_finite(rewards: list[float]) -> None:
    for features in (drawn(12, 0), drawn(1, 0).repeat(12, 1)):
        mean = RewardModel(features, torch.tensor(rewards, dtype=torch.float64)).expected(drawn(5, 2))
        assert mean.isfinite().all()
        assert mean.min() > 0.2
        assert mean.max() < 0.5
