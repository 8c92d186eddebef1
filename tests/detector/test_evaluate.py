from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.coco import CocoData, find_split, load_coco
from detector.evaluate import ap_and_ap50, average_precision, coco_metrics, evaluate
from detector.targets import Detections


@pytest.fixture
def data(tiny_coco: Path) -> CocoData:
    return load_coco(*find_split(tiny_coco, "train"))


def found(*rows: tuple[list[float], float, int]) -> Detections:
    return Detections(
        torch.tensor([box for box, _, _ in rows]).reshape(-1, 4),
        torch.tensor([score for _, score, _ in rows]),
        torch.tensor([label for _, _, label in rows], dtype=torch.long),
    )


PERFECT = [found(([2.0, 3, 12, 15], 0.9, 1)), found(([20.0, 8, 36, 17.5], 0.8, 0)), found()]


def test_perfect_detections_score_one_and_none_score_zero(data: CocoData) -> None:
    metrics = coco_metrics(data, PERFECT)
    assert (metrics.ap, metrics.ap50, metrics.ap75) == pytest.approx((1, 1, 1))
    assert metrics.ap_by_class == pytest.approx({"dog": 1, "cat": 1})
    assert metrics.ap_small == pytest.approx(1)
    assert metrics.ap_large is None
    nothing = coco_metrics(data, [found()] * 3)
    assert (nothing.ap, nothing.ap_small, nothing.ap_large) == (0, 0, None)
    assert nothing.ap_by_class == {"dog": 0, "cat": 0}
    assert average_precision(data, [found()] * 3) == 0


def test_ap_by_hand(data: CocoData) -> None:
    """The cat has IoU 0.75 exactly: right at 0.5..0.75, 6 of 10 thresholds. The dog is the wrong class."""
    detections = [found(([2.0, 3, 12, 12], 0.9, 1)), found(([20.0, 8, 36, 17.5], 0.8, 1)), found()]
    metrics = coco_metrics(data, detections)
    assert metrics.ap_by_class["cat"] == pytest.approx(0.6)
    assert metrics.ap_by_class["dog"] == 0
    assert metrics.ap == pytest.approx(0.3)
    assert average_precision(data, detections) == pytest.approx(0.3)


def test_detections_inside_a_crowd_region_are_no_mistakes(data: CocoData) -> None:
    crowd = [found(([6.0, 6, 20, 20], 0.95, 0)), *PERFECT[1:]]
    crowd[0] = Detections(*(torch.cat(pair) for pair in zip(crowd[0], PERFECT[0], strict=True)))
    assert average_precision(data, crowd) == pytest.approx(1)


def test_curves_end_in_their_ap(data: CocoData) -> None:
    """AP is the mean of precision over 101 recalls; the cat's box is right at IoU 0.5 and 0.75, the dog is missed."""
    detections = [found(([2.0, 3, 12, 12], 0.9, 1)), found(), found()]
    metrics, precision = evaluate(data, detections)
    assert precision.shape == (3, 101)
    assert precision.mean(1).tolist() == pytest.approx([metrics.ap50, metrics.ap75, metrics.ap])
    assert precision[0].tolist() == pytest.approx([0.5] * 101)


@pytest.mark.parametrize("seed", range(8))
def test_rewards_and_final_scores_agree(data: CocoData, seed: int) -> None:
    """Many images with crowds, equal scores, more detections than count, and images or classes without any."""
    stream = np.random.default_rng(seed)
    images, classes = 12, 4
    counts = stream.integers(0, 6, images)
    total = int(counts.sum())
    corners = stream.uniform(0, 200, (total, 2))
    many = replace(
        data,
        image_ids=np.arange(100, 100 + images),
        image_hw=np.full((images, 2), 300),
        file_names=tuple(f"{i}.png" for i in range(images)),
        start=np.concatenate([[0], counts.cumsum()]),
        boxes=np.concatenate([corners, corners + stream.uniform(4, 90, (total, 2))], axis=1).astype(np.float32),
        labels=stream.integers(0, classes - 1, total),
        area=stream.uniform(10, 9000, total),
        crowd=stream.random(total) < 0.2,
        category_ids=tuple(range(5, 5 + classes)),
        category_names=tuple("abcd"),
    )
    detections = []
    for index in range(images):
        boxes = torch.from_numpy(many.boxes[many.start[index] : many.start[index + 1]])
        near = boxes + torch.from_numpy(stream.normal(0, 4, boxes.shape)).float()
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        extra = torch.from_numpy(stream.uniform(0, 100, (int(stream.integers(0, 130)), 4))).float()
        extra[:, 2:] += extra[:, :2] + 1
        scores = torch.from_numpy(stream.integers(1, 9, len(near) + len(extra)) / 10).float()
        labels = torch.from_numpy(stream.integers(0, classes, len(scores)))
        detections.append(Detections(torch.cat([near, extra]), scores, labels))
    metrics = coco_metrics(many, detections)
    assert ap_and_ap50(many, detections) == pytest.approx((metrics.ap, metrics.ap50), abs=1e-12)
    assert 0 < metrics.ap < 1
