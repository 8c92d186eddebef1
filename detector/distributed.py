"""A final training in several processes: Ray Train starts them, and again when one has died."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any

import ray
import ray.train.torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from detector.errors import NonFiniteLossError, UserError
from detector.final_training import FinalTraining, Job, Reporter
from detector.processes import Processes
from detector.ray_session import here, ray_session

MAX_DEATHS = 3  # in a row, without a checkpoint in between
LOOK_EVERY_S = 0.3
ASK_EVERY_S = 1.0
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
    checkpoint. Raises UserError, and RuntimeError when they die again and again.
    """
    job = replace(
        job,
        output=job.output.absolute(),
        data=job.data and job.data.absolute(),
        init=job.init and job.init.absolute(),
    )
    with ray_session(workers.address, workers.count, OURS, verbose=workers.verbose) as dashboard:
        gpus = _gpus(workers)
        reporter.say(f"train-final: {workers.count} processes, {gpus} GPUs each; dashboard http://{dashboard}")
        with reporter.attentive():
            _train_until_done(job, workers.count, gpus, reporter)


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


def _train_until_done(job: Job, count: int, gpus: int, reporter: Reporter) -> None:
    deaths, newest = 0, job.checkpoints.newest_step()
    while True:
        error = _Attempt(job, count, gpus).follow(reporter)
        if error is None:
            return
        for own in (UserError, NonFiniteLossError):
            for failure in getattr(error, "worker_failures", {}).values():
                if isinstance(failure, own):
                    raise failure
        deaths = 1 if job.checkpoints.newest_step() != newest else deaths + 1
        newest = job.checkpoints.newest_step()
        reason = " ".join(str(error).split())
        if deaths > MAX_DEATHS:
            raise RuntimeError(f"the training's processes died {deaths} times in a row: {reason}") from error
        going_on = f"after step {newest}" if newest else "from the start"
        reporter.warn(f"train-final: a process died ({reason[-200:]}); training goes on {going_on}")
        if reporter.stops():
            return


class Desk:
    """Where the first process leaves what is to be shown, and where all of them ask whether to stop. An actor."""

    def __init__(self) -> None:
        self.left: list[tuple[str, tuple[Any, ...]]] = []
        self.stopping = False

    def leave(self, method: str, *content: Any) -> None:
        self.left.append((method, content))

    def take(self) -> list[tuple[str, tuple[Any, ...]]]:
        taken, self.left = self.left, []
        return taken

    def stop(self) -> None:
        self.stopping = True

    def is_stopping(self) -> bool:
        return self.stopping


class _Attempt:
    """One start of all processes."""

    def __init__(self, job: Job, count: int, gpus: int) -> None:
        self.desk = ray.remote(num_cpus=0)(Desk).options(scheduling_strategy=here()).remote()
        self.error: BaseException | None = None
        self.trainer = TorchTrainer(
            _train_one,
            train_loop_config={"job": job, "desk": self.desk},
            scaling_config=ScalingConfig(
                num_workers=count,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1},
            ),
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo"),
            run_config=RunConfig(
                name="train-final",
                storage_path=tempfile.mkdtemp(prefix="train-final-"),  # of Ray Train's own records, which nobody reads
                failure_config=FailureConfig(max_failures=0),
            ),
        )

    def follow(self, reporter: Reporter) -> BaseException | None:
        """What went wrong in the end, or nothing."""
        thread = Thread(target=self._fit, daemon=True)  # in the main thread Ray would take Ctrl-C for itself
        thread.start()
        is_told = False
        while True:
            is_over = not thread.is_alive()
            for method, content in ray.get(self.desk.take.remote()):
                getattr(reporter, method)(*content)
            if is_over:
                return self.error
            if reporter.stops() and not is_told:
                ray.get(self.desk.stop.remote())
                is_told = True
            thread.join(LOOK_EVERY_S)

    def _fit(self) -> None:
        try:
            self.trainer.fit()
        except BaseException as error:
            self.error = error


def _train_one(content: dict[str, Any]) -> None:
    """In each process."""
    FinalTraining(content["job"], ray.train.torch.get_device(), FromAfar(content["desk"])).run()


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
