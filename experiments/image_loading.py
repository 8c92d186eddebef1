"""What does loading images cost? python -m experiments.image_loading --data DIR

Milliseconds an image on one core, of decoding and resizing as the loader does it and as it could be done, of a whole
item, and of putting a batch together; then images a second from loader processes, and how many of these a GPU needs,
by what the last of --processes gave.
Without --data, of photograph-like JPEGs of 640x480 that are made for it. The files are read once before, so that the
disk is not measured.
"""

import argparse
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_image

from detector.coco import CocoData, load_split, pictures
from detector.config import DetectorSections, TrainingConfig
from detector.config_files import load_config
from detector.loader import DetectionDataset, collate, fit, resized, training_loader
from detector.sampling import Draw, draw

GPU_IMAGES_PER_SECOND = (100, 200, 400, 800, 1600)
BATCH = 16
MULTIPLE = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set in COCO form")
    parser.add_argument("--images", type=int, default=96, help="how many of it")
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config("coco", DetectorSections)
    training = config.training.model_copy(update={"short_side": args.short_side})
    if args.data is not None:
        data = load_split(config.data, args.data, "train")
        report(data.subset(np.arange(min(args.images, len(data)))), training, args.processes)
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(args.images)]
        for number, path in enumerate(paths):
            photograph(number).save(path, quality=90)
        report(pictures(paths, ("thing",))[0], training, args.processes)


def photograph(seed: int) -> Image.Image:
    """Like one to a JPEG decoder: large shapes, some texture, a little noise."""
    stream = np.random.default_rng(seed)
    canvas = np.zeros((480, 640, 3), np.float32)
    for cells, height in ((6, 70), (30, 30), (120, 15), (480, 4)):
        layer = stream.normal(0, height, (cells, cells * 4 // 3, 3)).astype(np.float32)
        bands = [Image.fromarray(layer[..., k]).resize((640, 480), Image.Resampling.BICUBIC) for k in range(3)]
        canvas += np.stack([np.asarray(band) for band in bands], -1)
    return Image.fromarray((canvas + 120).clip(0, 255).astype(np.uint8))


def report(data: CocoData, training: TrainingConfig, processes: Sequence[int]) -> None:
    files = [(data.folder / name).read_bytes() for name in data.file_names]
    sizes = [(int(height), int(width)) for height, width in data.image_hw]
    size_of = partial(fit, short_side=training.short_side, long_side=training.long_side)
    new_sizes = [size_of(size, None) for size in sizes]
    images = [data.image(index) for index in range(len(data))]
    photographs = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    dataset = DetectionDataset(data, size_of)
    # With a short side of their own, since decoded images of a small set are kept otherwise.
    draws = [Draw(index, False, training.short_side) for index in range(len(data))]
    items = [dataset[draw] for draw in draws[:BATCH]]
    kilobytes = sum(map(len, files)) / len(files) / 1000
    print(f"{len(data)} images, {kilobytes:.0f} kB each; short side to {training.short_side}; one core\n")
    print("| what | ms an image |\n|---|---|")
    row("decoding, ours (Pillow)", data.image, [(index,) for index in range(len(data))])
    row("decoding, torchvision", by_torchvision, [(file,) for file in files])
    row("resizing, ours (torchvision v2)", resized, list(zip(images, new_sizes, strict=True)))
    row("resizing, torch's interpolate", by_interpolate, list(zip(images, new_sizes, strict=True)))
    row("resizing, Pillow", resized_by_pillow, list(zip(photographs, new_sizes, strict=True)))
    row(f"a batch of {len(items)}, from items", collate, [(items, MULTIPLE)] * 5, parts=len(items))
    row("an item, without batch", dataset.__getitem__, [(draw,) for draw in draws])
    print("\n| loader processes | images a second |\n|---|---|")
    for count in processes:
        speed = from_processes(data, training, count)
        print(f"| {count} | {speed:.0f} |")
    print("\n| a GPU trains images a second | loader processes it needs |\n|---|---|")
    for wanted in GPU_IMAGES_PER_SECOND:
        print(f"| {wanted} | {math.ceil(wanted * processes[-1] / speed)} |")


def row(name: str, work: Callable[..., Any], arguments: Sequence[Sequence[Any]], parts: int = 1) -> float:
    """Print and return milliseconds an image, the better of two rounds."""
    work(*arguments[0])
    rounds = []
    for _ in range(2):
        begun = time.perf_counter()
        for given in arguments:
            work(*given)
        rounds.append((time.perf_counter() - begun) / len(arguments) / parts * 1000)
    print(f"| {name} | {min(rounds):.2f} |")
    return min(rounds)


def by_torchvision(file: bytes) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # its decoders are, since 0.29
        pixels: torch.Tensor = decode_image(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.RGB)
    return pixels


def by_interpolate(image: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    return interpolate(image[None], size_hw, mode="bilinear", antialias=True)[0]


def resized_by_pillow(picture: Image.Image, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    return np.array(picture.resize(size_hw[::-1], Image.Resampling.BILINEAR))


def from_processes(data: CocoData, training: TrainingConfig, count: int) -> float:
    """Images a second, once they have started."""
    steps = 24 * count
    changes = {"loader_workers": count, "multi_scale_long_side": training.long_side}
    loader = training_loader(data, training.model_copy(update=changes), MULTIPLE)
    short_sides = (training.short_side, training.short_side)
    batches = loader.load(draw(None, len(data), steps, BATCH, 0, flip=True, short_sides=short_sides).batches())
    for _ in range(4 * count):
        next(batches)
    begun = time.perf_counter()
    seen = sum(len(batch.images) for batch in batches)
    return seen / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
