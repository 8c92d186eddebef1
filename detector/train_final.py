"""train-final: the full Cascade R-CNN with a given pyramid."""

import argparse
import fcntl
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from detector.architecture import PRIORS, Architecture
from detector.cache import open_lock
from detector.command import keep_ray_to_itself, signals_wait, write_json
from detector.config import DetectorSections
from detector.config_files import as_yaml, load_config, parse_config
from detector.documents import differences, in_short
from detector.dry_run import dry_run
from detector.errors import UserError
from detector.final_training import FinalTraining, Job
from detector.named_weights import named_weights
from detector.presets import DEFAULT_CONFIG
from detector.progress import Progress


def train_final(args: argparse.Namespace) -> int:
    """What train-final does; its exit code."""
    architecture = None if args.arch is None else _graph(args.arch)
    config = _resolve(args, architecture)
    if args.print_config:
        print(as_yaml(config), end="")
        return 0
    _check_batch(config, args.workers)
    job = Job(architecture, config, args.data, args.init, args.output, args.checkpoint_minutes, {})
    training_data, validation_data = job.splits()
    identity: dict[str, Any] = {
        "architecture": architecture and architecture.hash,
        "config": config.model_copy(update={"detector": named_weights(config.detector)}).model_dump(
            mode="json", include={"data", "detector", "training"}
        ),
        "data": [training_data.hash, validation_data.hash],
        "init": _digest(args.init),
    }
    job = replace(job, identity=json.loads(json.dumps(identity)))
    if _is_done(job):
        job.checkpoints.remove()
        print(f"train-final: {args.output} holds this very run, finished; another --output trains it anew")
        return 0
    for data in (training_data, validation_data):
        for line in data.left_out():
            print(f"train-final: {line}")
    warmup, steps = config.training.warmup_steps, config.training.steps
    if warmup >= steps:
        print(f"train-final: training.warmup_steps, {warmup}, is not below training.steps, {steps}: it hardly learns")
    if not training_data.num_objects:
        raise UserError(f"{training_data.annotations}: holds no objects, so that nothing can be learned")
    if not validation_data.num_objects:
        raise UserError(f"{validation_data.annotations}: holds no objects, so that nothing can be evaluated")
    if training_data.category_names != validation_data.category_names:
        raise UserError(f"{validation_data.annotations}: its categories are not those of {training_data.annotations}")
    _check_gpus(args)
    terminal = Terminal(is_quiet=args.quiet and not args.dry_run)
    device = torch.device("cuda" if torch.cuda.is_available() and args.gpus_per_worker != 0 else "cpu")
    if args.dry_run:
        dry_run(job, args.workers, device, terminal)
        return 0
    if args.workers == 1 and args.address is None:
        training = FinalTraining(job, device, terminal)
        with _alone_in(job), terminal.bar:
            training.run()
    else:
        FinalTraining(job, torch.device("cpu"), Terminal(is_quiet=True))  # mistakes are told before processes start
        with _alone_in(job), terminal.bar:
            keep_ray_to_itself(args.address)
            from detector.distributed import Workers, train_together  # Ray takes seconds to import

            train_together(job, Workers(args.workers, args.gpus_per_worker, args.address, args.verbose), terminal)
    print(f"weights {args.output / 'model.pt'}, all figures {args.output / 'metrics.json'}")
    print(f"next: detect --weights {args.output / 'model.pt'} PICTURES")
    return 0


class Terminal:
    """Shows how a training goes, to whoever started it, and takes the signals that stop it. is_quiet: only warnings."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self.bar = Progress(is_quiet=is_quiet)
        self.is_quiet = is_quiet
        self._received: list[int] = []

    def progress(self, what: str, step: int, steps: int) -> None:
        self.bar(what, step, steps)

    def say(self, line: str) -> None:
        if not self.is_quiet:
            print(line, flush=True)

    def warn(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def stops(self) -> bool:
        return bool(self._received)

    @contextmanager
    def attentive(self) -> Iterator[None]:
        """The signal acts at the end."""
        with signals_wait() as self._received:
            yield


def _check_batch(config: DetectorSections, workers: int) -> None:
    """Every part of a batch has as many images as the others. Raises UserError."""
    size, parts = config.training.batch_size, config.training.accumulate
    if size % (workers * parts):
        what = f"{workers} workers" + (f", each of which takes its share in {parts} parts" if parts > 1 else "")
        raise UserError(f"training.batch_size: {size} images cannot be shared equally among {what}")


def _resolve(args: argparse.Namespace, architecture: Architecture | None) -> DetectorSections:
    """--config, then what the graph was found with, then the built-in set (announced)."""
    if args.config is not None:
        return load_config(args.config, DetectorSections, args.set)
    found = architecture.found if architecture is not None else None
    if found and "config" in found:
        return parse_config(found["config"], DetectorSections, f"{args.arch}: found.config", args.set)
    if not args.print_config:
        print(
            f"train-final: no configuration given or found in a graph: using {DEFAULT_CONFIG!r}, the built-in data set"
        )
    return load_config(DEFAULT_CONFIG, DetectorSections, args.set)


def _graph(name: str) -> Architecture:
    """One by its name, or a file's. Raises UserError."""
    if name not in PRIORS and not Path(name).exists():
        raise UserError(f"--arch {name}: no such file; nas-export --best writes one (by name: {', '.join(PRIORS)})")
    return PRIORS.get(name) or Architecture.load(name)


def _check_gpus(args: argparse.Namespace) -> None:
    """Raises UserError for more than this machine has. What a cluster has, only Ray knows."""
    wanted, there = (args.gpus_per_worker or 0) * args.workers, torch.cuda.device_count()
    if args.address is None and wanted > there:
        raise UserError(
            f"--workers {args.workers}: they need {wanted} GPUs, and there are {there}; give fewer, or "
            "--gpus-per-worker 0"
        )


def _digest(path: Path | None) -> str | None:
    try:
        return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"--init {path}: cannot be read ({error.strerror})") from error


def _is_done(job: Job) -> bool:
    """Whether the folder holds this run, finished. Raises UserError if it holds the weights of another one."""
    output, record = job.output, job.output / "run.json"
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: is a file; give a folder")
    if not (output / "model.pt").is_file():
        return False
    try:
        held = json.loads(record.read_text(encoding="utf-8"))
        configuration = dict(held["config"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"--output {output}: its run.json cannot be read; give another folder") from error
    names = {"architecture": "graph", "config": "configuration", "data": "data set", "init": "start (--init)"}
    for key, name in names.items():
        if held.get(key) != job.identity[key]:
            differing = in_short(differences(configuration, job.identity[key])) if key == "config" else ""
            detail = f" ({differing})" if differing else ""
            raise UserError(f"--output {output}: holds a run with another {name}{detail}; give another folder")
    return (output / "metrics.json").is_file()


@contextmanager
def _alone_in(job: Job) -> Iterator[None]:
    """The job's folder, which says from then on whose it is. Raises UserError if another process trains into it."""
    output = job.output
    with open_lock(output / "lock", f"--output {output}") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system however the process ends
        except OSError as error:
            raise UserError(
                f"--output {output}: another train-final writes there; wait for it, or give another"
            ) from error
        write_json(output / "run.json", job.identity)
        yield
