"""The weights that a backbone starts from, as they identify a result."""

import hashlib
from pathlib import Path

from detector.config import DetectorConfig
from detector.errors import UserError

NAMED_WEIGHTS = ("none", "pretrained")  # anything else is a file


def named_weights(config: DetectorConfig) -> DetectorConfig:
    """The configuration with a weights file named by its content: what identifies a result, and may be published."""
    weights = config.backbone.weights
    if weights in NAMED_WEIGHTS:
        return config
    try:
        digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"detector.backbone.weights: {weights} cannot be read ({error.strerror})") from error
    backbone = config.backbone.model_copy(update={"weights": f"file with sha256 {digest}"})
    return config.model_copy(update={"backbone": backbone})
