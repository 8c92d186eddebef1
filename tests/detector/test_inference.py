from pathlib import Path

import pytest
import torch

from detector.architecture import PRIORS
from detector.cascade_rcnn import CascadeRcnn
from detector.coco import CocoData, find_split, load_coco
from detector.config import DetectorSections
from detector.config_files import load_config
from detector.inference import View, detect_split, views_of
from detector.loader import Batch
from detector.targets import Proposals, Targets

CONFIG = load_config("smoke", DetectorSections)
CPU = torch.device("cpu")


@pytest.fixture
def data(tiny_coco: Path) -> CocoData:
    return load_coco(*find_split(tiny_coco, "train"))


@pytest.fixture
def model() -> CascadeRcnn:
    return CascadeRcnn(CONFIG.detector, PRIORS["nas-fpn"], 2, batched=True).eval()


def options(**changes):
    return CONFIG.detector.testing.model_copy(update=changes)


def test_one_scale_is_the_same_as_none(data: CocoData, model: CascadeRcnn) -> None:
    training = CONFIG.training.model_copy(update={"short_side": 40, "long_side": 48})
    plain = detect_split(model, views_of(data, training, options(), 64), data.image_hw, CPU)
    listed = detect_split(model, views_of(data, training, options(scales=(40,)), 64), data.image_hw, CPU)
    for ours, theirs in zip(listed, plain, strict=True):
        assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))
    assert sum(len(found.scores) for found in plain) > 10


def test_boxes_come_back_in_pixels_of_the_original(data: CocoData, model: CascadeRcnn) -> None:
    training = CONFIG.training.model_copy(update={"short_side": 80, "long_side": 96})
    large = detect_split(model, views_of(data, training, options(), 64), data.image_hw, CPU)
    for found in large:
        assert found.boxes[:, 2].max() <= 48
        assert found.boxes[:, 3].max() <= 40
        assert found.boxes[:, 2].max() > 24


class Fixed(CascadeRcnn):
    """Finds one box at a place given in shares of the image, the more to the left the surer of class 0."""

    def score(self, images, image_hw):
        size = image_hw.flip(1).repeat(1, 2).float()
        place = torch.tensor([0.1, 0.2, 0.4, 0.6])
        return Proposals((place * size)[:, None], torch.ones(len(images), 1, dtype=torch.bool)), torch.full(
            (len(images), 1, 2), 0.5
        )


def test_mirrored_views_are_mirrored_back_and_scales_agree() -> None:
    model = Fixed(CONFIG.detector, None, 2)
    nothing = Targets.pad([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)])

    def view(side: int, is_flipped: bool) -> View:
        batch = Batch(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[side, side]]), nothing)
        return View(iter([batch]), is_flipped)

    hw = torch.tensor([[100, 200]]).numpy()
    (found,) = detect_split(model, [view(50, False), view(64, False), view(64, True)], hw, CPU)
    boxes = {tuple(round(v) for v in box) for box in found.boxes.tolist()}
    assert boxes == {(20, 20, 80, 60), (120, 20, 180, 60)}
    assert len(found.scores) == 4  # the two equal views were merged, for two classes each


def test_flip_and_scales_make_their_product_of_views(data: CocoData) -> None:
    views = views_of(data, CONFIG.training, options(scales=(40, 64), flip=True), 64)
    assert [view.is_flipped for view in views] == [False, True, False, True]
    first, mirrored, *_ = (next(iter(view.batches)) for view in views)
    height, width = first.image_hw[0].tolist()
    assert first.images[0, :, :height, :width].equal(mirrored.images[0, :, :height, :width].flip(-1))
