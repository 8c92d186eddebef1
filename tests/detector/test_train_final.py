import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from detector.architecture import PRIORS
from detector.checkpoint import TrainedModel
from detector.commands import train_final
from detector.resume import Checkpoints


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_trains_saves_evaluates_and_is_done(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = here / "best.json"
    graph.write_text(json.dumps(PRIORS["nas-fpn"].to_dict()))
    command = ["--arch", str(graph), "--config", "smoke"]
    assert train_final(command) == 0
    output = here / "runs" / "final"
    metrics = json.loads((output / "metrics.json").read_text())
    assert 0 <= metrics["ap"] <= 1
    assert metrics["images"] == 24
    assert "step 20 of 20" in (output / "train.log").read_text()
    trained = TrainedModel.load(output / "model.pt", torch.device("cpu"))
    assert trained.architecture == PRIORS["nas-fpn"]
    assert trained.config.training.steps == 20
    assert len(trained.classes) == 8
    before = (output / "model.pt").stat().st_mtime_ns
    assert train_final(command) == 0
    assert "finished" in capsys.readouterr().out
    assert (output / "model.pt").stat().st_mtime_ns == before
    smoke = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
    (here / "longer.yaml").write_text(smoke.replace("batch_size: 8, steps: 20", "batch_size: 8, steps: 21"))
    for other, name in (
        (["--config", "smoke"], "graph"),
        (["--arch", str(graph), "--config", "longer.yaml"], "configuration (training.steps is 20, now 21)"),
    ):
        assert train_final(other) == 2
        assert f"holds a run with another {name}" in capsys.readouterr().err


def test_another_data_set_is_another_run(here: Path, tiny_coco: Path, capsys) -> None:
    config = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
    start, end = config.index("data:"), config.index("detector:")
    (here / "c.yaml").write_text(config[:start] + "data: {source: coco}\n" + config[end:])
    command = ["--config", "c.yaml", "--data", str(tiny_coco)]
    assert train_final(command) == 0
    annotations = tiny_coco / "annotations" / "instances_train.json"
    annotations.write_text(annotations.read_text().replace("[2, 3, 10, 12]", "[2, 3, 10, 13]"))
    assert train_final(command) == 2
    assert "holds a run with another data set" in capsys.readouterr().err


def test_saved_and_loaded_models_detect_the_same(here: Path) -> None:
    assert train_final(["--config", "smoke"]) == 0
    path = here / "runs" / "final" / "model.pt"
    first, second = (TrainedModel.load(path, torch.device("cpu")).model.eval() for _ in range(2))
    images, image_hw = torch.rand(1, 3, 64, 64), torch.tensor([[64, 64]])
    ours, theirs = first.detect(images, image_hw)[0], second.detect(images, image_hw)[0]
    assert ours.boxes.equal(theirs.boxes)


def test_a_start_that_lacks_the_backbone_is_refused(here: Path, capsys) -> None:
    """--init stands in for pretrained weights: what it lacks of the backbone would be random, perhaps for ever."""
    smoke = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
    assert train_final(["--config", "smoke", "--output", "a"]) == 0
    for name, old, new in (
        ("other", "channels: [16, 16, 16, 16]", "channels: [8, 16, 16, 16]"),
        ("same", "norm: bn", "norm: frozen_bn"),
    ):
        (here / f"{name}.yaml").write_text(smoke.replace(old, new).replace("weights: none", "weights: pretrained"))
    capsys.readouterr()
    assert train_final(["--config", "other.yaml", "--init", "a/model.pt", "--output", "b"]) == 2
    assert "lacks weights of this backbone (backbone.body.layer1" in capsys.readouterr().err
    assert not (here / "b").exists()
    assert train_final(["--config", "same.yaml", "--init", "a/model.pt", "--output", "c"]) == 0


def test_configuration_comes_from_the_graph_when_none_is_given(here: Path) -> None:
    from detector.config import DetectorSections
    from detector.config_files import load_config

    sections = load_config("smoke", DetectorSections).model_dump(mode="json", include={"data", "detector", "training"})
    graph = PRIORS["fpn"].to_dict() | {"found": {"config": sections}}
    (here / "best.json").write_text(json.dumps(graph))
    assert train_final(["--arch", "best.json", "--output", "out"]) == 0
    assert json.loads((here / "out" / "run.json").read_text())["config"] == sections


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "absent.json"], "--arch absent.json: no such file; nas-export --best writes one"),
        (["--config", "bccd"], "needs --data DIR"),
        (["--config", "bccd", "--data", "absent"], "absent: no such folder"),
        (["--config", "smoke", "--output", "file"], "is a file; give a folder"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(here: Path, capsys, arguments: list[str], message: str) -> None:
    (here / "file").write_text("")
    assert train_final(arguments) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1
    assert captured.startswith("train-final: ")
    assert not (here / "runs").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_data_set_without_objects_is_refused(here: Path, tiny_coco: Path, capsys, split: str) -> None:
    annotations = tiny_coco / "annotations" / f"instances_{split}.json"
    annotations.write_text(json.dumps(json.loads(annotations.read_text()) | {"annotations": []}))
    config = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
    start, end = config.index("data:"), config.index("detector:")
    (here / "c.yaml").write_text(config[:start] + "data: {source: coco}\n" + config[end:])
    assert train_final(["--config", "c.yaml", "--data", str(tiny_coco), "--dry-run"]) == 2
    assert f"instances_{split}.json: holds no objects" in capsys.readouterr().err


@pytest.mark.parametrize("record", ["[]", "3", '{"config": [1]}', '{"config": null}', "{}", "{", "\xff"])
def test_a_folder_whose_record_makes_no_sense_is_refused(here: Path, capsys, record: str) -> None:
    (here / "out").mkdir()
    (here / "out" / "model.pt").write_text("of another run")
    (here / "out" / "run.json").write_text(record, encoding="latin-1")
    assert train_final(["--config", "smoke", "--output", "out"]) == 2
    assert capsys.readouterr().err == ("train-final: --output out: its run.json cannot be read; give another folder\n")
    assert (here / "out" / "model.pt").read_text() == "of another run"


@pytest.mark.parametrize(("warmup", "is_said"), [(2, False), (3, True)])
def test_a_warm_up_as_long_as_the_training_is_said(here: Path, capsys, warmup: int, is_said: bool) -> None:
    changes = ["--set", "training.steps=3", "--set", f"training.warmup_steps={warmup}"]
    assert train_final(["--config", "smoke", "--dry-run", *changes]) == 0
    assert ("is not below training.steps, 3" in capsys.readouterr().out) == is_said


def test_a_diverging_run_fails_and_says_why(here: Path, capsys) -> None:
    config = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
    (here / "wild.yaml").write_text(
        config.replace(
            "training: {optimizer: adamw, learning_rate: 0.003", "training: {optimizer: sgd, learning_rate: 1.0e+30"
        )
    )
    assert train_final(["--config", "wild.yaml"]) == 1
    assert "the training loss is" in capsys.readouterr().err
    assert not (here / "runs" / "final" / "model.pt").exists()


def test_a_dry_run_says_what_would_happen_and_leaves_nothing(here: Path, capsys) -> None:
    assert train_final(["--config", "smoke", "--arch", "nas-fpn", "--workers", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for line in (
        "training: 160 images, 461 boxes, 8 classes",
        "validation: 24 images, 56 boxes, 8 classes",
        f"pyramid: {PRIORS['nas-fpn'].hash[:12]}, 7 merging cells",
        "training: 20 steps of 8 images, 1.0 times the data, on cpu",
        "one process of 2: ",
        "evaluation: about ",
        "it works on the first 8",
        "runs/final: would start anew",
    ):
        assert line in said
    assert not (here / "runs").exists()


def test_a_dry_run_finds_what_training_would(here: Path, tiny_coco: Path, capsys) -> None:
    config = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
    start, end = config.index("data:"), config.index("detector:")
    (here / "c.yaml").write_text(config[:start] + "data: {source: coco}\n" + config[end:])
    picture = tiny_coco / "images" / "2.png"
    picture.write_bytes(picture.read_bytes()[:60])
    assert train_final(["--config", "c.yaml", "--data", str(tiny_coco), "--dry-run"]) == 2
    assert "2.png (image 2): cannot be decoded" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_gpus_that_are_not_there_are_told_before_anything_is_written(here, monkeypatch, capsys, options) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    command = ["--config", "smoke", "--workers", "2", "--gpus-per-worker", "1", *options]
    assert train_final(command) == 2
    assert "--workers 2: they need 2 GPUs, and there are 1; give fewer" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_dry_run_knows_what_lies_in_the_folder(here: Path, capsys) -> None:
    Checkpoints(here / "runs" / "final" / "checkpoints", {"another": "run"}).save(5, {})
    assert train_final(["--config", "smoke", "--dry-run"]) == 2
    assert "holds an unfinished run with other settings" in capsys.readouterr().err


def test_tensorboard_is_told_how_training_and_evaluations_go(here: Path) -> None:
    smoke = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
    (here / "c.yaml").write_text(
        smoke.replace("batch_size: 8, steps: 20", "batch_size: 8, steps: 20, evaluate_steps: 15")
    )
    assert train_final(["--config", "c.yaml"]) == 0
    found = events(here / "runs" / "final")
    scalars = {(tag, step) for tag, step, value in found if not value.HasField("image")}
    names = ("loss", "rpn_objectness", "rpn_box", "learning_rate", "images_per_second", "data_wait")
    stages = [f"stage{stage}_{what}" for stage in range(3) for what in ("class", "box")]
    assert scalars == {(f"train/{name}", step) for name in (*names, *stages) for step in (10, 20)} | {
        (f"val/{name}", step) for name in ("AP", "AP50") for step in (15, 20)
    }
    pictures = [(tag, step, value.image) for tag, step, value in found if value.HasField("image")]
    assert len(pictures) == 2 * 4
    assert all(image.encoded_image_string.startswith(b"\x89PNG") for _, _, image in pictures)
    metrics = json.loads((here / "runs" / "final" / "metrics.json").read_text())
    assert dict(metrics["ap_by_step"]).keys() == {15, 20}
    last = [value.simple_value for tag, step, value in found if (tag, step) == ("val/AP", 20)]
    assert last == [pytest.approx(metrics["ap"])]
    assert metrics["data"]["train"] == {"images": 160, "boxes_left_out": 0, "images_left_out": 0}


def events(folder: Path) -> list[tuple[str, int, Any]]:
    """Tags, steps and values, read as the format says: length, its checksum, an event, its checksum."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            record, content = content[12 : 12 + length], content[16 + length :]
            event = Event.FromString(record)
            found += [(value.tag, event.step, value) for value in event.summary.value]
    return found


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_gpu_that_is_too_small_is_told_with_a_way_out(here: Path, monkeypatch, capsys, options: list[str]) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("detector.cascade_rcnn.CascadeRcnn.forward", full)
    assert train_final(["--config", "smoke", *options]) == 2
    complaint = capsys.readouterr().err
    assert "lower training.batch_size, raise training.accumulate" in complaint
    assert complaint.count("\n") == 1
