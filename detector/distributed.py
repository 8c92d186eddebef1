"""A final training in several processes: Ray Train starts them, and again when one has died."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train.torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from detector.config import DetectorSections
from detector.errors import NonFiniteLossError, RunFailedError, UserError
from detector.final_training import FinalTraining, Job, Reporter
from detector.named_weights import NAMED_WEIGHTS
from detector.processes import Processes
from detector.ray_session import here, ray_session

MAX_DEATHS = 3  # in a row, without a checkpoint in between
LOOK_EVERY_S = 0.3
ASK_EVERY_S = 1.0
LONGEST_WAIT_S = 6 * 3600  # of a process for another one: the first evaluates a large split while others wait
OURS = ("detector", "experiments")  # packages; the latter holds the presets


@dataclass(frozen=True)
class Workers:
    """How many processes, on what. gpus None: one for each where there are any. address None: on this machine."""

    count: int
    gpus: int | None
    address: str | None
    verbose: bool


def train_together(job: Job, workers: Workers, reporter: Reporter) -> None:
    """As FinalTraining does it in one process: each takes its share of every batch, and gradients are averaged.

    Folders must be seen by all machines. A process that dies ends the others; all start again from the newest
    checkpoint. Raises UserError, and RunFailedError when they die again and again.
    """
    with (
        ray_session(workers.address, workers.count, OURS, verbose=workers.verbose) as dashboard,
        tempfile.TemporaryDirectory(prefix="train-final-") as records,  # of Ray Train, which nobody reads
    ):
        gpus = _gpus(workers)
        reporter.say(f"train-final: {workers.count} processes, {gpus} GPUs each; dashboard http://{dashboard}")
        with reporter.attentive():
            _train_until_done(Start(_anywhere(job), workers.count, gpus, records), reporter)


def _anywhere(job: Job) -> Job:
    """With paths that mean the same to processes with other working directories."""
    return replace(
        job,
        config=_with_absolute_weights(job.config),
        output=job.output.absolute(),
        data=job.data and job.data.absolute(),
        init=job.init and job.init.absolute(),
    )


def _with_absolute_weights(config: DetectorSections) -> DetectorSections:
    backbone = config.detector.backbone
    if backbone.weights in NAMED_WEIGHTS:
        return config
    named = backbone.model_copy(update={"weights": str(Path(backbone.weights).absolute())})
    return config.model_copy(update={"detector": config.detector.model_copy(update={"backbone": named})})


def _gpus(workers: Workers) -> int:
    """Raises UserError for more than there is."""
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0) >= 1) if workers.gpus is None else workers.gpus
    for name, wanted in (("GPU", gpus * workers.count), ("CPU", workers.count)):
        if there.get(name, 0) < wanted:
            raise UserError(
                f"--workers {workers.count}: they need {wanted} {name}s, and there are {there.get(name, 0):g}; give "
                "fewer" + (", or --gpus-per-worker 0" if name == "GPU" else "")
            )
    return gpus


@dataclass(frozen=True)
class Start:
    """What is needed to start all processes."""

    job: Job
    count: int
    gpus: int
    records: str


def _train_until_done(start: Start, reporter: Reporter) -> None:
    checkpoints = start.job.checkpoints
    deaths, newest = 0, checkpoints.newest_step()
    while True:
        error = _follow(start, reporter)
        if error is None:
            return
        for failure in getattr(error, "worker_failures", {}).values():
            if isinstance(failure, UserError | NonFiniteLossError):
                raise failure
        if reporter.stops():
            return
        reason = " ".join(str(error).split())
        if "StartupTimeout" in type(getattr(error, "controller_failure", None)).__name__:
            reporter.warn(f"train-final: waiting until there is room for {start.count} processes")
            continue
        deaths = 1 if checkpoints.newest_step() != newest else deaths + 1
        newest = checkpoints.newest_step()
        if deaths > MAX_DEATHS:
            raise RunFailedError(f"the training's processes died {deaths} times in a row: {reason}") from error
        going_on = f"after step {newest}" if newest else "from the start"
        reporter.warn(f"train-final: a process died ({reason[-200:]}); training goes on {going_on}")


def _follow(start: Start, reporter: Reporter) -> Exception | None:
    """One start of all processes, to its end; what went wrong, or nothing."""
    desk = ray.remote(num_cpus=0)(Desk).options(scheduling_strategy=here()).remote()
    fit = ray.remote(num_cpus=0, max_retries=0)(_fit).options(scheduling_strategy=here()).remote(desk, start)
    is_told = False
    while True:
        done, _ = ray.wait([fit], timeout=LOOK_EVERY_S)
        for method, content in ray.get(desk.take.remote()):
            getattr(reporter, method)(*content)
        if done:
            try:
                error: Exception | None = ray.get(fit)
            except RayError as of_process:
                error = of_process
            return error
        if reporter.stops() and not is_told:
            if not ray.get(desk.has_begun.remote()):
                return None  # they have not started yet, and perhaps never would
            ray.get(desk.stop.remote())
            is_told = True


def _fit(desk: Any, start: Start) -> Exception | None:
    """In a process of its own: in that of the command Ray Train would take Ctrl-C for itself."""
    trainer = TorchTrainer(
        _train_one,
        train_loop_config={"job": start.job, "desk": desk},
        scaling_config=ScalingConfig(
            num_workers=start.count,
            use_gpu=start.gpus > 0,
            resources_per_worker={"CPU": 1} | ({"GPU": start.gpus} if start.gpus else {}),
        ),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if start.gpus else "gloo", timeout_s=LONGEST_WAIT_S),
        run_config=RunConfig(
            name="train-final",
            storage_path=start.records,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        return error
    return None


def _train_one(content: dict[str, Any]) -> None:
    """In each process."""
    FinalTraining(content["job"], ray.train.torch.get_device(), FromAfar(content["desk"])).run()


class Desk:
    """Where the first process leaves what is to be shown, and where it asks whether to stop. An actor."""

    def __init__(self) -> None:
        self.left: list[tuple[str, tuple[Any, ...]]] = []
        self.was_used = self.stopping = False

    def leave(self, method: str, *content: Any) -> None:
        self.was_used = True
        self.left.append((method, content))

    def take(self) -> list[tuple[str, tuple[Any, ...]]]:
        taken, self.left = self.left, []
        return taken

    def has_begun(self) -> bool:
        """Whether the first process has started."""
        return self.was_used

    def stop(self) -> None:
        self.stopping = True

    def is_stopping(self) -> bool:
        return self.stopping


class FromAfar:
    """The reporter of a process that somebody else watches. Only the first one speaks."""

    def __init__(self, desk: Any) -> None:
        self.desk = desk
        self.is_first = Processes.here().is_first
        self.asked = float("-inf")
        self.is_stopping = False

    def progress(self, what: str, step: int, steps: int) -> None:
        self._leave("progress", what, step, steps)

    def say(self, line: str) -> None:
        self._leave("say", line)

    def warn(self, line: str) -> None:
        self._leave("warn", line)

    def _leave(self, method: str, *content: Any) -> None:
        if self.is_first:
            self.desk.leave.remote(method, *content)

    def stops(self) -> bool:
        """Asked now and then: an answer takes a millisecond."""
        if self.is_first and time.monotonic() - self.asked >= ASK_EVERY_S:
            self.asked = time.monotonic()
            try:
                self.is_stopping = bool(ray.get(self.desk.is_stopping.remote()))
            except RayError:  # whoever started it is gone
                self.is_stopping = True
        return self.is_stopping

    @contextmanager
    def attentive(self) -> Iterator[None]:
        """Signals are for whoever started it."""
        yield
