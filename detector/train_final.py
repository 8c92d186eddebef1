"""train-final: the full Cascade R-CNN with a given pyramid."""

import argparse
import fcntl
import hashlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from detector.architecture import Architecture
from detector.backbone import named_weights
from detector.cache import open_lock
from detector.cascade_rcnn import CascadeRcnn, padding_multiple
from detector.checkpoint import TrainedModel, make_model
from detector.coco import CocoData, load_split
from detector.command import Parser, count, guarded, signals_wait, write_json
from detector.config import DetectorSections, TrainingConfig, load_config, parse_config, presets
from detector.errors import NonFiniteLossError, UserError
from detector.evaluate import Metrics, coco_metrics
from detector.inference import detect_split, views_of
from detector.loader import Batch, training_loader
from detector.progress import Progress
from detector.resume import Checkpoints
from detector.sampling import Draws, draws_of, image_weights, single_class_share
from detector.train import Training
from detector.transfer import transfer

log = logging.getLogger(__name__)

DEFAULT_CONFIG = "shapes"
OFFSETS = ".predict."  # of deformable convolutions: these do start anew


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of train-final."""
    going_on = "interrupted; the same command goes on where it was"
    return guarded("train-final", lambda: _train_final(_parser().parse_args(argv)), interrupted=going_on)


def _parser() -> Parser:
    parser = Parser("train-final", "Train the full Cascade R-CNN with a found pyramid, and evaluate it.")
    parser.add_argument("--arch", type=Path, metavar="FILE", help="best.json; without it the plain FPN is trained")
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        help=f"{', '.join(presets())} or a YAML file; default: what FILE was found with, else {DEFAULT_CONFIG}",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set in COCO form")
    parser.add_argument("--init", type=Path, metavar="FILE", help="start from this model.pt; its classes may differ")
    parser.add_argument("--output", type=Path, default=Path("runs/final"), metavar="DIR", help="where results go")
    parser.add_argument(
        "--checkpoint-minutes",
        type=count(0),
        default=10,
        metavar="N",
        help="how often to write what a restart goes on from; 0: after every step",
    )
    return parser


def _train_final(args: argparse.Namespace) -> int:
    architecture = None if args.arch is None else Architecture.load(args.arch)
    config = _resolve(args, architecture)
    training_data, validation_data = (load_split(config.data, args.data, split) for split in ("train", "val"))
    identity: dict[str, Any] = {
        "architecture": architecture and architecture.hash,
        "config": config.model_copy(update={"detector": named_weights(config.detector)}).model_dump(
            mode="json", include={"data", "detector", "training"}
        ),
        "data": [training_data.hash, validation_data.hash],
        "init": _digest(args.init),
    }
    identity = json.loads(json.dumps(identity))
    checkpoints = Checkpoints(args.output / "checkpoints", identity)
    if _is_done(args.output, identity):
        checkpoints.remove()
        print(f"train-final: {args.output} holds this very run, finished; another --output trains it anew")
        return 0
    for data in (training_data, validation_data):
        for line in data.left_out():
            print(f"train-final: {line}")
    if not validation_data.num_objects:
        raise UserError(f"{validation_data.annotations}: holds no objects, so that nothing can be evaluated")
    if training_data.category_names != validation_data.category_names:
        raise UserError(f"{validation_data.annotations}: its categories are not those of {training_data.annotations}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.training.seed)
    interrupted, damaged = checkpoints.load()
    is_new = interrupted is None
    model = make_model(config, architecture, training_data.num_classes, pretrained=is_new and args.init is None)
    if is_new and args.init is not None:
        left = _transfer(model, training_data.category_names, args.init)
        if config.detector.backbone.weights != "none":
            _check_backbone(left, args.init)
    draws = draws_of(training_data, config.training)
    with _alone_in(args.output):
        for path in damaged:
            print(f"train-final: {path} cannot be read and is passed over")
            path.unlink()
        write_json(args.output / "run.json", identity)
        trained = TrainedModel(model, architecture, config, training_data.category_names)
        with _log_to(args.output / "train.log"):
            _say_sampling(training_data, config.training)
            run = _Run(trained, training_data, draws, validation_data, args.output, device)
            if interrupted is not None:
                run.load(interrupted)
            metrics = run.finish(checkpoints, 60.0 * args.checkpoint_minutes)
        content = {"split": "val", "images": len(validation_data), **run.figures()}
        write_json(args.output / "metrics.json", metrics.to_dict() | content)
        checkpoints.remove()
    print(f"AP {metrics.ap:.4f}  AP50 {metrics.ap50:.4f}  AP75 {metrics.ap75:.4f}  on {len(validation_data)} images")
    print(f"weights {args.output / 'model.pt'}, all figures {args.output / 'metrics.json'}")
    return 0


def _resolve(args: argparse.Namespace, architecture: Architecture | None) -> DetectorSections:
    """--config, then what the graph was found with, then the built-in set (announced)."""
    if args.config is not None:
        return load_config(args.config, DetectorSections)
    found = architecture.found if architecture is not None else None
    if found and "config" in found:
        return parse_config(found["config"], DetectorSections, where=f"{args.arch}: found.config")
    print(f"train-final: no configuration given or found in a graph: using {DEFAULT_CONFIG!r}, the built-in data set")
    return load_config(DEFAULT_CONFIG, DetectorSections)


def _digest(path: Path | None) -> str | None:
    try:
        return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"--init {path}: cannot be read ({error.strerror})") from error


def _is_done(output: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder holds this run, finished. Raises UserError if it holds the weights of another one."""
    record = output / "run.json"
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: is a file; give a folder")
    if not (output / "model.pt").is_file():
        return False
    try:
        held = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--output {output}: its run.json cannot be read; give another folder") from error
    names = {"architecture": "graph", "config": "configuration", "data": "data set", "init": "start (--init)"}
    for key, name in names.items():
        if held.get(key) != identity[key]:
            raise UserError(f"--output {output}: holds a run with another {name}; give another folder")
    return (output / "metrics.json").is_file()


@contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    """Raises UserError if another process trains into the folder."""
    with open_lock(output / "lock", f"--output {output}") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system however the process ends
        except OSError as error:
            raise UserError(
                f"--output {output}: another train-final writes there; wait for it, or give another"
            ) from error
        yield


def _transfer(model: CascadeRcnn, classes: tuple[str, ...], path: Path) -> list[str]:
    """Take over the weights of --init, say which, and return the names of those that start anew."""
    source = TrainedModel.load(path, torch.device("cpu"))
    result = transfer(model, classes, source)
    new = [name for name in classes if name not in result.classes]
    print(f"--init {path}: {len(result.taken)} weights taken, {len(result.classes)} of {len(classes)} classes mapped")
    for what, names in (
        ("classes that start anew", new),
        ("weights that start anew", result.left),
        ("weights in the file without a use", result.unused),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            print(f"  {what}: {', '.join(names[:5])}{more}")
    return result.left


def _check_backbone(left: list[str], path: Path) -> None:
    """--init stands in for the backbone's own weights. Raises UserError for what neither would give."""
    absent = [name for name in left if name.startswith("backbone.") and OFFSETS not in name]
    if absent:
        raise UserError(
            f"--init {path}: lacks weights of this backbone ({absent[0]} and {len(absent) - 1} more), which would "
            "start at random; give weights with the same backbone"
        )


def _say_sampling(data: CocoData, training: TrainingConfig) -> None:
    share = single_class_share(data, image_weights(data, training.sampling, training.diversity_epsilon))
    line = f"sampling {training.sampling}: {100 * share:.1f} % of the draws go to images of a single class"
    print(line)
    log.info(line)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Write the log of this module to a file; a diverged training ends in it."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    except NonFiniteLossError as error:
        log.error("%s", error)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


class _Lap:
    """Seconds since the last call."""

    def __init__(self) -> None:
        self.begun = time.monotonic()

    def __call__(self) -> float:
        before, self.begun = self.begun, time.monotonic()
        return self.begun - before


class _Run:
    """A training and its evaluations, and what they have come to so far."""

    def __init__(
        self,
        trained: TrainedModel,
        training_data: CocoData,
        draws: Draws,
        validation_data: CocoData,
        output: Path,
        device: torch.device,
    ) -> None:
        self.trained = trained
        self.config = trained.config.training
        self.draws = draws
        self.validation_data = validation_data
        self.output = output
        self.device = device
        self.multiple = padding_multiple(trained.config.detector.base_stride)
        self.loader = training_loader(training_data, self.config, self.multiple)
        model = trained.model.to(memory_format=torch.channels_last).to(device)
        self.training = Training(model, self.config, device, self.config.average_decay)
        self.waited = self.fitted = 0.0  # seconds of training: for images, and all others
        self.evaluations: list[tuple[int, float]] = []  # AP by step
        self.progress = Progress()

    def load(self, content: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written."""
        self.training.load(content["training"])
        self.waited, self.fitted = content["waited"], content["fitted"]
        self.evaluations = [(int(step), float(ap)) for step, ap in content["evaluations"]]
        line = f"going on after step {self.training.step} of {self.config.steps}"
        print(f"train-final: {line}")
        log.info(line)

    def finish(self, checkpoints: Checkpoints, every_s: float) -> Metrics:
        """Train to the end, with a checkpoint every so many seconds and when a signal ends it; save, and evaluate."""
        with self.progress:
            with signals_wait() as received:
                self._train(checkpoints, every_s, received)
            if self.training.step < self.config.steps:
                raise RuntimeError(f"the training ended after step {self.training.step} of {self.config.steps}")
            result = self._result()
            try:
                result.save(self.output / "model.pt")
            except OSError as error:
                raise UserError(f"--output {self.output}: model.pt cannot be written ({error.strerror})") from error
            metrics = self._evaluate(result)
        return metrics

    def _train(self, checkpoints: Checkpoints, every_s: float, received: list[int]) -> None:
        steps, batch_size = self.config.steps, self.config.batch_size
        lap, saved = _Lap(), time.monotonic()

        def on_check(step: int, loss: float) -> None:
            speed = batch_size * (step - 1) / (self.waited + self.fitted)
            self.progress(f"training, loss {loss:.3f}, {speed:.3g} images/s", step, steps)
            log.info("step %d of %d, loss %.4f", step, steps, loss)

        def on_step(step: int) -> None:
            nonlocal saved
            self.fitted += lap()
            self._evaluate_if_due(received)
            if time.monotonic() - saved >= every_s:
                self._save(checkpoints)
                saved = time.monotonic()
            lap()

        def batches() -> Iterator[Batch]:
            try:
                for batch in self.loader.load(self.draws.batches(self.training.step)):
                    self.waited += lap()
                    yield batch
                    if received:
                        return
            except RuntimeError:  # loader processes that got the signal, too
                if not received:
                    raise

        self._evaluate_if_due(received)  # a signal may have come in between
        if not received:
            self.training.run(batches(), on_check, on_step)
        self._save(checkpoints)

    def _evaluate_if_due(self, received: list[int]) -> None:
        """Along the way; leaves the random state of the training as it is."""
        step, every = self.training.step, self.config.evaluate_steps
        if every is None or not step or step % every or step == self.config.steps:
            return
        if step in dict(self.evaluations):
            return
        try:
            with torch.random.fork_rng(devices=[]):
                self._evaluate(self._result())
        except RuntimeError:  # loader processes that got the signal, too; it is made up for
            if not received:
                raise
        self.training.model.train()

    def _save(self, checkpoints: Checkpoints) -> None:
        content = {
            "training": self.training.state(),
            "waited": self.waited,
            "fitted": self.fitted,
            "evaluations": self.evaluations,
        }
        try:
            checkpoints.save(self.training.step, content)
        except OSError as error:  # a training that could go on is not to end over that
            self._warn(f"no checkpoint after step {self.training.step}: {checkpoints.folder} {error.strerror}")

    def _warn(self, line: str) -> None:
        print(f"train-final: {line}", file=sys.stderr)
        log.warning(line)

    def _result(self) -> TrainedModel:
        trained = self.trained
        return TrainedModel(self.training.result, trained.architecture, trained.config, trained.classes)

    def _evaluate(self, result: TrainedModel) -> Metrics:
        """On the validation split; keeps the best weights where there is more than one evaluation."""
        step, data = self.training.step, self.validation_data
        views = views_of(data, self.config, result.config.detector.testing, self.multiple)
        found = detect_split(result.model, views, data.image_hw, self.device, partial(self.progress, "evaluating"))
        metrics = coco_metrics(data, found)
        log.info("AP %.4f after step %d", metrics.ap, step)
        if self.config.evaluate_steps is not None and metrics.ap > max((ap for _, ap in self.evaluations), default=-1):
            try:
                result.save(self.output / "best.pt")
            except OSError as error:
                self._warn(f"the best weights so far, after step {step}, are not kept: {error.strerror}")
        self.evaluations.append((step, metrics.ap))
        return metrics

    def figures(self) -> dict[str, Any]:
        """For metrics.json; data_wait is the share of the time in which training waited for images."""
        seconds = self.waited + self.fitted
        return {
            "training_seconds": round(seconds, 1),
            "images_per_second": round(self.config.batch_size * self.config.steps / seconds, 2),
            "data_wait": round(self.waited / seconds, 3),
            "ap_by_step": [list(evaluation) for evaluation in self.evaluations],
        }
