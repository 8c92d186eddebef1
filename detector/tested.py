"""Trained weights, one or an ensemble of them, with the options of eval-final and detect that change how they are
tested.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from detector.checkpoint import TrainedModel
from detector.choices import Fusion
from detector.coco import CocoData
from detector.ensemble import fuse
from detector.errors import UserError
from detector.inference import detect_split, views_of
from detector.levels import padding_multiple
from detector.progress import Progress
from detector.targets import Detections


class Tested(NamedTuple):
    """Models, the files they were read from, the device they are on, and how their boxes are merged."""

    paths: Sequence[Path]
    models: Sequence[TrainedModel]
    device: torch.device
    fusion: Fusion

    def check_classes(self, names: Sequence[str], of: str) -> None:
        """Raises UserError for a model whose classes are not these, which are those of `of`."""
        for path, trained in zip(self.paths, self.models, strict=True):
            if trained.classes != names:
                raise UserError(
                    f"{path}: its {len(trained.classes)} classes ({', '.join(trained.classes[:3])}, ...) are not the "
                    f"{len(names)} of {of} ({', '.join(names[:3])}, ...)"
                )

    def detect(self, data: CocoData, progress: Progress) -> list[Detections]:
        """What all models find in all images."""
        of_models = [self._detect_by(number, data, progress) for number in range(len(self.models))]
        if len(of_models) == 1:
            return of_models[0]
        limit = max(trained.config.detector.cascade.detections for trained in self.models)
        sizes = torch.tensor(data.image_hw)
        return [fuse(of_image, size, self.fusion, limit) for *of_image, size in zip(*of_models, sizes, strict=True)]

    def _detect_by(self, number: int, data: CocoData, progress: Progress) -> list[Detections]:
        model, config = self.models[number].model, self.models[number].config
        views = views_of(data, config.training, model.heads.testing, padding_multiple(config.detector.base_stride))
        report = partial(progress, f"detecting with {self.paths[number]}")
        return detect_split(model, views, data.image_hw, self.device, report)


def load_tested(args: argparse.Namespace) -> Tested:
    """The weights with the options of this call. Raises UserError."""
    if args.fuse is not None and len(args.weights) == 1:
        raise UserError("--fuse: merges the boxes of several models, and there is one; give --weights for each")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [TrainedModel.load(path, device) for path in args.weights]
    given = {"cascade": args.cascade_test, "nms": args.nms, "scales": args.scales, "flip": args.flip}
    changes = {key: tuple(value) if key == "scales" else value for key, value in given.items() if value is not None}
    for trained in models:
        trained.model.heads.testing = trained.model.heads.testing.model_copy(update=changes)
    return Tested(args.weights, models, device, args.fuse or "wbf")
