"""eval-final: trained weights, or an ensemble of them, on a split."""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from detector.checkpoint import TrainedModel
from detector.choices import Fusion
from detector.coco import CocoData, load_split
from detector.command import output_folder, write_json
from detector.drawing import draw_precision_recall
from detector.ensemble import fuse
from detector.errors import UserError
from detector.evaluate import Metrics, coco_results, evaluate
from detector.inference import detect_split, views_of
from detector.levels import padding_multiple
from detector.progress import Progress
from detector.targets import Detections
from detector.testing_options import load_for_test


def eval_final(args: argparse.Namespace) -> int:
    """What eval-final does; its exit code."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [load_for_test(path, args, device) for path in args.weights]
    data = load_split(models[0].config.data, args.data, args.split)
    if not data.num_objects:
        raise UserError(f"{data.annotations}: holds no objects, so that nothing can be evaluated")
    for path, trained in zip(args.weights, models, strict=True):
        if trained.classes != data.category_names:
            raise UserError(
                f"{path}: its {len(trained.classes)} classes ({', '.join(trained.classes[:3])}, ...) are not the "
                f"{len(data.category_names)} of {data.annotations} ({', '.join(data.category_names[:3])}, ...)"
            )
    output_folder(args.output)
    with Progress(is_quiet=args.quiet) as progress:
        of_models = [
            _detect(trained, data, device, progress, path) for path, trained in zip(args.weights, models, strict=True)
        ]
    found = of_models[0] if len(models) == 1 else _fused(of_models, data, args.fuse, models)
    metrics, precision = evaluate(data, found)
    settings = {
        "weights": [str(path) for path in args.weights],
        "split": args.split,
        "images": len(data),
        "testing": [trained.model.heads.testing.model_dump(mode="json") for trained in models],
        "fuse": args.fuse if len(models) > 1 else None,
    }
    write_json(args.output / "metrics.json", metrics.to_dict() | settings)
    (args.output / "detections.json").write_text(json.dumps(coco_results(data, found)))
    draw_precision_recall(precision, args.output / "precision_recall.png")
    _show(metrics, data)
    print(f"{args.output}: metrics.json, detections.json, precision_recall.png")
    return 0


def _detect(
    trained: TrainedModel, data: CocoData, device: torch.device, progress: Progress, path: Path
) -> list[Detections]:
    config = trained.config
    multiple = padding_multiple(config.detector.base_stride)
    views = views_of(data, config.training, trained.model.heads.testing, multiple)
    return detect_split(trained.model, views, data.image_hw, device, partial(progress, f"detecting with {path}"))


def _fused(
    of_models: list[list[Detections]], data: CocoData, fusion: Fusion, models: list[TrainedModel]
) -> list[Detections]:
    limit = max(trained.config.detector.cascade.detections for trained in models)
    sizes = torch.tensor(data.image_hw)
    return [fuse(of_image, size, fusion, limit) for *of_image, size in zip(*of_models, sizes, strict=True)]


def _show(metrics: Metrics, data: CocoData) -> None:
    """A line of all classes, one for each size, one for each class."""
    boxes = data.labels[~data.crowd]
    table = Table("", "AP", "objects", title=f"{len(data)} images")
    small, medium = 32**2, 96**2  # COCO's limits, in pixels
    area = data.area[~data.crowd]
    rows: list[tuple[str, float | None, int]] = [
        ("all", metrics.ap, len(boxes)),
        ("at IoU 0.5", metrics.ap50, len(boxes)),
        ("at IoU 0.75", metrics.ap75, len(boxes)),
        ("small", metrics.ap_small, int((area < small).sum())),
        ("medium", metrics.ap_medium, int(((area >= small) & (area < medium)).sum())),
        ("large", metrics.ap_large, int((area >= medium).sum())),
    ]
    of_class = [(name, ap, int((boxes == k).sum())) for k, (name, ap) in enumerate(metrics.ap_by_class.items())]
    for part in (rows, sorted(of_class, key=lambda row: -row[2])):
        for name, ap, count in part:
            table.add_row(name, "-" if ap is None else f"{ap:.4f}", str(count))
        table.add_section()
    Console().print(table)
