"""Short trainings of the final detector, and tables that compare them.

Weights are those of the last step: moving averages and accumulated batches are left out.
"""

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from detector.architecture import Architecture
from detector.checkpoint import TrainedModel, make_model
from detector.coco import CocoData
from detector.config import DetectorSections
from detector.evaluate import average_precision
from detector.inference import detect_split, views_of
from detector.loader import training_loader
from detector.sampling import draws_of
from detector.targets import Detections
from detector.train import OnCheck, train
from nas.proxy import choose_device

Changes = Mapping[str, Mapping[str, Any]]  # section -> key -> value
BATCH_SIZE = 16  # at most: more steps for the same time


def settings(config: DetectorSections, steps: int, folders: Iterable[Path]) -> str:
    """A word that parts runs of other settings or data."""
    told = [config.model_dump(mode="json"), BATCH_SIZE, *(str(folder.absolute()) for folder in folders)]
    return f"steps{steps}-{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]}"


def batch_size(config: DetectorSections) -> int:
    return min(BATCH_SIZE, config.training.batch_size)


def configured(config: DetectorSections, changes: Changes, seed: int, steps: int) -> DetectorSections:
    """Of a short training, with changes to the sections `backbone`, `cascade` and `training`."""
    detector, training = config.detector, config.training
    detector = detector.model_copy(
        update={
            "backbone": detector.backbone.model_copy(update=dict(changes.get("backbone", {}))),
            "cascade": detector.cascade.model_copy(update=dict(changes.get("cascade", {}))),
        }
    )
    of_run = {
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size(config),
        "warmup_steps": min(training.warmup_steps, steps // 5),
    }
    training = training.model_copy(update={**of_run, **changes.get("training", {})})
    return config.model_copy(update={"detector": detector, "training": training})


def new_detector(config: DetectorSections, architecture: Architecture | None, data: CocoData) -> TrainedModel:
    torch.manual_seed(config.training.seed)
    model = make_model(config, architecture, data.num_classes)
    model = model.to(memory_format=torch.channels_last).to(choose_device())
    return TrainedModel(model, architecture, config, data.category_names)


def load_trained(path: Path) -> TrainedModel:
    return TrainedModel.load(path, choose_device())


def fit(trained: TrainedModel, data: CocoData, on_check: OnCheck | None = None) -> None:
    training = trained.config.training
    loader = training_loader(data, training, trained.model.padding_multiple)
    train(trained.model, loader.load(draws_of(data, training).batches()), training, choose_device(), on_check)


def ap_of(trained: TrainedModel, data: CocoData, **test: Any) -> float:
    """AP on a split, tested with changes."""
    return average_precision(data, detections_of(trained, data, **test))


def detections_of(trained: TrainedModel, data: CocoData, **test: Any) -> list[Detections]:
    heads, training = trained.model.heads, trained.config.training
    before = heads.testing
    heads.testing = before.model_copy(update=test)
    views = views_of(data, training, heads.testing, trained.model.padding_multiple)
    found = detect_split(trained.model, views, data.image_hw, choose_device())
    heads.testing = before
    return found


def show(what: str, aps: Mapping[str, Sequence[float]], baseline: str) -> None:
    """A table of APs (a seed each), their means, and the differences to the baseline of the same seed."""
    print(f"| {what} | AP | difference | standard error |")
    print("|---|---|---|---|")
    for name, values in aps.items():
        differences = [ours - base for ours, base in zip(values, aps[baseline], strict=True)]
        error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
        shown = "" if name == baseline else f"{statistics.fmean(differences):+.4f} | {error:.4f}"
        print(f"| {name} | {statistics.fmean(values):.4f} | {shown or ' | '} |")
