import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detector.architecture import PRIORS
from detector.checkpoint import TrainedModel, make_model
from detector.commands import export_final
from detector.config import DetectorSections
from detector.config_files import load_config
from detector.export_final import Scoring


@pytest.fixture
def weights(here: Path) -> Path:
    """Weights of no training, with regions that overlap."""
    config = load_config("smoke", DetectorSections)
    rpn = config.detector.rpn.model_copy(update={"nms_iou": 0.1})
    config = config.model_copy(update={"detector": config.detector.model_copy(update={"rpn": rpn})})
    torch.manual_seed(0)
    model = make_model(config, PRIORS["nas-fpn"], 3)
    TrainedModel(model, PRIORS["nas-fpn"], config, ("a", "b", "c")).save(here / "model.pt")
    return here / "model.pt"


def test_the_program_runs_without_this_package_and_gives_the_same(weights: Path, here: Path, capsys) -> None:
    assert export_final(["--weights", str(weights), "--size", "64", "96", "--output", "out/m.pt2"]) == 0
    assert "takes images (1, 3, 64, 96)" in capsys.readouterr().out
    image = torch.rand(1, 3, 64, 96)
    torch.save(image, here / "image.pt")
    script = """
import json, sys, torch
found = {"about.json": ""}
program = torch.export.load("out/m.pt2", extra_files=found).module()
boxes, scores = program(torch.load("image.pt"), torch.tensor([[64, 96]]))
torch.save((boxes.detach(), scores.detach()), "found.pt")
assert not [name for name in sys.modules if name.split(".")[0] in ("detector", "nas", "experiments")]
print(found["about.json"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=here, capture_output=True, text=True, check=True)
    about = json.loads(done.stdout.splitlines()[-1])
    assert about == {"classes": ["a", "b", "c"], "size_hw": [64, 96], "architecture": PRIORS["nas-fpn"].hash}
    boxes, scores = torch.load(here / "found.pt")
    model = TrainedModel.load(weights, torch.device("cpu")).model.eval()
    wanted_boxes, wanted_scores = Scoring(model)(image, torch.tensor([[64, 96]]))
    torch.testing.assert_close(boxes, wanted_boxes)
    torch.testing.assert_close(scores, wanted_scores)
    assert len(boxes) > 3


def test_a_program_that_differs_is_not_written(weights: Path, here: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("detector.suppression.EXPORTED_ROUNDS", 0)
    assert export_final(["--weights", str(weights), "--size", "64", "64"]) == 1
    assert "pixels from the model; it is not written" in capsys.readouterr().err
    assert not (here / "model.pt2").exists()


def test_a_program_that_gives_nan_is_not_written(weights: Path, here: Path) -> None:
    content = torch.load(weights, weights_only=True)
    content["weights"]["heads.cascade.heads.0.classify.bias"][0] = torch.nan
    torch.save(content, weights)
    assert export_final(["--weights", str(weights), "--size", "64", "64"]) == 1
    assert not (here / "model.pt2").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "absent.pt"], "absent.pt: no such file"),
        (["--weights", "model.pt", "--size", "64", "70"], "--size 64 70: sides must be multiples of 16"),
        (["--weights", "model.pt", "--output", "."], "is a folder; give a file"),
        (["--weights", "model.pt", "--size", "64", "64", "--output", "model.pt/x"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(weights: Path, capsys, options: list[str], message: str) -> None:
    assert export_final(options) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1
