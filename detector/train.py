"""The training loop: any module whose forward returns losses, over any batches."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detector.config import OptimizationConfig
from detector.errors import NonFiniteLossError
from detector.norm import synchronise_on_cpu
from detector.processes import Processes

CHECK_EVERY = 10  # steps between looks at the loss; each look waits for the device
OnCheck = Callable[[int, Mapping[str, float]], None]
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
    many threads, to what was not interrupted, if it has a seed. Where torch.distributed was set up, each process does
    its share: gradients are averaged, losses too.
    """

    def __init__(
        self,
        model: Model,
        config: OptimizationConfig,
        device: torch.device,
        *,
        average_decay: float | None = None,
        accumulate: int = 1,
        seed: int | None = None,
    ) -> None:
        """average_decay: also keep a moving average of the weights. accumulate: batches are taken in so many parts,
        one after the other, whose gradients are averaged. seed: what the random numbers of each step follow from;
        None leaves them as they are.
        """
        self.model = model
        self.config = config
        self.device = device
        self.accumulate = accumulate
        self.seed = seed
        self.processes = Processes.here()
        self.step = 0
        if device.type == "cpu":
            synchronise_on_cpu(model)
        self._forward: nn.Module = model
        if self.processes.count > 1:
            devices = [device] if device.type == "cuda" else None
            self._forward = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        self.optimizer = make_optimizer(model, config)
        self.schedule = LambdaLR(self.optimizer, lambda step: learning_rate_factor(step, config))
        self.dtype = getattr(torch, config.precision)
        self.is_mixed = device.type == "cuda" and self.dtype != torch.float32
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.is_mixed and self.dtype == torch.float16)
        self.average = None if average_decay is None else averaged(model, average_decay)
        self._names: list[str] = []  # of losses
        self._sums, self._checked = torch.zeros((), device=device), 0  # of each since the last check, and that step

    @property
    def result(self) -> Model:
        """With the averaged weights where there are some, else the last."""
        return self.model if self.average is None else cast(Model, self.average.module)

    def run(self, batches: Iterable[Any], on_check: OnCheck | None = None, on_step: OnStep | None = None) -> None:
        """The steps that are left, config.steps in all, or as many as there are batches: those from self.step on.

        A batch has .to(device), and .split(parts) for accumulation, and is unpacked into model.forward. on_check(step,
        mean losses since the last check) is called every CHECK_EVERY steps and after the last, on_step(step) after
        each, when state() is that of a whole step. Raises NonFiniteLossError at the first check that finds the loss
        infinite or NaN.
        """
        self.model.train()
        for _, batch in zip(range(self.step, self.config.steps), batches, strict=False):
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
        if self.seed is not None:
            torch.manual_seed(seed_of_step(self.seed, self.step, self.processes.rank))
        self.optimizer.zero_grad(set_to_none=True)
        parts = [batch] if self.accumulate == 1 else batch.split(self.accumulate)
        for part in parts:
            is_last = part is parts[-1]
            with nullcontext() if is_last else self._without_exchange():
                self._add_gradient(part, len(parts))
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1

    def _add_gradient(self, batch: Any, parts: int) -> None:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.is_mixed):
            losses: dict[str, Tensor] = self._forward(*batch.to(self.device))
            values = torch.stack(list(losses.values())) / parts
        self.scaler.scale(values.sum()).backward()  # type: ignore[no-untyped-call]
        self._names = list(losses)
        # Averaged here already, so that the first process's state is everyone's.
        self._sums = self._sums + self.processes.mean(values.detach())

    def _without_exchange(self) -> AbstractContextManager[Any]:
        """Gradients of all parts but the last stay in this process."""
        if isinstance(self._forward, DistributedDataParallel):
            exchange: AbstractContextManager[Any] = self._forward.no_sync()
            return exchange
        return nullcontext()

    def _check(self, on_check: OnCheck | None) -> None:
        values = (self._sums / (self.step - self._checked)).tolist()
        mean = math.fsum(values)
        if not math.isfinite(mean):
            raise NonFiniteLossError(
                f"the training loss is {mean} by step {self.step} of {self.config.steps}; "
                "lower learning_rate or set clip_norm"
            )
        if on_check is not None:
            on_check(self.step, {"loss": mean} | dict(zip(self._names, values, strict=True)))
        self._sums, self._checked = torch.zeros((), device=self.device), self.step

    def state(self) -> dict[str, Any]:
        """All of it, of tensors and plain values."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average and self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "losses": self._sums,
            "checked": self._checked,
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
        self._sums, self._checked = state["losses"].to(self.device), state["checked"]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """The moving average of a module's weights and statistics, in .module; it starts as a copy."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
    average.requires_grad_(False)
    return average


def seed_of_step(seed: int, step: int, rank: int) -> int:
    """Different for each step and process, and nothing that an interruption would have to keep."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])


def make_optimizer(model: nn.Module, config: OptimizationConfig) -> Optimizer:
    """Norms and biases are not decayed; every trained parameter is in exactly one group."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.peak_learning_rate, fused=True)
    return SGD(groups, lr=config.peak_learning_rate, momentum=config.momentum)


def learning_rate_factor(step: int, config: OptimizationConfig) -> float:
    """What the learning rate of step 0, 1, ... is multiplied by: linear warm-up, then cosine to 0 or steps of 0.1."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "step":
        return 0.1 ** sum(step >= milestone * config.steps for milestone in config.milestones)
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
