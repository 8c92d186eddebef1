import pytest
import torch

from detector.ensemble import fuse
from detector.targets import Detections

HW = torch.tensor([100, 200])


def found(*rows: tuple[list[float], float, int]) -> Detections:
    return Detections(
        torch.tensor([box for box, _, _ in rows]).reshape(-1, 4),
        torch.tensor([score for _, score, _ in rows]),
        torch.tensor([label for _, _, label in rows], dtype=torch.long),
    )


FIRST = found(([10.0, 10, 50, 50], 0.8, 0), ([120.0, 20, 180, 80], 0.6, 1))
SECOND = found(([12.0, 10, 52, 50], 0.4, 0), ([12.0, 10, 52, 50], 0.3, 2))


def test_weighted_boxes_by_hand() -> None:
    """Boxes of one object: the mean weighted by score. Its score: the mean over the models, absent ones included."""
    fused = fuse([FIRST, SECOND], HW, "wbf", 10)
    assert fused.labels.tolist() == [0, 1, 2]
    assert fused.scores.tolist() == pytest.approx([0.6, 0.3, 0.15], abs=1e-4)
    x1 = (10 * 0.8 + 12 * 0.4) / 1.2
    assert fused.boxes[0].tolist() == pytest.approx([x1, 10, x1 + 40, 50], abs=1e-2)
    assert fused.boxes[1].tolist() == pytest.approx([120, 20, 180, 80], abs=1e-2)


def test_suppression_keeps_the_best_of_each_class() -> None:
    fused = fuse([FIRST, SECOND], HW, "nms", 10)
    assert fused.labels.tolist() == [0, 1, 2]
    assert fused.boxes[0].tolist() == FIRST.boxes[0].tolist()


@pytest.mark.parametrize("fusion", ["linear", "gaussian"])
def test_soft_suppression_lowers_the_second_of_a_class(fusion) -> None:
    fused = fuse([FIRST, SECOND], HW, fusion, 10)
    assert sorted(fused.labels.tolist()) == [0, 0, 1, 2]
    of_class = fused.scores[fused.labels == 0].tolist()
    assert of_class[0] == pytest.approx(0.8)
    assert 0 < of_class[1] < 0.4 * 0.2


@pytest.mark.parametrize("fusion", ["wbf", "nms", "linear", "gaussian"])
def test_edges(fusion) -> None:
    nothing = found()
    assert not len(fuse([nothing, nothing], HW, fusion, 10).scores)
    assert len(fuse([FIRST, nothing], HW, fusion, 10).scores) == 2
    assert len(fuse([FIRST, SECOND], HW, fusion, 1).scores) == 1
    outside = found(([-1e-4, 0.0, 200.0001, 100], 0.5, 0), ([5.0, 5, 5, 9], 0.4, 0))  # beyond by rounding; no area
    assert len(fuse([outside, nothing], HW, fusion, 10).scores) >= 1
