"""What an interrupted training leaves, so that it goes on where it was."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from detector.checkpoint import save_whole
from detector.errors import UserError

KEPT = 2  # the newest; the one before is there for the case that a disk has damaged the last
FORMAT = "nas-detector-checkpoint"


class Checkpoints:
    """step-N.pt files in a folder, each of a whole step of one run. `identity` says which run; plain values."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = identity

    def save(self, step: int, content: Mapping[str, Any]) -> None:
        """Keeps the KEPT newest. Raises OSError, with the earlier ones as they were."""
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = {"format": FORMAT, "identity": self.identity, "content": dict(content)}
        save_whole(whole, self.folder / f"step-{step}.pt")
        for path in [*self._newest_first()[KEPT:], *self._cut_short()]:
            path.unlink()

    def load(self) -> tuple[dict[str, Any] | None, list[Path]]:
        """The newest that can be read, on the CPU, and those newer that cannot. None if there is none at all.

        Raises UserError if it is another run's, or if there are some and none can be read.
        """
        damaged: list[Path] = []
        for path in self._newest_first():
            try:
                whole = torch.load(path, map_location="cpu", weights_only=True)
                found, content = whole["identity"], whole["content"]
            except Exception:  # torch.load raises many kinds
                damaged.append(path)
                continue
            if found != self.identity:
                raise UserError(f"{self.folder}: holds an unfinished run with other settings; give another --output")
            return content, damaged
        if damaged:
            raise UserError(f"{damaged[0]}: cannot be read, nor an earlier one; remove {self.folder} to start anew")
        return None, []

    def newest_step(self) -> int:
        """0 without any."""
        return max((int(path.stem[5:]) for path in self._newest_first()), default=0)

    def remove(self) -> None:
        """Once the run is finished."""
        for path in [*self._newest_first(), *self._cut_short()]:
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _cut_short(self) -> list[Path]:
        """What a kill left of files that were being written."""
        return list(self.folder.glob("step-*.pt.partial"))

    def _newest_first(self) -> list[Path]:
        steps = {path: re.fullmatch(r"step-(\d+)\.pt", path.name) for path in self.folder.glob("step-*.pt")}
        return sorted((path for path, step in steps.items() if step), key=lambda path: -int(path.stem[5:]))
