"""What does the driver cost, and do workers wait for it? python -m experiments.scale

Trials are slept, not trained. Their lengths are even (within a sixth of the mean), or as measured of 1053 trials of
`shapes` on a shared machine: half of them between 0.66 and 1.21 of the mean, the longest 4.5 of it. A batch has as many
episodes as there are workers; --lags says how many updates a proposal may be behind.

* --simulated W...: time is simulated, nothing else: the searcher that Tune asks, the schedule, the controller and the
  store (SQLite, on disk) are those of nas-search, and the clock stands still for none of them; so workers wait
  for the driver as they would. Leaves out Ray and Tune themselves.
* --real W...: nas-search's own loop on Ray, with W processes that sleep.

Printed: the driver's time an episode (of --real, where the controller has a process of its own: of the processor), and
utilisation: the share of their time that workers spent in trials, from the first start to the last.
"""

import argparse
import heapq
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from controller.controller import Controller
from detector.architecture import PRIORS, Architecture
from nas.algorithms import make_controller
from nas.budget import Budget
from nas.config import Config, SearchConfig
from nas.control import Controlled
from nas.space import space_around
from nas.store import Outcome, Purpose, Store, Study
from nas.study import Proposes, Schedule
from nas.trial import ProxySource

LENGTHS = {  # over their mean, at equal steps of probability from 0 to 1
    "even": (0.84, 1.16),
    "measured": (0.43, 0.53, 0.61, 0.73, 0.84, 0.93, 1.03, 1.14, 1.3, 1.59, 4.52),
}
Result = TypeVar("Result")
PRIOR = PRIORS["nas-fpn"]
SPACE = space_around(PRIOR)


@dataclass(frozen=True)
class Setting:
    """Of one search."""

    workers: int
    lag: int
    batches: int
    lengths: str
    seconds: float  # of a trial, on average

    @property
    def search(self) -> SearchConfig:
        return SearchConfig(batch=max(self.workers, SearchConfig().batch), lag=self.lag)

    def length(self, graph_hash: str) -> float:
        """Of a graph's trial, in seconds."""
        share, quantiles = int(graph_hash[-8:], 16) / 2**32, LENGTHS[self.lengths]
        found = np.interp(share, np.linspace(0, 1, len(quantiles)), quantiles)
        return float(found / np.mean(quantiles) * self.seconds)


class Trial(NamedTuple):
    """When one ran, in seconds."""

    start: float
    end: float


class Cost(NamedTuple):
    """What a search took of its driver, in seconds, and when its trials ran."""

    driver: float
    episodes: int
    trials: Sequence[Trial]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulated", type=int, nargs="*", default=[2, 16, 64, 256, 1000], metavar="W")
    parser.add_argument("--real", type=int, nargs="*", default=[2, 16], metavar="W")
    parser.add_argument("--lags", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--lengths", nargs="+", choices=list(LENGTHS), default=list(LENGTHS))
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a trial, on average, when time is simulated")
    parser.add_argument("--real-seconds", type=float, default=5.0, help="of a trial, on average, when it is not")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| time | trials | workers | lag | episodes | driver, ms an episode | utilisation |")
    print("|---|---|---|---|---|---|---|")
    for lengths in args.lengths:
        for lag in args.lags:
            for workers in args.simulated:
                show("simulated", simulated, Setting(workers, lag, args.batches, lengths, args.seconds))
            for workers in args.real:
                show("real", real, Setting(workers, lag, args.batches, lengths, args.real_seconds))


def show(time_is: str, run: Callable[[Setting], Cost], setting: Setting) -> None:
    driver, episodes, trials = run(setting)
    share = f"{utilisation(trials, setting.workers):.1%}"
    figures = f"{setting.workers} | {setting.lag} | {episodes} | {1000 * driver / episodes:.1f} | {share}"
    print(f"| {time_is} | {setting.lengths}, {setting.seconds:g} s | {figures} |", flush=True)


def utilisation(trials: Sequence[Trial], workers: int) -> float:
    """From the first start to the last: later, workers are idle because nothing is left."""
    first, last = min(trial.start for trial in trials), max(trial.start for trial in trials)
    return sum(min(trial.end, last) - trial.start for trial in trials) / (workers * (last - first))


def reward(graph_hash: str) -> float:
    return int(graph_hash[:8], 16) / 2**32


def controller_of(search: SearchConfig) -> Controller:
    return make_controller(search, SPACE, PRIOR, 0)


def schedule_of(setting: Setting, store: Store, controller: Proposes) -> Schedule:
    """A search at its start."""
    search = setting.search
    return Schedule(
        store,
        store.open_study(Study("default", {"search": search.model_dump(mode="json")}, 0, "none")),
        controller,
        SPACE,
        PRIOR,
        Budget.of(Config()),
        episodes=setting.batches * search.batch,
        batch=search.batch,
        lag=search.lag,
        seed=0,
        steps=1,
    )


class Clock:
    """Time that passes while the driver works, and jumps to when trials end."""

    def __init__(self) -> None:
        self.now = 0.0
        self.worked = 0.0

    def during(self, call: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = call()
        took = time.perf_counter() - start
        self.now += took
        self.worked += took
        return result


def simulated(setting: Setting) -> Cost:
    from nas.search import PlanSearcher

    with tempfile.TemporaryDirectory() as folder:
        store = Store(str(Path(folder) / "nas.db"))
        schedule = schedule_of(setting, store, controller_of(setting.search))
        searcher = PlanSearcher(
            Controlled(schedule, store, schedule.study_id), lambda: setting.workers, lambda episodes: None
        )
        clock, trials = Clock(), list[Trial]()
        running: list[tuple[float, str, str]] = []  # when trials end, their names and graphs
        while True:
            while isinstance(job := clock.during(partial(searcher.suggest, f"t{len(trials)}")), dict):
                graph_hash = Architecture.from_dict(job["graph"]).hash
                end = clock.now + setting.length(graph_hash)
                heapq.heappush(running, (end, f"t{len(trials)}", graph_hash))
                trials.append(Trial(clock.now, end))
            if not running:
                break
            end, name, graph_hash = heapq.heappop(running)
            clock.now = max(clock.now, end)
            result = {"outcome": tuple(Outcome(reward(graph_hash), None, 1.0, "simulated"))}
            clock.during(partial(searcher.on_trial_complete, name, result))
        if searcher.error is not None:
            raise searcher.error
        store.close()
    return Cost(clock.worked, schedule.settled, trials)


@dataclass(frozen=True)
class Sleeping(ProxySource):
    """Trials that take their time, and nothing else."""

    setting: Setting

    def load(self) -> "Sleeping":
        return self

    def evaluate(self, architecture: Architecture, seed: int, steps: int | None = None) -> float:
        time.sleep(self.setting.length(architecture.hash))
        return reward(architecture.hash)


def real(setting: Setting) -> Cost:
    from nas.cluster import Cluster, cluster_session
    from nas.metrics import SearchMetrics
    from nas.remote_controller import RemoteController
    from nas.search import run

    here = Cluster("default", setting.workers, 0.0, None, False)
    with tempfile.TemporaryDirectory() as folder, cluster_session(here) as (cluster, _):
        store = Store(str(Path(folder) / "nas.db"))
        controller = RemoteController("default", partial(controller_of, setting.search), setting.lag)
        schedule, metrics = schedule_of(setting, store, controller), SearchMetrics("default")

        def on_episodes(ended: object) -> None:
            metrics.show(schedule.episodes.values(), schedule.version, controller.entropy)

        before = processor_seconds()
        plan = Controlled(schedule, store, schedule.study_id)
        run(plan, Sleeping("", None, None, "", setting), cluster, on_episodes)
        driver = processor_seconds() - before
        trials = [
            Trial((e.ended - timedelta(seconds=e.seconds)).timestamp(), e.ended.timestamp())
            for e in store.evaluations(schedule.study_id, Purpose.SEARCH)
            if e.ended is not None and e.seconds is not None
        ]
        store.close()
    return Cost(driver, schedule.settled, trials)


def processor_seconds() -> float:
    """Of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
