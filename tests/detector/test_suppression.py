import math

import pytest
import torch
from torchvision.ops import box_iou, nms

from detector.config import CascadeConfig, TestingConfig
from detector.suppression import LARGEST_MATRIX, nms_mask, select, soft_nms
from detector.targets import Proposals


def published(boxes, scores, method, nms_iou, sigma, threshold) -> list[tuple[int, float]]:
    """Soft-NMS of one class as Bodla et al. 2017 write it (figure 2): (place, score), in the order of choice."""
    left, kept = {i: float(score) for i, score in enumerate(scores)}, []
    while left:
        best = max(left, key=lambda i: left[i])
        score = left.pop(best)
        if score <= threshold:
            break
        kept.append((best, score))
        for i in left:
            overlap = float(box_iou(boxes[best][None], boxes[i][None]))
            if method == "gaussian":
                left[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= nms_iou:
                left[i] *= 1 - overlap
    return kept


@pytest.mark.parametrize("count", [40, LARGEST_MATRIX + 1])
def test_a_batch_of_sets_is_suppressed_as_torchvision_does_each(count: int) -> None:
    boxes = torch.stack([crowded(count) for _ in range(3)])
    valid = torch.rand(3, count) > 0.2
    kept = nms_mask(boxes, valid, 0.4)
    for of_set, present, ours in zip(boxes, valid, kept, strict=True):
        place = present.nonzero().squeeze(1)
        best = place[nms(of_set[place], -torch.arange(len(place), dtype=torch.float32), 0.4)]
        assert ours.nonzero().squeeze(1).tolist() == sorted(best.tolist())
    assert 0 < kept.sum() < valid.sum() / 2


def test_what_an_image_shows_does_not_depend_on_its_batch() -> None:
    """Groups are told apart by distance: in float32, 16 images of 365 classes leave boxes half a pixel of precision."""
    corner = torch.rand(16, 60, 2) * 1900
    boxes = torch.cat((corner, corner + 4 + 4 * torch.rand(16, 60, 2)), dim=2)
    boxes[:, 30:] = boxes[:, :30] + torch.rand(16, 30, 4) * 3
    regions = Proposals(boxes, torch.ones(16, 60, dtype=torch.bool))
    scores = torch.zeros(16, 60, 365)
    scores[:, :, 364] = torch.rand(16, 60) + 0.1
    config, testing = CascadeConfig(), TestingConfig()
    together = select(regions, scores, config, testing)
    for image in range(16):
        one = slice(image, image + 1)
        (alone,) = select(Proposals(boxes[one], regions.valid[one]), scores[one], config, testing)
        assert alone.boxes.equal(together[image].boxes), image


def crowded(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2) * 30
    return torch.cat((corner, corner + 10 + 10 * torch.rand(count, 2)), dim=1)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_all_groups_at_once_equal_the_published_loop_over_each(method) -> None:
    boxes, scores, group = crowded(120), torch.rand(120), torch.randint(0, 7, (120,)) * 5 - 3
    place, lowered = soft_nms(boxes, scores, group, method, nms_iou=0.3, sigma=0.4, score_threshold=0.05, limit=1000)
    ours = {int(p): float(s) for p, s in zip(place, lowered, strict=True)}
    assert len(ours) == len(place)
    expected = {}
    for value in group.unique():
        of_group = (group == value).nonzero().squeeze(1)
        for i, score in published(boxes[of_group], scores[of_group], method, 0.3, 0.4, 0.05):
            expected[int(of_group[i])] = score
    assert ours == pytest.approx(expected, rel=1e-4)
    assert lowered.equal(lowered.sort(descending=True).values)
    assert 0 < len(expected) < 120


def test_the_limit_keeps_the_best_of_each_group() -> None:
    boxes, scores, group = crowded(60), torch.rand(60), torch.arange(60) % 2
    options = {"nms_iou": 0.3, "sigma": 0.5, "score_threshold": 0.0}
    every = soft_nms(boxes, scores, group, "gaussian", limit=60, **options)
    few = soft_nms(boxes, scores, group, "gaussian", limit=4, **options)
    for value in (0, 1):
        assert few.place[group[few.place] == value].tolist() == every.place[group[every.place] == value].tolist()[:4]


def test_boxes_that_do_not_overlap_keep_their_scores() -> None:
    boxes = torch.tensor([[0.0, 0, 5, 5], [10, 10, 15, 15], [20, 20, 25, 25]])
    scores, group = torch.tensor([0.2, 0.9, 0.5]), torch.zeros(3, dtype=torch.long)
    for method in ("linear", "gaussian"):
        place, kept = soft_nms(boxes, scores, group, method, nms_iou=0.5, sigma=0.5, score_threshold=0.0, limit=9)
        assert place.tolist() == [1, 2, 0]
        assert kept.tolist() == pytest.approx([0.9, 0.5, 0.2])


def test_nothing_in_nothing_out() -> None:
    empty = torch.zeros(0, dtype=torch.long)
    options = {"nms_iou": 0.5, "sigma": 1, "score_threshold": 0, "limit": 9}
    assert not len(soft_nms(torch.zeros(0, 4), torch.zeros(0), empty, "linear", **options).place)
    regions = Proposals(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    for nms_kind in ("hard", "linear", "gaussian"):
        found = select(regions, torch.rand(2, 3, 4), CascadeConfig(), TestingConfig(nms=nms_kind))
        assert [len(detections.scores) for detections in found] == [0, 0]


@pytest.mark.parametrize("kind", ["hard", "linear", "gaussian"])
def test_select_equals_a_loop_over_images_and_classes(kind) -> None:
    boxes = torch.stack((crowded(60), crowded(60)))
    regions = Proposals(boxes, torch.rand(2, 60) > 0.1)
    scores, config = torch.rand(2, 60, 4), CascadeConfig(score_threshold=0.3, detections=1000)
    found = select(regions, scores, config, TestingConfig(nms=kind, soft_nms_sigma=0.3))
    for image, detections in enumerate(found):
        rows = {}
        for label in range(4):
            usable = (regions.valid[image] & (scores[image, :, label] > 0.3)).nonzero().squeeze(1)
            of_class, of_score = boxes[image, usable], scores[image, usable, label]
            if kind == "hard":
                kept = [(int(i), float(of_score[i])) for i in nms(of_class, of_score, 0.5)]
            else:
                kept = published(of_class, of_score, kind, 0.5, 0.3, 0.3)
            rows |= {(label, round(float(of_class[i, 0]), 4)): score for i, score in kept}
        ours = zip(detections.labels.tolist(), detections.boxes[:, 0].tolist(), detections.scores.tolist(), strict=True)
        assert {(k, round(x, 4)): s for k, x, s in ours} == pytest.approx(rows, rel=1e-4)
        assert detections.scores.equal(detections.scores.sort(descending=True).values)


def test_suppression_stays_within_class_and_image() -> None:
    boxes = torch.tensor([[10.0, 10, 20, 20], [11, 10, 21, 20], [10, 10, 20, 20]]).repeat(2, 1, 1)
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7]]).repeat(2, 1, 1)
    regions = Proposals(boxes, torch.tensor([[True, True, True], [False, True, True]]))
    config = CascadeConfig(score_threshold=0.05)
    first, second = select(regions, scores, config, TestingConfig())
    assert first.labels.tolist() == [0, 1]
    assert first.scores.tolist() == pytest.approx([0.9, 0.7])
    assert second.scores.tolist() == pytest.approx([0.8, 0.7])
    best = select(regions, scores, config.model_copy(update={"detections": 1}), TestingConfig())
    assert [found.scores.tolist() for found in best] == [[pytest.approx(0.9)], [pytest.approx(0.8)]]
