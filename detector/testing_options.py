"""The options of eval-final and detect that change how trained weights are tested."""

import argparse
from pathlib import Path
from typing import get_args

import torch

from detector.checkpoint import TrainedModel
from detector.command import Parser, count
from detector.config import CascadeTest, Nms, TestingConfig


def add_testing_options(parser: Parser) -> None:
    """What is not given stays as the weights' own configuration has it."""
    parser.add_argument("--cascade-test", choices=get_args(CascadeTest), help="at which boxes the stages score")
    parser.add_argument("--nms", choices=get_args(Nms), help="hard, or Soft-NMS: linear or gaussian")
    parser.add_argument("--scales", type=count(1), nargs="+", metavar="PX", help="short sides at which images are seen")
    parser.add_argument("--flip", action="store_true", default=None, help="see every image mirrored, too")


def load_for_test(path: Path, args: argparse.Namespace, device: torch.device) -> TrainedModel:
    """The weights with the options of this call. Raises UserError."""
    trained = TrainedModel.load(path, device)
    given = {"cascade": args.cascade_test, "nms": args.nms, "scales": args.scales, "flip": args.flip}
    changes = {key: tuple(value) if key == "scales" else value for key, value in given.items() if value is not None}
    trained.model.heads.testing = _changed(trained.model.heads.testing, changes)
    return trained


def _changed(testing: TestingConfig, changes: dict[str, object]) -> TestingConfig:
    return testing.model_copy(update=changes)
