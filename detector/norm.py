"""Normalisation layers by name, and of weights."""

from collections.abc import Callable
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from detector.choices import Norm
from detector.processes import Processes, sum_over_processes


def norm_layer(norm: Norm) -> Callable[[int], nn.Module]:
    """channels -> normalisation layer. sync_bn takes its statistics over all processes of a distributed run, and is bn
    in a single one."""
    layers: dict[Norm, Callable[[int], nn.Module]] = {
        "bn": nn.BatchNorm2d,
        "sync_bn": nn.SyncBatchNorm,
        "gn": group_norm,
    }
    return layers[norm]


class SyncBatchNormOnCpu(nn.BatchNorm2d):
    """What nn.SyncBatchNorm does, which knows GPUs only, in plain operators."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same, normalised; in training by the statistics of all processes."""
        if not self.training or Processes.here().count == 1:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        of_channels = (1, -1, *[1] * (x.ndim - 2))
        total = sum_over_processes(torch.cat((x.sum(axes), x.new_tensor([x.numel() / x.shape[1]]))))
        count = total[-1]
        mean = total[:-1] / count
        centred = x - mean.view(of_channels)
        variance = sum_over_processes(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale.view(of_channels) + self.bias.view(of_channels)


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


def replace_batch_norms(module: nn.Module, norm: Literal["gn", "sync_bn"]) -> None:
    """Put another norm in the place of every batch norm. Scale and shift are kept, statistics where it has some, and
    the activation that some of timm's norms contain."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if is_batch_norm(child):
                setattr(parent, name, _replaced(child, norm))


def _replaced(batch_norm: _BatchNorm, norm: Literal["gn", "sync_bn"]) -> nn.Module:
    channels = batch_norm.num_features
    made = group_norm(channels) if norm == "gn" else nn.SyncBatchNorm(channels, batch_norm.eps, batch_norm.momentum)
    made.load_state_dict(batch_norm.state_dict(), strict=False)  # group norms have no statistics
    from timm.layers import BatchNormAct2d  # takes a second, which trials need not wait

    if isinstance(batch_norm, BatchNormAct2d):
        return nn.Sequential(made, batch_norm.drop, batch_norm.act)
    return made


def synchronise_on_cpu(module: nn.Module) -> None:
    """Let its nn.SyncBatchNorms work in processes without GPUs. They stay the same objects, which others hold, too."""
    for child in module.modules():
        if type(child) is nn.SyncBatchNorm:
            child.__class__ = SyncBatchNormOnCpu  # type: ignore[assignment]


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
