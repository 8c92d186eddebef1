"""eval-final and detect as a user calls them, on weights that train-final wrote."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.commands import detect, eval_final, train_final

SMOKE = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two detectors of the smoke configuration: a.pt, and b.pt with GroupNorm and other heads."""
    folder = tmp_path_factory.mktemp("trained")
    other = SMOKE.replace("weights: none, norm: bn", "weights: none, norm: gn, weight_standardisation: true")
    (folder / "b.yaml").write_text(other.replace("cascade: {pool_size: 2,", "cascade: {pool_size: 4, head: 4conv1fc,"))
    for name, config in (("a", "smoke"), ("b", str(folder / "b.yaml"))):
        assert train_final(["--config", config, "--output", str(folder / name)]) == 0
        shutil.copy(folder / name / "model.pt", folder / f"{name}.pt")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_evaluation_repeats_what_training_measured(here: Path, trained: Path, capsys) -> None:
    assert eval_final(["--weights", str(trained / "a.pt")]) == 0
    ours = json.loads((here / "runs" / "eval" / "metrics.json").read_text())
    theirs = json.loads((trained / "a" / "metrics.json").read_text())
    assert {key: ours[key] for key in ("ap", "ap50", "ap_small", "images")} == {
        key: theirs[key] for key in ("ap", "ap50", "ap_small", "images")
    }
    shown = capsys.readouterr().out
    assert "medium" in shown
    assert "flat-waves-warm" in shown
    with Image.open(here / "runs" / "eval" / "precision_recall.png") as picture:
        assert picture.size[0] > 400
    detections = json.loads((here / "runs" / "eval" / "detections.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} == set(detections[0])


def test_every_option_of_testing_counts(here: Path, trained: Path) -> None:
    seen = {}
    for name, options in {
        "plain": [],
        "adaptive": ["--cascade-test", "adaptive"],
        "soft": ["--nms", "gaussian"],
        "scales": ["--scales", "48", "80"],
        "flip": ["--flip"],
    }.items():
        assert eval_final(["--weights", str(trained / "a.pt"), "--output", name, *options]) == 0
        seen[name] = (here / name / "detections.json").read_text()
    assert len(set(seen.values())) == 5
    settings = json.loads((here / "scales" / "metrics.json").read_text())["testing"][0]
    assert settings["scales"] == [48, 80]
    assert settings["flip"] is False


@pytest.mark.parametrize("fusion", ["wbf", "linear"])
def test_models_of_different_make_are_one_ensemble(here: Path, trained: Path, fusion: str) -> None:
    weights = ["--weights", str(trained / "a.pt"), "--weights", str(trained / "b.pt")]
    assert eval_final([*weights, "--fuse", fusion]) == 0
    content = json.loads((here / "runs" / "eval" / "metrics.json").read_text())
    assert content["fuse"] == fusion
    assert len(content["weights"]) == len(content["testing"]) == 2


def test_a_trained_detector_starts_another_one(here: Path, trained: Path, capsys) -> None:
    """From the 8 classes of shapes to the rare ones of its tiny split, by name."""
    (here / "tiny.yaml").write_text(SMOKE.replace("source: shapes", "source: shapes\n  train: tiny\n  val: tiny_val"))
    command = ["--config", "tiny.yaml", "--init", str(trained / "a.pt"), "--output", "tiny"]
    assert train_final(command) == 0
    shown = capsys.readouterr().out
    assert "3 of 3 classes mapped" in shown
    assert train_final([*command[:2], "--init", str(trained / "b.pt"), "--output", "tiny"]) == 2
    assert "another start (--init)" in capsys.readouterr().err
    Image.new("RGB", (64, 64)).save("p.png")
    assert detect(["p.png", "--weights", str(trained / "a.pt"), "--weights", "tiny/model.pt"]) == 2
    assert "tiny/model.pt: its 3 classes (upright-spots-warm, " in capsys.readouterr().err


def test_detect_draws_every_picture_and_writes_coco_form(here: Path, trained: Path, capsys) -> None:
    (here / "photos").mkdir()
    for name, size in (("wide.jpg", (90, 40)), ("high.png", (30, 200)), ("large.bmp", (700, 500))):
        Image.new("RGB", size, "gray").save(here / "photos" / name)
    (here / "photos" / "broken.jpg").write_text("no picture")
    Image.new("L", (50, 40), "gray").save(here / "photos" / "high.webp")
    (here / "photos" / "notes.txt").write_text("no picture")
    assert detect(["photos", "--weights", str(trained / "a.pt"), "--threshold", "0"]) == 0
    assert "left out photos/broken.jpg" in capsys.readouterr().out
    output = here / "runs" / "detect"
    assert sorted(path.name for path in output.iterdir()) == [
        "detections.json",
        "high.png.png",
        "high.webp.png",
        "large.png",
        "wide.png",
    ]
    document = json.loads((output / "detections.json").read_text())
    assert [image["file_name"] for image in document["images"]] == [
        "photos/high.png",
        "photos/high.webp",
        "photos/large.bmp",
        "photos/wide.jpg",
    ]
    assert len(document["categories"]) == 8
    sizes = {image["id"]: (image["width"], image["height"]) for image in document["images"]}
    assert document["annotations"]
    for entry in document["annotations"]:
        x, y, width, height = entry["bbox"]
        assert -0.01 <= x <= x + width <= sizes[entry["image_id"]][0] + 0.01
        assert -0.01 <= y <= y + height <= sizes[entry["image_id"]][1] + 0.01
    with Image.open(output / "large.png") as picture:
        assert picture.size == (700, 500)


def test_detect_shows_what_an_ensemble_finds(here: Path, trained: Path) -> None:
    """Suppression leaves boxes as they are, all those of one model or the other; fusion moves them."""
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(picture).save("p.png")

    def found(names: str, *options: str) -> set[tuple[float, ...]]:
        weights = [word for name in names for word in ("--weights", str(trained / f"{name}.pt"))]
        assert detect(["p.png", *weights, *options, "--threshold", "0", "--output", "found"]) == 0
        document = json.loads((here / "found" / "detections.json").read_text())
        return {(entry["category_id"], *entry["bbox"]) for entry in document["annotations"]}

    one, other, suppressed, fused = found("a"), found("b"), found("ab", "--fuse", "nms"), found("ab")
    assert suppressed <= one | other
    assert suppressed
    assert fused - one - other


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (eval_final, ["--weights", "absent.pt"], "absent.pt: no such file"),
        (eval_final, ["--weights", "noise.pt"], "noise.pt: cannot be loaded as weights"),
        (eval_final, ["--weights", "a.pt", "--split", "tiny_val"], "its 8 classes (flat-waves-warm, "),
        (eval_final, ["--weights", "a.pt", "--split", "moon"], "no annotations of split 'moon'"),
        (eval_final, ["--weights", "a.pt", "--scales", "0"], "--scales: 0 given"),
        (eval_final, ["--weights", "a.pt", "--nms", "hardest"], "invalid choice: 'hardest'"),
        (eval_final, ["--weights", "a.pt", "--output", "noise.pt"], "cannot be a folder"),
        (eval_final, [], "arguments are required: --weights"),
        (eval_final, ["--weights", "a.pt", "--fuse", "nms"], "--fuse: merges the boxes of several models"),
        (detect, ["p.png", "--weights", "a.pt", "--fuse", "nms"], "--fuse: merges the boxes of several models"),
        (detect, ["absent.jpg", "--weights", "a.pt"], "absent.jpg: no such file or folder"),
        (detect, ["empty", "--weights", "a.pt"], "empty: holds no pictures"),
        (detect, ["noise.pt", "--weights", "a.pt"], "none of the files is a picture"),
        (detect, ["p.png", "--weights", "a.pt", "--threshold", "2"], "--threshold: 2 given"),
        (detect, ["p.png", "--weights", "a.pt", "--output", "."], "would replace the pictures"),
        (detect, ["p.png", "more/p.png", "--weights", "a.pt"], "another picture of that name"),
        (eval_final, ["--weights", "a.pt", "--data", "empty"], "this configuration generates its data"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(here, trained, capsys, command, arguments, message) -> None:
    shutil.copy(trained / "a.pt", here / "a.pt")
    (here / "noise.pt").write_text("noise")
    (here / "empty").mkdir()
    (here / "more").mkdir()
    for path in ("p.png", "more/p.png"):
        Image.new("RGB", (20, 20)).save(here / path)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert command(arguments) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
