import sys

import numpy as np
import pytest

from detector.coco import load_split
from detector.config import DataConfig
from experiments import statistics


def test_figures_of_a_set_that_can_be_counted_by_hand(tiny_coco) -> None:
    """Three images of 40x48, boxes of 10x12 and 16x9.5, a crowd region."""
    data = load_split(DataConfig(), tiny_coco, "train")
    assert statistics.figures(data) == {
        "classes": "2, 2 of them with boxes",
        "images": "3, 1 of them without boxes",
        "boxes": "2",
        "boxes an image": "0.67",
        "classes an image": "0.67",
        "size of images": "48x40 px on average",
        "size of boxes": "13.0x10.8 px on average",
        "small, medium, large boxes": "100%, 0%, 0%",
        "most and fewest boxes of a class": "1 and 1",
    }
    assert statistics.shown_share(data, "uniform") == pytest.approx([1 / 3, 1 / 3])
    assert statistics.shown_share(data, "class_aware") == pytest.approx([1 / 2, 1 / 2])


def test_weighted_draws_show_rare_classes_more_often() -> None:
    shapes = {"train_images": 400, "val_images": 2, "tiny_images": 2}
    data = load_split(DataConfig(source="shapes", shapes=shapes), None, "train")
    rare = int(np.argmin(np.bincount(data.labels, minlength=data.num_classes)))
    assert statistics.shown_share(data, "class_aware")[rare] > 1.5 * statistics.shown_share(data, "uniform")[rare]


def test_the_command_prints_tables_and_refuses_what_is_not_there(tiny_coco, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tiny_coco)])
    assert statistics.main() == 0
    assert "| cat | 1 | 1 | 33.3% | 50.0% |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["x", "--data", "absent"])
    assert statistics.main() == 2
    assert capsys.readouterr().err == "statistics: --data absent: no such folder\n"
