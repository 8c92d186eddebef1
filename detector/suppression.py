"""From scored regions to detections: a threshold, suppression of duplicates within each class, the best of an image."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, nms

from detector.choices import SoftNms
from detector.config import CascadeConfig, TestingConfig
from detector.targets import Detections, Proposals

EXPORTED_ROUNDS = 24  # longer chains of overlaps are cut there
LARGEST_MATRIX = 512  # boxes of a set, up to which all pairs at once are the faster way


def nms_mask(boxes: Tensor, valid: Tensor, iou: float) -> Tensor:
    """Greedy suppression of duplicates in a batch of small sets at once; which boxes stay, (B, N).

    boxes (B, N, 4), the best first; valid (B, N), others neither stay nor suppress. A box stays unless a better one
    that stays overlaps it by more than `iou`. Applied to a guess of who stays, that rule is right for one more box each
    time; where chains of overlaps are short, a few times make it right for all. Large sets go one by one.
    """
    count = boxes.shape[1]
    is_exporting = torch.compiler.is_exporting()
    if count > LARGEST_MATRIX and not is_exporting:
        kept = torch.zeros_like(valid)
        rank = -torch.arange(count, device=boxes.device, dtype=boxes.dtype)
        for of_image, present, out in zip(boxes, valid, kept, strict=True):
            place = present.nonzero().squeeze(1)
            out[place[nms(of_image[place], rank[place], iou)]] = True
        return kept
    overlaps = (box_iou(boxes, boxes) > iou).triu(1)  # [b, i, j]: i is better than j and hits it
    kept = valid
    if is_exporting:  # a graph of operators has no loop until nothing changes
        for _ in range(EXPORTED_ROUNDS):
            kept = valid & ~(overlaps & kept[:, :, None]).any(1)
        return kept
    while True:
        again = valid & ~(overlaps & kept[:, :, None]).any(1)
        if again.equal(kept):
            return kept
        kept = again


class Suppressed(NamedTuple):
    """What survives, best first: places in what was given, and scores (soft suppression lowers them). Both (N,)."""

    place: Tensor
    scores: Tensor


def select(regions: Proposals, scores: Tensor, config: CascadeConfig, testing: TestingConfig) -> list[Detections]:
    """The detections of each image. regions (B, P), scores (B, P, K)."""
    batch, _, num_classes = scores.shape
    image, region, label = ((scores > config.score_threshold) & regions.valid[..., None]).nonzero(as_tuple=True)
    boxes, score = regions.boxes[image, region], scores[image, region, label]
    group = image * num_classes + label
    if testing.nms == "hard":
        # In float64, since boxes of different groups are told apart by moving them far away from each other.
        index = batched_nms(boxes.double(), score.double(), group, config.nms_iou)
        kept = Suppressed(index, score[index])
    else:
        kept = soft_nms(
            boxes,
            score,
            group,
            testing.nms,
            nms_iou=config.nms_iou,
            sigma=testing.soft_nms_sigma,
            score_threshold=config.score_threshold,
            limit=config.detections,
        )
    return [_of_image(kept, image, i, boxes, label, config.detections) for i in range(batch)]


def _of_image(kept: Suppressed, image: Tensor, which: int, boxes: Tensor, label: Tensor, limit: int) -> Detections:
    chosen = (image[kept.place] == which).nonzero().squeeze(1)[:limit]
    index = kept.place[chosen]
    return Detections(boxes[index], kept.scores[chosen], label[index])


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    group: Tensor,
    method: SoftNms,
    *,
    nms_iou: float,
    sigma: float,
    score_threshold: float,
    limit: int,
) -> Suppressed:
    """Soft-NMS within each group (Bodla et al. 2017, arXiv:1704.04503, section 3): the best box stays, the scores of
    those that overlap it fall, and so on with the best of the rest.

    boxes (N, 4) xyxy, scores (N,), group (N,) any integers. A box that overlaps a kept one by IoU o has its score
    multiplied by 1 - o if o >= nms_iou (`linear`), or by exp(-o**2 / sigma) (`gaussian`). Boxes whose score falls
    to score_threshold or below are gone, and no group gives more than `limit`. All groups advance together, so the
    number of steps is that of the largest group or `limit`, whichever is less.
    """
    if not len(boxes):
        return Suppressed(group.new_zeros(0), scores)
    table, place = _by_group(scores, group)  # (G, M)
    left = torch.where(place >= 0, table, -torch.inf)
    corners = boxes[place.clamp(min=0)]  # (G, M, 4)
    rows = torch.arange(len(left), device=boxes.device)
    kept_index, kept_scores = [], []
    for _ in range(min(limit, left.shape[1])):
        best = left.max(dim=1)
        chosen = corners[rows, best.indices]  # (G, 4)
        kept_index.append(place[rows, best.indices])
        kept_scores.append(best.values)
        iou = _iou_with(chosen, corners)  # (G, M)
        if method == "linear":
            decay = torch.where(iou >= nms_iou, 1 - iou, torch.ones_like(iou))
        else:
            decay = (-iou.square() / sigma).exp()
        left = torch.where(left > score_threshold, left * decay, -torch.inf)
        left[rows, best.indices] = -torch.inf
    final = torch.stack(kept_scores).flatten()
    order = final.argsort(descending=True, stable=True)
    order = order[: int((final > score_threshold).sum())]
    return Suppressed(torch.stack(kept_index).flatten()[order], final[order])


def _by_group(scores: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Scores as one padded row for each group, (G, M), and where each came from, -1 for padding."""
    _, row, counts = torch.unique(group, return_inverse=True, return_counts=True)
    order = row.argsort(stable=True)
    column = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row[order]]
    place = row.new_full((len(counts), int(counts.max())), -1)
    place[row[order], column] = order
    return scores[place.clamp(min=0)], place


def _iou_with(chosen: Tensor, corners: Tensor) -> Tensor:
    """IoU of one box for each group, (G, 4), with all of its group, (G, M, 4)."""
    iou: Tensor = box_iou(chosen[:, None], corners)
    return iou.squeeze(1)
