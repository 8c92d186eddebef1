"""Runs of a study that takes hours: each is one JSON file in a folder, so that a study continues where it stopped."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple


class Run(NamedTuple):
    """What is run, and the seed it is run with."""

    name: str
    seed: int


class Runs:
    """The runs of `module` in `folder`. variant (a word, such as steps1000) parts runs of other settings.

    module is called as `python -m MODULE ARGUMENTS --only NAME SEED`, and is to write() that run.
    """

    def __init__(self, folder: Path, variant: str, module: str, arguments: Iterable[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.variant = variant
        self.command = [sys.executable, "-m", module, *arguments]

    def file(self, run: Run, suffix: str = ".json") -> Path:
        words = "".join(letter if letter.isalnum() else "-" for letter in run.name)
        return self.folder / f"{words}-seed{run.seed}-{self.variant}{suffix}"

    def make(self, wanted: Iterable[Run], jobs: int) -> None:
        """Run what is missing, `jobs` at a time. Raises CalledProcessError if one fails."""
        missing = [run for run in wanted if not self.file(run).exists()]
        with ThreadPoolExecutor(jobs) as pool:
            for done, run in enumerate(pool.map(self._start, missing), 1):
                print(f"{run.name}, seed {run.seed}: {done} of {len(missing)}", flush=True)

    def _start(self, run: Run) -> Run:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # jobs share the cores, and waiting threads spin
        subprocess.run([*self.command, "--only", run.name, str(run.seed)], check=True, env=environment)
        return run

    def write(self, run: Run, result: Mapping[str, Any]) -> None:
        """Whole or not at all."""
        partial = self.file(run, ".partial")
        partial.write_text(json.dumps(result))
        partial.replace(self.file(run))

    def read(self, run: Run) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.file(run).read_text())
        return content
