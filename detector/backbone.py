"""Backbone and FPN: images to P3..P7."""

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detector.config import BackboneConfig, DetectorConfig
from detector.deformable import Deformable, make_deformable
from detector.errors import UserError
from detector.norm import norm_layer, standardise_weights

NAMED_WEIGHTS = ("none", "pretrained")  # anything else is a file
FIRST_STAGE = 3  # stages count as C3, C4, C5


class Backbone(nn.Module):
    """A timm feature extractor: images (B, 3, H, W) -> [C3, C4, C5] at base_stride * (1, 2, 4)."""

    def __init__(self, config: BackboneConfig, base_stride: int) -> None:
        super().__init__()
        reductions = [base_stride * 2**level for level in range(3)]
        self.body = _create(config, reductions)
        self.channels: list[int] = self.body.feature_info.channels()
        if self.body.feature_info.reduction() != reductions:
            raise UserError(
                f"detector.backbone.name: {config.name} has strides {self.body.feature_info.reduction()}, "
                f"base_stride {base_stride} needs {reductions}"
            )
        if config.weight_standardisation:
            standardise_weights(self.body)
        if config.deformable is not None:  # last: the convolutions that predict offsets start at 0, and stay plain
            self._make_deformable(config, config.deformable)

    def _make_deformable(self, config: BackboneConfig, version: Deformable) -> None:
        """Raises UserError for a backbone without 3x3 convolutions in the chosen stages."""
        for level in config.deformable_stages:
            name = self.body.feature_info.module_name()[level - FIRST_STAGE]
            stages = dict(self.body.named_modules())
            if name not in stages or not make_deformable(stages[name], version):
                raise UserError(
                    f"detector.backbone.deformable_stages: {config.name} has no 3x3 convolutions in stage {level} "
                    "that could be deformable; use a ResNet, or set deformable to null"
                )

    def forward(self, images: Tensor) -> list[Tensor]:
        out: list[Tensor] = self.body(images)
        return out


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


def named_weights(config: DetectorConfig) -> DetectorConfig:
    """The configuration with a weights file named by its content: what identifies a result, and may be published."""
    weights = config.backbone.weights
    if weights in NAMED_WEIGHTS:
        return config
    try:
        digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"detector.backbone.weights: {weights} cannot be read ({error.strerror})") from error
    backbone = config.backbone.model_copy(update={"weights": f"file with sha256 {digest}"})
    return config.model_copy(update={"backbone": backbone})


def _create(config: BackboneConfig, reductions: list[int]) -> Any:
    options: dict[str, Any] = {"norm_layer": norm_layer(config.norm)}
    if config.channels is not None:
        options["channels"] = config.channels
    if config.stem_width is not None:
        options["stem_width"] = config.stem_width
    from_timm = config.weights == "pretrained"
    try:
        every = timm.create_model(config.name, features_only=True).feature_info.reduction()
        indices = tuple(i for i, reduction in enumerate(every) if reduction in reductions)
        body = timm.create_model(config.name, pretrained=from_timm, features_only=True, out_indices=indices, **options)
    except Exception as error:  # timm raises whatever the hub client or the file format raises
        if not from_timm:
            raise UserError(f"detector.backbone: {config.name} cannot be built ({_line(error)})") from error
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
