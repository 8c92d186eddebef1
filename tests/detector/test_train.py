import copy
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from detector.architecture import PRIORS
from detector.cascade_rcnn import CascadeRcnn
from detector.config import DetectorSections, OptimizationConfig, TrainingConfig
from detector.config_files import load_config
from detector.errors import NonFiniteLossError
from detector.train import Training, learning_rate_factor, make_optimizer, seed_of_step, train


class Numbers(NamedTuple):
    values: Tensor

    def to(self, device: torch.device) -> "Numbers":
        return self


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1)

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        return {"error": (self.layer(values) - 3 * values).square().mean()}


def config(**changes) -> OptimizationConfig:
    base = {"optimizer": "adamw", "learning_rate": 0.1, "steps": 200, "warmup_steps": 5, "schedule": "cosine"}
    return OptimizationConfig(**(base | changes))


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "schedule": "step"}, {"clip_norm": 1.0}])
def test_fits_a_line(changes) -> None:
    model, checks = Line(), []
    batches = (Numbers(torch.randn(8, 1)) for _ in range(200))
    train(
        model, batches, config(**changes), torch.device("cpu"), lambda step, found: checks.append((step, found["loss"]))
    )
    assert model.layer.weight.item() == pytest.approx(3, abs=0.05)
    assert [step for step, _ in checks] == list(range(10, 201, 10))
    assert checks[-1][1] < checks[0][1]


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    batches = (Numbers(torch.full((1, 1), torch.inf if step == 12 else 1.0)) for step in range(200))
    with pytest.raises(NonFiniteLossError, match="by step 20 of 200"):
        train(Line(), batches, config(), torch.device("cpu"))


class Cliff(nn.Module):
    """A finite loss whose gradient is not finite at one step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.weight, self.step, self.seen = nn.Parameter(torch.ones(2)), step, 0

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        self.seen += 1
        shifted = self.weight - self.weight.detach() * (self.seen == self.step)
        return {"loss": shifted.square().sum().sqrt() + values.sum() * 0}


def test_weights_that_the_last_step_made_infinite_are_no_result() -> None:
    batches = [Numbers(torch.ones(1))] * 5
    with pytest.raises(NonFiniteLossError, match="the last training step"):
        train(Cliff(5), batches, config(steps=5), torch.device("cpu"))
    train(Cliff(9), batches, config(steps=5), torch.device("cpu"))


def test_norms_and_biases_are_not_decayed_and_every_parameter_is_in_one_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[2].weight.requires_grad = False
    groups = make_optimizer(model, config(weight_decay=0.1)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(decay)
    wanted = {id(p): 0.1 if p is model[0].weight else 0.0 for p in model.parameters() if p.requires_grad}
    assert decay == wanted


def test_the_whole_detector_is_in_one_group_each_and_only_weights_of_layers_are_decayed() -> None:
    detector = load_config("smoke", DetectorSections).detector
    backbone = detector.backbone.model_copy(update={"norm": "gn", "weight_standardisation": True, "deformable": "v2"})
    model = CascadeRcnn(detector.model_copy(update={"backbone": backbone}), PRIORS["nas-fpn"], 3)
    groups = make_optimizer(model, config(weight_decay=0.1)).param_groups
    decay = [(id(p), group["weight_decay"]) for group in groups for p in group["params"]]
    assert len(dict(decay)) == len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_plain = name.endswith("bias") or "norm" in name or ".bn" in name or "downsample.2" in name
        is_plain = is_plain or parameter.ndim == 1
        assert dict(decay)[id(parameter)] == (0.0 if is_plain else 0.1), name


def test_learning_rate_warms_up_then_falls() -> None:
    cosine = [learning_rate_factor(step, config(warmup_steps=4, steps=104)) for step in range(104)]
    assert cosine[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert cosine[4] == 1
    assert cosine[54] == pytest.approx(0.5)
    assert cosine[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    steps = config(schedule="step", warmup_steps=0, steps=90, milestones=(0.5, 0.9))
    assert [learning_rate_factor(s, steps) for s in (0, 44, 45, 80, 81)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_learning_rates_follow_the_batch_where_they_are_for_another_one() -> None:
    base = {"learning_rate": 0.02, "batch_size": 16}
    for changes, wanted in (
        ({}, 0.02),
        ({"batch_size": 64}, 0.02),
        ({"reference_batch_size": 16}, 0.02),
        ({"reference_batch_size": 16, "batch_size": 64}, 0.08),
        ({"reference_batch_size": 16, "batch_size": 2}, 0.0025),
    ):
        for optimizer in ("sgd", "adamw"):
            found = TrainingConfig(**(base | changes), optimizer=optimizer)
            assert make_optimizer(Line(), found).param_groups[0]["lr"] == pytest.approx(wanted)


class Parts(Numbers):
    def split(self, parts: int) -> list[Numbers]:
        return [Numbers(values) for values in self.values.chunk(parts)]


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd"}, {"clip_norm": 1.0}])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(changes) -> None:
    made = []
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        losses: list[float] = []
        training = Training(Line(), config(steps=10, **changes), torch.device("cpu"), accumulate=parts)
        batches = [Parts(torch.arange(8.0)[:, None] + step) for step in range(10)]
        training.run(batches, lambda _, found: losses.append(found["loss"]))  # noqa: B023
        made.append((training.model.layer.weight.item(), losses[0]))
    assert made[1] == pytest.approx(made[0], rel=1e-5)
    assert made[2] == pytest.approx(made[0], rel=1e-5)


def test_random_numbers_of_a_step_are_its_own() -> None:
    seeds = {seed_of_step(seed, step, rank) for seed in (0, 1) for step in range(50) for rank in range(3)}
    assert len(seeds) == 300
    assert seed_of_step(3, 4, 5) == seed_of_step(3, 4, 5)


class Noisy(Line):
    """Draws random numbers at each step, as proposals are sampled."""

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        kept = nn.functional.dropout(values, 0.5)
        return {"error": (self.norm(self.layer(kept)) - 3 * values).square().mean()}


def numbers(start: int) -> list[Numbers]:
    return [Numbers(torch.full((4, 1), float(i)) + torch.arange(4.0)[:, None]) for i in range(start, 30)]


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "schedule": "step"}, {"clip_norm": 1.0}])
@pytest.mark.parametrize("stop", [1, 10, 17])
def test_a_training_goes_on_from_its_state_bit_for_bit(changes, stop: int) -> None:
    made = {}
    for name in ("whole", "parts"):
        torch.manual_seed(0)
        losses: list[tuple[int, float]] = []
        on_check = lambda step, found: losses.append((step, found["loss"]))  # noqa: B023, E731
        options = {"average_decay": 0.9, "seed": 3}
        training = Training(Noisy(), config(steps=30, **changes), torch.device("cpu"), **options)
        if name == "parts":
            training.run(numbers(0)[:stop], on_check)
            state = copy.deepcopy(training.state())
            torch.manual_seed(1)
            training = Training(Noisy(), config(steps=30, **changes), torch.device("cpu"), **options)
            training.load(state)
            torch.rand(3)  # as a loader draws
        training.run(numbers(training.step), on_check)
        weights = [*training.model.state_dict().values(), *training.result.state_dict().values()]
        made[name] = losses, [weight.tolist() for weight in weights], training.optimizer.param_groups[0]["lr"]
    assert made["parts"] == made["whole"]


def test_the_average_is_that_of_all_weights_since_the_start() -> None:
    model = Line()
    training = Training(model, config(steps=5), torch.device("cpu"), average_decay=0.8)
    wanted = model.layer.weight.detach().clone()
    statistics = model.norm.running_mean.clone()

    def on_step(step: int) -> None:
        nonlocal wanted, statistics
        new = model.layer.weight.detach()
        wanted = new.clone() if step == 1 else 0.8 * wanted + 0.2 * new
        statistics = model.norm.running_mean.clone() if step == 1 else 0.8 * statistics + 0.2 * model.norm.running_mean

    training.run(numbers(25), None, on_step)
    assert training.step == 5
    assert training.result is not model
    assert training.result.layer.weight.detach().allclose(wanted)
    assert training.result.norm.running_mean.allclose(statistics)
    assert Training(model, config(), torch.device("cpu")).result is model
