"""The measurement of large annotation files, on a small one."""

import json
import sys
from pathlib import Path

import pytest

from detector.coco import load_coco
from experiments import annotation_scale

SIZES = ["--images", "300", "--boxes", "4000", "--workers", "2"]


def test_the_file_has_what_was_asked_for_and_a_long_tail(tmp_path: Path) -> None:
    path = annotation_scale.generate(tmp_path, 300, 4000)
    data = load_coco(path, tmp_path / "images")
    assert (len(data), len(data.boxes), data.num_classes) == (300, 4000, annotation_scale.CLASSES)
    counts = sorted(data.labels.tolist().count(label) for label in range(data.num_classes))
    assert counts[-1] > 10 * max(1, counts[len(counts) // 2])
    assert path == annotation_scale.generate(tmp_path, 300, 4000)
    assert len(json.loads(path.read_text())["annotations"]) == 4000


@pytest.mark.parametrize("what", sorted(annotation_scale.MEASURED))
def test_measures_time_and_memory(tmp_path: Path, what: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--folder", str(tmp_path), *SIZES, "--measure", what])
    monkeypatch.setattr("detector.coco.LARGE_BYTES", 1)
    annotation_scale.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["seconds"] > 0
    assert found["peak"] > 1e7
