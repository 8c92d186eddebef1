import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detector.coco import CocoData, find_split, load_coco, pictures
from detector.config import SplitFiles
from detector.errors import UserError
from detector.loader import DetectionDataset, Loader, fit, fit_canvas, flipped
from detector.sampling import Draw


def load(root: Path) -> CocoData:
    return load_coco(*find_split(root, "train"))


def test_reads_boxes_labels_and_crowds(tiny_coco: Path) -> None:
    data = load(tiny_coco)
    assert data.category_names == ("dog", "cat")  # by id: 3, 7
    assert data.image_ids.tolist() == [1, 2, 5]
    boxes, labels = data.objects(0)
    assert boxes.tolist() == [[2, 3, 12, 15]]  # the crowd region does not train
    assert labels.tolist() == [1]
    assert data.objects(1)[0].tolist() == [[20, 8, 36, 17.5]]
    assert data.objects(2)[0].shape == (0, 4)
    assert data.crowd.tolist() == [False, True, False]


def test_subset_keeps_each_image_s_objects(tiny_coco: Path) -> None:
    data = load(tiny_coco)
    part = data.subset(np.array([2, 1]))
    assert part.image_ids.tolist() == [5, 2]
    assert part.objects(1)[0].tolist() == data.objects(1)[0].tolist()
    assert len(part.objects(0)[0]) == 0


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def as_corners(document: dict[str, Any]) -> None:
    for annotation in document["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][0].update(bbox=[2, 3, 0, 12]), "annotation 1: bbox [2, 3, 0, 12] has no area"),
        (lambda d: d["annotations"][1].update(bbox=[90, 3, 4, 4]), "annotation 2: bbox [90, 3, 4, 4] lies outside"),
        (lambda d: d["annotations"][1].update(bbox=[1, 2, 3]), "annotation 2: bbox [1, 2, 3] must be four numbers"),
        (lambda d: d["annotations"][1].update(bbox=[1, 2, float("nan"), 4]), "not valid JSON"),
        (lambda d: d["annotations"][1].update(category_id=9), "annotation 2: category 9 is not listed"),
        (lambda d: d["annotations"][1].update(image_id=9), "annotation 2: image 9 is not listed"),
        (lambda d: d["annotations"][1].pop("bbox"), "a record lacks 'bbox'"),
        (lambda d: d["images"][1].update(id="img_2"), "another form than COCO's"),
        (lambda d: d["images"][1].update(height="tall"), "another form than COCO's"),
        (lambda d: d["images"].append(d["images"][0]), "two image records have the same id"),
        (lambda d: d.pop("categories"), "has no list 'categories'"),
        (lambda d: d["images"].clear(), "lists no images"),
        (lambda d: d["images"][1].update(file_name="no.png"), "misses 1 of the images that"),
        (lambda d: d["images"][1].update(file_name="no.png"), "lists: no.png (id 2); add them"),
        (lambda d: d["annotations"].append(7), "another form than COCO's"),
        (lambda d: d["annotations"][0].update(image_id="1"), "another form than COCO's"),
        (lambda d: d["annotations"][0].update(image_id=10**30), "another form than COCO's"),
        (lambda d: d.update(images={}), "has no list 'images'"),
        (as_corners, "boxes look like corners [x1, y1, x2, y2], such as [20, 8, 36, 17.5] of annotation 2 in an image"),
    ],
)
def test_broken_annotations_name_file_and_id(tiny_coco: Path, change, message: str) -> None:
    edit(tiny_coco, change)
    with pytest.raises(UserError) as error:
        load(tiny_coco)
    assert message in str(error.value)
    assert "instances_train.json" in str(error.value)


def test_boxes_that_overshoot_the_image_are_clipped(tiny_coco: Path) -> None:
    edit(tiny_coco, lambda d: d["annotations"][0].update(bbox=[-0.5, 30, 10, 10.4]))
    assert load(tiny_coco).objects(0)[0].tolist() == [[0, 30, 9.5, 40]]


def test_boxes_without_area_can_be_left_out_and_are_counted(tiny_coco: Path) -> None:
    edit(tiny_coco, lambda d: d["annotations"][0].update(bbox=[2, 3, 5, 0]))
    data = load_coco(*find_split(tiny_coco, "train"), skip_empty_boxes=True)
    assert data.skipped == 1
    assert len(data.objects(0)[0]) == 0
    assert len(data.objects(1)[0]) == 1


def test_broken_json_missing_folders_and_truncated_images_are_named(tiny_coco: Path, tmp_path: Path) -> None:
    image = tiny_coco / "images" / "2.png"
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(UserError, match=r"2\.png \(image 2\): cannot be decoded"):
        load(tiny_coco).image(1)
    (tiny_coco / "annotations" / "instances_train.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load(tiny_coco)
    with pytest.raises(UserError, match="no such folder"):
        find_split(tmp_path / "absent", "train")
    with pytest.raises(UserError, match=r"instances_test\.json or .*instances_test2017\.json"):
        find_split(tiny_coco, "test")


def test_an_image_of_another_size_than_listed_is_refused(tiny_coco: Path) -> None:
    edit(tiny_coco, lambda d: d["images"][0].update(height=41))
    with pytest.raises(UserError, match=r"is 40x48 pixels \(HxW\), but .* says 41x48"):
        load(tiny_coco).image(0)


@pytest.mark.parametrize(("height", "width", "is_turned"), [(48, 40, True), (40, 48, False)])
def test_a_picture_that_exif_turns_is_upright_unless_it_is_listed_as_stored(
    tiny_coco: Path, height: int, width: int, is_turned: bool
) -> None:
    stored = np.zeros((40, 48, 3), np.uint8)
    stored[:5] = 255  # a bright edge, at the top as stored and at the right when turned
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tiny_coco / "images" / "1.png", exif=exif)
    edit(tiny_coco, lambda d: (d["images"][0].update(height=height, width=width), d["annotations"].clear()))
    image = load(tiny_coco).image(0)
    bright = image[0].float().mean(0) if is_turned else image[0].float().mean(1).flip(0)
    assert (bright > 200).tolist() == [False] * (len(bright) - 5) + [True] * 5


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!!!", b"Exif\0\0II*\0"])
def test_damaged_exif_data_says_nothing_about_the_picture(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.jpg", exif=exif, dpi=(72, 72))
    data, unreadable = pictures([tmp_path / "a.jpg"], ("a",))
    assert unreadable == []
    assert data.image(0).shape == (3, 20, 30)


def test_16_bits_are_scaled_and_unknown_ranges_refused(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 20).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "b.tif")
    data, unreadable = pictures([tmp_path / "a.png", tmp_path / "b.tif"], ("a",))
    assert data.image(0)[0, 0].tolist() == (ramp[0] >> 8).tolist()
    assert len(unreadable) == 1
    assert "no known range" in unreadable[0]


def test_categories_of_one_name_are_told_apart(tiny_coco: Path) -> None:
    edit(tiny_coco, lambda d: d["categories"][0].update(name="dog"))
    assert load(tiny_coco).category_names == ("dog (3)", "dog (7)")


def test_small_sets_are_decoded_once_and_stay_the_same(tiny_coco: Path) -> None:
    dataset = DetectionDataset(load(tiny_coco), lambda hw, side: (side or 30, 36))
    first = dataset[Draw(0, True)]
    for path in (tiny_coco / "images").iterdir():
        path.unlink()
    assert dataset[Draw(0, True)].image.equal(first.image)
    assert dataset[Draw(0)].image.equal(first.image.flip(-1))
    with pytest.raises(UserError):
        dataset[Draw(0, False, 20)]
    with pytest.raises(UserError):
        dataset[Draw(1)]


def test_pictures_are_listed_upright_and_damaged_ones_left_out(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.effect_noise((90, 60), 50).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    data, unreadable = pictures([tmp_path / "turned.jpg", tmp_path / "cut.jpg"], ("a",))
    assert data.image_hw.tolist() == [[30, 20]]
    assert data.image(0).shape == (3, 30, 20)
    assert len(unreadable) == 1
    assert "truncated" in unreadable[0]


def test_coco_s_own_layout_and_named_files_are_found(tiny_coco: Path) -> None:
    (tiny_coco / "annotations" / "instances_train.json").rename(tiny_coco / "annotations" / "instances_train2017.json")
    (tiny_coco / "train2017").mkdir()
    assert find_split(tiny_coco, "train")[1] == tiny_coco / "train2017"
    files = SplitFiles(annotations=Path("annotations/instances_val.json"), images=Path("images"))
    assert find_split(tiny_coco, files)[0] == tiny_coco / "annotations" / "instances_val.json"


def test_resize_keeps_aspect_and_limits() -> None:
    assert fit((480, 640), None, short_side=800, long_side=1333) == (800, 1067)
    assert fit((480, 1440), None, short_side=800, long_side=1333) == (444, 1333)
    assert fit((480, 640), 240, short_side=800, long_side=1333) == (240, 320)
    assert fit((480, 1440), 1400, short_side=800, long_side=1600) == (533, 1600)
    assert fit_canvas((480, 640), None, canvas_hw=(192, 256)) == (192, 256)
    assert fit_canvas((100, 400), None, canvas_hw=(64, 64)) == (16, 64)


def test_batches_hold_scaled_boxes_and_padded_images(tiny_coco: Path) -> None:
    dataset = DetectionDataset(load(tiny_coco), lambda hw, _: (hw[0] * 2, hw[1] * 2))
    (batch,) = Loader(dataset, multiple=64).ordered(3)
    assert batch.images.shape == (3, 3, 128, 128)
    assert batch.image_hw.tolist() == [[80, 96]] * 3
    assert batch.targets.boxes[0, 0].tolist() == [4, 6, 24, 30]
    assert batch.targets.labels.tolist() == [[1], [0], [-1]]
    assert batch.images[:, :, 80:].sum() == 0


def test_flip_mirrors_image_and_boxes_and_twice_is_nothing(tiny_coco: Path) -> None:
    sample = DetectionDataset(load(tiny_coco), lambda hw, _: hw)[Draw(1)]
    image, boxes = flipped(sample.image, sample.boxes)
    assert boxes.tolist() == [[12, 8, 28, 17.5]]
    assert image[:, :, 0].equal(sample.image[:, :, -1])
    again, boxes = flipped(image, boxes)
    assert again.equal(sample.image)
    assert boxes.equal(sample.boxes)


def test_loader_processes_give_the_same_batches_and_name_a_damaged_image(tiny_coco: Path) -> None:
    dataset = DetectionDataset(load(tiny_coco), lambda hw, _: hw)
    alone, shared = (list(Loader(dataset, 16, workers=workers).ordered(2)) for workers in (0, 2))
    assert len(alone) == len(shared) == 2
    for ours, theirs in zip(shared, alone, strict=True):
        assert ours.images.equal(theirs.images)
        assert ours.targets.boxes.equal(theirs.targets.boxes)
    (tiny_coco / "images" / "5.png").write_bytes(b"no picture")
    damaged = DetectionDataset(load(tiny_coco), lambda hw, _: hw)
    with pytest.raises(UserError, match=r"5\.png \(image 5\): cannot be decoded") as error:
        list(Loader(damaged, 16, workers=2).ordered(2))
    assert "\n" not in str(error.value)


def test_shuffled_batches_depend_on_the_seed_only(tiny_coco: Path) -> None:
    loader = Loader(DetectionDataset(load(tiny_coco), lambda hw, _: hw), multiple=16)
    first, second, other = ([b.images for b in loader.shuffled(4, 2, seed, flip=True)] for seed in (1, 1, 2))
    assert len(first) == 4
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert not all(a.equal(b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("area", [-1, 1e300, "9", None, [4], True])
def test_an_area_that_is_none_is_refused_with_its_annotation(tiny_coco: Path, area: object) -> None:
    path = tiny_coco / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["annotations"][1]["area"] = area
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"annotation 2: area .* must be a number of pixels"):
        load_coco(path, tiny_coco / "images")


@pytest.mark.parametrize("name", ["", ".", "x" * 10_000, "gone.png", "a\0b"])
def test_an_image_that_is_no_file_is_missing(tiny_coco: Path, name: str) -> None:
    path = tiny_coco / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["images"][1]["file_name"] = name
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"misses 1 of the images that .*\(id 2\)"):
        load_coco(path, tiny_coco / "images")
