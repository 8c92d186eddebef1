"""The whole service: nas-search as a user starts it, with Ray."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from detector.config_files import load_config
from detector.shapes import shapes_folder
from nas.config import Config
from nas.store import Action, Store

pytestmark = pytest.mark.ray

SEARCH = [
    sys.executable,
    "-c",
    "import sys; from nas.commands import search; sys.exit(search())",
    "--config",
    "smoke",
    "--confirm",
    "0",
]


def table(folder: Path) -> list[tuple]:
    with sqlite3.connect(folder / "nas.db") as connection:
        return connection.execute(
            "SELECT number, architecture_hash, decisions, log_prob, policy_version, state, cause, reward "
            "FROM episode ORDER BY number"
        ).fetchall()


started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    yield
    while started:
        process = started.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    with open(folder / "log", "a") as log:
        process = subprocess.Popen([*SEARCH, *arguments], cwd=folder, stdout=log, stderr=log, start_new_session=True)
    started.append(process)
    return process


def finish(process: subprocess.Popen, folder: Path) -> str:
    status = process.wait(timeout=180)
    log = (folder / "log").read_text()
    assert status == 0, log
    return log


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple]:
    """The table of an uninterrupted search with one worker."""
    folder = tmp_path_factory.mktemp("whole")
    log = finish(start(folder, "--episodes", "14", "--workers", "1", "--confirm", "8"), folder)
    assert "dashboard: http://127.0.0.1:" in log
    assert "winner with new seeds: episode" in log or "with new seeds none is better than the prior: mean" in log
    assert " runs of 4 steps" in log  # proxy.confirm_steps
    (folder / "copied").mkdir()
    shutil.copy(folder / "nas.db", folder / "copied")  # the file alone, as people would share it
    assert table(folder / "copied") == table(folder)
    return table(folder)


def test_a_search_records_every_episode_once(whole: list[tuple]) -> None:
    assert [row[0] for row in whole] == list(range(14))
    assert all(row[5] in ("done", "reused") and row[7] is not None for row in whole)


def test_the_table_does_not_depend_on_the_number_of_workers(tmp_path: Path, whole: list[tuple]) -> None:
    """3 here; 1 made the table it is compared with, and 2 run in the tests below."""
    finish(start(tmp_path / "run", "--episodes", "14", "--workers", "3"), tmp_path / "run")
    assert table(tmp_path / "run") == whole


@pytest.mark.slow
def test_kill_9_then_the_same_command_gives_the_same_table(tmp_path: Path, whole: list[tuple]) -> None:
    """The whole process group dies while trials run; in the second run workers die, busy or waiting for a batch."""
    folder = tmp_path / "run"
    process = start(folder, "--episodes", "14", "--workers", "2")
    wait_for(folder, 1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(table(folder)) < 14
    process = start(folder, "--episodes", "14", "--workers", "2")
    for settled in (3, 5):
        wait_for(folder, settled)
        kill_a_worker(process)
    finish(process, folder)
    assert table(folder) == whole


@pytest.mark.slow
def test_sigterm_leaves_with_143_and_the_search_goes_on(tmp_path: Path, whole: list[tuple]) -> None:
    folder = tmp_path / "run"
    process = start(folder, "--episodes", "14", "--workers", "2")
    wait_for(folder, 1)
    process.terminate()
    assert process.wait(timeout=60) == 143, (folder / "log").read_text()
    assert "the same command continues" in (folder / "log").read_text()
    finish(start(folder, "--episodes", "14", "--workers", "2"), folder)
    assert table(folder) == whole


def test_a_mistake_that_only_a_worker_can_find_is_one_line(tmp_path: Path) -> None:
    """Images that cannot be decoded, with a proxy that looks at them in trials only."""
    folder, data = tmp_path / "run", tmp_path / "data"
    folder.mkdir()
    shutil.copytree(shapes_folder(load_config("smoke", Config).data.shapes), data)
    for image in (data / "train").iterdir():
        image.write_bytes(image.read_bytes()[:60])
    text = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
    text = "data: {source: coco}\n" + text[text.index("detector:") :].replace("protocol: frozen", "protocol: full")
    (folder / "c.yaml").write_text(text)
    process = start(folder, "--config", "c.yaml", "--data", str(data), "--workers", "1")
    assert process.wait(timeout=120) == 2
    last = (folder / "log").read_text().splitlines()[-1]
    assert last.startswith("nas-search: ")
    assert "cannot be decoded" in last


def wait_for(folder: Path, settled: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.05)
        try:
            if sum(row[5] != "running" for row in table(folder)) >= settled:
                return
        except sqlite3.OperationalError:
            pass
    pytest.fail((folder / "log").read_text())


def kill_a_worker(driver: subprocess.Popen) -> None:
    """One of the processes that run trials."""
    kill_child(driver, "ray::Trial")


def kill_child(driver: subprocess.Popen, name: str) -> None:
    """A process that the driver started, as soon as there is one of this name."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and driver.poll() is None:
        for process in psutil.Process(driver.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                if name in " ".join(process.cmdline()):
                    process.kill()
                    return
    pytest.fail(f"no {name} found")


def stopped(process: subprocess.Popen, folder: Path) -> str:
    """The last line of a search that gives up."""
    assert process.wait(timeout=180) == 1, (folder / "log").read_text()
    return (folder / "log").read_text().splitlines()[-1]


@pytest.mark.slow
def test_trials_that_take_too_long_are_timeouts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    last = stopped(start(folder, "--episodes", "4", "--workers", "1", "--trial-timeout", "0.001"), folder)
    assert "episode 0, the prior, failed with timeout (it took longer than --trial-timeout 0.001 s)" in last


def test_an_actor_that_ray_ends_for_want_of_memory_is_oom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own monitor ends it, with a threshold that the machine is above already."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    script = """
import time
import ray
from nas.search import outcome_of_death

@ray.remote
class Busy:
    def work(self):
        time.sleep(60)

ray.init(address="local", num_cpus=1, include_dashboard=False)
try:
    ray.get(Busy.remote().work.remote())
except Exception as error:
    outcome = outcome_of_death(error)
    print("ended with", outcome.cause, "memory" in outcome.detail)
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180)
    assert "ended with oom True" in process.stdout, process.stdout + process.stderr


@pytest.mark.slow
def test_a_controller_that_dies_is_replaced_and_the_table_is_the_same(tmp_path: Path, whole: list[tuple]) -> None:
    folder = tmp_path / "run"
    process = start(folder, "--episodes", "14", "--workers", "2")
    for settled in (1, 5, 9):
        wait_for(folder, settled)
        kill_child(process, "ControllerActor")
    log = finish(process, folder)
    assert log.count("the controller's process died") == 3
    assert table(folder) == whole


def asked(folder: Path, action: Action) -> str:
    """What the search answers. (The commands that ask: test_control.py.)"""
    store = Store(str(folder / "nas.db"))
    request = store.ask(1, action)
    deadline = time.monotonic() + 60
    while (answer := store.answer_of(request)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    store.close()
    return answer or "no answer"


def settled(folder: Path) -> int:
    return sum(row[5] != "running" for row in table(folder))


@pytest.mark.slow
def test_a_search_that_is_paused_stopped_and_ended_at_once_gives_the_same_table(
    tmp_path: Path, whole: list[tuple]
) -> None:
    folder = tmp_path / "run"
    process = start(folder, "--episodes", "14", "--workers", "1")
    wait_for(folder, 1)
    assert "paused" in asked(folder, Action.PAUSE)
    time.sleep(5)
    count = settled(folder)
    time.sleep(3)
    assert settled(folder) == count < 14
    assert asked(folder, Action.CONTINUE) == "goes on"
    wait_for(folder, count + 1)
    assert "stops once" in asked(folder, Action.STOP)
    assert process.wait(timeout=60) == 130
    assert (folder / "log").read_text().endswith("nas-search: stopped on request; the same command continues\n")
    assert not any(row[5] == "running" for row in table(folder))
    process = start(folder, "--episodes", "14", "--workers", "2")
    wait_for(folder, settled(folder) + 1)
    assert asked(folder, Action.STOP_NOW).startswith("stops;")
    assert process.wait(timeout=60) == 130
    finish(start(folder, "--episodes", "14", "--workers", "2"), folder)
    assert table(folder) == whole


def test_figures_of_a_search_reach_what_prometheus_scrapes(tmp_path: Path) -> None:
    script = """
import time, urllib.request
import ray
from nas.metrics import SearchMetrics, TrialMetrics
from nas.store import Cause, Episode, Outcome, State

ray.init(address="local", num_cpus=1, include_dashboard=False)
node = ray.nodes()[0]
url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
rewards = [0.3, 0.5, None, 0.4]
states = [State.DONE, State.DONE, State.FAILED, State.REUSED]
episodes = [Episode(n, "", n, (), None, 0, s, None, r) for n, (s, r) in enumerate(zip(states, rewards))]
SearchMetrics("mine").show(episodes, 7, 0.25)
TrialMetrics("mine").show(Outcome(None, Cause.NAN, 3.0))
deadline = time.monotonic() + 90
while time.monotonic() < deadline:
    text = urllib.request.urlopen(url).read().decode()
    found = [line for line in text.splitlines() if line.startswith("ray_nas_") and 'study="mine"' in line]
    if len(found) > 20:
        break
    time.sleep(1)
print("\\n".join(found))
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180)
    shown = {}
    for line in process.stdout.splitlines():
        if line.startswith("ray_nas_"):
            name, _, value = line.rpartition(" ")
            labels = [part for part in ("done", "failed", "reused", "pruned", "nan") if f'="{part}"' in name]
            shown[name.partition("{")[0], *labels] = float(value)
    assert shown["ray_nas_episodes", "done"] == 2, process.stdout + process.stderr
    assert shown["ray_nas_episodes", "failed"] == 1
    assert shown["ray_nas_episodes", "pruned"] == 0
    assert shown["ray_nas_reward_last",] == 0.4
    assert shown["ray_nas_reward_mean",] == pytest.approx(0.4)
    assert shown["ray_nas_reward_best",] == 0.5
    assert shown["ray_nas_policy_version",] == 7
    assert shown["ray_nas_policy_entropy",] == 0.25
    assert shown["ray_nas_trial_seconds_count", "nan"] == 1
