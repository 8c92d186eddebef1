"""RoIAlign over the five levels (He et al. 2017, arXiv:1703.06870), by two ways to the same result."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from detector.architecture import NUM_LEVELS


class RoiAlign(nn.Module):
    """features [(B, C, H_l, W_l)], boxes (B, P, 4) xyxy pixels, size S -> (B * P, C, S, S).

    A box is pooled from the level where its side, sqrt(area), is at least level_cells cells and below twice that,
    clamped to P3..P7: 14 cells is the rule of Lin et al. 2017, arXiv:1612.03144, equation 1 (224 px at stride 16).

    By torchvision's operator, level by level, or by gathering: every bin of every region is a weighted sum over rows of
    one table of all positions of all levels, so that no region is moved and nothing waits for a count of regions.
    Gathering is the faster way for small maps (batched=True), and on the CPU always: there the operator runs on one
    core and reads across channels.
    """

    def __init__(self, base_stride: int, sampling_ratio: int, level_cells: float, *, batched: bool = False) -> None:
        super().__init__()
        self.base_stride = base_stride
        self.sampling_ratio = sampling_ratio
        self.level_cells = level_cells
        self.batched = batched

    def forward(self, features: list[Tensor], boxes: Tensor, size: int) -> Tensor:
        return (self.gather if self._gathers(features) else self.operate)(features, boxes, size)

    def prepared(self, features: list[Tensor]) -> list[Tensor]:
        """Maps as the operator wants them, so that poolings of the same maps need not convert them again."""
        if self._gathers(features):
            return features
        return [feature.float().contiguous() for feature in features]

    def _gathers(self, features: list[Tensor]) -> bool:
        return self.batched or not features[0].is_cuda

    def levels(self, boxes: Tensor) -> Tensor:
        """(..., 4) -> (...) index of the level, 0 for P3 to 4 for P7."""
        sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1).sqrt()
        index = (sides / (self.level_cells * self.base_stride)).clamp(min=1e-6).log2().floor()
        return index.clamp(0, NUM_LEVELS - 1).long()

    def operate(self, features: list[Tensor], boxes: Tensor, size: int) -> Tensor:
        """By torchvision's operator."""
        batch, count = boxes.shape[:2]
        images = torch.arange(batch, device=boxes.device).repeat_interleave(count)
        regions = torch.cat((images[:, None].to(boxes.dtype), boxes.flatten(0, 1)), dim=1)  # (B * P, 5)
        levels = self.levels(boxes).flatten()
        pooled = features[0].new_zeros(len(regions), features[0].shape[1], size, size)
        for index, feature in enumerate(features):
            chosen = (levels == index).nonzero().squeeze(1)
            scale = 1 / (self.base_stride * 2**index)
            pooled[chosen] = roi_align(feature, regions[chosen], size, scale, self.sampling_ratio, aligned=True)
        return pooled

    def gather(self, features: list[Tensor], boxes: Tensor, size: int) -> Tensor:
        """By one weighted sum of rows for each bin."""
        batch, count = boxes.shape[:2]
        channels = features[0].shape[1]
        table = torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, channels) for feature in features])
        heights = torch.tensor([feature.shape[2] for feature in features], device=boxes.device)
        widths = torch.tensor([feature.shape[3] for feature in features], device=boxes.device)
        areas = heights * widths
        offsets = (areas.cumsum(0) - areas) * batch  # of each level's first row

        levels = self.levels(boxes).flatten()
        images = torch.arange(batch, device=boxes.device).repeat_interleave(count)
        width, height = widths[levels], heights[levels]
        scaled = boxes.flatten(0, 1) / (self.base_stride * 2.0**levels)[:, None] - 0.5
        column, column_weight = self._taps(scaled[:, 0], scaled[:, 2], width, size)
        row, row_weight = self._taps(scaled[:, 1], scaled[:, 3], height, size)

        first = offsets[levels] + images * areas[levels]
        line = first[:, None, None] + row * width[:, None, None]  # (R, S, T)
        index = line[:, :, None, :, None] + column[:, None, :, None, :]  # (R, S, S, T, T)
        weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
        bins = len(levels) * size**2
        pooled = F.embedding_bag(
            index.reshape(bins, -1),
            table,
            mode="sum",
            per_sample_weights=weight.reshape(bins, -1).to(table.dtype),
        )
        return pooled.view(len(levels), size, size, channels).permute(0, 3, 1, 2)

    def _taps(self, start: Tensor, end: Tensor, limit: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Along one axis, the cells that each bin reads and their weights: two (R, S, 2 * sampling_ratio) tensors.

        Bilinear sampling as torchvision's operator does it: zero beyond one cell outside, clamped at the border.
        """
        samples = size * self.sampling_ratio
        step = (torch.arange(samples, device=start.device) + 0.5) / samples
        position = start[:, None] + (end - start)[:, None] * step  # (R, S * sampling_ratio)
        last = (limit - 1)[:, None]
        is_inside = (position >= -1) & (position <= limit[:, None])
        position = position.clamp(min=0)
        low = position.long().minimum(last)
        high = (low + 1).minimum(last)
        fraction = torch.where(low == last, torch.zeros_like(position), position - low)
        scale = is_inside / self.sampling_ratio
        cells = torch.stack((low, high), dim=-1).clamp(min=0)
        weights = torch.stack(((1 - fraction) * scale, fraction * scale), dim=-1)
        shape = (len(start), size, 2 * self.sampling_ratio)
        return cells.reshape(shape), weights.reshape(shape)
