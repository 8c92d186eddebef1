"""What do annotations of the size of Objects365 cost? python -m experiments.annotation_scale --folder runs/objects365

Writes an annotation file with the published statistics of the training split of Objects365 (Shao et al. 2019: 608,606
images, 9.62 million boxes of 365 classes, long-tailed) and as many empty image files, or uses those that are there.
Printed, each measured in a process of its own: time and memory of the first reading, which makes the compact form; of a
later one; of pycocotools; of an epoch of class-diversity-sensitive draws; and the memory that each of --workers loader
processes has for itself after it has looked at the annotations of a share of the images.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

IMAGES, BOXES, CLASSES = 608_606, 9_620_000, 365
HEIGHT, WIDTH = 480, 640
MB, GB = 2**20, 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/objects365"))
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--boxes", type=int, default=BOXES)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--without-pycocotools", action="store_true", help="it needs some 12 GB")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURED[args.measure](args)))
        return
    path = generate(args.folder, args.images, args.boxes)
    print(f"{args.images} images, {args.boxes} boxes, {CLASSES} classes: {path.stat().st_size / GB:.2f} GB")
    print("| what | seconds | memory, GB at most |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NAS_CACHE": cache}
        for what in MEASURED:
            if what == "pycocotools" and args.without_pycocotools:
                continue
            command = [sys.executable, "-m", "experiments.annotation_scale", *sys.argv[1:], "--measure", what]
            run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(run.stdout.splitlines()[-1])
            print(f"| {what} | {found['seconds']:.2f} | {found['peak'] / GB:.2f} |", flush=True)
            if "private" in found:
                ours, others = (found[key] / MB for key in ("private", "control"))
                print(f"| private memory of a loader | | {ours:.0f} MB; of one that reads none, {others:.0f} MB |")


def generate(folder: Path, images: int, boxes: int, seed: int = 0) -> Path:
    """The annotation file. Classes follow Zipf's law, boxes an image are geometrically distributed."""
    path = folder / f"instances-{images}-{boxes}.json"
    if path.exists():
        return path
    stream = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    present = {entry.name for entry in os.scandir(folder / "images")}
    for number in range(images):
        if _name(number) not in present:
            (folder / "images" / _name(number)).touch()
    shares = 1 / np.arange(1, CLASSES + 1)
    partial = path.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write('{"images": [')
        file.write(
            ", ".join(
                f'{{"id": {i}, "file_name": "{_name(i)}", "height": {HEIGHT}, "width": {WIDTH}}}' for i in range(images)
            )
        )
        file.write('], "categories": [')
        file.write(", ".join(f'{{"id": {i + 1}, "name": "class {i}"}}' for i in range(CLASSES)))
        file.write('], "annotations": [')
        weights = stream.geometric(1 / 15.8, images).astype(float)
        of_image = np.sort(stream.choice(images, boxes, p=weights / weights.sum()))
        of_class = stream.choice(CLASSES, boxes, p=shares / shares.sum()) + 1
        sides = np.exp(stream.uniform(np.log(8), np.log(400), (boxes, 2)))
        corners = stream.random((boxes, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
        for start in range(0, boxes, 100_000):
            span = slice(start, start + 100_000)
            rows = zip(
                of_image[span].tolist(),
                of_class[span].tolist(),
                corners[span].tolist(),
                sides[span].tolist(),
                strict=True,
            )
            lines = (
                f'{{"id": {start + n}, "iscrowd": 0, "image_id": {image}, "category_id": {label}, "area": {w * h:.4f}, '
                f'"bbox": [{x:.4f}, {y:.4f}, {w:.4f}, {h:.4f}]}}'
                for n, (image, label, (x, y), (w, h)) in enumerate(rows)
            )
            file.write((", " if start else "") + ", ".join(lines))
        file.write("]}")
    partial.rename(path)
    return path


def _name(number: int) -> str:
    return f"objects365_v1_{number:08d}.jpg"


def first_reading(args: argparse.Namespace) -> dict[str, Any]:
    from detector.coco import load_coco

    return _timed(lambda: load_coco(generate(args.folder, args.images, args.boxes), args.folder / "images"))


def pycocotools(args: argparse.Namespace) -> dict[str, Any]:
    from pycocotools.coco import COCO

    return _timed(lambda: COCO(str(generate(args.folder, args.images, args.boxes))))


def draws(args: argparse.Namespace) -> dict[str, Any]:
    from detector.coco import load_coco
    from detector.sampling import draw, image_weights

    data = load_coco(generate(args.folder, args.images, args.boxes), args.folder / "images")

    def epoch() -> None:
        weights = image_weights(data, "class_diversity", 0.1)
        draw(weights, len(data), len(data) // 16, 16, 0, flip=True)

    return _timed(epoch)


def loaders(args: argparse.Namespace) -> dict[str, Any]:
    from torch.utils.data import DataLoader, Dataset

    from detector.coco import CocoData, load_coco

    data = load_coco(generate(args.folder, args.images, args.boxes), args.folder / "images")

    class Looking(Dataset[float]):
        """An item: the memory, in bytes, that this process has for itself."""

        def __init__(self, data: CocoData | None) -> None:
            self.data = data

        def __getitem__(self, index: int) -> float:
            import psutil

            if self.data is not None:
                boxes, _ = self.data.objects(index)
                assert boxes.shape[1] == 4
                assert self.data.file_names[index]
            return float(psutil.Process().memory_full_info().uss) if index % 1000 == 0 else 0.0

    def private(seen: CocoData | None) -> float:
        indices = range(0, len(data), 10)
        loader = DataLoader(Looking(seen), 100, sampler=list(indices), num_workers=args.workers)
        return max(float(batch.max()) for batch in loader)

    control = private(None)
    start = time.monotonic()
    found = private(data)
    return {"seconds": time.monotonic() - start, "peak": _peak(), "private": found, "control": control}


MEASURED = {
    "first reading": first_reading,
    "later reading": first_reading,
    "an epoch of draws": draws,
    "loader processes": loaders,
    "pycocotools": pycocotools,
}


def _timed(act: Any) -> dict[str, Any]:
    start = time.monotonic()
    kept = act()
    seconds = time.monotonic() - start
    del kept
    return {"seconds": seconds, "peak": _peak()}


def _peak() -> int:
    """Of this process, in bytes. What getrusage says would be at least what the process had that started this one."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    main()
