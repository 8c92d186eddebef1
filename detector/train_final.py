"""train-final: the full Cascade R-CNN with a given pyramid."""

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from detector.architecture import Architecture
from detector.backbone import named_weights
from detector.cascade_rcnn import CascadeRcnn, padding_multiple
from detector.checkpoint import TrainedModel, make_model
from detector.coco import CocoData, load_split
from detector.command import Parser, guarded, write_json
from detector.config import DetectorSections, TrainingConfig, load_config, parse_config, presets
from detector.errors import NonFiniteLossError, UserError
from detector.evaluate import Metrics, coco_metrics
from detector.inference import detect_split, views_of
from detector.loader import training_loader
from detector.progress import Progress
from detector.sampling import Draws, draws_of, image_weights, single_class_share
from detector.train import train
from detector.transfer import transfer

log = logging.getLogger(__name__)

DEFAULT_CONFIG = "shapes"
OFFSETS = ".predict."  # of deformable convolutions: these do start anew


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of train-final."""
    return guarded("train-final", lambda: _train_final(_parser().parse_args(argv)))


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
    return parser


def _train_final(args: argparse.Namespace) -> int:
    architecture = None if args.arch is None else Architecture.load(args.arch)
    config = _resolve(args, architecture)
    training_data, validation_data = (load_split(config.data, args.data, split) for split in ("train", "val"))
    identity = {
        "architecture": architecture and architecture.hash,
        "config": config.model_copy(update={"detector": named_weights(config.detector)}).model_dump(
            mode="json", include={"data", "detector", "training"}
        ),
        "data": [training_data.hash, validation_data.hash],
        "init": _digest(args.init),
    }
    if _is_done(args.output, identity):
        print(f"train-final: {args.output} holds this very run, finished; another --output trains it anew")
        return 0
    for data in (training_data, validation_data):
        if data.skipped:
            print(f"train-final: {data.annotations}: {data.skipped} boxes without area left out")
    if not validation_data.num_objects:
        raise UserError(f"{validation_data.annotations}: holds no objects, so that nothing can be evaluated")
    if training_data.category_names != validation_data.category_names:
        raise UserError(f"{validation_data.annotations}: its categories are not those of {training_data.annotations}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.training.seed)
    model = make_model(config, architecture, training_data.num_classes, pretrained=args.init is None)
    if args.init is not None:
        left = _transfer(model, training_data.category_names, args.init)
        if config.detector.backbone.weights != "none":
            _check_backbone(left, args.init)
    draws = draws_of(training_data, config.training)
    write_json(args.output / "run.json", identity)
    trained = TrainedModel(model, architecture, config, training_data.category_names)
    with _log_to(args.output / "train.log"):
        _say_sampling(training_data, config.training)
        metrics, seconds = _run(trained, training_data, draws, validation_data, args.output, device)
    content = {"split": "val", "images": len(validation_data), "training_seconds": round(seconds, 1)}
    write_json(args.output / "metrics.json", metrics.to_dict() | content)
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
        if held.get(key) != json.loads(json.dumps(identity[key])):
            raise UserError(f"--output {output}: holds a run with another {name}; give another folder")
    return (output / "metrics.json").is_file()


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


def _run(
    trained: TrainedModel,
    training_data: CocoData,
    draws: Draws,
    validation_data: CocoData,
    output: Path,
    device: torch.device,
) -> tuple[Metrics, float]:
    """Train, save and evaluate; the metrics and the seconds of training."""
    training, detector = trained.config.training, trained.config.detector
    model = trained.model.to(memory_format=torch.channels_last).to(device)
    multiple = padding_multiple(detector.base_stride)
    loader = training_loader(training_data, training, multiple)
    start = time.monotonic()
    with Progress() as progress:

        def report(step: int, loss: float) -> None:
            progress(f"training, loss {loss:.3f}", step, training.steps)
            log.info("step %d of %d, loss %.4f", step, training.steps, loss)

        train(model, loader.load(draws.batches()), training, device, report)
        seconds = time.monotonic() - start
        trained.save(output / "model.pt")
        views = views_of(validation_data, training, detector.testing, multiple)
        found = detect_split(model, views, validation_data.image_hw, device, partial(progress, "evaluating"))
        metrics = coco_metrics(validation_data, found)
    log.info("AP %.4f", metrics.ap)
    return metrics, seconds
