"""Deformable convolution in chosen stages of a backbone (Dai et al. 2017, arXiv:1703.06211; v2: Zhu et al. 2018,
arXiv:1811.11168)."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from detector.choices import Deformable


class DeformableConv(nn.Module):
    """A convolution whose taps move: (B, C, H, W) -> (B, C', H', W'), like the plain convolution that it takes over.

    A second convolution of the same kernel, stride, padding and dilation predicts an offset (dy, dx) for every tap and
    position, and in v2 also a factor. Its weights start at zero: offsets are then 0, and factors 1, so that at the
    start the layer equals the plain convolution. (In arXiv:1811.11168 factors start at 1/2; twice the sigmoid keeps
    what pre-trained weights mean.)
    """

    def __init__(self, plain: nn.Conv2d, version: Deformable) -> None:
        super().__init__()
        self.plain = plain
        self.version = version
        taps = plain.kernel_size[0] * plain.kernel_size[1]
        shape: dict[str, Any] = {
            name: getattr(plain, name) for name in ("kernel_size", "stride", "padding", "dilation")
        }
        self.predict = nn.Conv2d(plain.in_channels, taps * (2 if version == "v1" else 3), **shape)
        for parameter in self.predict.parameters():
            nn.init.zeros_(parameter)
        self.offset_channels = 2 * taps

    def forward(self, features: Tensor) -> Tensor:
        predicted = self.predict(features)
        offset, mask = predicted[:, : self.offset_channels], None
        if self.version == "v2":
            mask = 2 * predicted[:, self.offset_channels :].sigmoid()
        plain = self.plain
        # The operator knows no lower precision; mixed precision would give it maps and weights of two kinds.
        with torch.autocast(features.device.type, enabled=False):
            moved: Tensor = deform_conv2d(
                features.float(),
                offset.float(),
                plain.weight.float(),
                None if plain.bias is None else plain.bias.float(),
                plain.stride,
                plain.padding,
                plain.dilation,
                None if mask is None else mask.float(),
            )
        return moved


def make_deformable(stage: nn.Module, version: Deformable) -> int:
    """Put a deformable convolution in the place of every 3x3 convolution of a stage; how many there were."""
    plain = [
        (parent, name, child)
        for parent in stage.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3) and child.padding_mode == "zeros"
    ]
    for parent, name, child in plain:
        setattr(parent, name, DeformableConv(child, version))
    return len(plain)
