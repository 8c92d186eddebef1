"""Normalisation layers by name, and of weights."""

from collections.abc import Callable
from typing import Literal, TypeGuard

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

Norm = Literal["bn", "sync_bn", "gn"]
BackboneNorm = Literal["own", "bn", "sync_bn", "frozen_bn", "gn"]


def norm_layer(norm: Norm) -> Callable[[int], nn.Module]:
    """channels -> normalisation layer. sync_bn takes its statistics over all processes of a distributed run, and is bn
    in a single one."""
    layers: dict[Norm, Callable[[int], nn.Module]] = {
        "bn": nn.BatchNorm2d,
        "sync_bn": nn.SyncBatchNorm,
        "gn": group_norm,
    }
    return layers[norm]


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups (Wu & He 2018, arXiv:1803.08494), fewer where they would have less than 4 channels: a group of one
    channel makes every map of 1x1 zero."""
    most = min(32, max(1, channels // 4))
    return nn.GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """timm's norms that contain an activation included."""
    return isinstance(module, _BatchNorm)


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [child for child in module.modules() if is_batch_norm(child)]


def replace_batch_norms(module: nn.Module) -> None:
    """Put GroupNorm in the place of every batch norm. Scale and shift are kept, and the activation that some of timm's
    norms contain."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if is_batch_norm(child):
                setattr(parent, name, _as_group_norm(child))


def _as_group_norm(batch_norm: _BatchNorm) -> nn.Module:
    norm = group_norm(batch_norm.num_features)
    with torch.no_grad():
        norm.weight.copy_(batch_norm.weight)
        norm.bias.copy_(batch_norm.bias)
    if isinstance(batch_norm, BatchNormAct2d):
        return nn.Sequential(norm, batch_norm.drop, batch_norm.act)
    return norm


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
