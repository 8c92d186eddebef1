"""Annotation files in COCO form, read into flat arrays and checked; every fault is named with file and id.

A file is first cut into its records, which are then decoded and turned into arrays by the hundred thousand, so that ten
million boxes never are ten million objects at once.
"""

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct, UnsetType
from numpy.typing import NDArray

from detector.errors import UserError

MAX_AREA = 1e12  # pixels
CHUNK = 100_000  # records
NAMED = 10  # missing images that an error lists
OVERSHOOT_PX = 1.0  # by which boxes may reach beyond their image: annotation tools do
Number = int | float


class _Document(Struct):
    images: Raw | UnsetType = UNSET
    annotations: Raw | UnsetType = UNSET
    categories: Raw | UnsetType = UNSET


class _Image(Struct):
    id: int
    height: Number
    width: Number
    file_name: str


class _Category(Struct):
    id: int
    name: str | Number


class _Annotation(Struct, gc=False):
    id: Any
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | UnsetType = UNSET
    iscrowd: int | bool | float | None = 0


class Annotations(NamedTuple):
    """What a file says of M boxes in I images, as CocoData has it; missing: images left out."""

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
    skipped: int
    missing: int


def read_annotations(path: Path, folder: Path, *, skip_empty_boxes: bool, skip_missing_images: bool) -> Annotations:
    """Of images in `folder`. Raises UserError naming file, id and what would be right.

    skip_empty_boxes leaves out boxes without area, skip_missing_images images whose file is not there with their boxes;
    both are counted.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    digest = hashlib.sha256(content).hexdigest()
    reader = _Reader(path, content)
    del content  # gigabytes, perhaps
    try:
        return reader.read(folder, digest, skip_empty_boxes, skip_missing_images)
    except (OverflowError, ValueError, RecursionError) as error:  # what is no text, or numbers of thousands of digits
        raise UserError(f"{path}: a record has another form than COCO's ({error})") from error


class _Reader:
    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        try:
            if (encoding := json.detect_encoding(content[:16])) != "utf-8":
                content = content.decode(encoding).encode()
            self.document = msgspec.json.decode(content, type=_Document)
        except msgspec.ValidationError:
            self._lacks("images")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path}: is not valid JSON ({error})") from error

    def read(self, folder: Path, digest: str, skip_empty_boxes: bool, skip_missing_images: bool) -> Annotations:
        images = self._decoded(self._cut("images"), _Image)
        entries = self._cut("annotations")
        categories = sorted(self._decoded(self._cut("categories"), _Category), key=lambda category: category.id)
        self.document = _Document()
        if not images:
            raise UserError(f"{self.path}: lists no images")
        if not categories:
            raise UserError(f"{self.path}: lists no categories")
        images.sort(key=lambda image: image.id)
        image_ids = self._distinct("image", [image.id for image in images])
        category_ids = self._distinct("category", [category.id for category in categories])
        sizes = _file_sizes(folder, [image.file_name for image in images])
        is_there = np.array([size is not None for size in sizes])
        if not is_there.all() and not skip_missing_images:
            self._refuse_missing(folder, [image for image, there in zip(images, is_there, strict=True) if not there])
        if not is_there.any():
            raise UserError(f"{folder}: none of the {len(images)} images of {self.path} is there")

        image_hw = np.array([(image.height, image.width) for image in images], np.int64)
        if (is_flat := (image_hw <= 0).any(axis=1)).any():
            raise UserError(f"{self.path}: image {image_ids[is_flat.argmax()]} has a height or width of no pixels")
        boxes, area, crowd, of_image, of_category = self._entries(entries)
        rows, labels = _places(image_ids, of_image), _places(category_ids, of_category)
        self._check(entries, boxes, area, rows, labels, image_hw, skip_empty_boxes)
        self._refuse_corners(entries, boxes, image_hw[rows])
        is_empty = _is_empty(boxes)
        keep = is_there[rows] & ~is_empty
        corners = _corners(boxes, image_hw[rows])[keep]
        order = np.argsort(rows[keep], kind="stable")
        counts = np.bincount(rows[keep], minlength=len(images))[is_there]
        kept = [image for image, there in zip(images, is_there, strict=True) if there]
        known = [size for size in sizes if size is not None]
        return Annotations(
            image_ids=image_ids[is_there],
            image_hw=image_hw[is_there],
            file_names=[image.file_name for image in kept],
            start=np.concatenate(([0], counts.cumsum())).astype(np.int64),
            boxes=corners[order].astype(np.float32),
            labels=labels[keep][order],
            crowd=crowd[keep][order],
            area=area[keep][order].astype(np.float32),
            category_ids=tuple(category_ids.tolist()),
            category_names=_names(categories),
            hash=hashlib.sha256(f"{digest} {known}".encode()).hexdigest(),
            skipped=int(is_empty.sum()),
            missing=len(images) - len(kept),
        )

    def _lacks(self, key: str) -> NoReturn:
        needed = ", ".join(_Document.__struct_fields__)
        raise UserError(f"{self.path}: has no list {key!r}; COCO form needs {needed}") from None

    def _cut(self, key: str) -> list[Raw]:
        """The records of one list, undecoded."""
        part = getattr(self.document, key)
        if part is UNSET:
            self._lacks(key)
        try:
            return msgspec.json.decode(part, type=list[Raw])
        except msgspec.ValidationError:
            self._lacks(key)

    def _decoded(self, raws: Sequence[Raw], kind: type[Any]) -> list[Any]:
        decode = msgspec.json.Decoder(kind).decode
        try:
            return [decode(raw) for raw in raws]
        except msgspec.ValidationError:
            for raw in raws:
                self._refuse_record(raw, kind)
            raise

    def _refuse_record(self, raw: Raw, kind: type[Any]) -> None:
        """Raises UserError if a record is none, with the reason."""
        try:
            msgspec.json.decode(raw, type=kind)
            return
        except msgspec.ValidationError as error:
            reason, record = str(error), json.loads(bytes(raw))
        of = kind.__name__[1:].lower()
        if isinstance(record, dict):
            for key in kind.__struct_fields__:
                if key not in record and key not in ("area", "iscrowd"):
                    raise UserError(f"{self.path}: a record lacks {key!r} ({of} {record.get('id')})")
            where = f"{self.path}: annotation {record['id']}"
            if "$.bbox" in reason:
                raise UserError(f"{where}: bbox {record['bbox']!r} must be four numbers, [x, y, width, height]")
            if "$.area" in reason:
                raise UserError(f"{where}: area {record['area']!r} must be a number of pixels")
        which = f"{of} {record.get('id') if isinstance(record, dict) else record}"
        raise UserError(f"{self.path}: a record has another form than COCO's ({which}: {reason})")

    def _distinct(self, name: str, ids: list[int]) -> NDArray[np.int64]:
        """Sorted ids."""
        found = np.array(ids, np.int64)
        if len(same := found[1:][found[1:] == found[:-1]]):
            raise UserError(f"{self.path}: two {name} records have the same id ({same[0]})")
        return found

    def _refuse_missing(self, folder: Path, gone: Sequence[_Image]) -> NoReturn:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such image folder (images of {self.path})")
        names = ", ".join(f"{image.file_name} (id {image.id})" for image in gone[:NAMED])
        more = ", ..." if len(gone) > NAMED else ""
        raise UserError(
            f"{folder}: misses {len(gone)} of the images that {self.path} lists: {names}{more}; "
            "add them, or set data.skip_missing_images"
        )

    def _entries(self, raws: Sequence[Raw]) -> tuple[NDArray[Any], ...]:
        """bbox (M, 4) xywh and area (M,) in float64, crowd, image id and category id (M,)."""
        count = len(raws)
        boxes, area, crowd = np.zeros((count, 4)), np.zeros(count), np.zeros(count, bool)
        of_image, of_category = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for start in range(0, count, CHUNK):
            records = self._decoded(raws[start : start + CHUNK], _Annotation)
            span = slice(start, start + len(records))
            boxes[span] = [record.bbox for record in records]
            area[span] = [np.nan if record.area is UNSET else record.area for record in records]
            crowd[span] = [bool(record.iscrowd) for record in records]
            of_image[span] = [record.image_id for record in records]
            of_category[span] = [record.category_id for record in records]
        is_unset = np.isnan(area)  # JSON knows no such number
        with np.errstate(over="ignore"):
            area[is_unset] = boxes[is_unset, 2] * boxes[is_unset, 3]
        return boxes, area, crowd, of_image, of_category

    def _check(
        self,
        raws: Sequence[Raw],
        boxes: NDArray[np.float64],
        area: NDArray[np.float64],
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        image_hw: NDArray[np.int64],
        skip_empty_boxes: bool,
    ) -> None:
        """Raises UserError for the first annotation that has a fault."""
        corners = _corners(boxes, image_hw[rows])
        is_empty = _is_empty(boxes)
        is_outside = _is_empty(np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1))
        has_no_area = ~((area >= 0) & (area <= MAX_AREA))
        left_out = is_empty if skip_empty_boxes else np.zeros(len(boxes), bool)
        is_faulty: NDArray[np.bool_] = (rows < 0) | (labels < 0) | ((is_empty | is_outside | has_no_area) & ~left_out)
        if not is_faulty.any():
            return
        first = int(is_faulty.argmax())
        record = json.loads(bytes(raws[first]))
        where, bbox = f"{self.path}: annotation {record['id']}", record["bbox"]
        if rows[first] < 0:
            raise UserError(f"{where}: image {record['image_id']} is not listed in images")
        if labels[first] < 0:
            raise UserError(f"{where}: category {record['category_id']} is not listed in categories")
        if is_empty[first]:
            raise UserError(f"{where}: bbox {bbox} has no area; mend it, or set data.skip_empty_boxes")
        if is_outside[first]:
            height, width = image_hw[rows[first]].tolist()
            raise UserError(f"{where}: bbox {bbox} lies outside its image of {width}x{height} (WxH)")
        raise UserError(f"{where}: area {record.get('area', float(area[first]))!r} must be a number of pixels")

    def _refuse_corners(self, raws: Sequence[Raw], boxes: NDArray[np.float64], image_hw: NDArray[np.int64]) -> None:
        """Raises UserError if all boxes can be corners, and a tenth of them or more make no sense as COCO's boxes."""
        can_be_corners = (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= image_hw[:, ::-1] + OVERSHOOT_PX)
        is_beyond = (boxes[:, :2] + boxes[:, 2:] > image_hw[:, ::-1] + OVERSHOOT_PX).any(axis=1)
        if len(boxes) and can_be_corners.all() and is_beyond.mean() >= 0.1:
            record, (height, width) = json.loads(bytes(raws[int(is_beyond.argmax())])), image_hw[is_beyond.argmax()]
            raise UserError(
                f"{self.path}: boxes look like corners [x1, y1, x2, y2], such as {record['bbox']} of annotation "
                f"{record['id']} in an image of {width}x{height} (WxH); COCO's are [x, y, width, height]"
            )


def _places(known: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where in `known`, sorted, each is; -1 for what is not there."""
    places = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return np.where(known[places] == wanted, places, -1)


def _is_empty(xywh: NDArray[np.float64]) -> NDArray[np.bool_]:
    is_empty: NDArray[np.bool_] = (xywh[:, 2] <= 0) | (xywh[:, 3] <= 0)
    return is_empty


def _corners(xywh: NDArray[np.float64], image_hw: NDArray[np.int64]) -> NDArray[np.float64]:
    """xywh -> xyxy, clipped to the images (annotation tools overshoot by fractions of a pixel)."""
    low = xywh[:, :2].clip(min=0)
    with np.errstate(over="ignore"):  # what is infinite is clipped, too
        high = np.minimum(xywh[:, :2] + xywh[:, 2:], image_hw[:, ::-1])
    return np.concatenate((low, high), axis=1)


def _names(categories: Sequence[_Category]) -> tuple[str, ...]:
    """Names of the categories; those that several share are told apart by their ids."""
    names = [str(category.name) for category in categories]
    return tuple(
        f"{name} ({category.id})" if names.count(name) > 1 else name
        for name, category in zip(names, categories, strict=True)
    )


def _file_sizes(folder: Path, names: Sequence[str]) -> list[int | None]:
    """In bytes; None for what is no file."""
    return [_file_size(os.path.join(folder, name)) for name in names]


def _file_size(path: str) -> int | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # also for a name longer than any file's, or with a null character
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
