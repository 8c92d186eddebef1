"""What is in a data set? python -m experiments.statistics --data DIR --split train

Of any data in COCO form: classes, images, boxes, their sizes, how many there are of each class, and what the two
weighted samplings would make of that (the share of draws that show a class, beside its share of images). Without
--data, of the built-in `shapes`. Crowd regions do not count.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.choices import Sampling
from detector.coco import CocoData, load_split
from detector.command import guarded
from detector.config import DataConfig
from detector.sampling import ClassPresence, image_weights

SMALL, MEDIUM = 32**2, 96**2  # COCO's limits, in pixels
SHOWN = 10  # classes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set in COCO form")
    parser.add_argument("--split", default="train", metavar="NAME")
    args = parser.parse_args()
    return guarded("statistics", lambda: report(_loaded(args.data, args.split)))


def _loaded(root: Path | None, split: str) -> CocoData:
    source = DataConfig(source="shapes") if root is None else DataConfig(skip_empty_boxes=True)
    return load_split(source, root, split)


def report(data: CocoData) -> int:
    """Two tables."""
    shares = [shown_share(data, sampling) for sampling in ("uniform", "class_aware", "class_diversity")]
    for line in data.left_out():
        print(line)
    print("| what | figure |\n|---|---|")
    for what, figure in figures(data).items():
        print(f"| {what} | {figure} |")
    print("\n| class | boxes | images | share of images | class_aware | class_diversity |\n|---|---|---|---|---|---|")
    boxes, presence = _boxes_of(data), ClassPresence.of(data)
    images = np.bincount(presence.label, minlength=data.num_classes)
    order = np.argsort(-boxes, kind="stable")
    chosen = order if len(order) <= SHOWN else np.concatenate((order[: SHOWN // 2], order[-SHOWN // 2 :]))
    for place, label in enumerate(chosen.tolist()):
        if place == SHOWN // 2 and len(order) > SHOWN:
            print(f"| ... {len(order) - SHOWN} more | | | | | |")
        cells = [data.category_names[label], f"{boxes[label]:,}", f"{images[label]:,}"]
        print("| " + " | ".join([*cells, *(f"{share[label]:.1%}" for share in shares)]) + " |")
    return 0


def figures(data: CocoData) -> dict[str, str]:
    """In the manner of tables in papers on data sets."""
    single = ~data.crowd
    sides = data.boxes[single, 2:] - data.boxes[single, :2]
    area, count = data.area[single], max(1, data.num_objects)
    of_image = np.bincount(ClassPresence.of(data).image, minlength=len(data))
    height, width = data.image_hw.mean(axis=0)
    boxes = _boxes_of(data)
    return {
        "classes": f"{data.num_classes:,}, {int((boxes > 0).sum()):,} of them with boxes",
        "images": f"{len(data):,}, {int((of_image == 0).sum()):,} of them without boxes",
        "boxes": f"{data.num_objects:,}",
        "boxes an image": f"{data.num_objects / max(1, len(data)):.2f}",
        "classes an image": f"{of_image.mean():.2f}",
        "size of images": f"{width:.0f}x{height:.0f} px on average",
        "size of boxes": f"{sides[:, 0].mean():.1f}x{sides[:, 1].mean():.1f} px on average" if len(sides) else "none",
        "small, medium, large boxes": ", ".join(
            f"{part.sum() / count:.0%}" for part in (area < SMALL, (area >= SMALL) & (area < MEDIUM), area >= MEDIUM)
        ),
        "most and fewest boxes of a class": f"{boxes.max():,} and {boxes.min():,}",
    }


def _boxes_of(data: CocoData) -> NDArray[np.int64]:
    return np.bincount(data.labels[~data.crowd], minlength=data.num_classes)


def shown_share(data: CocoData, sampling: Sampling) -> NDArray[np.float64]:
    """The share of draws whose image holds a class, for every class: (K,)."""
    if not data.num_objects:
        return np.zeros(data.num_classes)
    weights = image_weights(data, sampling, epsilon=0.1)
    presence = ClassPresence.of(data)
    shares: NDArray[np.float64] = np.zeros(data.num_classes)
    np.add.at(shares, presence.label, weights[presence.image] / weights.sum())
    return shares


if __name__ == "__main__":
    raise SystemExit(main())
