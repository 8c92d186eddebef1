"""What trials share, made once: a trained detector, its cached feature maps, and the pool of cell weights."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from detector.architecture import Architecture
from detector.cache import build_once
from detector.cascade_rcnn import CascadeRcnn, DetectionHeads
from detector.coco import CocoData
from detector.config import DetectorConfig
from detector.errors import UserError
from detector.levels import padding_multiple
from detector.loader import Batch, DetectionDataset, Loader, fit_canvas
from detector.targets import Targets
from detector.train import train
from nas.config import Config, ProxyConfig
from nas.pool import CellPool, draw_graph
from nas.prepared import shared_by_trials
from nas.space import space_around

PARTS = ("pretrain", "trial", "reward")
DETECTOR_FILE = "detector.pt"
POOL_FILE = "pool.pt"

OnProgress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all


class FeatureBatch(NamedTuple):
    """P3..P7 of some images, their sizes on the canvas (B, 2), and their objects."""

    features: list[Tensor]
    image_hw: Tensor
    targets: Targets

    def to(self, device: torch.device) -> "FeatureBatch":
        features = [feature.to(device) for feature in self.features]
        return FeatureBatch(features, self.image_hw.to(device), self.targets.to(device))


class FeatureCache:
    """The FPN's maps of one part, in a memory-mapped file of half-precision rows.

    A row is one image: the positions of P3..P7 one after the other, channels last.
    """

    def __init__(self, folder: Path, part: str, device: torch.device) -> None:
        meta = torch.load(folder / f"{part}.pt", weights_only=True)
        self.sizes: list[tuple[int, int]] = meta["sizes"]
        self.image_hw: Tensor = meta["image_hw"].to(device)
        self.targets = Targets(meta["boxes"], meta["labels"]).to(device)
        shape = (len(self.image_hw), sum(h * w for h, w in self.sizes), meta["channels"])
        rows = torch.from_file(str(folder / f"{part}.bin"), shared=False, size=int(np.prod(shape)), dtype=torch.float16)
        self.rows = rows.view(shape).to(device)

    def __len__(self) -> int:
        return len(self.image_hw)

    def batch(self, index: Tensor) -> FeatureBatch:
        """The images at index (B,)."""
        rows = self.rows[index].float()
        levels = torch.split(rows, [h * w for h, w in self.sizes], dim=1)
        features = [
            level.view(len(index), h, w, -1).permute(0, 3, 1, 2)
            for level, (h, w) in zip(levels, self.sizes, strict=True)
        ]
        targets = Targets(self.targets.boxes[index], self.targets.labels[index])
        return FeatureBatch(features, self.image_hw[index], targets)

    def shuffled(self, batch_size: int, steps: int, seed: int) -> Iterator[FeatureBatch]:
        """`steps` batches, epoch after epoch without repetition, in an order that depends on the seed only."""
        generator = torch.Generator().manual_seed(seed)
        queue = torch.zeros(0, dtype=torch.long)
        for _ in range(steps):
            while len(queue) < batch_size:
                queue = torch.cat((queue, torch.randperm(len(self), generator=generator)))
            index, queue = queue[:batch_size], queue[batch_size:]
            yield self.batch(index.to(self.rows.device))

    def ordered(self, batch_size: int) -> Iterator[FeatureBatch]:
        for index in torch.split(torch.arange(len(self), device=self.rows.device), batch_size):
            yield self.batch(index)


def divide(data: CocoData, parts: tuple[float, float, float]) -> dict[str, CocoData]:
    """Pretrain, trial and reward parts of a training split: an image's part follows from its id alone."""
    digests = [hashlib.sha256(str(image_id).encode()).digest()[:8] for image_id in data.image_ids.tolist()]
    place = np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
    part_of = np.searchsorted(np.cumsum(parts)[:-1], place, side="right")
    divided = {}
    for number, part in enumerate(PARTS):
        divided[part] = data.subset(np.flatnonzero(part_of == number))
        if not divided[part].num_objects:
            raise UserError(
                f"{data.annotations}: its {len(data)} images leave the {part} part (share {parts[number]:g}) without "
                "objects; add images or set proxy.parts"
            )
    return divided


def canvas_loader(data: CocoData, proxy: ProxyConfig, config: DetectorConfig) -> Loader:
    """Images of one part, shrunk into the proxy's canvas."""
    dataset = DetectionDataset(data, partial(fit_canvas, canvas_hw=proxy.canvas_hw))
    return Loader(dataset, padding_multiple(config.base_stride), proxy.canvas_hw)


def prepare(
    config: Config, data: CocoData, prior: Architecture | None, device: torch.device, progress: OnProgress
) -> Path:
    """The folder of the frozen proxy's pool, built at the first call on this machine, as what it builds on. Raises
    UserError if the cache would be larger than proxy.cache_limit_gb.
    """
    shared = shared_by_trials(config, data, prior)
    parts = divide(data, config.proxy.parts)
    with _threads(config.proxy.preparation_threads):
        base = build_once(shared.features, lambda folder: _build_features(folder, config, parts, device, progress))
        return build_once(
            shared.pool, lambda folder: _build_pool(folder, base, config, data.num_classes, prior, device, progress)
        )


def load_heads(
    folder: Path, config: Config, num_classes: int, architecture: Architecture, device: torch.device
) -> DetectionHeads:
    """What a trial trains: the heads and the cells of a graph, as the pool left them. folder is prepare()'s."""
    state = torch.load(folder / POOL_FILE, weights_only=True, map_location=device)
    detector = config.proxy_detector
    pool = CellPool(architecture.repeats, detector.channels, detector.pyramid_norm)
    pool.load_state_dict(state["pool"])
    heads = DetectionHeads(detector, None, num_classes, batched=True)
    heads.load_state_dict(state["heads"])
    heads.pyramid = pool.copied(architecture)
    return heads.to(device)


def features_folder(folder: Path) -> Path:
    """Where the cached maps lie that belong to prepare()'s folder."""
    return folder.parent / "features"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _build_features(
    folder: Path, config: Config, parts: dict[str, CocoData], device: torch.device, progress: OnProgress
) -> None:
    proxy, detector = config.proxy, config.proxy_detector
    torch.manual_seed(proxy.seed)
    model = CascadeRcnn(detector, None, parts["pretrain"].num_classes, batched=True)
    model = model.to(memory_format=torch.channels_last).to(device)
    loader = canvas_loader(parts["pretrain"], proxy, detector)
    pretrain = proxy.pretrain
    batches = loader.shuffled(pretrain.steps, pretrain.batch_size, proxy.seed, flip=proxy.flip)
    report = partial(_report, progress, "training the detector", proxy.pretrain.steps)
    train(model, batches, proxy.pretrain, device, report)
    torch.save(model.state_dict(), folder / DETECTOR_FILE)
    model.eval()
    for part in PARTS[1:]:
        batches = canvas_loader(parts[part], proxy, detector).ordered(proxy.pretrain.batch_size)
        _cache_part(folder, part, model, batches, len(parts[part]), device, progress)


def _report(progress: OnProgress, what: str, steps: int, step: int, losses: Mapping[str, float]) -> None:
    progress(f"{what}, loss {losses['loss']:.3f}", step, steps)


@torch.no_grad()
def _cache_part(
    folder: Path,
    part: str,
    model: CascadeRcnn,
    batches: Iterable[Batch],
    count: int,
    device: torch.device,
    progress: OnProgress,
) -> None:
    sizes: list[tuple[int, int]] = []
    image_hw: list[Tensor] = []
    boxes: list[Tensor] = []
    labels: list[Tensor] = []
    with open(folder / f"{part}.bin", "wb") as file:
        for batch in batches:
            features = model.features(batch.to(device).images)
            sizes = [(feature.shape[2], feature.shape[3]) for feature in features]
            rows = torch.cat([feature.permute(0, 2, 3, 1).flatten(1, 2) for feature in features], dim=1)
            file.write(rows.half().cpu().numpy().tobytes())
            image_hw.append(batch.image_hw)
            boxes += [box[valid] for box, valid in zip(batch.targets.boxes, batch.targets.valid, strict=True)]
            labels += [label[label >= 0] for label in batch.targets.labels]
            progress(f"caching feature maps of the {part} part", len(boxes), count)
    targets = Targets.pad(boxes, labels)
    meta = {"sizes": sizes, "channels": rows.shape[2], "image_hw": torch.cat(image_hw)}
    torch.save(meta | {"boxes": targets.boxes, "labels": targets.labels}, folder / f"{part}.pt")


class _NewGraphEachStep(nn.Module):
    """Heads whose pyramid is another graph of the pool at every step."""

    def __init__(self, heads: DetectionHeads, pool: CellPool, draw: Callable[[], Architecture]) -> None:
        super().__init__()
        self.heads = heads
        self.pool = pool
        self.draw = draw

    def forward(self, features: list[Tensor], image_hw: Tensor, targets: Targets) -> dict[str, Tensor]:
        self.heads.pyramid = self.pool.shared(self.draw())
        losses: dict[str, Tensor] = self.heads(features, image_hw, targets)
        return losses


def _build_pool(
    folder: Path,
    base: Path,
    config: Config,
    num_classes: int,
    prior: Architecture | None,
    device: torch.device,
    progress: OnProgress,
) -> None:
    proxy, detector = config.proxy, config.proxy_detector
    torch.manual_seed(proxy.seed)
    model = CascadeRcnn(detector, None, num_classes, batched=True)
    model.load_state_dict(torch.load(base / DETECTOR_FILE, weights_only=True, map_location="cpu"))
    prior = prior and prior.canonical()
    space = space_around(prior)
    pool = CellPool(space.like.repeats, detector.channels, detector.pyramid_norm)
    stream = np.random.default_rng([proxy.seed, 1])
    trained = _NewGraphEachStep(model.heads, pool, partial(draw_graph, space, prior, stream))
    trained = trained.to(memory_format=torch.channels_last).to(device)
    cache = FeatureCache(base, "trial", device)
    batches = cache.shuffled(proxy.pool.batch_size, proxy.pool.steps, proxy.seed)
    train(trained, batches, proxy.pool, device, partial(_report, progress, "training the pool", proxy.pool.steps))
    model.heads.pyramid = nn.Identity()
    torch.save({"heads": model.heads.state_dict(), "pool": pool.state_dict()}, folder / POOL_FILE)
