"""Does a search lose anything when it is killed? python -m experiments.chaos --folder runs/chaos --kills 100

Searches on the tabular benchmark (or --config smoke) are killed at random moments, seeded, and the same command is
started again, until each search has finished. What is killed:

* driver: the nas-search process; group: it and all that it started; terminate: SIGTERM to it, as preemption does;
* worker: a process that runs trials; controller: the one that proposes; node: the Ray daemon of a second machine, in
  searches on a cluster of two (both here);
* the driver at the points that matter most: after a proposal was recorded and before it runs (proposed), after a batch
  is complete and before the policy has learned from it (unlearned), and while the new policy is written (unwritten).

Then the episode table (graphs, decisions, log-probabilities, policy versions, states, rewards) and the policies
(weights and optimizers of the versions that are kept, baselines and entropies of all) must be those of a search that
nobody disturbed, bit for bit; so each reward was used exactly once. Printed: kills and searches by kind, and how many
searches differ.

Restartable: each search is one file in --folder, and those that are there count.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

EPISODES = 60
KINDS = ("driver", "group", "terminate", "worker", "controller", "node", "proposed", "unlearned", "unwritten")
POINTS = ("proposed", "unlearned", "unwritten")
OF_A_PROCESS = {"worker": "ray::Trial", "controller": "ControllerActor"}
MOST_KILLS = 6  # of one search; a run of nas-search forgives three deaths of its controller
CLUSTERS = 0.2  # share of the searches that run on a cluster, if nodes are to be lost
STARTS = 5  # of a search that nobody kills any more
PATIENCE_S = 300.0

TABLES = (
    "SELECT number, architecture_hash, decisions, log_prob, policy_version, state, cause, reward FROM episode "
    "ORDER BY number",
    "SELECT version, weights, optimizer, baseline, entropy FROM policy ORDER BY version",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--config", default="benchmark")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        drive(args.drive[0], int(args.drive[1]), args.drive[2:])
    args.folder.mkdir(parents=True, exist_ok=True)
    command = ["--config", args.config, "--episodes", str(args.episodes), "--confirm", "0", "--workers", "2"]
    reference = undisturbed(args.folder, command)
    results: list[dict[str, Any]] = []
    while sum(len(result["kills"]) for result in results) < args.kills:
        number = len(results)
        path = args.folder / f"search-{args.seed}-{number}.json"
        if not path.exists():
            result = disturbed(args.folder / f"search-{args.seed}-{number}", command, args, number, reference)
            path.write_text(json.dumps(result))
        results.append(json.loads(path.read_text()))
        end = "equal" if results[-1]["equal"] else "DIFFERS"
        print(f"search {number}: {', '.join(results[-1]['kills'])}: {end}", flush=True)
    report(results)
    sys.exit(not all(result["equal"] for result in results))


def report(results: list[dict[str, Any]]) -> None:
    kills = Counter(kind for result in results for kind in result["kills"])
    searches = Counter(kind for result in results for kind in set(result["kills"]))
    different = Counter(kind for result in results if not result["equal"] for kind in set(result["kills"]))
    print("\n| killed | times | searches | of these different |\n|---|---|---|---|")
    for kind in (kind for kind in KINDS if kills[kind]):
        print(f"| {kind} | {kills[kind]} | {searches[kind]} | {different[kind]} |")
    unequal = sum(not result["equal"] for result in results)
    print(f"| all | {sum(kills.values())} | {len(results)} | {unequal} |")


def undisturbed(folder: Path, command: list[str]) -> list[list[tuple[Any, ...]]]:
    """The tables of the search that nobody kills."""
    run = folder / "undisturbed"
    if not (run / "finished").exists():
        shutil.rmtree(run, ignore_errors=True)
        process = start(run, command)
        if process.wait() != 0:
            raise SystemExit((run / "log").read_text())
        (run / "finished").touch()
    return tables(run)


def disturbed(
    folder: Path, command: list[str], args: argparse.Namespace, number: int, reference: list[list[tuple[Any, ...]]]
) -> dict[str, Any]:
    """Kill one search until it has had its share, and let it finish."""
    shutil.rmtree(folder, ignore_errors=True)
    stream = random.Random(f"{args.seed} {number}")
    kinds = [kind for kind in args.kinds if kind != "node"]
    is_cluster = len(kinds) < len(args.kinds) and stream.random() < CLUSTERS
    if is_cluster:
        kinds += ["node"] * len(kinds)
    kills: list[str] = []
    with cluster() if is_cluster else contextlib.nullcontext() as nodes:
        if nodes is not None:
            command = [*command, "--address", nodes.address]
        process: subprocess.Popen[bytes] | None = None
        while len(kills) < MOST_KILLS:
            kind = stream.choice(kinds)
            at = settled(folder) + stream.randrange(args.episodes // 3)
            if at >= args.episodes:
                break
            if process is not None and kind in POINTS:  # a driver has its point from the start
                stop(process)
                process = None
            if process is None:
                process = start(folder, command, point=(kind, at) if kind in POINTS else None)
            if kind in POINTS:
                is_killed = process.wait(PATIENCE_S) == -signal.SIGKILL
            else:
                is_killed = strike(folder, process, kind, at, stream.random(), nodes)
            kills += [kind] if is_killed else []
            if process.poll() == 0:
                break
            if process.poll() is not None:
                process = None
        for _ in range(STARTS):
            process = process or start(folder, command)
            if process.wait(PATIENCE_S) == 0:
                break
            process = None
    return {"kills": kills, "equal": tables(folder) == reference}


def strike(folder: Path, process: subprocess.Popen[bytes], kind: str, at: int, delay: float, nodes: Any) -> bool:
    """Kill once `at` episodes have ended, and a moment later; whether there was something to kill."""
    until = time.monotonic() + PATIENCE_S
    while settled(folder) < at and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(delay)
    if process.poll() is not None:
        return False
    if kind == "driver":
        process.kill()
        process.wait()
        _sweep(process)
    elif kind == "group":
        stop(process)
    elif kind == "terminate":
        process.terminate()
        process.wait(PATIENCE_S)
    elif kind == "node":
        nodes.replace()
    else:
        return _kill_child(process, OF_A_PROCESS[kind])
    return True


def _kill_child(driver: subprocess.Popen[bytes], name: str) -> bool:
    for process in _processes(driver):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if name in " ".join(process.cmdline()):
                process.kill()
                return True
    return False


def _processes(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """What the driver started; on a cluster, what the cluster did."""
    found: list[psutil.Process] = []
    for parent in (driver.pid, os.getpid()):
        with contextlib.suppress(psutil.Error):
            found += psutil.Process(parent).children(recursive=True)
    return found


def stop(process: subprocess.Popen[bytes]) -> None:
    """The whole process group, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _sweep(process: subprocess.Popen[bytes]) -> None:
    """What a dead driver leaves ends by itself, but not before the next one starts."""
    time.sleep(1.0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def start(folder: Path, arguments: list[str], point: tuple[str, int] | None = None) -> subprocess.Popen[bytes]:
    """nas-search in a process group of its own, with a point to die at."""
    folder.mkdir(parents=True, exist_ok=True)
    if point is None:
        command = [sys.executable, "-c", "import sys; from nas.commands import search; sys.exit(search())"]
    else:
        command = [sys.executable, "-m", "experiments.chaos", "--drive", point[0], str(point[1])]
    with open(folder / "log", "a") as log:
        return subprocess.Popen([*command, *arguments], cwd=folder, stdout=log, stderr=log, start_new_session=True)


def drive(point: str, at: int, arguments: list[str]) -> None:
    """nas-search in this process, which dies at a point once `at` episodes were proposed."""
    from sqlalchemy import event

    from nas.commands import search
    from nas.store import Store
    from nas.study import Schedule

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if point == "proposed":
        _after(Store, "start_episode", lambda episode: episode.number >= at, die)
    else:
        learn = Schedule._advance

        def advance(self: Schedule) -> None:
            if len(self.episodes) >= at and _is_complete(self):
                if point == "unlearned":
                    die()
                event.listen(self.store._engine, "after_cursor_execute", _die_in_policy)
            learn(self)

        def _die_in_policy(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("INSERT INTO policy"):
                die()

        Schedule._advance = advance  # type: ignore[method-assign]
    sys.exit(search(arguments))


def _is_complete(schedule: Any) -> bool:
    """Whether a batch waits to be learned from."""
    batch = schedule._batch(schedule.version)
    return len(batch) == schedule.batch and all(episode.state != "running" for episode in batch)


def _after(owner: type, name: str, is_time: Callable[[Any], bool], act: Callable[[], None]) -> None:
    method = getattr(owner, name)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        if is_time(result):
            act()
        return result

    setattr(owner, name, wrapped)


def settled(folder: Path) -> int:
    """Episodes that have ended."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder / 'nas.db'}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM episode WHERE state != 'running'").fetchone()[0])
    except sqlite3.OperationalError:  # not there yet
        return 0


def tables(folder: Path) -> list[list[tuple[Any, ...]]]:
    with contextlib.closing(sqlite3.connect(folder / "nas.db")) as connection:
        return [connection.execute(query).fetchall() for query in TABLES]


class Nodes:
    """A Ray cluster of two machines, both this one; the second can be lost."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self.second = self.cluster.add_node(num_cpus=1)
        self.address = self.cluster.address

    def replace(self) -> None:
        """The second machine is gone, and another one comes."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = self.cluster.add_node(num_cpus=1)


@contextlib.contextmanager
def cluster() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.cluster.shutdown()


if __name__ == "__main__":
    main()
