"""What a search costs on this machine: python -m experiments.benchmark

Runs nas-search as a user would, with an empty cache, and prints: time of the preparation, of the episodes (from the
start of the first trial to the end of the last) and of the runs that confirm; the share of the workers' time that is
not spent in trials, Ray's start and end included; the memory of all processes together (proportional set size, so that
shared pages count once); and how long a second study takes to prepare.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import psutil

from nas.store import Evaluation, Purpose, Store

SAMPLE_EVERY_S = 5.0
STUDY = "reinforce-0"  # so that experiments.learning can go on from --folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="shapes")
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="keep database and cache here; must be empty")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nas-benchmark-") as scratch:
        folder = (args.folder or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            parser.error(f"--folder {folder} is not empty: the preparation would not be measured")
        first = timed_search(args, folder, STUDY, args.episodes)
        store = Store(str(folder / "nas.db"), read_only=True)
        study_id = store.find_study(STUDY)[0]
        episodes, confirming = (store.evaluations(study_id, purpose) for purpose in (Purpose.SEARCH, Purpose.CONFIRM))
        second = timed_search(args, folder, "second", 1)
    trials = [*episodes, *confirming]
    in_trials = sum(trial.seconds or 0.0 for trial in trials)
    busy = in_trials / (args.workers * first["search"])
    print(f"machine: {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB")
    print(f"preparation: {first['preparation']:.0f} s; of a second study: {second['preparation']:.0f} s")
    print(f"{args.episodes} episodes with {args.workers} workers: {minutes(episodes):.1f} min")
    if confirming:
        print(f"{len(confirming)} confirming runs: {minutes(confirming):.1f} min")
    print(f"all after the preparation: {first['search'] / 60:.1f} min")
    print(f"trials: {len(trials)} in all, {in_trials / len(trials):.2f} s each")
    print(f"workers outside trials, Ray's start and end included: {100 * (1 - busy):.1f} % of the search")
    print(f"memory at most: {first['memory']:.2f} GB")


def timed_search(args: argparse.Namespace, folder: Path, study: str, episodes: int) -> dict[str, float]:
    """Seconds of preparation and of the search after it, and the peak of memory in GB."""
    command = [sys.executable, "-c", "import sys; from nas.commands import search; sys.exit(search())"]
    command += ["--config", args.config, "--episodes", str(episodes), "--workers", str(args.workers), "--study", study]
    environment = os.environ | {"NAS_CACHE": str(folder / "cache")}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    peak = PeakMemory(process.pid)
    peak.start()
    preparation, prepared = 0.0, time.monotonic()
    for line in process.stdout or ():
        print(f"  {line}", end="", flush=True)
        if match := re.match(r"prepared in (\d+) s", line):
            preparation, prepared = float(match[1]), time.monotonic()
    if process.wait() != 0:
        raise SystemExit(f"nas-search ended with {process.returncode}")
    return {"preparation": preparation, "search": time.monotonic() - prepared, "memory": peak.gigabytes}


class PeakMemory(threading.Thread):
    """The largest sum of proportional set sizes of a process and all its descendants."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.gigabytes = 0.0

    def run(self) -> None:
        while psutil.pid_exists(self.pid):
            self.gigabytes = max(self.gigabytes, self._now() / 1e9)
            time.sleep(SAMPLE_EVERY_S)

    def _now(self) -> int:
        try:
            root = psutil.Process(self.pid)
            return sum(proportional_set_size(process.pid) for process in (root, *root.children(recursive=True)))
        except psutil.Error:
            return 0


def proportional_set_size(pid: int) -> int:
    """In bytes, of the kernel's own sum: adding up every mapping, as psutil does, would keep one core busy."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it ended meanwhile
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def minutes(trials: Sequence[Evaluation]) -> float:
    """From the start of the first to the end of the last."""
    spans = [
        (trial.ended - timedelta(seconds=trial.seconds), trial.ended)
        for trial in trials
        if trial.ended and trial.seconds
    ]
    return (max(end for _, end in spans) - min(start for start, _ in spans)).total_seconds() / 60


if __name__ == "__main__":
    main()
