import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from detector.architecture import PRIORS
from detector.cascade_rcnn import CascadeRcnn
from detector.config import DetectorSections, OptimizationConfig, load_config
from detector.errors import NonFiniteLossError
from detector.train import learning_rate_factor, make_optimizer, train


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
    train(model, batches, config(**changes), torch.device("cpu"), lambda step, loss: checks.append((step, loss)))
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
