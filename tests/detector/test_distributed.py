"""train-final in several processes on Ray: what dies is replaced, what is interrupted goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from detector.train_final import main as train_final

pytestmark = pytest.mark.ray

SMOKE = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
ROOT = Path(__file__).parents[2]
STEPS = 120


def start(output: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "detector.train_final", "--config", "c.yaml", "--output", str(output), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def steps_kept(output: Path) -> int:
    return max((int(path.stem[5:]) for path in (output / "checkpoints").glob("step-*.pt")), default=0)


def training_processes(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "RayTrainWorker" in "".join(child.cmdline())]


def test_a_process_that_dies_is_replaced_and_a_signal_is_kept(here: Path) -> None:
    text = SMOKE.replace("batch_size: 8, steps: 20", f"batch_size: 8, steps: {STEPS}, average_decay: 0.9")
    (here / "c.yaml").write_text(text)
    options = ("--workers", "2", "--checkpoint-minutes", "0")
    whole = start(here / "whole", *options)
    said, complained = whole.communicate(timeout=240)
    assert whole.returncode == 0, complained
    assert "2 processes, 0 GPUs each" in said

    parts = start(here / "parts", *options)
    wait_for(lambda: steps_kept(here / "parts") >= 5, parts)
    training_processes(parts)[-1].kill()
    wait_for(lambda: "going on after step" in (here / "parts" / "train.log").read_text(), parts)
    before = steps_kept(here / "parts")
    wait_for(lambda: steps_kept(here / "parts") > before, parts)
    parts.send_signal(signal.SIGTERM)
    _, complained = parts.communicate(timeout=120)
    assert parts.returncode == 143, complained
    assert "a process died" in complained
    assert complained.endswith("interrupted; the same command goes on where it was\n")
    assert 5 <= steps_kept(here / "parts") < STEPS

    parts = start(here / "parts", *options)
    said, complained = parts.communicate(timeout=240)
    assert parts.returncode == 0, complained
    weights = [torch.load(here / name / "model.pt", weights_only=True)["weights"] for name in ("whole", "parts")]
    assert all(value.equal(weights[1][key]) for key, value in weights[0].items())
    metrics = [json.loads((here / name / "metrics.json").read_text()) for name in ("whole", "parts")]
    assert metrics[0]["ap"] == metrics[1]["ap"]
    assert metrics[0]["processes"] == 2


def test_a_mistake_that_only_a_process_finds_is_one_line(here: Path, tiny_coco: Path) -> None:
    start_of, end = SMOKE.index("data:"), SMOKE.index("detector:")
    text = SMOKE[:start_of] + "data: {source: coco}\n" + SMOKE[end:]
    (here / "c.yaml").write_text(text)
    picture = tiny_coco / "images" / "1.png"
    picture.write_bytes(picture.read_bytes()[:60])
    process = start(here / "out", "--workers", "2", "--data", str(tiny_coco))
    _, complained = process.communicate(timeout=120)
    assert process.returncode == 2
    last = complained.splitlines()[-1]
    assert last.startswith("train-final: ")
    assert "cannot be decoded" in last
    assert "Traceback" not in complained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "3"], "training.batch_size: 8 images cannot be shared equally among 3 workers"),
        (["--workers", "2", "--address", "localhost:1"], "no Ray cluster can be joined there"),
        (["--workers", "2", "--gpus-per-worker", "2"], "2 given, must be 1 at most"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(here: Path, capsys, options: list[str], message: str) -> None:
    assert train_final(["--config", "smoke", *options]) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1
