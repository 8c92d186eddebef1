"""The whole detector: backbone -> FPN -> NAS-FPN -> RPN -> cascade."""

import torch
from torch import Tensor, nn

from detector.architecture import Architecture
from detector.cascade import Cascade
from detector.config import DetectorConfig
from detector.levels import padding_multiple
from detector.nas_fpn import NasFpn
from detector.roi_pool import RoiAlign
from detector.rpn import BatchedRpn, Rpn
from detector.suppression import select
from detector.targets import Detections, Proposals, Targets


class DetectionHeads(nn.Module):
    """What follows the ordinary FPN, and what a frozen trial trains: pyramid, RPN and cascade.

    features are P3..P7, [(B, C, H_l, W_l)]; image_hw (B, 2) holds each image's size in pixels on the canvas.
    architecture None is the plain FPN: the pyramid hands its input on.
    """

    def __init__(
        self, config: DetectorConfig, architecture: Architecture | None, num_classes: int, *, batched: bool
    ) -> None:
        super().__init__()
        self.pyramid: nn.Module = (
            nn.Identity() if architecture is None else NasFpn(architecture, config.channels, config.pyramid_norm)
        )
        self.rpn = (BatchedRpn if batched else Rpn)(config.rpn, config.channels, config.base_stride)
        cascade = config.cascade
        pool = RoiAlign(config.base_stride, cascade.sampling_ratio, cascade.level_cells, batched=batched)
        self.cascade = Cascade(cascade, pool, config.channels, num_classes)
        self.testing = config.testing

    def forward(self, features: list[Tensor], image_hw: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Losses by name, to be summed."""
        features = self.pyramid(features)
        proposals: Proposals
        losses: dict[str, Tensor]
        proposals, losses = self.rpn(features, image_hw, targets)
        losses.update(self.cascade.losses(features, proposals, targets, image_hw))
        return losses

    @torch.no_grad()
    def score(self, features: list[Tensor], image_hw: Tensor) -> tuple[Proposals, Tensor]:
        """Regions (B, P) and their class scores (B, P, K), duplicates included."""
        features = self.pyramid(features)
        proposals, _ = self.rpn(features, image_hw, None)
        scored: tuple[Proposals, Tensor] = self.cascade.score(features, proposals, image_hw, self.testing.cascade)
        return scored

    @torch.no_grad()
    def detect(self, features: list[Tensor], image_hw: Tensor) -> list[Detections]:
        regions, scores = self.score(features, image_hw)
        return select(regions, scores, self.cascade.config, self.testing)


class CascadeRcnn(nn.Module):
    """Cascade R-CNN with a NAS-FPN behind its FPN.

    images (B, 3, H, W) in 0..1, RGB, padded at the bottom and right to a multiple of the stride of P5;
    image_hw (B, 2) their own sizes. batched chooses the batched forms of RPN and RoIAlign: the same results,
    sooner where maps are small.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: DetectorConfig, architecture: Architecture | None, num_classes: int, *, batched: bool = False
    ) -> None:
        super().__init__()
        self.padding_multiple = padding_multiple(config.base_stride)
        from detector.backbone import Backbone, Fpn  # timm takes a second, and most trials need no backbone

        self.backbone = Backbone(config.backbone, config.base_stride)
        self.fpn = Fpn(self.backbone.channels, config.channels)
        self.heads = DetectionHeads(config, architecture, num_classes, batched=batched)
        self.register_buffer("mean", torch.tensor(self.backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.backbone.std).view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """P3..P7 of the ordinary FPN."""
        if any(side % self.padding_multiple for side in images.shape[2:]):
            size = tuple(images.shape[2:])
            raise ValueError(f"images of {size} must be padded to multiples of {self.padding_multiple}")
        out: list[Tensor] = self.fpn(self.backbone((images - self.mean) / self.std))
        return out

    def forward(self, images: Tensor, image_hw: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Losses by name, to be summed."""
        losses: dict[str, Tensor] = self.heads(self.features(images), image_hw, targets)
        return losses

    @torch.no_grad()
    def score(self, images: Tensor, image_hw: Tensor) -> tuple[Proposals, Tensor]:
        """Regions (B, P) in pixels of the given images, and their class scores (B, P, K), duplicates included."""
        return self.heads.score(self.features(images), image_hw)

    @torch.no_grad()
    def detect(self, images: Tensor, image_hw: Tensor) -> list[Detections]:
        """The objects of each image; boxes in pixels of the given images."""
        return self.heads.detect(self.features(images), image_hw)
