"""`shapes`: the built-in procedural data set, generated from a seed in COCO form.

A class is a conjunction of three facts, each seen at another scale: the direction of the stripes on an object's badge
(a few pixels, however large the object), the texture of the ground it stands on (outside the box, recognisable over a
dozen pixels or more), and the light of the scene, which shows in its frame only (up to half a picture away). So small
objects need coarse and distant context, large objects need fine detail, and a pyramid must carry information both
ways. Classes are long-tailed; distractors without a badge, bars, two outlines and occlusion are clutter; `tiny` holds
only rare classes, as a second task to transfer to.
"""

import json
import multiprocessing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector.cache import build_once
from detector.config import ShapesConfig

VERSION = 4  # raise it when the pictures change: caches are keyed by it

STRIPES = ("flat", "upright")
GROUNDS = ("waves", "spots")
LIGHTS = ("warm", "cold")
CLASSES = tuple(f"{stripe}-{ground}-{light}" for light in LIGHTS for ground in GROUNDS for stripe in STRIPES)
SHARES = {"stripe": (0.7, 0.3), "ground": (0.6, 0.4), "light": (0.7, 0.3)}  # the tail: 8 to 1 between classes
TINY_CLASSES = ("upright-spots-warm", "upright-waves-cold", "upright-spots-cold")
LIGHT_RGB = ((0.9, 0.15, 0.1), (0.1, 0.15, 0.9))
FRAME_PX = 2  # all around: a sign in one place was found late or never by trainings (docs/decisions.md)
MIN_SIDE, MAX_SIDE = 5.0, 48.0  # on a picture of 64 pixels
MAX_HIDDEN = 0.25  # the share of an object that one later object may cover

Picture = NDArray[np.float32]


class Thing(NamedTuple):
    """Something drawn: its box (x1, y1, x2, y2) in pixels, its mask, and its class, None for a distractor."""

    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_]
    label: int | None


def shapes_folder(config: ShapesConfig) -> Path:
    """The data set on disk, generated at the first call. Splits train, val, tiny and tiny_val."""
    fields = (config.train_images, config.val_images, config.tiny_images, config.image_px, config.seed)
    name = "shapes-v{}-{}".format(VERSION, "-".join(map(str, fields)))
    return build_once(name, lambda folder: _write(folder, config))


def _write(folder: Path, config: ShapesConfig) -> None:
    (folder / "annotations").mkdir()
    every, rare = tuple(range(len(CLASSES))), tuple(CLASSES.index(name) for name in TINY_CLASSES)
    splits = (
        ("train", config.train_images, every),
        ("val", config.val_images, every),
        ("tiny", config.tiny_images, rare),
        ("tiny_val", config.tiny_images, rare),
    )
    for number, (split, count, labels) in enumerate(splits):
        _write_split(folder, split, count, labels, config.image_px, [config.seed, number])


def _write_split(folder: Path, split: str, count: int, labels: tuple[int, ...], image_px: int, seed: list[int]) -> None:
    (folder / split).mkdir()
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    draw = partial(_write_picture, folder / split, image_px=image_px, labels=labels, seed=seed)
    with multiprocessing.get_context("fork").Pool() as processes:  # a picture depends on its own number only
        for index, objects in enumerate(processes.imap(draw, range(count), chunksize=50)):
            images.append({"id": index + 1, "file_name": _name(index), "height": image_px, "width": image_px})
            annotations += [{"id": len(annotations) + 1 + i, "image_id": index + 1, **o} for i, o in enumerate(objects)]
        processes.close()
        processes.join()  # terminate(), at the end of `with`, can wait for ever for a worker that missed its signal
    categories = [{"id": i + 1, "name": CLASSES[label]} for i, label in enumerate(labels)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def _name(index: int) -> str:
    return f"{index + 1:06d}.png"


def _write_picture(
    folder: Path, index: int, image_px: int, labels: tuple[int, ...], seed: list[int]
) -> list[dict[str, object]]:
    """One picture, and its objects as COCO has them, without ids."""
    picture, things = scene(np.random.default_rng([*seed, index]), image_px, labels)
    pixels = (picture * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(folder / _name(index), compress_level=1)
    objects: list[dict[str, object]] = []
    for thing, label in things:
        x1, y1, x2, y2 = thing.box
        area = int(thing.mask.sum())
        bbox = [x1, y1, x2 - x1, y2 - y1]
        objects.append({"category_id": labels.index(label) + 1, "bbox": bbox, "area": area, "iscrowd": 0})
    return objects


def scene(rng: np.random.Generator, image_px: int, labels: tuple[int, ...]) -> tuple[Picture, list[tuple[Thing, int]]]:
    """One picture (H, W, 3) in 0..1, and its objects with their labels, which are of `labels` only."""
    zone = _zones(rng, image_px)  # (H, W) in {0, 1}
    grounds = rng.choice(len(GROUNDS), size=2, p=SHARES["ground"])
    if rng.random() < 0.5:
        grounds[1] = 1 - grounds[0]
    ground = grounds[zone]  # (H, W) index into GROUNDS
    textures = np.stack([_waves(rng, image_px), _spots(rng, image_px)])
    relief = np.take_along_axis(textures, ground[None], axis=0)[0]
    tints = rng.uniform(0.25, 0.75, size=(2, 3)).astype(np.float32)
    picture = tints[zone] + 0.22 * relief[..., None] * rng.uniform(0.6, 1.0, size=3).astype(np.float32)
    _draw_bars(rng, picture)
    light = int(rng.choice(len(LIGHTS), p=SHARES["light"]))
    things: list[Thing] = []
    for _ in range(int(rng.integers(1, 7))):
        thing = _place(rng, things, ground, light, labels)
        if thing is not None:
            _draw(rng, picture, thing)
            things.append(thing)
    _draw_frame(rng, picture, light)
    picture += rng.normal(0, 0.04, size=picture.shape).astype(np.float32)
    return picture.clip(0, 1), [(thing, thing.label) for thing in things if thing.label is not None]


def _zones(rng: np.random.Generator, image_px: int) -> NDArray[np.int64]:
    """Two zones parted by a wavy line through the middle of the picture."""
    y, x = np.mgrid[:image_px, :image_px] / image_px - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    line = rng.uniform(-0.15, 0.15) + rng.uniform(0, 0.12) * np.sin(along * rng.uniform(4, 10) + rng.uniform(0, 6.3))
    zones: NDArray[np.int64] = (across > line).astype(np.int64)
    return zones


def _grid(rng: np.random.Generator, image_px: int) -> tuple[Picture, Picture]:
    """Coordinates in periods of a texture, about 9 pixels long, in a random direction."""
    y, x = np.mgrid[:image_px, :image_px].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 11)
    u = (x * np.cos(angle) + y * np.sin(angle)) / period + rng.uniform()
    v = (y * np.cos(angle) - x * np.sin(angle)) / period + rng.uniform()
    return u, v


def _waves(rng: np.random.Generator, image_px: int) -> Picture:
    u, v = _grid(rng, image_px)
    waves: Picture = np.sin(2 * np.pi * u + 0.8 * np.sin(2 * np.pi * v / 2)).astype(np.float32)
    return waves


def _spots(rng: np.random.Generator, image_px: int) -> Picture:
    u, v = _grid(rng, image_px)
    spots: Picture = (1.4 * np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v)).astype(np.float32)
    return spots


def _draw_bars(rng: np.random.Generator, picture: Picture) -> None:
    size = len(picture)
    for _ in range(int(rng.integers(0, 4))):
        length, width = int(rng.integers(6, size // 2)), int(rng.integers(1, 3))
        height, breadth = (length, width) if rng.random() < 0.5 else (width, length)
        y, x = int(rng.integers(0, size - height)), int(rng.integers(0, size - breadth))
        picture[y : y + height, x : x + breadth] = rng.uniform(0, 1, size=3)


def _place(
    rng: np.random.Generator, things: list[Thing], ground: NDArray[np.int64], light: int, labels: tuple[int, ...]
) -> Thing | None:
    """A new thing where it hides no other too much, or None after some tries. One in five is a distractor."""
    size = len(ground)
    largest = MAX_SIDE * size / 64
    is_distractor, outline = rng.random() < 0.2, rng.random() < 0.5
    for _ in range(12):
        side = np.exp(rng.uniform(np.log(MIN_SIDE), np.log(largest)))
        stretch = np.exp(rng.uniform(-0.3, 0.3))
        width, height = max(4, round(side * stretch)), max(4, round(side / stretch))
        free_x, free_y = size - 2 * FRAME_PX - width, size - 2 * FRAME_PX - height
        if min(free_x, free_y) < 0:
            continue
        x, y = (FRAME_PX + int(rng.integers(0, free + 1)) for free in (free_x, free_y))
        context = 4 * light + 2 * int(ground[y + height // 2, x + width // 2])
        possible = [context + stripe for stripe in range(len(STRIPES)) if context + stripe in labels]
        if not possible:
            continue
        shares = np.array([SHARES["stripe"][label % 2] for label in possible])
        label = possible[int(rng.choice(len(possible), p=shares / shares.sum()))]
        mask = _mask(size, (x, y, x + width, y + height), is_disc=outline)
        if all((other.mask & mask).sum() <= MAX_HIDDEN * other.mask.sum() for other in things):
            return Thing((x, y, x + width, y + height), mask, None if is_distractor else label)
    return None


def _mask(size: int, box: tuple[int, int, int, int], *, is_disc: bool) -> NDArray[np.bool_]:
    x1, y1, x2, y2 = box
    mask = np.zeros((size, size), bool)
    if not is_disc:
        mask[y1:y2, x1:x2] = True
        return mask
    y, x = np.ogrid[y1:y2, x1:x2]
    centre_x, centre_y = (x1 + x2 - 1) / 2, (y1 + y2 - 1) / 2
    mask[y1:y2, x1:x2] = ((x - centre_x) * 2 / (x2 - x1)) ** 2 + ((y - centre_y) * 2 / (y2 - y1)) ** 2 <= 1.0
    return mask


def _draw(rng: np.random.Generator, picture: Picture, thing: Thing) -> None:
    """Fill the outline in a random colour, and stamp the badge: stripes of 3 to 4 pixels in one of two directions."""
    x1, y1, x2, y2 = thing.box
    colour = rng.uniform(0.1, 0.9, size=3).astype(np.float32)
    picture[thing.mask] = colour
    if thing.label is None:
        return
    badge = min(int(rng.integers(6, 10)), x2 - x1, y2 - y1)
    free_x, free_y = x2 - x1 - badge, y2 - y1 - badge
    x = x1 + free_x // 2 + round(rng.uniform(-0.25, 0.25) * free_x)
    y = y1 + free_y // 2 + round(rng.uniform(-0.25, 0.25) * free_y)
    across = np.arange(badge)[:, None] if STRIPES[thing.label % 2] == "flat" else np.arange(badge)[None, :]
    period = 2 if badge < 6 else int(rng.integers(3, 5))
    is_dark = np.broadcast_to((across + int(rng.integers(period))) % period < period / 2, (badge, badge))
    inside = thing.mask[y : y + badge, x : x + badge]
    contrast = np.where(colour > 0.5, colour - 0.45, colour + 0.45).astype(np.float32)
    picture[y : y + badge, x : x + badge][inside & is_dark] = contrast


def _draw_frame(rng: np.random.Generator, picture: Picture, light: int) -> None:
    """The light, brighter or darker."""
    inside = np.zeros(picture.shape[:2], bool)
    inside[FRAME_PX:-FRAME_PX, FRAME_PX:-FRAME_PX] = True
    picture[~inside] = np.array(LIGHT_RGB[light], np.float32) * rng.uniform(0.6, 1.0)
