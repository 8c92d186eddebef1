"""Marginals of what is drawn: a mere permutation of the images would pass every weaker test."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detector.coco import CocoData
from detector.errors import UserError
from detector.sampling import draw, image_weights, portrait, single_class_share


def data_of(images: list[list[int]], num_classes: int, crowd: list[list[bool]] | None = None) -> CocoData:
    """A split whose image i holds boxes of the classes images[i]."""
    counts = [len(labels) for labels in images]
    labels = np.array([label for image in images for label in image], np.int64)
    flags = [flag for image in crowd for flag in image] if crowd else [False] * len(labels)
    return CocoData(
        annotations=Path("a.json"),
        folder=Path(),
        image_ids=np.arange(len(images)),
        image_hw=np.full((len(images), 2), 32),
        file_names=[],
        start=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        boxes=np.zeros((len(labels), 4), np.float32),
        labels=labels,
        crowd=np.array(flags, bool),
        area=np.ones(len(labels), np.float32),
        category_ids=tuple(range(num_classes)),
        category_names=tuple("abcdefgh"[:num_classes]),
        hash="",
    )


# Class a in 8 images (10 boxes), b in 2 (2 boxes), c in 1 (4 boxes); image 9 is empty.
IMAGES = [[0], [0, 0, 0], [0], [0], [0], [0], [0], [0, 1], [1, 2, 2, 2, 2], []]
DATA = data_of(IMAGES, 3)


def test_class_aware_weights_by_hand() -> None:
    expected = [1 / 8] * 7 + [1 / 8 + 1 / 2, 1 / 2 + 1, 0]
    assert image_weights(DATA, "class_aware", 0.1).tolist() == pytest.approx(expected)


def test_class_diversity_weights_by_hand() -> None:
    shares = {0: 10 / 16, 1: 2 / 16, 2: 4 / 16}
    expected = [math.log(1.1) * shares[0]] * 7 + [math.log(2.1) * 12 / 16, math.log(2.1) * 6 / 16, 0]
    assert image_weights(DATA, "class_diversity", 0.1).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("sampling", ["class_aware", "class_diversity"])
def test_images_are_drawn_in_proportion_to_their_weights(sampling: str) -> None:
    weights = image_weights(DATA, sampling, 0.1)
    draws = draw(weights, len(DATA), 5000, 8, seed=3, flip=False)
    share = np.bincount(draws.image.ravel(), minlength=10) / draws.image.size
    expected = weights / weights.sum()
    error = np.sqrt(expected * (1 - expected) / draws.image.size)
    assert (np.abs(share - expected) <= 4.5 * error).all()
    assert share[9] == 0
    assert share[:7].sum() == pytest.approx(single_class_share(DATA, weights), abs=0.01)


def test_class_aware_draws_every_class_about_as_often_where_images_hold_one_class() -> None:
    """The published aim: 90 images of class a, 9 of b, 1 of c, and each class a third of the draws."""
    data = data_of([[0]] * 90 + [[1]] * 9 + [[2]], 3)
    draws = draw(image_weights(data, "class_aware", 0.1), 100, 3000, 4, seed=0, flip=False)
    of_class = np.array([0] * 90 + [1] * 9 + [2])[draws.image.ravel()]
    assert (np.bincount(of_class) / draws.image.size).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_crowd_regions_are_no_objects() -> None:
    crowd = [[False] * len(image) for image in IMAGES]
    crowd[8] = [True] * 5
    data = data_of(IMAGES, 3, crowd)
    for sampling in ("class_aware", "class_diversity"):
        assert image_weights(data, sampling, 0.1)[8] == 0


def test_epsilon_decides_whether_single_class_images_are_drawn() -> None:
    shares = [single_class_share(DATA, image_weights(DATA, "class_diversity", eps)) for eps in (0.0, 0.1, 1.0)]
    assert shares[0] == 0
    assert 0 < shares[1] < shares[2]


def test_one_class_and_no_epsilon_leaves_nothing_to_draw() -> None:
    data = data_of([[0], [0, 0], []], 1)
    with pytest.raises(UserError, match=r"a\.json: .* raise training\.diversity_epsilon"):
        image_weights(data, "class_diversity", 0.0)
    assert image_weights(data, "class_diversity", 0.1)[:2].tolist() == pytest.approx([math.log(1.1)] * 2)
    assert image_weights(data, "class_aware", 0.1).tolist() == pytest.approx([0.5, 0.5, 0])


def test_uniform_takes_every_image_once_an_epoch_in_new_orders() -> None:
    draws = draw(None, 12, 6, 4, seed=1, flip=True).image.reshape(2, 12)
    assert all(sorted(epoch) == list(range(12)) for epoch in draws.tolist())
    assert draws[0].tolist() != draws[1].tolist()


@pytest.mark.parametrize("weights", [None, np.array([1.0, 2, 3, 0, 4])])
def test_a_run_that_goes_on_and_processes_that_share_see_what_one_run_sees(weights) -> None:
    options = {"flip": True, "short_sides": (40, 60), "is_portrait": np.array([True, False, True, False, False])}
    draws = draw(weights, 5, 20, 4, seed=7, **options)
    whole = list(draws.batches())
    assert list(draw(weights, 5, 20, 4, seed=7, **options).batches(start=13)) == whole[13:]
    shares = [list(draws.batches(rank=rank, world_size=2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert sorted(shares[0][step] + shares[1][step]) == sorted(batch)
        assert len(shares[0][step]) == len(shares[1][step]) == 2
    assert list(draw(weights, 5, 20, 4, seed=8, **options).batches()) != whole


def test_orientation_groups_keep_the_marginals_and_mix_no_more_than_they_must() -> None:
    is_portrait = np.arange(50) % 3 == 0
    plain = draw(None, 50, 128, 8, seed=0, flip=False)
    grouped = draw(None, 50, 128, 8, seed=0, flip=False, is_portrait=is_portrait)
    assert sorted(grouped.image.ravel()) == sorted(plain.image.ravel())
    mixed = [len(set(is_portrait[batch])) == 2 for batch in grouped.image]
    assert sum(mixed) <= 2  # one for each window of 64
    assert sum(len(set(is_portrait[batch])) == 2 for batch in plain.image) > 100
    first_of_batches = is_portrait[grouped.image[:64, 0]]
    assert np.diff(first_of_batches.astype(int)).any(), "all wide batches first would be a curriculum"
    assert (np.diff(first_of_batches.astype(int)) != 0).sum() > 5


def test_multi_scale_draws_the_whole_range() -> None:
    sizes = draw(None, 4, 400, 2, seed=0, flip=False, short_sides=(40, 44)).short_side
    assert sorted(set(sizes.tolist())) == [40, 41, 42, 43, 44]


def test_half_of_the_images_are_mirrored() -> None:
    assert draw(None, 4, 1000, 4, seed=0, flip=True).is_flipped.mean() == pytest.approx(0.5, abs=0.04)
    assert not draw(None, 4, 10, 4, seed=0, flip=False).is_flipped.any()


def test_portraits_are_higher_than_wide() -> None:
    assert portrait(np.array([[3, 4], [4, 3], [4, 4]])).tolist() == [False, True, False]
    assert portrait(replace(DATA, image_hw=np.array([[2, 1]])).image_hw).tolist() == [True]
