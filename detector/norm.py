"""Normalisation layers by name."""

from collections.abc import Callable
from typing import Any, Literal

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

Norm = Literal["bn", "frozen_bn", "gn"]


def norm_layer(norm: Norm) -> Callable[[int], nn.Module]:
    """channels -> normalisation layer. gn has at most 32 groups (Wu & He 2018, arXiv:1803.08494)."""
    layers: dict[Norm, Callable[[int], nn.Module]] = {
        "bn": nn.BatchNorm2d,
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
