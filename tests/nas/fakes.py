"""A study without Ray and without training: rewards are a fixed function of the graph."""

import copy
import functools
import hashlib
import random

from controller.controller import Controller
from detector.architecture import PRIORS
from detector.cost import Cost
from nas.algorithms import make_controller
from nas.budget import Budget
from nas.config import SearchConfig
from nas.space import space_around
from nas.store import Cause, Measurement, Outcome, Purpose, Store, Study
from nas.study import Job, Plan, Schedule

PRIOR = PRIORS["nas-fpn"]
SPACE = space_around(PRIOR)
SEARCH = SearchConfig(
    batch=4, hidden=16, population=6, tournament=3, prior_distance=8.0, model_steps=1, model_samples=4
)


def reward_of(graph_hash: str) -> float:
    return int(hashlib.sha256(graph_hash.encode()).hexdigest()[:8], 16) / 2**32


def outcome_of(job: Job, failing: float = 0.0) -> Outcome:
    """Every graph has one reward, and a share `failing` of graphs fails."""
    reward = reward_of(job.architecture.hash)
    if job.measurement.purpose == Purpose.RUNG:
        return Outcome(reward / 3, None, 0.1, "here")  # what is better early is better late
    if job.episode > 0 and reward < failing:
        return Outcome(None, Cause.NAN, 0.1, "here", detail="NonFiniteLossError: made up")
    return Outcome(reward, None, 0.1, "here")


@functools.cache
def _fitted(algorithm: str) -> Controller:
    return make_controller(SEARCH.model_copy(update={"algorithm": algorithm}), SPACE, PRIOR, seed=0)


def controller(algorithm: str = "reinforce") -> Controller:
    """A new one; fitting it to the prior takes a second, so that is done once."""
    return copy.deepcopy(_fitted(algorithm))


BUDGET = Budget((64, 64), 4, 8)
MEASUREMENT = Measurement(Purpose.SEARCH, 0, 3)
COST = Cost(0.5, 1000)


def schedule(
    store: Store,
    episodes: int,
    algorithm: str = "reinforce",
    name: str = "default",
    budget: Budget = BUDGET,
    rung_steps: int | None = None,
    shares_gpu: bool = False,
    of: Study | None = None,
) -> Schedule:
    study_id = store.open_study(of or Study(name, {"search": SEARCH.model_dump(mode="json")}, 0, "data"))
    return Schedule(
        store,
        study_id,
        controller(algorithm),
        SPACE,
        PRIOR,
        budget,
        episodes=episodes,
        batch=SEARCH.batch,
        lag=SEARCH.lag,
        seed=0,
        steps=3,
        rung_steps=rung_steps,
        shares_gpu=shares_gpu,
    )


def run(plan: Plan, workers: int, order_seed: int = 0, failing: float = 0.0, stop_after: int | None = None) -> None:
    """Up to `workers` jobs at a time, ended in random order; stop_after ends abruptly, as a crash would."""
    order, running, ended = random.Random(order_seed), [], 0
    while True:
        while len(running) < workers and (job := plan.next()) is not None:
            running.append(job)
        if not running:
            assert plan.is_finished
            return
        job = running.pop(order.randrange(len(running)))
        plan.finish(job.evaluation_id, outcome_of(job, failing))
        ended += 1
        if ended == stop_after:
            return


def refused(capsys, status: int) -> str:
    """The one line of a refusal."""
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1
    return captured.err
