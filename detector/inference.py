"""Detections of a whole split: each image seen at one size or several, and perhaps mirrored."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.cascade_rcnn import CascadeRcnn
from detector.coco import CocoData
from detector.config import TestingConfig, TrainingConfig
from detector.loader import Batch, DetectionDataset, Loader, fit
from detector.processes import Processes
from detector.suppression import select
from detector.targets import Detections, Proposals

OnImages = Callable[[int, int], None]  # images done, images in all


class View(NamedTuple):
    """Every image of a split once, in order; mirrored ones give boxes that are mirrored back."""

    batches: Iterator[Batch]
    is_flipped: bool = False


def views_of(data: CocoData, training: TrainingConfig, testing: TestingConfig, multiple: int) -> list[View]:
    """The views that a configuration tests: the scales of testing, else the size of training, each mirrored if flip."""
    scales = testing.scales or (training.short_side,)
    long_side = testing.long_side if testing.scales else training.long_side
    flips = (False, True) if testing.flip else (False,)
    workers = -(-training.loader_workers // (len(scales) * len(flips)))  # in all about as many as in training
    views = []
    for scale in scales:
        dataset = DetectionDataset(data, partial(fit, short_side=scale, long_side=long_side))
        loader = Loader(dataset, multiple, workers=workers)
        for is_flipped in flips:
            views.append(View(loader.ordered(training.batch_size, is_flipped=is_flipped), is_flipped))
    return views


def detect_together(
    model: CascadeRcnn,
    data: CocoData,
    training: TrainingConfig,
    testing: TestingConfig,
    device: torch.device,
    on_images: OnImages | None = None,
) -> list[Detections]:
    """The detections of every image, each process of a distributed run having tested its share; on the first one.

    The others get an empty list. Batches are those of a single process, so that paddings and results are the same.
    """
    processes = Processes.here()
    processes.align_buffers(model)
    of_batch = np.arange(len(data)) // training.batch_size
    shares = [np.flatnonzero(of_batch % processes.count == rank) for rank in range(processes.count)]
    own = data.subset(shares[processes.rank])

    def on_own_images(done: int, _count: int) -> None:
        if on_images is not None:  # the others are about as far
            on_images(min(done * processes.count, len(data)), len(data))

    found: list[Detections] = []
    if len(own):
        views = views_of(own, training, testing, model.padding_multiple)
        found = detect_split(model, views, own.image_hw, device, on_own_images)
    gathered = processes.gather(found)
    if not processes.is_first:
        return []
    together = [detections for of_process in gathered for detections in of_process]
    return [together[place] for place in np.concatenate(shares).argsort()]


def detect_split(
    model: CascadeRcnn,
    views: Sequence[View],
    original_hw: NDArray[np.int64],
    device: torch.device,
    on_images: OnImages | None = None,
) -> list[Detections]:
    """The detections of every image, in pixels of the original images, whose sizes are original_hw (I, 2).

    The regions of all views of an image are merged before duplicates are suppressed.
    """
    model.eval()
    found: list[Detections] = []
    for batches in zip(*(view.batches for view in views), strict=True):
        original = torch.tensor(original_hw[len(found) : len(found) + len(batches[0].image_hw)]).to(device)
        seen = [_look(model, batch.to(device), view, original) for batch, view in zip(batches, views, strict=True)]
        boxes = torch.cat([regions.boxes for regions, _ in seen], dim=1)
        valid = torch.cat([regions.valid for regions, _ in seen], dim=1)
        scores = torch.cat([scores for _, scores in seen], dim=1)
        chosen = select(Proposals(boxes, valid), scores, model.heads.cascade.config, model.heads.testing)
        found += [Detections(*(part.cpu() for part in detections)) for detections in chosen]
        if on_images is not None:
            on_images(len(found), len(original_hw))
    return found


def _look(model: CascadeRcnn, batch: Batch, view: View, original_hw: Tensor) -> tuple[Proposals, Tensor]:
    """Regions and scores of one view of a batch, boxes in pixels of the original images."""
    regions, scores = model.score(batch.images, batch.image_hw)
    boxes = regions.boxes.float()
    if view.is_flipped:
        width = batch.image_hw[:, 1, None].to(boxes)
        boxes = torch.stack((width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]), dim=-1)
    return Proposals(boxes * scale_to(batch.image_hw, original_hw)[:, None], regions.valid), scores


def scale_to(image_hw: Tensor, original_hw: Tensor) -> Tensor:
    """(B, 2) and (B, 2) sizes -> (B, 4), what brings xyxy boxes from the first to the second."""
    return (original_hw / image_hw).flip(1).repeat(1, 2).float()
