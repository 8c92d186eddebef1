"""A search on a Ray cluster of several machines, all of which are this one."""

import gc
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector.cache import cache_folder
from nas.cluster import room
from tests.nas.test_search import finish, settled, start, started, table, wait_for

pytestmark = [
    pytest.mark.ray,
    # Ray leaves sockets open that it has looked for free ports with.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

EPISODES = ("--episodes", "24")


class Machines:
    """A head that runs no trials, and machines that come and go; each has a cache of its own, and in its way a package
    `nas` that cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self.folder = folder
        (folder / "elsewhere" / "nas").mkdir(parents=True)
        (folder / "elsewhere" / "nas" / "__init__.py").write_text("raise ImportError('not the code of the driver')\n")
        self.cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.address: str = self.cluster.address
        self.nodes: list = []

    def cache(self, number: int) -> Path:
        return self.folder / f"cache-{number}"

    def join(self, num_cpus: int = 1, num_gpus: int = 0) -> None:
        number = len(self.nodes)
        env = {"NAS_CACHE": str(self.cache(number)), "PYTHONPATH": str(self.folder / "elsewhere")}
        self.nodes.append(self.cluster.add_node(num_cpus=num_cpus, num_gpus=num_gpus, env_vars=env))

    def leave(self, number: int) -> None:
        """At once, with what runs on it."""
        self.cluster.remove_node(self.nodes[number], allow_graceful=False)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path)
    yield made
    while started:  # they would wait for a cluster that is gone
        process = started.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    made.cluster.shutdown()
    with warnings.catch_warnings():  # or the next test's file would get it
        warnings.simplefilter("ignore", ResourceWarning)
        del made.cluster
        made.nodes.clear()
        gc.collect()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple]:
    """The table of a search without a cluster."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder, *EPISODES, "--workers", "2"), folder)
    return table(folder)


@pytest.mark.slow
def test_machines_that_join_and_leave_change_no_episode(tmp_path: Path, machines: Machines, whole: list[tuple]) -> None:
    """A machine leaves while it works, and the driver is killed; what was prepared is fetched, not made again."""
    folder = tmp_path / "run"
    pools = list(cache_folder().glob("proxy-*/pool-*/pool.pt"))
    assert pools
    for pool in pools:
        pool.with_name("fetched").touch()
    machines.join()
    process = start(folder, *EPISODES, "--address", machines.address)
    wait_for(folder, 3)
    machines.join()
    wait_for(folder, 7)
    machines.leave(0)
    wait_for(folder, settled(folder) + 2)
    process.kill()
    process.wait()
    finish(start(folder, *EPISODES, "--address", machines.address), folder)
    assert table(folder) == whole
    for number in (0, 1):
        (copy,) = machines.cache(number).glob("proxy-*/pool-*/fetched")
        original = cache_folder() / copy.relative_to(machines.cache(number))
        assert copy.with_name("pool.pt").read_bytes() == original.with_name("pool.pt").read_bytes()


@pytest.mark.parametrize(
    ("cpus", "gpus", "per_trial", "trials"),
    [(8, 0, 0, 8), (8, 2, 1, 2), (8, 2, 0.25, 8), (16, 2, 0.4, 4), (4, 2, 0.25, 4), (8, 3, 2, 1), (8, 0, 0.5, 0)],
)
def test_no_trial_has_its_gpu_on_two_of_them(cpus: float, gpus: float, per_trial: float, trials: int) -> None:
    assert room(cpus, gpus, per_trial) == trials


def test_room_follows_the_machines(machines: Machines) -> None:
    """Counted in another process: only one at a time may be part of a cluster."""
    machines.join(num_cpus=4, num_gpus=2)
    machines.join(num_cpus=1, num_gpus=1)
    script = """
import sys
from detector.errors import UserError
from nas.cluster import Cluster, Room, cluster_session
for workers, gpus in ((None, None), (None, 0.0), (None, 0.25), (7, None)):
    with cluster_session(Cluster("mine", workers, gpus, sys.argv[1], False)) as (cluster, _):
        print("room", Room(cluster).trials(), cluster.gpus_per_trial)
try:
    with cluster_session(Cluster("mine", None, 3.0, sys.argv[1], False)):
        print("room though no machine has three GPUs")
except UserError as error:
    print("room", error)
"""
    command = [sys.executable, "-c", script, machines.address]
    found = subprocess.run(command, capture_output=True, text=True, timeout=180)
    shown = [line for line in found.stdout.splitlines() if line.startswith("room")]
    assert shown[:-1] == ["room 3 1.0", "room 5 0.0", "room 5 0.25", "room 7 1.0"], found.stdout + found.stderr
    assert shown[-1].startswith(f"room --gpus-per-trial 3: no machine of {machines.address} has")
