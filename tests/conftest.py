"""Shared by all tests: an own cache folder, random graphs, a tiny data set in COCO form."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when timm is imported; no test may wait for a network

import numpy as np
import pytest
import torch
from PIL import Image

from controller.decisions import uniform
from detector.architecture import PRIORS, Architecture
from nas.space import space_around


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or left in the user's cache; what tests prepare, they share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def random_graphs() -> Callable[[int], list[Architecture]]:
    """n random graphs of the published space."""

    def draw(count: int) -> list[Architecture]:
        space, stream = space_around(PRIORS["nas-fpn"]), np.random.default_rng(0)
        return [space.architecture(uniform(space, stream)) for _ in range(count)]

    return draw


def tiny_document() -> dict[str, Any]:
    """Three images of 40x48 (HxW), the last without objects, and two categories with ids 3 and 7."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 48} for i in (1, 2, 5)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 3, 10, 12], "area": 120, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [20, 8, 16, 9.5], "area": 152, "iscrowd": 0},
            {"id": 3, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 1},
        ],
    }


@pytest.fixture
def tiny_coco(tmp_path: Path) -> Path:
    """A data set folder: annotations/instances_{train,val}.json and images in images/."""
    root = tmp_path / "data"
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    document = tiny_document()
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    for image in document["images"]:
        pixels = np.random.default_rng(image["id"]).integers(0, 256, (image["height"], image["width"], 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / image["file_name"])
    return root
