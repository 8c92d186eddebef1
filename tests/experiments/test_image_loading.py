"""The figures mean nothing here; that each of them is of what it says is looked at."""

import sys

import numpy as np
import torch

from detector.loader import resized
from experiments import image_loading


def test_the_other_ways_give_the_same_pixels() -> None:
    picture = image_loading.photograph(0)
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    ours = resized(image, (300, 410))
    assert ours.equal(image_loading.by_interpolate(image, (300, 410)))
    theirs = torch.from_numpy(image_loading.resized_by_pillow(picture, (300, 410))).permute(2, 0, 1)
    assert (ours.int() - theirs.int()).abs().max() <= 2


def test_every_part_is_measured(monkeypatch, capsys) -> None:
    command = ["x", "--images", "3", "--short-side", "64", "--processes", "1"]
    monkeypatch.setattr(sys, "argv", command)
    image_loading.main()
    printed = capsys.readouterr().out
    assert printed.startswith("3 images")
    rows = [line.split("|") for line in printed.splitlines() if line.startswith("| ") and "what" not in line]
    assert len(rows) == 7 + 2 + 1 + len(image_loading.GPU_IMAGES_PER_SECOND)
    assert all(float(row[2]) > 0 for row in rows if "processes" not in row[1] and "GPU" not in row[1])
