"""model.pt: weights, graph, configuration and classes together, so that the file describes itself."""

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from detector.architecture import Architecture
from detector.cascade_rcnn import CascadeRcnn
from detector.config import DetectorConfig, DetectorSections
from detector.config_files import parse_config
from detector.errors import UserError

FORMAT = "nas-detector-model"
VERSION = 1


class TrainedModel:
    """A detector with all that its weights mean. classes[k] is the name of label k."""

    def __init__(
        self,
        model: CascadeRcnn,
        architecture: Architecture | None,
        config: DetectorSections,
        classes: tuple[str, ...],
    ) -> None:
        self.model = model
        self.architecture = architecture
        self.config = config
        self.classes = classes

    def save(self, path: Path) -> None:
        content = {
            "format": FORMAT,
            "version": VERSION,
            "weights": self.model.state_dict(),
            "architecture": self.architecture and self.architecture.to_dict(),
            "config": self.config.model_dump(mode="json", include={"data", "detector", "training"}),
            "classes": list(self.classes),
        }
        save_whole(content, path)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "TrainedModel":
        """Raises UserError if the file is none of ours."""
        try:
            content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file") from error
        except Exception as error:  # torch.load raises many kinds
            raise UserError(f"{path}: cannot be loaded as weights ({type(error).__name__})") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
            raise UserError(f"{path}: is no model.pt of train-final (format {FORMAT}, version {VERSION})")
        try:
            config = parse_config(content["config"], DetectorSections, where=str(path))
            graph = content["architecture"] and Architecture.from_dict(content["architecture"])
            classes = tuple(str(name) for name in content["classes"])
            if not classes:
                raise UserError(f"{path}: names no classes")
            model = make_model(config, graph, len(classes), pretrained=False)
            model.load_state_dict(content["weights"])
        except UserError:
            raise
        except Exception as error:  # every part of it may be damaged
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: is damaged ({type(error).__name__}: {reason})") from error
        return cls(model.to(device), graph, config, classes)


def save_whole(content: dict[str, Any], path: Path) -> None:
    """torch.save, whole, and on the disk, or not at all. Raises OSError."""
    write_whole(path, partial(torch.save, content))


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """What `write` writes into a file: whole, and on the disk, or not at all. Raises OSError."""
    unfinished = path.with_name(path.name + ".partial")
    try:
        with open(unfinished, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # PyTorch's own writer says nothing but that it failed
        unfinished.unlink(missing_ok=True)
        raise OSError(errno.ENOSPC, "cannot be written") from error
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    os.replace(unfinished, path)


SMALL_SIDE = 256  # pixels up to which the batched forms are the faster ones


def make_model(
    config: DetectorSections,
    architecture: Architecture | None,
    num_classes: int,
    *,
    pretrained: bool = True,
    batched: bool | None = None,
) -> CascadeRcnn:
    """The detector of a configuration. pretrained=False leaves the backbone's weights to be loaded later; batched None
    chooses the forms that are the faster ones for its images."""
    detector = config.detector if pretrained else _without_weights(config.detector)
    if batched is None:
        batched = config.training.long_side <= SMALL_SIDE
    return CascadeRcnn(detector, architecture, num_classes, batched=batched)


def _without_weights(detector: DetectorConfig) -> DetectorConfig:
    # model_copy does not validate: frozen norms are fine here, their statistics come with the weights
    backbone = detector.backbone.model_copy(update={"weights": "none"})
    return detector.model_copy(update={"backbone": backbone})
