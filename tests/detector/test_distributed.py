"""train-final in several processes on Ray: what dies is replaced, what is interrupted goes on."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from detector import distributed
from detector.architecture import PRIORS
from detector.commands import train_final
from detector.config import DetectorSections
from detector.config_files import load_config
from detector.errors import NonFiniteLossError, RunFailedError, UserError
from detector.final_training import Job
from experiments.distribution import came_to, finish, start, steps_kept, training_processes, wait_for, write_config
from tests.detector import together

pytestmark = pytest.mark.ray

SMOKE = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
STEPS = 300  # so many that the signal comes in time on a fast machine, too
TOGETHER = ("--workers", "2")


@pytest.mark.slow
def test_a_process_that_dies_is_replaced_and_a_signal_is_kept(here: Path) -> None:
    write_config(here, STEPS, 8, "smoke")
    together.run(2, here, "whole")

    output = here / "parts"
    parts = start(here, output, *TOGETHER)
    wait_for(lambda: steps_kept(output) >= 5, parts)
    heard = listening(parts)
    assert len(heard) > 3
    assert not [place for place in heard if not place.startswith("127.")]
    training_processes(parts)[-1].kill()
    wait_for(lambda: "going on after step" in (output / "train.log").read_text(), parts)
    before = steps_kept(output)
    wait_for(lambda: steps_kept(output) > before, parts)
    parts.send_signal(signal.SIGTERM)
    said, complained = parts.communicate(timeout=120)
    assert parts.returncode == 143, complained
    assert "2 processes, 0 GPUs each" in said
    assert "a process died" in complained
    assert complained.endswith("interrupted; the same command goes on where it was\n")
    assert 5 <= steps_kept(output) < STEPS
    finish(start(here, output, *TOGETHER))
    assert came_to(output) == came_to(here / "whole")
    assert json.loads((output / "metrics.json").read_text())["processes"] == 2


def listening(process: subprocess.Popen[str]) -> list[str]:
    """Addresses at which it and what it has started listen, torch's own meeting place apart."""
    parent = psutil.Process(process.pid)
    found = []
    for each in (parent, *parent.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            is_training = "RayTrainWorker" in "".join(each.cmdline())
            places = [c.laddr for c in each.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
            found += [place.ip.removeprefix("::ffff:") for place in places if not is_training]
    return found


class Says:
    """A reporter that keeps what it is told."""

    def __init__(self, stops: bool = False) -> None:
        self.lines: list[str] = []
        self.is_stopping = stops

    def warn(self, line: str) -> None:
        self.lines.append(line)

    def stops(self) -> bool:
        return self.is_stopping


class Died(Exception):
    def __init__(self, **of_ranks: Exception) -> None:
        super().__init__("a worker died")
        self.worker_failures = of_ranks


class NoRoom(Exception):
    controller_failure = type("WorkerGroupStartupTimeoutError", (Exception,), {})()


@pytest.fixture
def begun(tmp_path: Path, monkeypatch) -> Callable[..., distributed.Start]:
    """A start whose attempts end with these errors; a number is a checkpoint that is written before."""

    def make(*ends: Any) -> distributed.Start:
        job = Job(None, load_config("smoke", DetectorSections), None, None, tmp_path, 1, {})
        left = list(ends)

        def follow(*_: object) -> Exception | None:
            while isinstance(left[0], int):
                job.checkpoints.save(left.pop(0), {})
            return left.pop(0)

        monkeypatch.setattr(distributed, "_follow", follow)
        return distributed.Start(job, 2, 0, "")

    return make


def test_deaths_in_a_row_end_a_training_others_do_not(begun) -> None:
    says = Says()
    distributed._train_until_done(begun(Died(), Died(), Died(), 5, Died(), Died(), Died(), None), says)
    assert len(says.lines) == 6
    assert "training goes on from the start" in says.lines[0]
    assert "training goes on after step 5" in says.lines[3]
    with pytest.raises(RunFailedError, match="died 4 times in a row: a worker died"):
        distributed._train_until_done(begun(Died(), Died(), Died(), Died()), Says())


def test_own_errors_of_a_process_are_the_training_s(begun) -> None:
    for error in (UserError("no such picture"), NonFiniteLossError("the loss is nan")):
        with pytest.raises(type(error), match=str(error)):
            distributed._train_until_done(begun(Died(second=ValueError(), first=error)), Says())


def test_a_cluster_without_room_is_waited_for_and_a_signal_ends_that(begun) -> None:
    says = Says()
    distributed._train_until_done(begun(*[NoRoom()] * 9, None), says)
    assert says.lines == ["train-final: waiting until there is room for 2 processes"] * 9
    distributed._train_until_done(begun(NoRoom()), Says(stops=True))


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
