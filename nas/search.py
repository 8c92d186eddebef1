"""The search on Ray: a named controller actor, and trials that Ray Tune runs. Ray appears here only."""

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.search import Searcher

from controller.controller import Controller
from controller.policy import Proposal
from controller.proposer import ProposerState, Rewarded
from detector.architecture import Architecture
from detector.command import TERMINATED, exit_on_sigterm
from detector.errors import UserError
from nas.store import Cause, Episode, Outcome
from nas.study import Plan
from nas.trial import ProxySource, evaluate

log = logging.getLogger(__name__)

NAMESPACE = "nas"
CONNECT_TIMEOUT_S = 10.0
OnEpisodes = Callable[[list[Episode]], None]


@dataclass(frozen=True)
class Cluster:
    """Where trials run. address None starts Ray on this machine, with its dashboard on loopback."""

    workers: int
    gpus_per_trial: float
    address: str | None
    verbose: bool


class ControllerActor:
    """The controller, in a process of its own. Holds no database connection."""

    def __init__(self, make: Callable[[], Controller]) -> None:
        torch.set_num_threads(1)
        self.controller = make()

    def propose(self, episode: int) -> Proposal:
        return self.controller.propose(episode)

    def update(self, batch: Sequence[Rewarded]) -> ProposerState:
        return self.controller.update(batch)

    def restore(self, states: Mapping[int, ProposerState]) -> None:
        self.controller.restore(states)

    def note(self) -> None:
        """Does nothing: the name of the call is what the dashboard shows."""


class RemoteController:
    """The actor as a plain object. Its calls are named after episodes, for the dashboard."""

    def __init__(self, study: str, make: Callable[[], Controller]) -> None:
        name = f"nas-controller-{study}"
        try:
            self.actor = ray.remote(num_cpus=0)(ControllerActor).options(name=name, namespace=NAMESPACE).remote(make)
        except ValueError as error:  # Ray's for a name that is taken
            raise UserError(f"{name} runs in this cluster already, for another database; give --study NAME") from error

    def propose(self, episode: int) -> Proposal:
        call = self.actor.propose.options(name=f"propose episode {episode}")
        proposal: Proposal = ray.get(call.remote(episode))
        return proposal

    def update(self, batch: Sequence[Rewarded]) -> ProposerState:
        mean = sum(episode.reward for episode in batch) / max(1, len(batch))
        call = self.actor.update.options(name=f"learn from {len(batch)} episodes, mean reward {mean:.4f}")
        state: ProposerState = ray.get(call.remote(list(batch)))
        return state

    def restore(self, states: Mapping[int, ProposerState]) -> None:
        ray.get(self.actor.restore.remote(dict(states)))

    def note(self, episodes: Sequence[Episode]) -> None:
        """Let the dashboard's list of tasks show how episodes ended."""
        for episode in episodes:
            end = episode.cause if episode.reward is None else f"reward {episode.reward:.4f}"
            self.actor.note.options(name=f"episode {episode.number} {episode.state}: {end}").remote()


class Trial(tune.Trainable):  # type: ignore[misc]  # Ray ships without types
    """A Tune trial of one step: the evaluation of one graph. Actors are reused from trial to trial."""

    def setup(self, config: dict[str, Any], source: ProxySource) -> None:
        self.source = source
        self.reset_config(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        self.config = config
        return True

    def step(self) -> dict[str, Any]:
        config = self.config
        graph = Architecture.from_dict(config["graph"])
        try:
            outcome = evaluate(self.source, graph, config["seed"], config["steps"], is_timed=config["is_timed"])
        except UserError as error:
            return {"mistake": str(error), "reward": None, "done": True}
        end = outcome.cause or f"AP {outcome.ap:.4f}"
        print(f"episode {self.config['episode']}: {end} in {outcome.seconds:.1f} s", flush=True)  # the worker's log
        return {"outcome": tuple(outcome), "reward": outcome.ap, "done": True}  # Tune would flatten a dict


class PlanSearcher(Searcher):  # type: ignore[misc]
    """Tune's view of a plan: jobs out, outcomes in.

    Tune would take an error of ours for one of the trial's and go on, so the first one is kept and ends the search.
    """

    def __init__(self, plan: Plan, on_episodes: OnEpisodes) -> None:
        super().__init__(metric="reward", mode="max")
        self.plan = plan
        self.on_episodes = on_episodes
        self.evaluation_of: dict[str, int] = {}
        self.error: Exception | None = None

    def suggest(self, trial_id: str) -> Any:
        if self.error is not None:
            return Searcher.FINISHED
        try:
            return self._suggest(trial_id)
        except Exception as error:
            self.error = error
            return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        evaluation_id = self.evaluation_of.pop(trial_id)
        if self.error is None:
            try:
                self._finish(evaluation_id, None if error else result)
            except Exception as problem:
                self.error = problem

    def _suggest(self, trial_id: str) -> Any:
        before = self.plan.settled
        job = self.plan.next()
        if self.plan.settled > before:
            self.on_episodes([])  # episodes that reuse a reward
        if job is None:
            return Searcher.FINISHED if self.plan.is_finished else None
        self.evaluation_of[trial_id] = job.evaluation_id
        graph = job.architecture.to_dict()
        seed, steps = job.measurement.seed, job.measurement.budget
        return {"episode": job.episode, "graph": graph, "seed": seed, "steps": steps, "is_timed": job.is_timed}

    def _finish(self, evaluation_id: int, result: dict[str, Any] | None) -> None:
        if result is None:
            outcome = Outcome(None, Cause.LOST, detail="the worker process died")
        elif "mistake" in result:
            raise UserError(result["mistake"])
        else:
            outcome = Outcome(*result["outcome"])
            outcome = outcome._replace(cause=Cause(outcome.cause) if outcome.cause else None)
        if outcome.cause == Cause.LOST:
            log.warning("a worker died; its graph is tried again, unless that happens too often")
        elif outcome.cause:
            log.warning("an evaluation failed: %s\n%s", outcome.cause, outcome.detail)
        self.on_episodes(self.plan.finish(evaluation_id, outcome))

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its search algorithm to restore it; here the store remembers, so there is nothing to keep."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """The store remembers; Tune need not."""

    def restore(self, checkpoint_path: str) -> None:
        """See save."""


@contextmanager
def ray_session(cluster: Cluster) -> Iterator[str]:
    """Start or join Ray, and leave it at the end; yields its dashboard's address."""
    for name in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_SIGINT_HANDLER"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new reporter prints even when told to be quiet
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # Tune's own state is never used
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths mean the same to trials
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # without a GPU of its own a trial sees none
    if cluster.address is not None and cluster.address.startswith("ray://"):
        raise UserError(f"--address {cluster.address}: give the cluster's own address (host:6379 or auto), run there")
    options: dict[str, Any] = {"address": cluster.address or "local"}
    if cluster.address is None:
        cores = os.cpu_count() or 1
        options |= {"num_cpus": max(cores, cluster.workers), "include_dashboard": True, "dashboard_host": "127.0.0.1"}
    level = logging.INFO if cluster.verbose else logging.ERROR
    _check_address(cluster.address)
    try:
        context = ray.init(namespace=NAMESPACE, logging_level=level, log_to_driver=cluster.verbose, **options)
    except SystemExit:  # from Ray's own SIGTERM handler; its clean-up of a start that was cut short would abort
        os._exit(TERMINATED)
    except (ConnectionError, ValueError, RuntimeError) as error:  # the last for a cluster of other versions
        where = f"--address {cluster.address}: no Ray cluster can be joined there" if cluster.address else "Ray"
        raise UserError(f"{where} ({str(error).splitlines()[0]})") from error
    exit_on_sigterm()  # Ray has put its own handler in place
    try:
        gpus = ray.cluster_resources().get("GPU", 0)
        if cluster.gpus_per_trial > gpus:  # Ray would wait for them for ever
            where = cluster.address or "this machine"
            raise UserError(f"--gpus-per-trial {cluster.gpus_per_trial:g}: {where} has {gpus:g} GPUs; give less")
        yield context.dashboard_url or ""
    finally:
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Ray tries an address where nothing listens for a quarter of an hour. Raises UserError at once."""
    host, _, port = (address or "").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no Ray cluster can be joined there ({error})") from error


def run(plan: Plan, source: ProxySource, cluster: Cluster, on_episodes: OnEpisodes) -> None:
    """Run a plan until it is finished or gives up (see plan.stopped). Ray must be up."""
    resources = {"cpu": 1, "gpu": cluster.gpus_per_trial}
    trainable = tune.with_resources(tune.with_parameters(Trial, source=source), resources)
    searcher = PlanSearcher(plan, on_episodes)
    if not cluster.verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the searcher says what failed
    with tempfile.TemporaryDirectory(prefix="nas-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=cluster.workers,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
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
