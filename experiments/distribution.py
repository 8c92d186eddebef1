"""Does training in several processes, or with interruptions, come to the same? python -m experiments.distribution

Trains a small detector on `shapes` with train-final, in processes as a user starts them: in one; in one that is sent
SIGTERM half way and started again; in two, through Ray Train; in two of which one is killed half way. Printed for
each: images a second, AP, and whether weights and losses are equal, bit for bit, to those of the run that nothing
happened to.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from detector.architecture import PRIORS
from detector.config import DetectorSections
from detector.config_files import load_config

PATIENCE_S = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2, help="of what is distributed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_config(folder, args.steps, args.batch_size)
        together = ("--workers", str(args.workers))
        print(f"{args.steps} steps of {args.batch_size} images of 64x64")
        print("\n| processes | what happens | images a second | AP | weights and losses |\n|---|---|---|---|---|")
        for count, options in ((1, ()), (args.workers, together)):
            whole = folder / f"whole-{count}"
            finish(start(folder, whole, *options))
            _print(count, "nothing", whole, whole)
            parts = folder / f"parts-{count}"
            if count == 1:
                process = start(folder, parts, *options)
                wait_for(lambda at=parts: steps_kept(at) >= args.steps // 2, process)  # type: ignore[misc]
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=PATIENCE_S)
                finish(start(folder, parts, *options))
                _print(count, f"SIGTERM after step {args.steps // 2}", parts, whole)
            else:
                process = start(folder, parts, *options)
                wait_for(lambda at=parts: steps_kept(at) >= args.steps // 2, process)  # type: ignore[misc]
                training_processes(process)[-1].kill()
                finish(process)
                _print(count, f"one is killed after step {args.steps // 2}", parts, whole)


def _print(count: int, what: str, output: Path, reference: Path) -> None:
    metrics = json.loads((output / "metrics.json").read_text())
    same = "-" if output == reference else "equal" if came_to(output) == came_to(reference) else "differ"
    print(f"| {count} | {what} | {metrics['images_per_second']} | {metrics['ap']:.4f} | {same} |", flush=True)


def write_config(folder: Path, steps: int, batch_size: int, source: str = "shapes") -> None:
    """c.yaml and a graph in the folder: a preset with few images and steps."""
    config = load_config(source, DetectorSections).model_dump(mode="json", include={"data", "detector", "training"})
    config["data"]["shapes"] |= {"train_images": 400, "val_images": 100}
    config["training"] |= {"steps": steps, "batch_size": batch_size, "average_decay": 0.9, "warmup_steps": 5}
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    (folder / "arch.json").write_text(json.dumps(PRIORS["nas-fpn"].to_dict()))


def start(folder: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    """train-final, with a checkpoint after every step."""
    call = "import sys; from detector.commands import train_final; sys.exit(train_final())"
    command = [sys.executable, "-c", call, "--config", str(folder / "c.yaml")]
    command += ["--arch", str(folder / "arch.json"), "--output", str(output), "--checkpoint-minutes", "0", *options]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it said and complained of. Raises RuntimeError if it failed."""
    said, complained = process.communicate(timeout=PATIENCE_S)
    if process.returncode:
        raise RuntimeError(complained)
    return said, complained


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Raises RuntimeError if the process ends before."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            raise RuntimeError(f"train-final did not come so far: {process.communicate()}")
        time.sleep(0.02)


def steps_kept(output: Path) -> int:
    """Of the newest checkpoint."""
    return max((int(path.stem[5:]) for path in (output / "checkpoints").glob("step-*.pt")), default=0)


def training_processes(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Those that Ray Train has started."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "RayTrainWorker" in "".join(child.cmdline())]


def came_to(output: Path) -> tuple[Any, ...]:
    """Weights, losses by step, and AP."""
    weights = torch.load(output / "model.pt", weights_only=True)["weights"]
    lines = [line.split(" ", 2)[2] for line in (output / "train.log").read_text().splitlines() if "loss" in line]
    losses = sorted(set(lines), key=lines.index)  # steps that were repeated stand there twice
    metrics = json.loads((output / "metrics.json").read_text())
    return {name: weight.tolist() for name, weight in weights.items()}, losses, metrics["ap"]


if __name__ == "__main__":
    main()
