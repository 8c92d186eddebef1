"""eval-final: trained weights, or an ensemble of them, on a split."""

import argparse
import json

from rich.console import Console
from rich.table import Table

from detector.coco import CocoData, load_split
from detector.command import output_folder, write_json
from detector.drawing import draw_precision_recall
from detector.errors import UserError
from detector.evaluate import Metrics, coco_results, evaluate
from detector.progress import Progress
from detector.tested import load_tested


def eval_final(args: argparse.Namespace) -> int:
    """What eval-final does; its exit code."""
    tested = load_tested(args)
    data = load_split(tested.models[0].config.data, args.data, args.split)
    if not data.num_objects:
        raise UserError(f"{data.annotations}: holds no objects, so that nothing can be evaluated")
    tested.check_classes(data.category_names, str(data.annotations))
    output_folder(args.output)
    with Progress(is_quiet=args.quiet) as progress:
        found = tested.detect(data, progress)
    metrics, precision = evaluate(data, found)
    settings = {
        "weights": [str(path) for path in args.weights],
        "split": args.split,
        "images": len(data),
        "testing": [trained.model.heads.testing.model_dump(mode="json") for trained in tested.models],
        "fuse": tested.fusion if len(tested.models) > 1 else None,
    }
    write_json(args.output / "metrics.json", metrics.to_dict() | settings)
    (args.output / "detections.json").write_text(json.dumps(coco_results(data, found)))
    draw_precision_recall(precision, args.output / "precision_recall.png")
    _show(metrics, data)
    print(f"{args.output}: metrics.json, detections.json, precision_recall.png")
    return 0


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
