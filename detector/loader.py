"""Images and ground truth to padded batches."""

import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import resize

from detector.coco import CocoData
from detector.config import TrainingConfig
from detector.errors import UserError
from detector.sampling import Draw, draw
from detector.targets import Targets


class Batch(NamedTuple):
    """images (B, 3, H, W), padded; image_hw (B, 2) sizes without padding; the objects.

    Images are uint8 until .to(device) makes them what CascadeRcnn.forward takes.
    """

    images: Tensor
    image_hw: Tensor
    targets: Targets

    def to(self, device: torch.device) -> "Batch":
        images = self.images.to(device, non_blocking=True).float() / 255
        return Batch(images, self.image_hw.to(device, non_blocking=True), self.targets.to(device))

    def split(self, parts: int) -> list["Batch"]:
        """Of equally many images each; padded as before."""
        size = len(self.images) // parts
        spans = [slice(start, start + size) for start in range(0, size * parts, size)]
        boxes, labels = self.targets
        return [Batch(self.images[s], self.image_hw[s], Targets(boxes[s], labels[s])) for s in spans]


class Sample(NamedTuple):
    """One image (3, H, W) uint8 with its boxes (N, 4) and labels (N,)."""

    image: Tensor
    boxes: Tensor
    labels: Tensor


Size = tuple[int, int]  # height and width
SizeOf = Callable[[Size, int | None], Size]  # an image's size and the short side drawn for it -> its new size


KEPT_BYTES = 256 * 2**20


class DetectionDataset(Dataset[Sample]):
    """The images of a split, resized by `size_of`, as draws ask for them.

    Small sets (KEPT_BYTES, were all images as large as the first) are decoded once and kept.
    """

    def __init__(self, data: CocoData, size_of: SizeOf) -> None:
        self.data = data
        self.size_of = size_of
        height, width = size_of((int(data.image_hw[0, 0]), int(data.image_hw[0, 1])), None)
        self.is_small = 3 * height * width * len(data) <= KEPT_BYTES
        self.kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, draw: Draw) -> Sample:
        boxes, labels = self.data.objects(draw.image)
        height, width = (int(side) for side in self.data.image_hw[draw.image])
        size_hw = self.size_of((height, width), draw.short_side)
        scaled = torch.from_numpy(boxes) * torch.tensor([size_hw[1] / width, size_hw[0] / height] * 2)
        image = self.kept.get(draw.image)
        if image is None or draw.short_side is not None:
            image = resized(self.data.image(draw.image), size_hw)
            if self.is_small and draw.short_side is None:
                self.kept[draw.image] = image
        if draw.is_flipped:
            image, scaled = flipped(image, scaled)
        return Sample(image, scaled, torch.from_numpy(labels))


def fit(image_hw: Size, drawn: int | None, *, short_side: int, long_side: int) -> Size:
    """The short side becomes `drawn`, short_side when None, unless the long side would exceed long_side."""
    return _scaled(image_hw, min((drawn or short_side) / min(image_hw), long_side / max(image_hw)))


def fit_canvas(image_hw: Size, _drawn: int | None, *, canvas_hw: Size) -> Size:
    """The largest size of the same aspect that lies within canvas_hw."""
    return _scaled(image_hw, min(canvas_hw[0] / image_hw[0], canvas_hw[1] / image_hw[1]))


def _scaled(image_hw: Size, scale: float) -> Size:
    return max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))


def flipped(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror left and right."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width = image.shape[-1]
    return image.flip(-1), torch.stack((width - x2, y1, width - x1, y2), dim=-1)


def collate(samples: list[Sample], multiple: int, canvas_hw: Size | None = None) -> Batch:
    """Pad at the bottom and right, to the largest of the batch or to canvas_hw, and up to a multiple of `multiple`.

    Images lie in memory as rows of pixels, as they are decoded and as convolutions take them soonest.
    """
    sizes = [(sample.image.shape[1], sample.image.shape[2]) for sample in samples]
    height, width = canvas_hw or (max(h for h, _ in sizes), max(w for _, w in sizes))
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    images = np.zeros((len(samples), height, width, 3), np.uint8)  # numpy's pages cost a third of torch's
    for canvas, sample, (h, w) in zip(images, samples, sizes, strict=True):
        canvas[:h, :w] = sample.image.permute(1, 2, 0).numpy()
    targets = Targets.pad([sample.boxes for sample in samples], [sample.labels for sample in samples])
    return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(sizes), targets)


class Loader:
    """Batches of a data set. Images are padded to canvas_hw, or to the largest of their batch; sides are multiples of
    `multiple`.
    """

    def __init__(
        self, dataset: DetectionDataset, multiple: int, canvas_hw: Size | None = None, workers: int = 0
    ) -> None:
        self.dataset = dataset
        self.workers = workers
        self.collate = partial(collate, multiple=multiple, canvas_hw=canvas_hw)

    def shuffled(self, steps: int, batch_size: int, seed: int, *, flip: bool) -> Iterator[Batch]:
        """`steps` batches, every image once an epoch, half of them mirrored if flip."""
        return self.load(draw(None, len(self.dataset), steps, batch_size, seed, flip=flip).batches())

    def ordered(self, batch_size: int, *, is_flipped: bool = False) -> Iterator[Batch]:
        """Every image once."""
        draws = [Draw(index, is_flipped) for index in range(len(self.dataset))]
        return self.load(draws[start : start + batch_size] for start in range(0, len(draws), batch_size))

    def load(self, batches: Iterable[list[Draw]]) -> Iterator[Batch]:
        """The images of each batch of draws."""
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=self.collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_interrupts_to_the_trainer,
        )
        try:
            yield from loader
        except UserError as error:  # a loader process wraps it in its traceback, the message comes last
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("detector.errors.UserError: ")) from error


def _leave_interrupts_to_the_trainer(_worker: int) -> None:
    """Ctrl-C reaches all processes, but it still needs the batch it waits for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def training_loader(data: CocoData, training: TrainingConfig, multiple: int) -> Loader:
    """The loader of a configuration's training: images at its size, or at the sizes that multi-scale training draws."""
    dataset = DetectionDataset(data, partial(_training_size, training=training))
    return Loader(dataset, multiple, workers=training.loader_workers)


def _training_size(image_hw: Size, drawn: int | None, *, training: TrainingConfig) -> Size:
    long_side = training.long_side if drawn is None else training.multi_scale_long_side
    return fit(image_hw, drawn, short_side=training.short_side, long_side=long_side)


def resized(image: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Image (3, H, W) uint8 brought to a new size: antialiased bilinear, still uint8, in the same memory order."""
    if tuple(image.shape[1:]) == size_hw:
        return image
    new: Tensor = resize(image, list(size_hw), antialias=True)
    return new
