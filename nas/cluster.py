"""The machines that trials run on: Ray on this one, or a cluster that is joined."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from detector.cache import build_once, cache_folder
from detector.errors import UserError
from detector.ray_session import here, ray_session

COUNT_EVERY_S = 1.0
CHUNK_BYTES = 64 * 2**20
OURS = ("nas", "controller", "detector", "experiments")  # packages


@dataclass(frozen=True)
class Cluster:
    """What a study asks for. address None starts Ray on this machine, with its dashboard on loopback.

    workers None: as many trials as there is room for, on machines that join later, too. gpus_per_trial None: one where
    there are any.
    """

    study: str
    workers: int | None
    gpus_per_trial: float | None
    address: str | None
    verbose: bool
    trial_timeout_s: float | None = None

    @property
    def shares_gpu(self) -> bool:
        """Whether trials share one."""
        return 0 < (self.gpus_per_trial or 0) < 1


class Room:
    """How many trials the machines can hold at once, machines that have joined or left meanwhile included."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._counted = -COUNT_EVERY_S
        self._trials = 0

    def trials(self) -> int:
        """At least one: on a cluster that grows by what is asked for, something must be."""
        if self.cluster.workers is not None:
            return self.cluster.workers
        if time.monotonic() - self._counted >= COUNT_EVERY_S:
            self._counted = time.monotonic()
            self._trials = max(1, sum(rooms(self.cluster.gpus_per_trial or 0)))
        return self._trials


def room(cpus: float, gpus: float, gpus_per_trial: float) -> int:
    """Trials that one machine can hold: each takes a core, and no share of a GPU is on two of them."""
    if not gpus_per_trial:
        return int(cpus)
    of_gpus = int(gpus) * int(1 / gpus_per_trial) if gpus_per_trial < 1 else int(gpus // gpus_per_trial)
    return min(int(cpus), of_gpus)


def rooms(gpus_per_trial: float) -> list[int]:
    """Trials that each machine that is there can hold."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [room(found.get("CPU", 0), found.get("GPU", 0), gpus_per_trial) for found in alive]


class Prepared:
    """Hands out folders of the driver's cache. An actor on the driver's machine.

    Other machines do not prepare the proxy anew: it would take as long again, and trained on other hardware the weights
    that trials share would differ, and with them rewards from machine to machine.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def files(self, name: str) -> list[tuple[str, int]]:
        """Names and sizes."""
        return [(path.name, path.stat().st_size) for path in sorted((self.cache / name).iterdir())]

    def read(self, name: str, file: str, offset: int) -> bytes:
        """CHUNK_BYTES from there, or what is left."""
        with open(self.cache / name / file, "rb") as content:
            content.seek(offset)
            return content.read(CHUNK_BYTES)


@dataclass(frozen=True)
class Delivery:
    """Folders of the driver's cache, for machines that do not have them yet."""

    prepared: Any  # the actor's handle
    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> "Delivery":
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Prepared)
        return cls(actor.options(scheduling_strategy=here()).remote(cache_folder()), tuple(names))

    def fetch(self) -> None:
        """Once a machine. Raises UserError if the cache cannot be written there."""
        try:
            for name in self.names:
                build_once(name, partial(self._copy, name))
        except OSError as error:
            raise UserError(f"the cache folder {cache_folder()} cannot be written ({error.strerror})") from error

    def _copy(self, name: str, folder: Path) -> None:
        for file, size in ray.get(self.prepared.files.remote(name)):
            with open(folder / file, "wb") as copy:
                for offset in range(0, size, CHUNK_BYTES):
                    copy.write(ray.get(self.prepared.read.remote(name, file, offset)))


@contextmanager
def cluster_session(cluster: Cluster) -> Iterator[tuple[Cluster, str]]:
    """Start or join Ray, and leave it at the end; yields the cluster, with what it left open decided by what is there,
    and its dashboard's address. Raises UserError.
    """
    with ray_session(cluster.address, cluster.workers or 1, OURS, verbose=cluster.verbose) as dashboard:
        yield _decided(cluster), dashboard


def _decided(cluster: Cluster) -> Cluster:
    gpus = ray.cluster_resources().get("GPU", 0)
    if cluster.address is None and cluster.gpus_per_trial is None:  # Ray may count others than PyTorch can use
        import torch

        gpus = torch.cuda.device_count()
    per_trial = float(gpus >= 1) if cluster.gpus_per_trial is None else cluster.gpus_per_trial
    if per_trial and max(rooms(per_trial)) == 0:  # Ray would wait for them for ever
        where = cluster.address or "this machine"
        raise UserError(
            f"--gpus-per-trial {per_trial:g}: no machine of {where} has a core and so many GPUs ({gpus:g} in all); "
            "give less"
        )
    return replace(cluster, gpus_per_trial=per_trial)
