"""Runs of a study that takes hours: each is one JSON file in a folder, so that a study continues where it stopped.

What a long study has come to can be kept with the code, in one file; it counts as run then.
"""

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

    module is called as `python -m MODULE ARGUMENTS --only NAME SEED`, and is to write() that run. kept: the file of
    runs that are kept with the code.
    """

    def __init__(
        self, folder: Path, variant: str, module: str, arguments: Iterable[str], kept: Path | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.kept = kept
        self._of_kept: dict[str, Any] = {}
        if kept is not None and kept.exists():
            self._of_kept = json.loads(kept.read_text())
        self.variant = variant
        self.command = [sys.executable, "-m", module, *arguments]

    def file(self, run: Run, suffix: str = ".json") -> Path:
        words = "".join(letter if letter.isalnum() else "-" for letter in run.name)
        return self.folder / f"{words}-seed{run.seed}-{self.variant}{suffix}"

    def make(self, wanted: Iterable[Run], jobs: int) -> None:
        """Run what is missing, `jobs` at a time. Raises CalledProcessError if one fails."""
        missing = [run for run in wanted if not self.has(run)]
        with ThreadPoolExecutor(jobs) as pool:
            for done, run in enumerate(pool.map(self._start, missing), 1):
                print(f"{run.name}, seed {run.seed}: {done} of {len(missing)}", flush=True)

    def has(self, run: Run) -> bool:
        return self._name(run) in self._of_kept or self.file(run).exists()

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
        kept = self._of_kept.get(self._name(run))
        content: dict[str, Any] = kept or json.loads(self.file(run).read_text())
        return content

    def keep(self, wanted: Iterable[Run]) -> None:
        """Put those that have been made beside what is kept already, a line each."""
        if self.kept is None:
            raise ValueError("these runs have no file to be kept in")
        made = {self._name(run): self.read(run) for run in wanted if self.has(run)}
        self._of_kept |= made
        lines = [f"{json.dumps(name)}: {json.dumps(self._of_kept[name])}" for name in sorted(self._of_kept)]
        partial = self.kept.with_suffix(".partial")
        partial.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        partial.replace(self.kept)
        print(f"{self.kept}: {len(made)} runs of these, {len(lines)} in all")

    def _name(self, run: Run) -> str:
        return self.file(run).stem
