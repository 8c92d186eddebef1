"""Data in COCO form: what is annotated, as flat arrays, and images from a folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from detector.annotations import read_annotations
from detector.compact import LARGE_BYTES, compacted
from detector.config import DataConfig, SplitFiles
from detector.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


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
    missing: int = 0  # images whose files were not there, left out

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)

    @property
    def num_objects(self) -> int:
        """Crowd regions aside."""
        return int((~self.crowd).sum())

    def __len__(self) -> int:
        return len(self.image_ids)

    def left_out(self) -> list[str]:
        """What the file lists and this lacks, in words."""
        counts = {"boxes without area": self.skipped, "images that are missing": self.missing}
        return [f"{self.annotations}: {count} {what} left out" for what, count in counts.items() if count]

    def objects(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Boxes and labels that train: those of image `index` that are no crowd regions."""
        span = slice(self.start[index], self.start[index + 1])
        single = ~self.crowd[span]
        return self.boxes[span][single], self.labels[span][single]

    def image(self, index: int) -> "Tensor":
        """(3, H, W) uint8 RGB. Raises UserError with file and id if it cannot be decoded or has another size.

        A picture that its EXIF data turns (a phone's) comes upright, unless its listed size says that the annotations
        mean it as it is stored.
        """
        import torch  # what is annotated can be looked at without, and at once

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
        there = "is a file; give the folder that holds annotations/" if root.is_file() else "no such folder"
        raise UserError(f"--data {root}: {there}")
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
            raise UserError(
                f"--data {root}: this configuration generates its data; give --config coco or your own (train-final "
                "takes that of an --arch, too)"
            )
        root = shapes_folder(config.shapes)
    if root is None:
        raise UserError("this configuration needs --data DIR, a folder in COCO form")
    annotations, folder = find_split(root, {"train": config.train, "val": config.val}.get(split, split))
    return load_coco(
        annotations,
        folder,
        skip_empty_boxes=config.skip_empty_boxes,
        skip_missing_images=config.skip_missing_images,
    )


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


def load_coco(
    annotations: Path, folder: Path, *, skip_empty_boxes: bool = False, skip_missing_images: bool = False
) -> CocoData:
    """Read and check a COCO-form annotation file (detector/annotations.py). Raises UserError.

    A large file is read once; its arrays are kept in the cache and shared by all processes that look at them. Whether
    its images are there is looked at then, too, and not again until the file changes.
    """
    read = partial(
        read_annotations,
        annotations,
        folder,
        skip_empty_boxes=skip_empty_boxes,
        skip_missing_images=skip_missing_images,
    )
    if annotations.is_file() and annotations.stat().st_size >= LARGE_BYTES:
        found = compacted(annotations, (str(folder.absolute()), skip_empty_boxes, skip_missing_images), read)
    else:
        found = read()
    return CocoData(annotations=annotations, folder=folder, **found._asdict())
