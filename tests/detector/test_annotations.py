"""Annotation files, read as pycocotools reads them, and kept in a compact form when they are large."""

import contextlib
import io
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from detector import compact
from detector.annotations import read_annotations
from detector.cache import cache_folder
from detector.coco import CocoData, load_coco
from detector.commands import train_final
from detector.compact import Names
from detector.errors import UserError


def write(folder: Path, images: int = 40, seed: int = 0) -> Path:
    """A random file: ids with gaps and in no order, crowds, areas that are not those of boxes, or none at all."""
    stream = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    ids = (stream.permutation(images) * 7 + 3).tolist()
    categories = (stream.permutation(5) * 3 + 1).tolist()
    entries = []
    for number in range(images * 5):
        x, y, width, height = (stream.random(4) * (60, 40, 40, 40) + 0.01).round(2).tolist()
        entry = {"id": number, "image_id": int(stream.choice(ids[1:])), "category_id": int(stream.choice(categories))}
        entry |= {"bbox": [x, y, min(width, 99 - x), min(height, 79 - y)], "iscrowd": int(stream.random() < 0.1)}
        entry |= {"area": round(float(stream.random() * 900), 3)}
        entries.append(entry)
    document = {
        "info": {"year": 2019},
        "images": [{"id": i, "file_name": f"ö{i}.jpg", "height": 80, "width": 100, "license": 1} for i in ids],
        "annotations": entries,
        "categories": [{"id": i, "name": f"class {i}", "supercategory": "none"} for i in categories],
    }
    for image in document["images"]:
        (folder / "images" / image["file_name"]).write_bytes(bytes(image["id"]))
    path = folder / "annotations.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def load(path: Path, **options) -> CocoData:
    return load_coco(path, path.parent / "images", **options)


@pytest.fixture
def are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files, as far as the compact form is concerned."""
    monkeypatch.setattr("detector.coco.LARGE_BYTES", 1)


def kept() -> set[str]:
    """The compact forms there are."""
    names = {folder.name for folder in cache_folder().glob("annotations-*") if folder.is_dir()}
    return {name for name in names if not name.endswith(".partial")}


def same(ours: CocoData, theirs: CocoData) -> None:
    for key in compact.ARRAYS:
        assert np.array_equal(getattr(ours, key), getattr(theirs, key)), key
        assert getattr(ours, key).dtype == getattr(theirs, key).dtype
    for key in compact.PLAIN:
        assert getattr(ours, key) == getattr(theirs, key), key
    assert list(ours.file_names) == list(theirs.file_names)


def test_reads_what_pycocotools_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.setattr("detector.annotations.CHUNK", 7)
    data = load(path)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(path))
    assert data.image_ids.tolist() == sorted(theirs.getImgIds())
    assert list(data.category_ids) == sorted(theirs.getCatIds())
    assert len(data.boxes) == len(theirs.anns) == 200
    for index, image_id in enumerate(data.image_ids.tolist()):
        found = theirs.loadAnns(theirs.getAnnIds(imgIds=[image_id], iscrowd=None))
        span = slice(data.start[index], data.start[index + 1])
        xyxy = [[x, y, x + width, y + height] for x, y, width, height in (entry["bbox"] for entry in found)]
        assert data.boxes[span].tolist() == np.array(xyxy, np.float32).reshape(-1, 4).tolist()
        assert [data.category_ids[label] for label in data.labels[span]] == [entry["category_id"] for entry in found]
        assert data.crowd[span].tolist() == [bool(entry["iscrowd"]) for entry in found]
        assert data.area[span].tolist() == np.array([entry["area"] for entry in found], np.float32).tolist()
        assert data.file_names[index] == theirs.imgs[image_id]["file_name"]
    assert sorted(data.category_names) == sorted(category["name"] for category in theirs.cats.values())


def test_an_area_that_is_not_given_is_that_of_the_box_and_no_boxes_at_all_are_fine(tmp_path: Path) -> None:
    path = write(tmp_path)
    document = json.loads(path.read_text())
    for entry in document["annotations"]:
        del entry["area"]
        del entry["iscrowd"]
    path.write_text(json.dumps(document))
    data = load(path)
    side = data.boxes[:, 2:] - data.boxes[:, :2]
    assert data.area == pytest.approx(side[:, 0] * side[:, 1], rel=1e-4)
    assert not data.crowd.any()
    path.write_text(json.dumps(document | {"annotations": []}))
    assert load(path).num_objects == 0


def test_other_encodings_of_text_are_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    plain, text = load(path), path.read_text(encoding="utf-8")
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        data = load(path)
        assert data.boxes.tolist() == plain.boxes.tolist()
        assert list(data.file_names) == list(plain.file_names)


def test_a_file_that_is_cut_says_so(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"annotations.json: is not valid JSON \(Input data was truncated\)"):
        load(path)


def test_images_that_are_missing_are_counted_and_can_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = load(path)
    gone = sorted((tmp_path / "images").iterdir())[:12]
    for image in gone:
        image.unlink()
    with pytest.raises(UserError) as error:
        load(path)
    assert "misses 12 of the images that" in str(error.value)
    assert str(error.value).count("(id ") == 10
    data = load(path, skip_missing_images=True)
    assert data.missing == 12
    assert data.left_out() == [f"{path}: 12 images that are missing left out"]
    kept = [i for i, name in enumerate(whole.file_names) if name not in {image.name for image in gone}]
    same(data, CocoData(**vars(whole.subset(np.array(kept))) | {"missing": 12, "hash": data.hash}))
    assert data.hash != whole.hash
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    with pytest.raises(UserError, match="none of the 40 images"):
        load(path, skip_missing_images=True)


def test_the_compact_form_is_equal_mapped_and_read_once(tmp_path: Path, are_large, monkeypatch) -> None:
    path = write(tmp_path)
    plain = read_annotations(path, tmp_path / "images", skip_empty_boxes=False, skip_missing_images=False)
    first = load(path)
    monkeypatch.setattr("detector.coco.read_annotations", lambda *_, **__: pytest.fail("read again"))
    again = load(path)
    same(first, CocoData(annotations=path, folder=tmp_path / "images", **plain._asdict()))
    same(again, first)
    assert isinstance(again.boxes, np.memmap)
    assert not again.boxes.flags.writeable
    assert again.subset(np.array([3, 1])).file_names == [again.file_names[3], again.file_names[1]]


def test_a_file_that_changes_is_read_anew_and_what_it_was_is_dropped(tmp_path: Path, are_large) -> None:
    path = write(tmp_path)
    first = load(path)
    before = kept()
    path.write_text(path.read_text().replace('"iscrowd": 1', '"iscrowd": 0'))
    os.utime(path, ns=(1, 1))  # earlier than before, as from an archive
    second = load(path)
    assert first.crowd.any()  # still mapped
    assert not second.crowd.any()
    assert len(kept()) == len(before)
    assert kept() != before
    # Other settings are other arrays, beside.
    assert load(path, skip_missing_images=True).missing == 0
    same(load(path), second)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_detector_trains_and_is_tested_on_mapped_data(tiny_coco: Path, are_large, monkeypatch, workers: int) -> None:
    smoke = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
    start, end = smoke.index("data:"), smoke.index("detector:")
    config = smoke[:start] + "data: {source: coco}\n" + smoke[end:].replace("steps: 20", "steps: 3")
    (tiny_coco / "c.yaml").write_text(config.replace("loader_workers: 0", f"loader_workers: {workers}"))
    output = tiny_coco / "out"
    options = ["--config", str(tiny_coco / "c.yaml"), "--data", str(tiny_coco)]
    assert train_final([*options, "--output", str(output)]) == 0
    assert json.loads((output / "metrics.json").read_text())["images"] == 3
    assert len(kept()) >= 2


def _load(path: Path) -> str:
    compact_at = pytest.MonkeyPatch()
    compact_at.setattr("detector.coco.LARGE_BYTES", 1)
    data = load(path)
    return f"{data.hash} {data.boxes.sum()}"


def test_processes_that_build_at_once_get_the_same(tmp_path: Path) -> None:
    path = write(tmp_path)
    with ProcessPoolExecutor(4) as pool:
        found = list(pool.map(_load, [path] * 8))
    assert len(set(found)) == 1


def test_a_damaged_compact_form_is_made_anew(tmp_path: Path, are_large) -> None:
    path = write(tmp_path)
    names = kept()
    first = load(path)
    expected = first.boxes.tolist()
    (made,) = kept() - names
    for damage in (lambda file: file.write_bytes(b""), lambda file: file.unlink()):
        damage(cache_folder() / made / "boxes.npy")
        assert load(path).boxes.tolist() == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"class 1", b"class \xff", "another form than COCO's"),
        (b'"license": 1', b'"license": ' + b"1" * 5000, None),
        (b'"iscrowd": 0', b'"iscrowd": ' + b"1" * 5000, "another form than COCO's"),
        (b'"height": 80', b'"height": 0', "has a height or width of no pixels"),
        (b'"width": 100', b'"width": -4', "has a height or width of no pixels"),
        (b'"category_id"', b'"kind"', "a record lacks 'category_id' (annotation 0)"),
        (b'"image_id": ', b'"image_id": 1.5, "x": ', "(annotation 0: Expected `int`, got `float`"),
    ],
)
def test_whatever_is_in_a_file_is_read_or_refused_in_words(tmp_path: Path, old: bytes, new: bytes, message) -> None:
    path = write(tmp_path)
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    if message is None:
        assert len(load(path)) == 40
    else:
        with pytest.raises(UserError) as error:
            load(path)
        assert message in str(error.value)
        assert str(path) in str(error.value)


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path, are_large) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace('"category_id"', '"kind"'))
    before = kept()
    for _ in range(2):
        with pytest.raises(UserError, match="a record lacks 'category_id'"):
            load(path)
    assert kept() == before


@pytest.mark.parametrize("names", [["a"], ["", "ö/ä.jpg", "", "x" * 300], []])
def test_names_come_back(names: list[str]) -> None:
    packed = Names.of(names)
    assert list(packed) == names
    assert len(packed) == len(names)
    assert packed[:] == names
    if names:
        assert packed[-1] == names[-1]
        with pytest.raises(IndexError):
            packed[len(names)]
