import numpy as np
import pytest
import torch
from PIL import Image

from detector.drawing import colour_of, draw_detections
from detector.targets import Detections


@pytest.mark.parametrize("size", [(40, 30), (1200, 900), (300, 20)])
def test_boxes_and_labels_are_drawn_inside_the_picture_at_every_size(size) -> None:
    width, height = size
    boxes = torch.tensor([[2.0, 1, width / 2, height - 2], [width * 0.6, 1, width, height]])
    found = Detections(boxes, torch.tensor([0.9, 0.4]), torch.tensor([0, 1]))
    drawn = draw_detections(Image.new("RGB", size), found, ("cat", "a very long name of a class"))
    assert drawn.size[0] % width == 0
    assert drawn.size[0] / width == drawn.size[1] / height
    assert max(drawn.size) >= 300
    pixels = np.array(drawn).reshape(-1, 3)
    for label in (0, 1):
        assert (pixels == colour_of(label)).all(1).sum() > 50


def test_nothing_found_leaves_the_picture() -> None:
    image = Image.effect_noise((600, 500), 50).convert("RGB")
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert np.array_equal(np.array(draw_detections(image, nothing, ())), np.array(image))


def test_colours_of_80_classes_differ() -> None:
    assert len({colour_of(label) for label in range(80)}) == 80
