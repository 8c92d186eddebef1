"""The search on Ray: trials that Ray Tune runs."""

import logging
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ray import tune
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.search import Searcher

from detector.architecture import Architecture
from detector.errors import UserError
from detector.ray_session import first_line
from nas.attempts import described
from nas.cluster import Cluster, Delivery, Room
from nas.control import Controlled
from nas.metrics import TrialMetrics
from nas.store import Action, Cause, Episode, Outcome
from nas.trial import ProxySource, evaluate

log = logging.getLogger(__name__)

LISTEN_EVERY_S = 0.5
MOST_TRIALS = 100_000  # at once; Room says how many
OnEpisodes = Callable[[list[Episode]], None]


class Trial(tune.Trainable):  # type: ignore[misc]  # Ray ships without types
    """A Tune trial of one step: the evaluation of one graph. Actors are reused from trial to trial."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """What Tune reserves for the trial."""
        gpus = config["gpus"]
        return tune.PlacementGroupFactory([{"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}])

    def setup(
        self,
        config: dict[str, Any],
        source: ProxySource,
        study: str,
        timeout_s: float | None,
        delivery: Delivery | None,
    ) -> None:
        self.source = source
        self.delivery = delivery
        self.timeout_s = timeout_s
        self.metrics = TrialMetrics(study)
        self.reset_config(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        self.config = config
        return True

    def step(self) -> dict[str, Any]:
        config = self.config
        graph = Architecture.from_dict(config["graph"])
        try:
            if self.delivery is not None:
                self.delivery.fetch()
            outcome = evaluate(
                self.source,
                graph,
                config["seed"],
                config["steps"],
                is_timed=config["is_timed"],
                timeout_s=self.timeout_s,
            )
        except UserError as error:
            where = f" (on {socket.gethostname()})" if self.delivery is not None else ""
            return {"mistake": f"{error}{where}", "reward": None, "done": True}
        self.metrics.show(outcome)
        end = outcome.cause or f"AP {outcome.ap:.4f}"
        print(f"episode {self.config['episode']}: {end} in {outcome.seconds:.1f} s", flush=True)  # the worker's log
        return {"outcome": tuple(outcome), "reward": outcome.ap, "done": True}  # Tune would flatten a dict


class Running(NamedTuple):
    """What a trial evaluates, and how many GPUs it holds (or what share of one)."""

    evaluation_id: int
    gpus: float


class PlanSearcher(Searcher):  # type: ignore[misc]
    """Tune's view of a plan: jobs out, outcomes in; as many at once as there is room for.

    Tune would take an error of ours for one of the trial's and go on, so the first one is kept and ends the search.
    """

    def __init__(
        self, plan: Controlled, room: Callable[[], int], on_episodes: OnEpisodes, gpus_per_trial: float = 0.0
    ) -> None:
        super().__init__(metric="reward", mode="max")
        self.plan = plan
        self.room = room
        self.gpus_per_trial = gpus_per_trial
        self.on_episodes = on_episodes
        self.running: dict[str, Running] = {}  # by Tune's name of the trial
        self.error: Exception | None = None
        self.listened = 0.0

    def suggest(self, trial_id: str) -> Any:
        self.listen()
        if self.error is not None:
            return Searcher.FINISHED
        try:
            return self._suggest(trial_id)
        except Exception as error:
            self.error = error
            return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Of a trial with a result. Tune does not say here how one without came to that; see Watch."""
        if result and not error:  # a trial that was ended at once has none
            self._end(trial_id, lambda: outcome_of(result))

    def listen(self) -> None:
        """Let the plan hear requests, if it has not for LISTEN_EVERY_S."""
        if self.error is None and time.monotonic() - self.listened >= LISTEN_EVERY_S:
            self.listened = time.monotonic()
            try:
                before = self.plan.settled
                self.plan.listen()
                if self.plan.settled > before:
                    self.on_episodes([])
            except Exception as problem:
                self.error = problem

    def on_trial_death(self, trial_id: str, error: Exception | None) -> None:
        self._end(trial_id, lambda: outcome_of_death(error))

    def _end(self, trial_id: str, find: Callable[[], Outcome]) -> None:
        running = self.running.pop(trial_id)
        if self.error is None:
            try:
                outcome = find()._replace(gpus=running.gpus)
                if outcome.cause is not None:
                    shown = f"{outcome.cause}\n{outcome.detail}" if outcome.cause == Cause.ERROR else described(outcome)
                    log.warning("an evaluation failed: %s", shown)
                self.on_episodes(self.plan.finish(running.evaluation_id, outcome))
            except Exception as problem:
                self.error = problem

    def _suggest(self, trial_id: str) -> Any:
        if len(self.running) >= self.room():
            return None
        before = self.plan.settled
        job = self.plan.next()
        if self.plan.settled > before:
            self.on_episodes([])  # episodes that reuse a reward
        if job is None:
            return Searcher.FINISHED if self.plan.is_finished else None
        gpus = 1.0 if job.is_alone else self.gpus_per_trial
        self.running[trial_id] = Running(job.evaluation_id, gpus)
        graph = job.architecture.to_dict()
        seed, steps = job.measurement.seed, job.measurement.budget
        return {
            "episode": job.episode,
            "graph": graph,
            "seed": seed,
            "steps": steps,
            "is_timed": job.is_timed,
            "gpus": gpus,
        }

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its search algorithm to restore it; here the store remembers, so there is nothing to keep."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """The store remembers; Tune need not."""

    def restore(self, checkpoint_path: str) -> None:
        """See save."""


class Watch(tune.Callback):  # type: ignore[misc]
    """Lets the plan listen to requests, and tells the searcher why trials ended without a result."""

    def __init__(self, searcher: PlanSearcher) -> None:
        self.searcher = searcher

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Several times a second, unless nothing runs and nothing is suggested: then Tune only asks for suggestions."""
        self.searcher.listen()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.searcher.on_trial_death(trial.trial_id, trial.get_pickled_error())


class AtOnce(tune.Stopper):  # type: ignore[misc]
    """Ends trials that run, when nobody is to wait for them."""

    def __init__(self, searcher: PlanSearcher) -> None:
        self.searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.searcher.error is not None or self.searcher.plan.ending == Action.STOP_NOW


def outcome_of(result: Mapping[str, Any]) -> Outcome:
    """What a trial returned. Raises UserError for a mistake that is no graph's fault."""
    if "mistake" in result:
        raise UserError(result["mistake"])
    outcome = Outcome(*result["outcome"])
    return outcome._replace(cause=Cause(outcome.cause) if outcome.cause else None)


def outcome_of_death(error: Exception | None) -> Outcome:
    """Of a trial whose process ended, or raised what only a new process can mend. Ray ends the process that uses most
    when its machine runs out of memory, and says so.
    """
    if error is None:
        return Outcome(None, Cause.LOST, detail="the worker process died")
    is_death = isinstance(error, RayActorError)
    is_memory = isinstance(error, OutOfMemoryError) or (is_death and "low on memory" in str(error))
    detail = first_line(error) if is_death or is_memory else str(error)  # what it raised ends a traceback
    return Outcome(None, Cause.OOM if is_memory else Cause.LOST, detail=detail)


def run(
    plan: Controlled,
    source: ProxySource,
    cluster: Cluster,
    on_episodes: OnEpisodes,
    delivery: Delivery | None = None,
) -> None:
    """Run a plan until it is finished, gives up (see plan.stopped) or is ended (plan.ending). Ray must be up.

    delivery: of what other machines of the cluster need first.
    """
    trial = tune.with_parameters(
        Trial, source=source, study=cluster.study, timeout_s=cluster.trial_timeout_s, delivery=delivery
    )
    trial.__qualname__ = Trial.__name__  # what the dashboard shows
    searcher = PlanSearcher(plan, Room(cluster).trials, on_episodes, cluster.gpus_per_trial or 0.0)
    if not cluster.verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the searcher says what failed
    with tempfile.TemporaryDirectory(prefix="nas-tune-") as scratch:
        tuner = tune.Tuner(
            trial,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=MOST_TRIALS,  # Tune would ask for one at a time without
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                callbacks=[Watch(searcher)],
                stop=AtOnce(searcher),
                verbose=2 if cluster.verbose else 0,
                failure_config=tune.FailureConfig(max_failures=0),  # the schedule retries
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
    if searcher.error is not None:
        raise searcher.error


def _name(trial: Any) -> str:
    return f"episode-{trial.config['episode']}-seed-{trial.config['seed']}-steps-{trial.config['steps']}"
