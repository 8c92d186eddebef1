"""Backbone and FPN: images to P3..P7."""

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detector.choices import Deformable
from detector.config import BackboneConfig
from detector.deformable import make_deformable
from detector.errors import UserError
from detector.named_weights import NAMED_WEIGHTS
from detector.norm import batch_norms, is_batch_norm, replace_batch_norms, standardise_weights

FIRST_STAGE = 3  # stages count as C3, C4, C5
PROBE_HW = (256, 320)  # an image that no network has as its only size


class Backbone(nn.Module):
    """A timm feature extractor: images (B, 3, H, W) -> [C3, C4, C5] at base_stride * (1, 2, 4).

    mean and std are those of the images that it was trained on, in RGB from 0 to 1.
    """

    def __init__(self, config: BackboneConfig, base_stride: int) -> None:
        super().__init__()
        reductions = [base_stride * 2**level for level in range(3)]
        plan = _plan(config, reductions)
        self.body = _create(config, plan)
        self.channels: list[int] = self.body.feature_info.channels()
        self.is_channels_last = plan.is_channels_last
        trained_on = timm.get_pretrained_cfg(config.name)
        self.mean: tuple[float, ...] = trained_on.mean if trained_on else IMAGENET_DEFAULT_MEAN
        self.std: tuple[float, ...] = trained_on.std if trained_on else IMAGENET_DEFAULT_STD
        for name in plan.unused:  # processes that train together wait for the gradient of whatever is trained
            self.body.get_parameter(name).requires_grad_(False)
        self.frozen_norms: list[nn.Module] = []
        self._set_norm(config)
        if config.frozen_below is not None:
            self._freeze_below(config, config.frozen_below)
        if config.weight_standardisation:
            standardise_weights(self.body)
        if config.deformable is not None:  # last: the convolutions that predict offsets start at 0, and stay plain
            self._make_deformable(config, config.deformable)

    def train(self, mode: bool = True) -> Self:
        """Frozen batch norms keep to their statistics in training, too."""
        super().train(mode)
        for norm in self.frozen_norms:
            norm.eval()
        return self

    def _set_norm(self, config: BackboneConfig) -> None:
        """Raises UserError for a backbone without batch norms, unless it keeps its own norms."""
        norms = batch_norms(self.body)
        if config.norm != "own" and not norms:
            raise UserError(
                f"detector.backbone.norm: {config.name} has no batch norms for {config.norm}; set it to own"
            )
        if config.norm == "gn" or config.norm == "sync_bn":
            replace_batch_norms(self.body, config.norm)
        elif config.norm == "frozen_bn":
            self._freeze(norms)

    def _freeze(self, modules: Iterable[nn.Module]) -> None:
        """What the modules hold themselves; what they contain are modules of their own."""
        for module in modules:
            self.frozen_norms += [module] if is_batch_norm(module) else []
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def _freeze_below(self, config: BackboneConfig, level: int) -> None:
        """Modules stand in the order of the forward pass: those before the stage are not trained."""
        modules = dict(self.body.named_modules())
        stage = self._stage_name(level)
        if stage not in modules:
            raise UserError(
                f"detector.backbone.frozen_below: {config.name} has no stage {level} of its own; set it to null"
            )
        self._freeze(modules[name] for name in itertools.takewhile(lambda name: name != stage, modules))

    def _make_deformable(self, config: BackboneConfig, version: Deformable) -> None:
        """Raises UserError for a backbone without 3x3 convolutions in the chosen stages."""
        stages = dict(self.body.named_modules())
        for level in sorted(set(config.deformable_stages)):
            stage = stages.get(self._stage_name(level))
            if stage is None or not make_deformable(stage, version):
                raise UserError(
                    f"detector.backbone.deformable_stages: {config.name} has no 3x3 convolutions in stage {level} "
                    "that could be deformable; use a ResNet, or set deformable to null"
                )

    def _stage_name(self, level: int) -> str:
        """The module whose output is C_level. timm's extractors flatten a Sequential: `stages.0` becomes `stages_0`."""
        name: str = self.body.feature_info.module_name()[level - FIRST_STAGE]
        return name if name in dict(self.body.named_modules()) else name.replace(".", "_", 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        out: list[Tensor] = self.body(images)
        return [feature.permute(0, 3, 1, 2) for feature in out] if self.is_channels_last else out


class Fpn(nn.Module):
    """torchvision's FPN with P6 and P7: [C3, C4, C5] -> [P3..P7], each (B, C, H_l, W_l).

    Lin et al. 2017, arXiv:1612.03144; P6 and P7 are strided convolutions of P5 (Lin et al. 2017, arXiv:1708.02002).
    """

    def __init__(self, in_channels: list[int], channels: int) -> None:
        super().__init__()
        self.network = FeaturePyramidNetwork(in_channels, channels, LastLevelP6P7(channels, channels))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        named = OrderedDict((str(i), feature) for i, feature in enumerate(features))
        return list(self.network(named).values())


class _Plan(NamedTuple):
    """What timm must be told to make an extractor, and how its maps lie."""

    options: dict[str, Any]
    is_channels_last: bool
    unused: list[str]  # names of weights without a part in the maps


def _plan(config: BackboneConfig, reductions: list[int]) -> _Plan:
    """Tried without memory or weights. Raises UserError if the model is unknown or gives no such pyramid."""
    wanted: dict[str, Any] = {}
    if config.channels is not None:
        wanted["channels"] = config.channels
    if config.stem_width is not None:
        wanted["stem_width"] = config.stem_width
    try:
        with torch.device("meta"):
            every = timm.create_model(config.name, features_only=True).feature_info.reduction()
    except Exception as error:  # timm raises many kinds
        raise UserError(f"detector.backbone.name: {config.name} cannot be built ({_line(error)})") from error
    indices = tuple(i for i, reduction in enumerate(every) if reduction in reductions)
    if [every[i] for i in indices] != reductions:
        raise UserError(
            f"detector.backbone.name: {config.name} has strides {every}, base_stride {reductions[0]} needs {reductions}"
        )
    for extra in ({}, {"strict_img_size": False}):  # some transformers take other sizes than their own on demand
        options = {"out_indices": indices, **wanted, **extra}
        try:
            shapes, unused = _tried(config.name, options)
        except Exception as error:
            failure = error
            continue
        height, width = PROBE_HW
        if [shape[2:] for shape in shapes] == [(height // r, width // r) for r in reductions]:
            return _Plan(options, False, unused)
        if [shape[1:3] for shape in shapes] == [(height // r, width // r) for r in reductions]:
            return _Plan(options, True, unused)
        failure = ValueError(f"its maps of an image of {height}x{width} are {shapes}")
    raise UserError(f"detector.backbone: {config.name} cannot be used ({_line(failure)})") from failure


def _tried(name: str, options: dict[str, Any]) -> tuple[list[tuple[int, ...]], list[str]]:
    """The shapes of its maps, and the names of weights that get no gradient from them."""
    with torch.device("meta"):
        body = timm.create_model(name, features_only=True, **options).eval()
        features = body(torch.empty(1, 3, *PROBE_HW))
        torch.stack([feature.sum() for feature in features]).sum().backward()  # type: ignore[no-untyped-call]
    unused = [name for name, weight in body.named_parameters() if weight.grad is None]
    return [tuple(feature.shape) for feature in features], unused


def _create(config: BackboneConfig, plan: _Plan) -> Any:
    from_timm = config.weights == "pretrained"
    try:
        body = timm.create_model(config.name, pretrained=from_timm, features_only=True, **plan.options)
    except Exception as error:  # whatever the hub client or the file format raises
        raise UserError(
            f"detector.backbone.weights: timm cannot give the pretrained weights of {config.name} "
            f"({type(error).__name__}); download them and set detector.backbone.weights to the file, or to none"
        ) from error
    if config.weights not in NAMED_WEIGHTS:
        _load(body, Path(config.weights))
    return body


def _load(body: nn.Module, path: Path) -> None:
    """Load a state dict of the whole timm model or of the extractor; layers the extractor lacks are left out."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state |= {key.replace(".", "_", 1): value for key, value in state.items()}  # extractors flatten `stages.0`
        wanted = body.state_dict()
        missing = [key for key in wanted if key not in state]
        if missing:
            raise UserError(f"detector.backbone.weights: {path} lacks {missing[0]} and {len(missing) - 1} more")
        body.load_state_dict({key: state[key] for key in wanted})
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"detector.backbone.weights: {path} cannot be loaded ({_line(error)})") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
