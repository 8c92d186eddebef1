"""COCO-form data: annotations as flat arrays, images from a folder, and every fault named with file and id."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from detector.config import DataConfig, SplitFiles
from detector.documents import parse_json
from detector.errors import UserError


@dataclass(frozen=True)
class CocoData:
    """One split. M boxes of I images lie in flat arrays; those of image i are boxes[start[i] : start[i + 1]].

    boxes (M, 4) xyxy in pixels of the image, labels (M,) in 0..K-1, crowd (M,) bool, area (M,) as annotated;
    image_hw (I, 2), image_ids (I,). category_ids and category_names have K entries, ordered by id. hash covers the
    annotation file and the images' sizes in bytes.
    """

    annotations: Path
    folder: Path
    image_ids: NDArray[np.int64]
    image_hw: NDArray[np.int64]
    file_names: Sequence[str]
    start: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float32]
    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]
    hash: str
    skipped: int = 0  # boxes without area that were left out

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)

    @property
    def num_objects(self) -> int:
        """Crowd regions aside."""
        return int((~self.crowd).sum())

    def __len__(self) -> int:
        return len(self.image_ids)

    def objects(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Boxes and labels that train: those of image `index` that are no crowd regions."""
        span = slice(self.start[index], self.start[index + 1])
        single = ~self.crowd[span]
        return self.boxes[span][single], self.labels[span][single]

    def image(self, index: int) -> Tensor:
        """(3, H, W) uint8 RGB. Raises UserError with file and id if it cannot be decoded or has another size.

        A picture that its EXIF data turns (a phone's) comes upright, unless its listed size says that the annotations
        mean it as it is stored.
        """
        path = self.folder / self.file_names[index]
        where = f"{path} (image {self.image_ids[index]})"
        try:
            with Image.open(path) as file:
                as_stored = (file.height, file.width) == tuple(self.image_hw[index])
                turned = upright(file)
                is_listed = (turned.height, turned.width) == tuple(self.image_hw[index])
                pixels = np.array(rgb(file if as_stored and not is_listed else turned))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises
            raise UserError(f"{where}: cannot be decoded ({' '.join(str(error).split())})") from error
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        if tuple(image.shape[1:]) != tuple(self.image_hw[index]):
            found, listed = ("x".join(map(str, hw)) for hw in (image.shape[1:], self.image_hw[index]))
            raise UserError(f"{where}: is {found} pixels (HxW), but {self.annotations} says {listed}")
        return image

    def subset(self, indices: NDArray[np.int64]) -> "CocoData":
        """The same data with only the images at `indices`, in that order."""
        spans = [np.arange(self.start[i], self.start[i + 1]) for i in indices]
        rows = np.concatenate(spans) if spans else np.zeros(0, np.int64)
        counts = np.array([len(span) for span in spans], np.int64)
        return replace(
            self,
            image_ids=self.image_ids[indices],
            image_hw=self.image_hw[indices],
            file_names=[self.file_names[i] for i in indices],
            start=np.concatenate(([0], counts.cumsum())).astype(np.int64),
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            crowd=self.crowd[rows],
            area=self.area[rows],
        )


def find_split(root: Path, split: str | SplitFiles) -> tuple[Path, Path]:
    """Annotation file and image folder of a split below --data. Raises UserError listing what was looked for.

    The usual layouts: annotations/instances_<split>.json, images in <split>/ or images/, and COCO's own train2017
    and val2017.
    """
    if not root.is_dir():
        raise UserError(f"--data {root}: no such folder")
    if isinstance(split, SplitFiles):
        return root / split.annotations, root / split.images
    names = [split, f"{split}2017"]
    for name in names:
        annotations = root / "annotations" / f"instances_{name}.json"
        if annotations.is_file():
            folders = [root / name, root / "images" / name, root / "images"]
            for folder in folders:
                if folder.is_dir():
                    return annotations, folder
            raise UserError(f"--data {root}: no image folder for {annotations.name}; looked for {_or(folders)}")
    looked_for = [root / "annotations" / f"instances_{name}.json" for name in names]
    hint = f" (data.{split} in the configuration can name other files)" if split in ("train", "val") else ""
    raise UserError(f"--data {root}: no annotations of split {split!r}; looked for {_or(looked_for)}{hint}")


def _or(paths: list[Path]) -> str:
    return " or ".join(map(str, paths))


def load_split(config: DataConfig, root: Path | None, split: str) -> CocoData:
    """A split: what the configuration names as `train` or `val`, or another one by its own name. Raises UserError."""
    if config.source == "shapes":
        from detector.shapes import shapes_folder

        if root is not None:
            raise UserError(f"--data {root}: this configuration generates its data; give --config coco or your own")
        root = shapes_folder(config.shapes)
    if root is None:
        raise UserError("this configuration needs --data DIR, a folder in COCO form")
    annotations, folder = find_split(root, {"train": config.train, "val": config.val}.get(split, split))
    return load_coco(annotations, folder, skip_empty_boxes=config.skip_empty_boxes)


def pictures(paths: Sequence[Path], classes: tuple[str, ...]) -> tuple[CocoData, list[str]]:
    """Pictures without annotations, numbered from 1, and what of `paths` is no picture, with the reason.

    Each is decoded once, so that a damaged one is known before any work begins.
    """
    sizes, names, unreadable = [], [], []
    for path in dict.fromkeys(paths):
        try:
            with Image.open(path) as file:
                picture = rgb(upright(file))
            sizes.append((picture.height, picture.width))
            names.append(str(path))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            unreadable.append(f"{path}: {' '.join(str(error).split())}")
    count = len(names)
    data = CocoData(
        annotations=Path(),
        folder=Path(),
        image_ids=np.arange(1, count + 1),
        image_hw=np.array(sizes, np.int64).reshape(count, 2),
        file_names=names,
        start=np.zeros(count + 1, np.int64),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, bool),
        area=np.zeros(0, np.float32),
        category_ids=tuple(range(1, len(classes) + 1)),
        category_names=classes,
        hash="",
    )
    return data, unreadable


def upright(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF data wants it shown; the same object if that is as it is stored."""
    try:
        is_turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(picture) if is_turned else picture
    except Exception:  # damaged EXIF data raises many kinds, and says nothing about the picture
        return picture


def rgb(picture: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB; 16 bits are divided by 256. Raises ValueError for pixels whose range is unknown."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {picture.mode} have no known range; save it with 8 or 16 bits")
    return picture.convert("RGB")


def load_coco(annotations: Path, folder: Path, *, skip_empty_boxes: bool = False) -> CocoData:
    """Read and check a COCO-form annotation file. Raises UserError naming file, id and what would be right.

    skip_empty_boxes leaves out boxes without area, and counts them, instead of refusing the file.
    """
    try:
        content = annotations.read_bytes()
    except OSError as error:
        raise UserError(f"{annotations}: cannot be read ({error.strerror})") from error
    document = parse_json(content, annotations)
    images, entries, categories = (_records(document, key, annotations) for key in _REQUIRED)
    try:
        if skip_empty_boxes:
            kept = [entry for entry in entries if min(entry["bbox"][2:]) > 0]
            entries, skipped = kept, len(entries) - len(kept)
        else:
            skipped = 0
        digest = hashlib.sha256(content).hexdigest()
        return replace(_read(annotations, folder, digest, images, entries, categories), skipped=skipped)
    except KeyError as error:
        raise UserError(f"{annotations}: a record lacks {error}") from error
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"{annotations}: a record has another form than COCO's ({error})") from error


MAX_AREA = 1e12  # pixels
_REQUIRED = ("images", "annotations", "categories")


def _records(document: Any, key: str, annotations: Path) -> list[Mapping[str, Any]]:
    if not isinstance(document, Mapping) or not isinstance(document.get(key), list):
        raise UserError(f"{annotations}: has no list {key!r}; COCO form needs {', '.join(_REQUIRED)}")
    return document[key]  # type: ignore[no-any-return]


def _read(
    annotations: Path,
    folder: Path,
    digest: str,
    images: list[Mapping[str, Any]],
    entries: list[Mapping[str, Any]],
    categories: list[Mapping[str, Any]],
) -> CocoData:
    if not images:
        raise UserError(f"{annotations}: lists no images")
    if not categories:
        raise UserError(f"{annotations}: lists no categories")
    categories = sorted(categories, key=lambda category: int(category["id"]))
    label_of = {int(category["id"]): label for label, category in enumerate(categories)}
    images = sorted(images, key=lambda image: int(image["id"]))
    row_of = {int(image["id"]): row for row, image in enumerate(images)}
    for name, records, unique in (("image", images, row_of), ("category", categories, label_of)):
        if len(unique) != len(records):
            raise UserError(f"{annotations}: two {name} records have the same id")
    sizes = _file_sizes(annotations, folder, images)

    hw = np.array([(image["height"], image["width"]) for image in images], np.int64)
    count = len(entries)
    rows, labels = np.zeros(count, np.int64), np.zeros(count, np.int64)
    boxes, area = np.zeros((count, 4), np.float32), np.zeros(count, np.float32)
    crowd = np.zeros(count, bool)
    for i, entry in enumerate(entries):
        where = f"{annotations}: annotation {entry['id']}"
        if entry["image_id"] not in row_of:
            raise UserError(f"{where}: image {entry['image_id']} is not listed in images")
        if entry["category_id"] not in label_of:
            raise UserError(f"{where}: category {entry['category_id']} is not listed in categories")
        rows[i], labels[i] = row_of[entry["image_id"]], label_of[entry["category_id"]]
        crowd[i] = bool(entry.get("iscrowd", 0))
        boxes[i] = _box(entry["bbox"], hw[rows[i]], where)
        area[i] = _area(entry.get("area", entry["bbox"][2] * entry["bbox"][3]), where)
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=len(images))
    return CocoData(
        annotations=annotations,
        folder=folder,
        image_ids=np.array([image["id"] for image in images], np.int64),
        image_hw=hw,
        file_names=[str(image["file_name"]) for image in images],
        start=np.concatenate(([0], counts.cumsum())).astype(np.int64),
        boxes=boxes[order],
        labels=labels[order],
        crowd=crowd[order],
        area=area[order],
        category_ids=tuple(int(category["id"]) for category in categories),
        category_names=_names(categories),
        hash=hashlib.sha256(f"{digest} {sizes}".encode()).hexdigest(),
    )


def _names(categories: list[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of the categories; those that several share are told apart by their ids."""
    names = [str(category["name"]) for category in categories]
    return tuple(
        f"{name} ({category['id']})" if names.count(name) > 1 else name
        for name, category in zip(names, categories, strict=True)
    )


def _box(bbox: Any, image_hw: NDArray[np.int64], where: str) -> tuple[float, float, float, float]:
    """xywh -> xyxy, clipped to the image (annotation tools overshoot by fractions of a pixel)."""
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(value, int | float) for value in bbox)):
        raise UserError(f"{where}: bbox {bbox!r} must be four numbers, [x, y, width, height]")
    x, y, width, height = bbox
    if not (width > 0 and height > 0):
        raise UserError(f"{where}: bbox {bbox} has no area; mend it, or set data.skip_empty_boxes")
    image_height, image_width = (int(side) for side in image_hw)
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, image_width), min(y + height, image_height)
    if not (right > left and bottom > top):
        raise UserError(f"{where}: bbox {bbox} lies outside its image of {image_width}x{image_height} (WxH)")
    return left, top, right, bottom


def _area(area: Any, where: str) -> float:
    if not (isinstance(area, int | float) and 0 <= area <= MAX_AREA):
        raise UserError(f"{where}: area {area!r} must be a number of pixels")
    return float(area)


def _file_sizes(annotations: Path, folder: Path, images: list[Mapping[str, Any]]) -> list[int]:
    """In bytes. Raises UserError for the first image that is missing."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such image folder (images of {annotations})")
    sizes = []
    for image in images:
        path = folder / image["file_name"]
        try:
            is_there = path.is_file()
        except OSError:  # a name longer than any file's
            is_there = False
        if not is_there:
            raise UserError(f"{path}: image {image['id']} of {annotations} is missing")
        sizes.append(path.stat().st_size)
    return sizes


def resized(image: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Image (3, H, W) uint8 brought to a new size: antialiased bilinear, still uint8."""
    if tuple(image.shape[1:]) == size_hw:
        return image
    return torch.nn.functional.interpolate(image[None], size_hw, mode="bilinear", antialias=True)[0]
