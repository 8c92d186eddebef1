"""Normalisation layers by name, and of weights."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.ops import FrozenBatchNorm2d

Norm = Literal["bn", "sync_bn", "frozen_bn", "gn"]


def norm_layer(norm: Norm) -> Callable[[int], nn.Module]:
    """channels -> normalisation layer. gn has at most 32 groups (Wu & He 2018, arXiv:1803.08494); sync_bn takes its
    statistics over all processes of a distributed run, and is bn in a single one."""
    layers: dict[Norm, Callable[[int], nn.Module]] = {
        "bn": nn.BatchNorm2d,
        "sync_bn": nn.SyncBatchNorm,
        "frozen_bn": _frozen_batch_norm,
        "gn": _group_norm,
    }
    return layers[norm]


def _frozen_batch_norm(channels: int, **_options: Any) -> nn.Module:
    """_options: timm's device and dtype, which torchvision's layer does not take."""
    layer: nn.Module = FrozenBatchNorm2d(channels)
    return layer


def _group_norm(channels: int, **options: Any) -> nn.Module:
    """options: where timm wants its weights."""
    groups = next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels, **options)


class WeightStandardisation(nn.Module):
    """weights (C', C, ...) -> the same, with mean 0 and variance 1 for each output channel (Qiao et al. 2019,
    arXiv:1903.10520, equation 7)."""

    def forward(self, weight: Tensor) -> Tensor:
        axes = tuple(range(1, weight.ndim))
        mean = weight.mean(axes, keepdim=True)
        variance = weight.var(axes, correction=0, keepdim=True)
        return (weight - mean) * torch.rsqrt(variance + 1e-5)


def standardise_weights(module: nn.Module) -> None:
    """From now on every convolution in `module` works with standardised weights; what is trained stays as it is."""
    for child in list(module.modules()):
        if isinstance(child, nn.Conv2d):
            parametrize.register_parametrization(child, "weight", WeightStandardisation())
