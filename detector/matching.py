"""Assignment of boxes to ground truth, and the choice of those that train: batched, without loops or host syncs."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detector.targets import Targets


class Match(NamedTuple):
    """For each of N boxes: the best object's place in its image, (B, N), and the IoU with it, (B, N)."""

    place: Tensor
    iou: Tensor


def overlaps(boxes: Tensor, targets: Targets) -> Tensor:
    """IoU of boxes (B, N, 4) with the image's objects: (B, N, G), -1 against padding."""
    iou: Tensor = box_iou(boxes, targets.boxes)
    return iou.masked_fill(~targets.valid[:, None], -1.0)


def match(boxes: Tensor, targets: Targets) -> Match:
    """Best object of each box (B, N, 4). An image without objects gives IoU -1."""
    best = overlaps(boxes, targets).max(dim=2)
    return Match(best.indices, best.values)


def gather_boxes(boxes: Tensor, place: Tensor) -> Tensor:
    """boxes (B, M, 4) at place (B, N) -> (B, N, 4)."""
    return boxes.gather(1, place[..., None].expand(-1, -1, 4))


def sample(positive: Tensor, negative: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Draw at most `count` boxes an image: positives up to the fraction, the rest negatives (Girshick 2015,
    arXiv:1504.08083, section 2.3).

    positive, negative (B, N) masks -> index (B, min(count, N)) and valid, of the same shape.
    """
    draw = torch.rand(positive.shape, device=positive.device)
    most = min(int(count * positive_fraction), positive.shape[1])
    best = (draw + positive).topk(most, dim=1).indices  # positives first, in random order
    chosen_positive = torch.zeros_like(positive).scatter_(1, best, True) & positive
    width = min(count, positive.shape[1])
    top = (draw + 2.0 * chosen_positive + 1.0 * negative).masked_fill(~(chosen_positive | negative), -1.0).topk(width)
    return top.indices, top.values >= 0
