"""COCO average precision: final scores by pycocotools, a proxy's rewards by faster-coco-eval.

The latter's compiled matching gives the same numbers (a test compares them) in a fifth of the time.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.coco import CocoData
from detector.targets import Detections


@dataclass(frozen=True)
class Metrics:
    """COCO's numbers, in 0..1. None where the split has no object of that kind."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ap_by_class: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Evaluation(NamedTuple):
    """All of COCO's numbers, and precision (3, 101) over recall 0, 0.01, ..., 1: mean over classes at IoU 0.5, at 0.75,
    and over 0.5 to 0.95."""

    metrics: Metrics
    precision: NDArray[np.float64]


def coco_metrics(data: CocoData, detections: Sequence[Detections]) -> Metrics:
    """All of COCO's numbers for detections in pixels of the original images, one entry an image."""
    return evaluate(data, detections).metrics


def evaluate(data: CocoData, detections: Sequence[Detections]) -> Evaluation:
    """The same, with the curves."""
    precision = _precision(data, detections, COCO, COCOeval, by_area=True)
    overall = precision[:, :, :, 0, 0]
    present = overall[:, :, (overall > -1).all((0, 1))]  # classes that the split holds
    curves = np.stack([present[0].mean(1), present[5].mean(1), present.mean((0, 2))])
    return Evaluation(_metrics(data, precision), curves)


def _metrics(data: CocoData, precision: NDArray[np.float64]) -> Metrics:
    ap = _mean(precision[:, :, :, 0]) or 0.0
    by_iou = {iou: _mean(precision[index, :, :, 0]) for index, iou in ((0, 50), (5, 75))}
    by_area = [_mean(precision[:, :, :, area]) for area in (1, 2, 3)]
    by_class = {name: _mean(precision[:, :, k, 0]) for k, name in enumerate(data.category_names)}
    return Metrics(ap, by_iou[50] or 0.0, by_iou[75] or 0.0, by_area[0], by_area[1], by_area[2], by_class)


def average_precision(data: CocoData, detections: Sequence[Detections]) -> float:
    """COCO AP alone, at a twentieth of the cost of all numbers."""
    return ap_and_ap50(data, detections)[0]


def ap_and_ap50(data: CocoData, detections: Sequence[Detections]) -> tuple[float, float]:
    """COCO AP, and AP at IoU 0.5, at a twentieth of the cost of all numbers."""
    precision = _precision(data, detections, FasterCOCO, COCOeval_faster, by_area=False)
    return _mean(precision) or 0.0, _mean(precision[0]) or 0.0


def _mean(precision: NDArray[np.float64]) -> float | None:
    present = precision[precision > -1]
    return float(present.mean()) if present.size else None


def _precision(
    data: CocoData, detections: Sequence[Detections], coco: type[Any], evaluator: type[Any], *, by_area: bool
) -> NDArray[np.float64]:
    """By IoU, recall, class, area, and number of detections; coco and evaluator are either library's."""
    with contextlib.redirect_stdout(io.StringIO()):  # both print their progress
        truth = coco()
        truth.dataset = _truth(data)
        truth.createIndex()
        evaluation = evaluator(truth, truth.loadRes(_all_rows(data, detections)), "bbox")
        evaluation.params.imgIds = data.image_ids.tolist()
        evaluation.params.maxDets = [100]
        if not by_area:
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])


def _all_rows(data: CocoData, detections: Sequence[Detections]) -> NDArray[np.float64]:
    nothing = np.array([[data.image_ids[0], 0, 0, 0, 0, 0, data.category_ids[0]]])  # loadRes takes no empty list
    return np.concatenate([nothing, *(_rows(data, index, found) for index, found in enumerate(detections))])


def coco_results(data: CocoData, detections: Sequence[Detections]) -> list[dict[str, Any]]:
    """COCO's results form: image_id, category_id, bbox (x, y, width, height) and score of every detection."""
    rows = (row for index, found in enumerate(detections) for row in _rows(data, index, found).tolist())
    return [
        {"image_id": int(image), "category_id": int(category), "bbox": [round(v, 2) for v in box], "score": score}
        for image, *box, score, category in rows
    ]


def _rows(data: CocoData, index: int, found: Detections) -> NDArray[np.float64]:
    """(N, 7): image id, x, y, width, height, score, category id, as loadRes takes them."""
    boxes = found.boxes.double().numpy()
    image = np.full((len(boxes), 1), data.image_ids[index])
    category = np.array(data.category_ids)[found.labels.numpy()]
    size = boxes[:, 2:] - boxes[:, :2]
    return np.hstack((image, boxes[:, :2], size, found.scores.double().numpy()[:, None], category[:, None]))


def _truth(data: CocoData) -> dict[str, Any]:
    """COCO's annotation file."""
    image_of = np.repeat(np.arange(len(data)), np.diff(data.start))
    return {
        "images": [
            {"id": int(image_id), "height": int(h), "width": int(w)}
            for image_id, (h, w) in zip(data.image_ids, data.image_hw, strict=True)
        ],
        "categories": [{"id": i, "name": name} for i, name in zip(data.category_ids, data.category_names, strict=True)],
        "annotations": [
            {
                "id": row + 1,
                "image_id": int(data.image_ids[image_of[row]]),
                "category_id": data.category_ids[data.labels[row]],
                "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                "area": float(data.area[row]),
                "iscrowd": int(data.crowd[row]),
            }
            for row, (x1, y1, x2, y2) in enumerate(data.boxes)
        ],
    }
