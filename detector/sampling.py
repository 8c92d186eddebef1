"""Which images train, how they are drawn, and how draws become batches: all of it follows from the seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import RandomSampler

from detector.choices import Sampling
from detector.coco import CocoData
from detector.config import TrainingConfig
from detector.errors import UserError

WINDOW_STEPS = 64  # within which images change places so that batches hold one orientation


class Draw(NamedTuple):
    """One image of a batch: which, whether mirrored, and the short side it is brought to (None: the usual one)."""

    image: int
    is_flipped: bool = False
    short_side: int | None = None


class ClassPresence(NamedTuple):
    """Which classes an image holds, as pairs without repetition: image[j] holds label[j]."""

    image: NDArray[np.int64]
    label: NDArray[np.int64]

    @classmethod
    def of(cls, data: CocoData) -> "ClassPresence":
        """Crowd regions do not count: they are no objects to learn from."""
        image_of = np.repeat(np.arange(len(data)), np.diff(data.start))[~data.crowd]
        # Images come in order, which the stable sort makes use of: a quarter of the time.
        pairs = np.sort(image_of * data.num_classes + data.labels[~data.crowd], kind="stable")
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # np.unique hashes: 14 s for ten million, this 0.3
        return cls(pairs // data.num_classes, pairs % data.num_classes)


def image_weights(data: CocoData, sampling: Sampling, epsilon: float) -> NDArray[np.float64]:
    """How often each image is drawn, relative to the others: (I,). Raises UserError if no image would be.

    class_aware: the sum over the image's classes of 1 / n_c, n_c being the images that hold class c (Shen et al. 2016,
    arXiv:1512.05830; PaddleDetection's reading). class_diversity: ln(C_i + epsilon) * sum_c P_c H_ic, with C_i the
    classes in image i, P_c the share of class c among all boxes, and H_ic = 1 if image i holds class c (the
    Objects365 winner of 2019; the source prints the logarithm without brackets, and this is the only reading that is
    defined for images without boxes, which are never drawn). With epsilon near 0 single-class images are not drawn
    either; a negative weight counts as 0.
    """
    if sampling == "uniform":
        return np.ones(len(data))
    image, label = ClassPresence.of(data)
    if sampling == "class_aware":
        images_with = np.bincount(label, minlength=data.num_classes)
        weights = np.bincount(image, 1.0 / images_with[label], minlength=len(data)).astype(np.float64)
    else:
        boxes_of = np.bincount(data.labels[~data.crowd], minlength=data.num_classes)
        shares = np.bincount(image, boxes_of[label] / max(1, boxes_of.sum()), minlength=len(data))
        diversity = np.bincount(image, minlength=len(data))
        weights = np.where(diversity > 0, np.log(np.maximum(diversity + epsilon, 1e-300)) * shares, 0.0).clip(min=0)
    if not weights.any():
        raise UserError(
            f"{data.annotations}: training.sampling {sampling} gives every image the weight 0; "
            "raise training.diversity_epsilon, or set training.sampling to uniform"
        )
    return weights


def single_class_share(data: CocoData, weights: NDArray[np.float64]) -> float:
    """The share of draws that goes to images with objects of one class only."""
    diversity = np.bincount(ClassPresence.of(data).image, minlength=len(data))
    return float(weights[diversity == 1].sum() / weights.sum())


@dataclass(frozen=True)
class Draws:
    """All draws of a run: image, is_flipped (S, B) and, with multi-scale training, short_side (S,), for S steps of B
    images.

    Known as a whole before the first step, so a run that goes on at step s, or one of W processes that takes every
    W-th image of each batch, sees what a single uninterrupted run sees.
    """

    image: NDArray[np.int64]
    is_flipped: NDArray[np.bool_]
    short_side: NDArray[np.int64] | None

    def batches(self, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[list[Draw]]:
        """The batches of process `rank` from step `start` on."""
        for step in range(start, len(self.image)):
            share = slice(rank, None, world_size)
            pairs = zip(self.image[step, share].tolist(), self.is_flipped[step, share].tolist(), strict=True)
            short_side = None if self.short_side is None else int(self.short_side[step])
            yield [Draw(image, is_flipped, short_side) for image, is_flipped in pairs]


def draws_of(data: CocoData, training: TrainingConfig) -> Draws:
    """The draws of a configuration's training. Raises UserError if its sampling leaves nothing to draw."""
    weights = None
    if training.sampling != "uniform":
        weights = image_weights(data, training.sampling, training.diversity_epsilon)
    return draw(
        weights,
        len(data),
        training.steps,
        training.batch_size,
        training.seed,
        flip=training.flip,
        short_sides=training.multi_scale,
        is_portrait=portrait(data.image_hw) if training.group_orientations else None,
    )


def draw(
    weights: NDArray[np.float64] | None,
    count: int,
    steps: int,
    batch_size: int,
    seed: int,
    *,
    flip: bool,
    short_sides: tuple[int, int] | None = None,
    is_portrait: NDArray[np.bool_] | None = None,
) -> Draws:
    """Draw for `steps` batches from `count` images.

    weights (count,): drawn with replacement in these proportions; None takes every image once an epoch, in a new
    order each time. Half of the images are mirrored if flip. short_sides (least, most): a size for each step, so that
    the images of a batch, and of all processes, have one size and little padding. is_portrait (count,): batches of
    one orientation, by exchanging images within windows of steps; what is drawn stays the same.
    """
    generator = torch.Generator().manual_seed(seed)
    total = steps * batch_size
    flips = (torch.rand(total, generator=generator) < 0.5).numpy() & flip
    if weights is None:
        order = np.fromiter(RandomSampler(range(count), num_samples=total, generator=generator), np.int64, total)
    else:
        cumulative = weights.cumsum()
        uniform = torch.rand(total, generator=generator, dtype=torch.float64).numpy()
        # The last image of positive weight, not the last image: rounding must not draw what cannot be drawn.
        last = int(np.flatnonzero(weights)[-1])
        order = np.searchsorted(cumulative, uniform * cumulative[-1], side="right").clip(max=last)
    sizes = None
    if short_sides is not None:
        sizes = torch.randint(short_sides[0], short_sides[1] + 1, (steps,), generator=generator).numpy()
    if is_portrait is not None:
        order = _grouped(order, is_portrait, steps, batch_size, generator)
    return Draws(order.reshape(steps, batch_size), flips.reshape(steps, batch_size), sizes)


def _grouped(
    order: NDArray[np.int64], is_portrait: NDArray[np.bool_], steps: int, batch_size: int, generator: torch.Generator
) -> NDArray[np.int64]:
    """Within each window: one orientation after the other, cut into batches, which are then shuffled."""
    windows: list[NDArray[np.int64]] = []
    for start in range(0, steps, WINDOW_STEPS):
        window = order[start * batch_size : (start + WINDOW_STEPS) * batch_size]
        batches = window[np.argsort(is_portrait[window], kind="stable")].reshape(-1, batch_size)
        windows.append(batches[torch.randperm(len(batches), generator=generator).numpy()].ravel())
    return np.concatenate(windows)


def portrait(image_hw: Sequence[Sequence[int]] | NDArray[np.int64]) -> NDArray[np.bool_]:
    """(I, 2) sizes -> (I,), True for images that are higher than wide."""
    height, width = np.asarray(image_hw).T
    is_higher: NDArray[np.bool_] = height > width
    return is_higher
