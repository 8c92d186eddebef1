"""The configurations that come with the package, by name."""

from importlib import resources
from importlib.resources.abc import Traversable

DEFAULT_CONFIG = "shapes"


def presets() -> list[str]:
    """Their names, sorted."""
    return sorted(f.name.removesuffix(".yaml") for f in preset_folder().iterdir() if f.name.endswith(".yaml"))


def preset_folder() -> Traversable:
    return resources.files("experiments")
