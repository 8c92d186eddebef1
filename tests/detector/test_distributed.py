"""train-final in several processes on Ray: what dies is replaced, what is interrupted goes on."""

import json
import signal
from pathlib import Path

import pytest

from detector.architecture import PRIORS
from detector.train_final import main as train_final
from experiments.distribution import came_to, finish, start, steps_kept, training_processes, wait_for, write_config

pytestmark = pytest.mark.ray

SMOKE = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
STEPS = 120
TOGETHER = ("--workers", "2")


def test_a_process_that_dies_is_replaced_and_a_signal_is_kept(here: Path) -> None:
    write_config(here, STEPS, 8, "smoke")
    said, _ = finish(start(here, here / "whole", *TOGETHER))
    assert "2 processes, 0 GPUs each" in said

    output = here / "parts"
    parts = start(here, output, *TOGETHER)
    wait_for(lambda: steps_kept(output) >= 5, parts)
    training_processes(parts)[-1].kill()
    wait_for(lambda: "going on after step" in (output / "train.log").read_text(), parts)
    before = steps_kept(output)
    wait_for(lambda: steps_kept(output) > before, parts)
    parts.send_signal(signal.SIGTERM)
    _, complained = parts.communicate(timeout=120)
    assert parts.returncode == 143, complained
    assert "a process died" in complained
    assert complained.endswith("interrupted; the same command goes on where it was\n")
    assert 5 <= steps_kept(output) < STEPS
    finish(start(here, output, *TOGETHER))
    assert came_to(output) == came_to(here / "whole")
    assert json.loads((output / "metrics.json").read_text())["processes"] == 2


def test_a_mistake_that_only_a_process_finds_is_one_line(here: Path, tiny_coco: Path) -> None:
    start_of, end = SMOKE.index("data:"), SMOKE.index("detector:")
    text = SMOKE[:start_of] + "data: {source: coco}\n" + SMOKE[end:]
    (here / "c.yaml").write_text(text)
    (here / "arch.json").write_text(json.dumps(PRIORS["nas-fpn"].to_dict()))
    picture = tiny_coco / "images" / "1.png"
    picture.write_bytes(picture.read_bytes()[:60])
    process = start(here, here / "out", *TOGETHER, "--data", str(tiny_coco))
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
