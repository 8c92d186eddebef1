import json

import numpy as np

from detector.coco import load_split
from detector.config import DataConfig, ShapesConfig
from detector.shapes import CLASSES, TINY_CLASSES, scene, shapes_folder

CONFIG = ShapesConfig(train_images=60, val_images=10, tiny_images=10)


def test_generated_data_is_valid_coco_and_depends_on_the_seed_only() -> None:
    data = load_split(DataConfig(source="shapes", shapes=CONFIG), None, "train")
    assert data.category_names == CLASSES
    assert len(data) == 60
    assert all(data.image(i).shape == (3, 64, 64) for i in range(5))
    same = load_split(DataConfig(source="shapes", shapes=CONFIG), None, "train")
    assert same.hash == data.hash
    other = DataConfig(source="shapes", shapes=CONFIG.model_copy(update={"seed": 1}))
    assert load_split(other, None, "train").hash != data.hash
    assert load_split(DataConfig(source="shapes", shapes=CONFIG), None, "val").hash != data.hash


def test_tiny_split_holds_the_rare_classes_only() -> None:
    document = json.loads((shapes_folder(CONFIG) / "annotations" / "instances_tiny.json").read_text())
    assert [category["name"] for category in document["categories"]] == list(TINY_CLASSES)
    used = {annotation["category_id"] for annotation in document["annotations"]}
    assert used <= {1, 2, 3}
    assert len(document["annotations"]) > 5


def test_classes_are_long_tailed_and_sizes_span_an_order_of_magnitude() -> None:
    labels, sides = [], []
    for i in range(600):
        for thing, label in scene(np.random.default_rng([3, i]), 64, tuple(range(len(CLASSES))))[1]:
            labels.append(label)
            x1, y1, x2, y2 = thing.box
            sides.append(((x2 - x1) * (y2 - y1)) ** 0.5)
    counts = np.bincount(labels, minlength=len(CLASSES))
    assert counts.min() > 0
    assert counts.max() > 5 * counts.min()
    assert np.quantile(sides, 0.99) > 7 * np.quantile(sides, 0.01)


def test_every_object_stays_mostly_visible() -> None:
    for i in range(50):
        things = [thing for thing, _ in scene(np.random.default_rng([4, i]), 64, tuple(range(len(CLASSES))))[1]]
        for k, thing in enumerate(things):
            for later in things[k + 1 :]:
                assert (thing.mask & later.mask).sum() <= 0.25 * thing.mask.sum()
