"""The detections of several models, which may differ in everything but their classes, as those of one."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detector.choices import Fusion
from detector.suppression import soft_nms
from detector.targets import Detections

FUSION_IOU = 0.55  # of boxes that are one object; Solovyev et al. 2021, arXiv:1910.13302, section 4
SOFT_SIGMA = 0.5
LEAST_SCORE = 1e-3


def fuse(of_models: Sequence[Detections], image_hw: Tensor, fusion: Fusion, limit: int) -> Detections:
    """The detections of one image by several models, merged within each class; at most `limit`, best first.

    wbf: weighted boxes fusion (Solovyev et al. 2021, arXiv:1910.13302; the authors' ensemble-boxes): boxes of one
    object are averaged by score, and objects that few models saw lose score. nms, linear, gaussian: the boxes of all
    models, duplicates suppressed.
    """
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*of_models, strict=True))
    if not len(boxes):
        return of_models[0]
    if fusion == "wbf":
        return _weighted_boxes(of_models, image_hw, limit)
    if fusion == "nms":
        kept = batched_nms(boxes.double(), scores.double(), labels, FUSION_IOU)[:limit]
        return Detections(boxes[kept], scores[kept], labels[kept])
    place, lowered = soft_nms(
        boxes,
        scores,
        labels,
        fusion,
        nms_iou=FUSION_IOU,
        sigma=SOFT_SIGMA,
        score_threshold=LEAST_SCORE,
        limit=limit,
    )
    return Detections(boxes[place[:limit]], lowered[:limit], labels[place[:limit]])


def _weighted_boxes(of_models: Sequence[Detections], image_hw: Tensor, limit: int) -> Detections:
    from ensemble_boxes import weighted_boxes_fusion  # imports numba, which takes seconds

    size = image_hw.flip(0).repeat(2).float()  # w, h, w, h: the library wants boxes in 0..1
    parts: list[list[object]] = [[], [], []]
    for found in of_models:
        solid = (found.boxes[:, 2:] > found.boxes[:, :2]).all(1)  # it warns of others
        of_model = ((found.boxes[solid] / size).clamp(0, 1), found.scores[solid], found.labels[solid])
        for part, values in zip(parts, of_model, strict=True):
            part.append(values.double().numpy())
    boxes, scores, labels = weighted_boxes_fusion(*parts, iou_thr=FUSION_IOU, skip_box_thr=0.0)
    order = torch.from_numpy(scores).argsort(descending=True, stable=True)[:limit]
    return Detections(
        (torch.from_numpy(boxes).float() * size)[order],
        torch.from_numpy(scores).float()[order],
        torch.from_numpy(labels).long()[order],
    )
