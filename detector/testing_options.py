"""The options of eval-final and detect that change how trained weights are tested."""

import argparse
from pathlib import Path

import torch

from detector.checkpoint import TrainedModel
from detector.config import TestingConfig


def load_for_test(path: Path, args: argparse.Namespace, device: torch.device) -> TrainedModel:
    """The weights with the options of this call. Raises UserError."""
    trained = TrainedModel.load(path, device)
    given = {"cascade": args.cascade_test, "nms": args.nms, "scales": args.scales, "flip": args.flip}
    changes = {key: tuple(value) if key == "scales" else value for key, value in given.items() if value is not None}
    trained.model.heads.testing = _changed(trained.model.heads.testing, changes)
    return trained


def _changed(testing: TestingConfig, changes: dict[str, object]) -> TestingConfig:
    return testing.model_copy(update=changes)
