"""The training loop: any module whose forward returns losses, over any batches."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from detector.config import OptimizationConfig
from detector.errors import NonFiniteLossError

CHECK_EVERY = 10  # steps between looks at the loss; each look waits for the device
OnCheck = Callable[[int, float], None]


def train(
    model: nn.Module,
    batches: Iterable[Any],
    config: OptimizationConfig,
    device: torch.device,
    on_check: OnCheck | None = None,
) -> None:
    """Fit `model` for config.steps steps. A batch has .to(device) and is unpacked into model.forward.

    on_check(step, mean loss since the last check) is called every CHECK_EVERY steps and after the last. Raises
    NonFiniteLossError at the first check that finds the loss infinite or NaN.
    """
    model.train()
    optimizer = make_optimizer(model, config)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, config))
    dtype = getattr(torch, config.precision)
    mixed = device.type == "cuda" and dtype != torch.float32
    scaler = torch.amp.GradScaler(device.type, enabled=mixed and dtype == torch.float16)
    total, steps_in_total = torch.zeros((), device=device), 0
    for step, batch in zip(range(1, config.steps + 1), batches, strict=False):
        with torch.autocast(device.type, dtype=dtype, enabled=mixed):
            losses: dict[str, Tensor] = model(*batch.to(device))
            loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if config.clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        total, steps_in_total = total + loss.detach(), steps_in_total + 1
        if step % CHECK_EVERY == 0 or step == config.steps:
            mean = float(total) / steps_in_total
            if not math.isfinite(mean):
                raise NonFiniteLossError(
                    f"the training loss is {mean} by step {step} of {config.steps}; "
                    "lower learning_rate or set clip_norm"
                )
            if on_check is not None:
                on_check(step, mean)
            total, steps_in_total = torch.zeros((), device=device), 0
    if not torch.stack([weight.isfinite().all() for weight in model.state_dict().values()]).all():
        raise NonFiniteLossError(
            "the last training step made weights infinite or NaN; lower learning_rate or set clip_norm"
        )


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
