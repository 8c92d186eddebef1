import torch

from detector.matching import match, sample
from detector.targets import Targets


def test_padding_and_images_without_objects_match_nothing() -> None:
    targets = Targets.pad(
        [torch.tensor([[0.0, 0, 10, 10]]), torch.zeros(0, 4)], [torch.tensor([2]), torch.tensor([]).long()]
    )
    boxes = torch.tensor([[[0.0, 0, 10, 5], [0, 0, 0, 0]]] * 2)
    found = match(boxes, targets)
    assert found.iou[0].tolist() == [0.5, 0.0]
    assert found.iou[1].tolist() == [-1, -1]


def test_sample_keeps_the_fraction_and_fills_with_negatives() -> None:
    positive, negative = torch.zeros(2, 50, dtype=torch.bool), torch.zeros(2, 50, dtype=torch.bool)
    positive[0, :30], negative[0, 30:] = True, True
    positive[1, :2], negative[1, 2:6] = True, True
    index, valid = sample(positive, negative, 16, 0.25)
    for row, wanted_positive, wanted in ((0, 4, 16), (1, 2, 6)):
        chosen = index[row][valid[row]]
        assert len(chosen.unique()) == len(chosen) == wanted
        assert int(positive[row][chosen].sum()) == wanted_positive


def test_sample_is_uniform_over_negatives() -> None:
    negative = torch.ones(4000, 10, dtype=torch.bool)
    index, valid = sample(~negative, negative, 3, 0.5)
    counts = index[valid].bincount(minlength=10)
    assert (counts - 1200).abs().max() < 150  # 4000 * 3 / 10, five standard deviations
