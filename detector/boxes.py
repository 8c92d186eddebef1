"""Box coding and clipping for padded batches."""

import math

import torch
from torch import Tensor

# Keeps exp() of a wild early prediction finite; the value of the reference implementations.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def encode(reference: Tensor, boxes: Tensor, std: Tensor | None = None) -> Tensor:
    """Deltas (dx, dy, dw, dh) that turn `boxes` into `reference`, both (..., 4) xyxy (Girshick et al. 2014,
    arXiv:1311.2524, appendix C), divided by std (4,). Degenerate boxes give finite, meaningless deltas."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6).unbind(-1)
    reference_width, reference_height = (reference[..., 2:] - reference[..., :2]).clamp(min=1e-6).unbind(-1)
    shift = (reference[..., :2] + reference[..., 2:] - boxes[..., :2] - boxes[..., 2:]) / 2
    deltas = torch.stack(
        (
            shift[..., 0] / width,
            shift[..., 1] / height,
            (reference_width / width).log(),
            (reference_height / height).log(),
        ),
        dim=-1,
    )
    return deltas if std is None else deltas / std


def decode(deltas: Tensor, boxes: Tensor, std: Tensor | None = None) -> Tensor:
    """The inverse of encode: boxes (..., 4) xyxy moved and scaled by deltas (..., 4)."""
    deltas = deltas if std is None else deltas * std
    size = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 + deltas[..., :2] * size
    half = size * deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def clip(boxes: Tensor, image_hw: Tensor) -> Tensor:
    """Clip boxes (B, N, 4) to their images; image_hw (B, 2) in pixels.

    NaN becomes 0: a network that diverges must end in a loss that is not finite, not in a pooling that reads
    outside its map.
    """
    limit = image_hw.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)  # (B, 1, 4): w, h, w, h
    return boxes.nan_to_num(0.0).clamp(min=0).minimum(limit)
