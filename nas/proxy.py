"""The proxy: an architecture and a seed to a reward."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from detector.architecture import Architecture
from detector.cascade_rcnn import CascadeRcnn, DetectionHeads
from detector.coco import CocoData
from detector.errors import UserError
from detector.evaluate import average_precision
from detector.inference import View, detect_split, scale_to
from detector.targets import Detections
from detector.train import train
from nas.config import Config, TrialConfig
from nas.pool import estimate_statistics, reset_statistics
from nas.preparation import (
    FeatureBatch,
    FeatureCache,
    OnProgress,
    canvas_loader,
    divide,
    features_folder,
    load_heads,
    prepare,
)
from nas.tabular import Tabular, load_tabular

EVALUATION_BATCH = 50


class Proxy(Protocol):
    """Judges graphs. evaluate resets every random state, so its result depends on its arguments only."""

    def evaluate(self, architecture: Architecture, seed: int, steps: int | None = None) -> float:
        """COCO AP (0..1) on the reward part; steps of training, the configuration's when None.

        Raises NonFiniteLossError if training diverges.
        """
        ...


def trial_of(config: Config, steps: int | None) -> TrialConfig:
    """How a trial trains: as configured, or with its schedule drawn together or out to other steps."""
    trial = config.proxy.trial
    if steps is None or steps == trial.steps:
        return trial
    share = steps / trial.steps if trial.steps else 1.0
    warmup = min(steps - 1, round(trial.warmup_steps * share))
    return trial.model_copy(update={"steps": steps, "warmup_steps": warmup})


class FrozenProxy:
    """Trains pyramid and heads on cached maps, from the pool's weights."""

    def __init__(self, config: Config, folder: Path, reward: CocoData, device: torch.device) -> None:
        self.config = config
        self.folder = folder
        self.reward = reward
        self.device = device
        self.trial_cache = FeatureCache(features_folder(folder), "trial", device)
        self.reward_cache = FeatureCache(features_folder(folder), "reward", device)

    def evaluate(self, architecture: Architecture, seed: int, steps: int | None = None) -> float:
        return average_precision(self.reward, self.detections(self.trained(architecture, seed, steps)))

    def trained(self, architecture: Architecture, seed: int, steps: int | None = None) -> DetectionHeads:
        """The pyramid and heads of one trial."""
        heads, trial = self.initial(architecture, seed), trial_of(self.config, steps)
        train(heads, self.batches(trial, seed), trial, self.device)
        self.fit_norms(heads, seed)
        return heads

    def initial(self, architecture: Architecture, seed: int) -> DetectionHeads:
        """As a trial begins; sets every random state."""
        torch.manual_seed(seed)
        torch.set_num_threads(self.config.proxy.threads)
        heads = load_heads(self.folder, self.config, self.reward.num_classes, architecture.canonical(), self.device)
        heads = heads.to(memory_format=torch.channels_last)
        reset_statistics(heads.pyramid)
        return heads

    def batches(self, trial: TrialConfig, seed: int) -> Iterator[FeatureBatch]:
        """What it is trained on."""
        return self.trial_cache.shuffled(trial.batch_size, trial.steps, seed)

    def fit_norms(self, heads: DetectionHeads, seed: int) -> None:
        """Estimate the pyramid's statistics, under weights that will not change any more."""
        if self.config.proxy.norm_batches:
            batches = self.trial_cache.shuffled(EVALUATION_BATCH, self.config.proxy.norm_batches, seed)
            estimate_statistics(heads.pyramid, batches)

    def detections(self, heads: DetectionHeads) -> list[Detections]:
        """What trained heads find in the images of the reward part."""
        heads.eval()
        found: list[Detections] = []
        for batch in self.reward_cache.ordered(EVALUATION_BATCH):
            detections = heads.detect(batch.features, batch.image_hw)
            original = torch.from_numpy(self.reward.image_hw[len(found) : len(found) + len(detections)])
            for of_image, scale in zip(detections, scale_to(batch.image_hw.cpu(), original), strict=True):
                found.append(Detections(of_image.boxes.cpu() * scale, of_image.scores.cpu(), of_image.labels.cpu()))
        return found


class FullProxy:
    """Trains the whole detector on images of the pretrain and trial parts."""

    def __init__(self, config: Config, data: CocoData, device: torch.device) -> None:
        self.config = config
        self.reward = divide(data, config.proxy.parts)["reward"]
        self.training = data.subset(np.flatnonzero(~np.isin(data.image_ids, self.reward.image_ids)))
        self.device = device

    def evaluate(self, architecture: Architecture, seed: int, steps: int | None = None) -> float:
        torch.manual_seed(seed)
        proxy, detector = self.config.proxy, self.config.proxy_detector
        torch.set_num_threads(proxy.threads)
        model = CascadeRcnn(detector, architecture.canonical(), self.reward.num_classes, batched=True)
        model = model.to(memory_format=torch.channels_last).to(self.device)
        trial = trial_of(self.config, steps)
        loader = canvas_loader(self.training, proxy, detector)
        batches = loader.shuffled(trial.steps, trial.batch_size, seed, flip=proxy.flip)
        train(model, batches, trial, self.device)
        view = View(canvas_loader(self.reward, proxy, detector).ordered(trial.batch_size))
        return average_precision(self.reward, detect_split(model, [view], self.reward.image_hw, self.device))


class TabularProxy:
    """Trains nothing: for studies of the search itself."""

    def __init__(self, tabular: Tabular, steps: int) -> None:
        self.tabular = tabular
        self.steps = steps

    def evaluate(self, architecture: Architecture, seed: int, steps: int | None = None) -> float:
        """Only the trial's own length was measured. Raises UserError for another."""
        if steps is not None and steps != self.steps:
            raise UserError(
                f"the tabular benchmark knows rewards of {self.steps} steps only; leave search.rung_steps out"
            )
        return self.tabular.reward(architecture, seed)


def prepare_proxy(
    config: Config, data: CocoData, prior: Architecture | None, device: torch.device, progress: OnProgress
) -> None:
    """What is not prepared yet: do once what all trials share, and find mistakes before the first of them. Raises
    UserError.
    """
    if config.proxy.protocol == "frozen":
        prepare(config, data, prior, device, progress)
    else:
        divide(data, config.proxy.parts)
        CascadeRcnn(config.proxy_detector, prior, data.num_classes, batched=True)
    torch.cuda.empty_cache()  # the device belongs to the trials now


def load_proxy(
    config: Config, data: CocoData, prior: Architecture | None, device: torch.device, progress: OnProgress
) -> Proxy:
    """The proxy that a configuration describes, prepared at the first call on this machine. Raises UserError."""
    if config.proxy.protocol == "full":
        return FullProxy(config, data, device)
    if config.proxy.protocol == "tabular":
        return TabularProxy(load_tabular(), config.proxy.trial.steps)
    folder = prepare(config, data, prior, device, progress)
    return FrozenProxy(config, folder, divide(data, config.proxy.parts)["reward"], device)


def choose_device() -> torch.device:
    """CUDA where there is any."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
