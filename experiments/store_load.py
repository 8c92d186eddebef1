"""Does the store hold under load? python -m experiments.store_load --readers 20 --rate 200 --seconds 20

One process writes episodes as a search does (a proposal, then its end: three transactions each, every one synchronised
with the disk), at the rate asked for or as fast as it can; others read the whole study, read-only, again and again.
Printed: episodes a second, how long a write and a read took (median, 99th percentile, most), and errors, which there
may not be, of anyone. Each reader also checks that what it has seen ended stays so.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

import numpy as np

from controller.decisions import uniform
from detector.architecture import PRIORS
from detector.cost import Cost
from nas.space import space_around
from nas.store import Measurement, Outcome, Purpose, State, Store, Study

MEASUREMENT = Measurement(Purpose.SEARCH, 0, 1)


class Load(NamedTuple):
    """What one process did: seconds of each of its turns, and errors."""

    seconds: list[float]
    errors: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--rate", type=float, default=200.0, help="episodes a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--database", help="a URL; a new SQLite file when absent")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        written, read, elapsed = measure(
            args.database or str(Path(folder) / "nas.db"), args.readers, args.rate, args.seconds
        )
    errors = written.errors + read.errors
    print(f"{len(written.seconds) / elapsed:.0f} episodes a second (asked for: {args.rate:g}), {args.readers} readers")
    print("| what | times | median ms | 99 % | most |\n|---|---|---|---|---|")
    for name, load in (("an episode written", written), ("a study read", read)):
        if load.seconds:
            low, high, most = 1000 * np.quantile(load.seconds, [0.5, 0.99, 1.0])
            print(f"| {name} | {len(load.seconds)} | {low:.1f} | {high:.1f} | {most:.1f} |")
    print(f"errors: {len(errors)} {set(errors) or ''}")
    sys.exit(bool(errors))


def measure(database: str, readers: int, rate: float, seconds: float) -> tuple[Load, Load, float]:
    """What the writer did, what all readers did together, and how long it took."""
    context = multiprocessing.get_context("spawn")
    over, results = context.Event(), context.Queue()
    store = Store(database)
    study_id = store.open_study(Study("load", {"search": {}}, 0, "none"))
    processes = [context.Process(target=keep_reading, args=(database, over, results)) for _ in range(readers)]
    for process in processes:
        process.start()
    for _ in processes:
        results.get()  # it is reading
    start = time.monotonic()
    written = write(store, study_id, rate, seconds)
    elapsed = time.monotonic() - start
    over.set()
    loads = [results.get() for _ in processes]
    for process in processes:
        process.join()
    together = Load([s for load in loads for s in load.seconds], [e for load in loads for e in load.errors])
    return written, together, elapsed


def write(store: Store, study_id: int, rate: float, seconds: float) -> Load:
    space, stream = space_around(PRIORS["nas-fpn"]), np.random.default_rng(0)
    load = Load([], [])
    start = time.monotonic()
    while (now := time.monotonic()) - start < seconds:
        number = len(load.seconds)
        if number / rate > now - start:
            time.sleep(number / rate - (now - start))
        decisions = uniform(space, stream)
        graph = space.architecture(decisions)
        begin = time.monotonic()
        try:
            cost = Cost(1.0, 1)
            episode = store.start_episode(study_id, number, graph, decisions, -1.0, 0, MEASUREMENT, cost)
            if episode.state == State.RUNNING:
                store.finish_evaluation(episode.evaluation_id, Outcome(0.3, None, 1.0, "here"))
        except Exception as error:
            load.errors.append(f"{type(error).__name__}: {error}")
        load.seconds.append(time.monotonic() - begin)
    return load


def keep_reading(database: str, over: Event, results: "multiprocessing.Queue[Load]") -> None:
    store = Store(database, read_only=True)
    study_id, _ = store.find_study("load")
    load = Load([], [])
    ended = 0
    while not over.is_set():
        begin = time.monotonic()
        try:
            now = sum(episode.state != State.RUNNING for episode in store.episodes(study_id))
            if now < ended:
                load.errors.append(f"{ended} episodes had ended, then {now}")
            ended = now
        except Exception as error:
            load.errors.append(f"{type(error).__name__}: {error}")
        load.seconds.append(time.monotonic() - begin)
        if len(load.seconds) == 1:
            results.put(Load([], []))
    results.put(load)


if __name__ == "__main__":
    main()
