"""detect: the objects in pictures, drawn on them and as COCO-form JSON."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from detector.coco import CocoData, pictures, rgb, upright
from detector.command import output_folder
from detector.drawing import draw_detections
from detector.errors import UserError
from detector.evaluate import coco_results
from detector.progress import Progress
from detector.targets import Detections
from detector.tested import load_tested

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def detect(args: argparse.Namespace) -> int:
    """What detect does; its exit code."""
    tested = load_tested(args)
    classes = tested.models[0].classes
    tested.check_classes(classes, str(args.weights[0]))
    sources = _find(args.pictures)
    targets = _targets(sources, args.output)
    data, unreadable = pictures(sources, classes)
    for line in unreadable:
        print(f"detect: left out {line}")
    if not len(data):
        raise UserError("none of the files is a picture that can be read")
    output_folder(args.output)
    with Progress(is_quiet=args.quiet) as progress:
        found = tested.detect(data, progress)
        shown = [_above(detections, args.threshold) for detections in found]
        for number, (name, detections) in enumerate(zip(data.file_names, shown, strict=True), 1):
            with Image.open(name) as picture:
                draw_detections(rgb(upright(picture)), detections, classes).save(targets[Path(name)])
            progress("drawing", number, len(data))
    (args.output / "detections.json").write_text(json.dumps(_document(data, shown)))
    total = sum(len(detections.scores) for detections in shown)
    print(f"{args.output}: {total} objects in {len(data)} pictures, and detections.json")
    return 0


def _find(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, and the pictures of folders by name. Raises UserError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f"{path}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    return found


def _targets(sources: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Where the drawing of each picture goes. Raises UserError where one would be written over a picture."""
    sources = list(dict.fromkeys(sources))
    count = Counter(source.stem for source in sources)
    targets: dict[Path, Path] = {}
    taken: set[Path] = set()
    for source in sources:
        target = output / (f"{source.stem}.png" if count[source.stem] == 1 else f"{source.name}.png")
        if target in taken:
            raise UserError(f"{source}: another picture of that name is given; use one --output for each folder")
        if target.resolve() == source.resolve():
            raise UserError(f"--output {output}: its drawings would replace the pictures; give another folder")
        targets[source] = target
        taken.add(target)
    return targets


def _above(found: Detections, threshold: float) -> Detections:
    keep = found.scores >= threshold
    return Detections(found.boxes[keep], found.scores[keep], found.labels[keep])


def _document(data: CocoData, found: Sequence[Detections]) -> dict[str, object]:
    """COCO form: images, categories, and detections as annotations with a score."""
    sizes = zip(data.image_ids.tolist(), data.file_names, data.image_hw.tolist(), strict=True)
    return {
        "images": [{"id": i, "file_name": name, "height": hw[0], "width": hw[1]} for i, name, hw in sizes],
        "categories": [{"id": i, "name": n} for i, n in zip(data.category_ids, data.category_names, strict=True)],
        "annotations": [{"id": i, **result} for i, result in enumerate(coco_results(data, found), 1)],
    }
