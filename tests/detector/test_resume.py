"""Trainings that are interrupted end as if nobody had."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from detector.cascade_rcnn import CascadeRcnn
from detector.commands import train_final
from detector.errors import UserError
from detector.resume import Checkpoints

SMOKE = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
STEPS = "batch_size: 8, steps: 20"


@pytest.fixture(autouse=True)
def _minds_ctrl_c() -> Iterator[None]:
    """Also where the tests run in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def write_config(here: Path, changes: str = "evaluate_steps: 8, average_decay: 0.9", workers: int = 0) -> None:
    text = SMOKE.replace(STEPS, f"{STEPS}, {changes}").replace("loader_workers: 0", f"loader_workers: {workers}")
    assert changes in text
    (here / "c.yaml").write_text(text)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Act in the middle of a training step, counted from 1 in each run."""
    forward, seen = CascadeRcnn.forward, 0

    def counted(self: CascadeRcnn, *arguments):
        nonlocal seen
        seen += self.training
        if self.training and seen == step:
            act()
        return forward(self, *arguments)

    monkeypatch.setattr(CascadeRcnn, "forward", counted)


def power_cut() -> None:
    raise RuntimeError("the power is cut")


def train(output: Path, *options: str) -> int:
    return train_final(["--config", "c.yaml", "--output", str(output), *options])


def what_it_came_to(output: Path) -> tuple:
    losses = [line.split(" ", 2)[2] for line in (output / "train.log").read_text().splitlines() if "loss" in line]
    metrics = json.loads((output / "metrics.json").read_text())
    weights = [torch.load(output / name, weights_only=True)["weights"] for name in ("model.pt", "best.pt")]
    timeless = {key: metrics[key] for key in ("ap", "ap_by_step")}
    return losses, timeless, [{name: value.tolist() for name, value in found.items()} for found in weights]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_that_is_terminated_goes_on_bit_for_bit(here: Path, monkeypatch, capsys, workers: int) -> None:
    write_config(here, workers=workers)
    assert train(here / "whole") == 0
    for step, number, status in ((3, signal.SIGTERM, 143), (7, signal.SIGINT, 130)):
        with monkeypatch.context() as patch:
            at_step(patch, step, lambda number=number: signal.raise_signal(number))
            assert train(here / "parts") == status
        assert "interrupted; the same command goes on where it was" in capsys.readouterr().err
    assert sorted(path.name for path in (here / "parts" / "checkpoints").iterdir()) == ["step-10.pt", "step-3.pt"]
    assert train(here / "parts") == 0
    assert "going on after step 10 of 20" in capsys.readouterr().out
    assert what_it_came_to(here / "parts") == what_it_came_to(here / "whole")
    assert not (here / "parts" / "checkpoints").exists()


def test_a_power_cut_costs_no_more_than_the_time_since_the_last_checkpoint(here: Path, monkeypatch, capsys) -> None:
    write_config(here)
    assert train(here / "whole") == 0
    with monkeypatch.context() as patch:
        at_step(patch, 13, power_cut)
        with pytest.raises(RuntimeError):
            train(here / "parts", "--checkpoint-minutes", "0")
    kept = here / "parts" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["step-11.pt", "step-12.pt"]
    # And the disk has damaged the last.
    (kept / "step-12.pt").write_bytes((kept / "step-12.pt").read_bytes()[:5000])
    capsys.readouterr()
    assert train(here / "parts") == 0
    said = capsys.readouterr().out
    assert "step-12.pt cannot be read and is passed over" in said
    assert "going on after step 11 of 20" in said
    assert what_it_came_to(here / "parts") == what_it_came_to(here / "whole")


def test_a_cut_during_the_last_evaluation_trains_nothing_again(here: Path, monkeypatch, capsys) -> None:
    write_config(here)
    with monkeypatch.context() as patch:
        patch.setattr("detector.final_training.coco_metrics", lambda *_: power_cut())
        write_config(here, "evaluate_steps: 1000")
        with pytest.raises(RuntimeError):
            train(here / "out")
    assert (here / "out" / "model.pt").is_file()
    with monkeypatch.context() as patch:
        at_step(patch, 1, power_cut)
        assert train(here / "out") == 0
    assert (here / "out" / "metrics.json").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_signal_may_reach_the_loader_processes_too(here: Path, capsys, number: int) -> None:
    write_config(here, workers=2)
    assert train(here / "whole") == 0
    script = f"""
import os, signal
from pathlib import Path
from tests.detector import test_resume
patch = test_resume.pytest.MonkeyPatch()
test_resume.at_step(patch, 5, lambda: os.killpg(0, {int(number)}))
raise SystemExit(test_resume.train(Path("parts")))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    found = subprocess.run(
        command, env=environment, start_new_session=True, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 128 + number, found.stderr
    assert "Traceback" not in found.stderr
    assert [path.name for path in (here / "parts" / "checkpoints").iterdir()] == ["step-5.pt"]
    capsys.readouterr()
    assert train(here / "parts") == 0
    assert "going on after step 5 of 20" in capsys.readouterr().out
    assert what_it_came_to(here / "parts")[1:] == what_it_came_to(here / "whole")[1:]


def test_an_unfinished_run_with_other_settings_is_not_overwritten(here: Path, monkeypatch, capsys) -> None:
    write_config(here)
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: signal.raise_signal(signal.SIGTERM))
        assert train(here / "out") == 143
    write_config(here, "average_decay: 0.8")
    capsys.readouterr()
    assert train(here / "out") == 2
    error = capsys.readouterr().err
    assert (
        error == f"train-final: {here}/out/checkpoints: holds an unfinished run with other settings; give another "
        "--output\n"
    )
    assert [path.name for path in (here / "out" / "checkpoints").iterdir()] == ["step-3.pt"]


def test_the_best_weights_are_those_of_the_highest_ap(here: Path, monkeypatch) -> None:
    write_config(here, "evaluate_steps: 4")
    assert train(here / "out") == 0
    metrics = json.loads((here / "out" / "metrics.json").read_text())
    assert [step for step, _ in metrics["ap_by_step"]] == [4, 8, 12, 16, 20]
    best = max(metrics["ap_by_step"], key=lambda found: found[1])[0]
    write_config(here, "evaluate_steps: 4".replace("4", str(best)))
    at_step(monkeypatch, best + 1, lambda: signal.raise_signal(signal.SIGTERM))
    assert best < 20  # or this would show nothing
    assert train(here / "short") == 143
    weights = (torch.load(here / name / "best.pt", weights_only=True)["weights"] for name in ("out", "short"))
    first, second = weights
    assert all(first[name].equal(second[name]) for name in first)


def test_a_signal_during_an_evaluation_or_before_the_first_batch_loses_nothing(here: Path, monkeypatch, capsys) -> None:
    write_config(here)
    assert train(here / "whole") == 0

    def evaluate(*_) -> None:  # as when the signal reaches loader processes, too
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker is killed by signal")

    with monkeypatch.context() as patch:
        patch.setattr("detector.final_training.coco_metrics", evaluate)
        assert train(here / "parts") == 143

    def load(*_):
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker is killed by signal")
        yield

    with monkeypatch.context() as patch:
        patch.setattr("detector.loader.Loader.load", load)
        assert train(here / "parts") == 143
    assert [path.name for path in (here / "parts" / "checkpoints").iterdir()] == ["step-8.pt"]
    (here / "parts" / "checkpoints" / "step-9.pt.partial").write_bytes(b"cut short")
    assert train(here / "parts") == 0
    assert what_it_came_to(here / "parts") == what_it_came_to(here / "whole")
    assert not (here / "parts" / "checkpoints").exists()


def test_ctrl_c_that_a_process_ignores_is_ignored(here: Path, monkeypatch) -> None:
    write_config(here)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 3, lambda: signal.raise_signal(signal.SIGINT))
        assert train(here / "out") == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert "step 20 of 20" in (here / "out" / "train.log").read_text()


def test_two_trainings_do_not_write_into_one_folder(here: Path, monkeypatch, capsys) -> None:
    write_config(here)
    second: list[int] = []
    at_step(monkeypatch, 3, lambda: second.append(train(here / "out")))
    assert train(here / "out") == 0
    assert second == [2]
    assert "another train-final writes there" in capsys.readouterr().err


IDENTITY = {"config": {"a": [1, 2.5, None]}}


def test_checkpoints_come_back_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", IDENTITY)
    assert checkpoints.load() == (None, [])
    for step in (9, 10, 100):
        checkpoints.save(step, {"step": step, "weights": torch.arange(3.0)})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-10.pt", "step-100.pt"]
    content, damaged = checkpoints.load()
    assert content["step"] == 100
    assert content["weights"].equal(torch.arange(3.0))
    assert damaged == []
    checkpoints.remove()
    assert not (tmp_path / "c").exists()


def test_checkpoints_that_cannot_be_read_or_are_another_runs_are_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(1, {})
    with pytest.raises(UserError, match="unfinished run with other settings"):
        Checkpoints(tmp_path, {"config": {}}).load()
    (tmp_path / "step-1.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"step-1.pt: cannot be read"):
        checkpoints.load()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """The system refuses to let any file grow beyond a limit, as it does when a disk is full."""
    script = """
import resource, signal, sys, torch
from pathlib import Path
from detector.resume import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = Checkpoints(Path(sys.argv[1]), {})
checkpoints.save(1, {"weights": torch.ones(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save(2, {"weights": torch.ones(1_000_000)})
except OSError as error:
    print(error.strerror)
"""
    found = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()
    assert [path.name for path in tmp_path.iterdir()] == ["step-1.pt"]
    content, damaged = Checkpoints(tmp_path, {}).load()
    assert content["weights"].equal(torch.ones(10))
    assert damaged == []


def test_a_checkpoint_that_cannot_be_written_does_not_end_a_training(here: Path, monkeypatch, capsys) -> None:
    write_config(here)
    (here / "out").mkdir()
    (here / "out" / "checkpoints").write_text("in the way")
    assert train(here / "out", "--checkpoint-minutes", "0") == 0
    assert "no checkpoint after step 1: " in capsys.readouterr().err
