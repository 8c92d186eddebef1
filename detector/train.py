"""The training loop: any module whose forward returns losses, over any batches."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detector.config import OptimizationConfig
from detector.errors import NonFiniteLossError

CHECK_EVERY = 10  # steps between looks at the loss; each look waits for the device
OnCheck = Callable[[int, float], None]
OnStep = Callable[[int], None]
Model = TypeVar("Model", bound=nn.Module)


def train(
    model: nn.Module,
    batches: Iterable[Any],
    config: OptimizationConfig,
    device: torch.device,
    on_check: OnCheck | None = None,
) -> None:
    """Fit `model` for config.steps steps, as Training.run does."""
    Training(model, config, device).run(batches, on_check)


class Training(Generic[Model]):
    """A module that is being fitted, with optimizer, schedule, scaler and how far it has come.

    state() and load() carry it over an interruption: what went on from a state is equal, bit for bit on a CPU with as
    many threads, to what was not interrupted.
    """

    def __init__(
        self, model: Model, config: OptimizationConfig, device: torch.device, average_decay: float | None = None
    ) -> None:
        """average_decay: also keep a moving average of the weights."""
        self.model = model
        self.config = config
        self.device = device
        self.step = 0
        self.optimizer = make_optimizer(model, config)
        self.schedule = LambdaLR(self.optimizer, lambda step: learning_rate_factor(step, config))
        self.dtype = getattr(torch, config.precision)
        self.is_mixed = device.type == "cuda" and self.dtype != torch.float32
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.is_mixed and self.dtype == torch.float16)
        self.average = None if average_decay is None else averaged(model, average_decay)
        self._loss, self._checked = torch.zeros((), device=device), 0  # sum since the last check, and that step
        self._random: dict[str, Any] | None = None

    @property
    def result(self) -> Model:
        """With the averaged weights where there are some, else the last."""
        return self.model if self.average is None else cast(Model, self.average.module)

    def run(self, batches: Iterable[Any], on_check: OnCheck | None = None, on_step: OnStep | None = None) -> None:
        """The steps that are left, config.steps in all, or as many as there are batches: those from self.step on.

        A batch has .to(device) and is unpacked into model.forward. on_check(step, mean loss since the last check) is
        called every CHECK_EVERY steps and after the last, on_step(step) after each, when state() is that of a whole
        step. Raises NonFiniteLossError at the first check that finds the loss infinite or NaN.
        """
        self.model.train()
        for _, batch in zip(range(self.step, self.config.steps), batches, strict=False):
            if self._random is not None:  # here, since a loader draws a number when it starts
                _set_random(self._random)
                self._random = None
            self._fit(batch)
            if self.step % CHECK_EVERY == 0 or self.step == self.config.steps:
                self._check(on_check)
            if on_step is not None:
                on_step(self.step)
        if not torch.stack([weight.isfinite().all() for weight in self.model.state_dict().values()]).all():
            raise NonFiniteLossError(
                "the last training step made weights infinite or NaN; lower learning_rate or set clip_norm"
            )

    def _fit(self, batch: Any) -> None:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.is_mixed):
            losses: dict[str, Tensor] = self.model(*batch.to(self.device))
            loss = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self._loss, self.step = self._loss + loss.detach(), self.step + 1

    def _check(self, on_check: OnCheck | None) -> None:
        mean = float(self._loss) / (self.step - self._checked)
        if not math.isfinite(mean):
            raise NonFiniteLossError(
                f"the training loss is {mean} by step {self.step} of {self.config.steps}; "
                "lower learning_rate or set clip_norm"
            )
        if on_check is not None:
            on_check(self.step, mean)
        self._loss, self._checked = torch.zeros((), device=self.device), self.step

    def state(self) -> dict[str, Any]:
        """All of it, the random state included; of tensors and plain values."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average and self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loss": self._loss,
            "checked": self._checked,
            "random": self._random or _random(self.device),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"]:  # empty where it was not needed
            self.scaler.load_state_dict(state["scaler"])
        self._loss, self._checked = state["loss"].to(self.device), state["checked"]
        self._random = state["random"]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """The moving average of a module's weights and statistics, in .module; it starts as a copy."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
    average.requires_grad_(False)
    return average


def _random(device: torch.device) -> dict[str, Any]:
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_random(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def make_optimizer(model: nn.Module, config: OptimizationConfig) -> Optimizer:
    """Norms and biases are not decayed; every trained parameter is in exactly one group."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.learning_rate, fused=True)
    return SGD(groups, lr=config.learning_rate, momentum=config.momentum)


def learning_rate_factor(step: int, config: OptimizationConfig) -> float:
    """What the learning rate of step 0, 1, ... is multiplied by: linear warm-up, then cosine to 0 or steps of 0.1."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "step":
        return 0.1 ** sum(step >= milestone * config.steps for milestone in config.milestones)
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
