"""What disks and rights do to a store: one clear line, nothing lost. And databases of earlier releases open."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from detector.errors import UserError
from nas import store
from nas.store import Purpose, Store
from tests.nas.fakes import run, schedule

EXAMPLES = Path(__file__).with_name("databases")
EPISODES = 24


def table(path: Path) -> list[tuple]:
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return connection.execute(
            "SELECT number, architecture_hash, decisions, log_prob, policy_version, state, reward FROM episode "
            "ORDER BY number"
        ).fetchall()


def test_a_full_disk_is_one_line_and_the_search_goes_on_once_there_is_room(tmp_path: Path) -> None:
    """The system refuses to let any file grow beyond a limit, as it does when a disk is full."""
    script = """
import argparse, resource, signal, sys
import torch
from nas.store import Store
from nas.store_errors import with_store_errors
from tests.nas.fakes import run, schedule

torch.set_num_threads(1)  # as here: another number rounds otherwise, and the policy would learn something else
path, limit = sys.argv[1], int(sys.argv[2])
search = schedule(Store(path), 24)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
def command(args):
    run(search, workers=2)
    return 0
sys.exit(with_store_errors("nas-search", command, argparse.Namespace(database=path)))
"""
    whole, path = tmp_path / "whole.db", tmp_path / "nas.db"
    run(schedule(Store(str(whole)), EPISODES), workers=2)
    command = [sys.executable, "-c", script, str(path)]
    found = subprocess.run([*command, str(256 * 1024)], capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert found.stderr.startswith(f"nas-search: --database {path} failed: ")
    assert found.stderr.count("\n") == 1
    assert 0 < len(table(path)) < EPISODES
    run(schedule(Store(str(path)), EPISODES), workers=2)
    assert table(path) == table(whole)


def as_nobody(act: Callable[[], bool]) -> bool:
    """In a process without root's rights, which reach everywhere. Whatever happens there, it ends there."""
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            os._exit(0 if act() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that others may read."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_database_that_may_not_be_written_is_refused_and_can_be_read(open_folder: Path) -> None:
    path = open_folder / "nas.db"
    run(schedule(Store(str(path)), 4), workers=1)
    path.chmod(0o444)

    def is_refused() -> bool:
        try:
            Store(str(path))
        except UserError as error:
            return str(error).startswith(f"--database {path}: cannot be")
        return False

    before = path.read_bytes()
    assert as_nobody(is_refused)
    assert as_nobody(lambda: len(Store(str(path), read_only=True).episodes(1)) == 4)
    assert path.read_bytes() == before


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.db")), ids=lambda path: path.stem)
def test_a_search_of_every_release_goes_on(tmp_path: Path, example: Path) -> None:
    """Each example holds the first 8 of 12 episodes of tests/nas/fakes.py, as that release wrote them."""
    path = tmp_path / "nas.db"
    shutil.copy(example, path)
    before = table(path)
    search = schedule(Store(str(path)), 12)
    run(search, workers=1)
    assert len(before) == 8
    assert table(path)[:8] == before
    assert [row[5] for row in table(path)[8:]] == ["done"] * 4
    assert search.version == 3


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.db")), ids=lambda path: path.stem)
def test_a_search_of_every_release_is_read_as_it_is(tmp_path: Path, example: Path) -> None:
    path = tmp_path / "nas.db"
    shutil.copy(example, path)
    before = path.read_bytes()
    trials = Store(str(path), read_only=True).evaluations(1, Purpose.SEARCH)
    assert len({trial.id for trial in trials}) == len(trials) == len({row[1] for row in table(example)})
    assert all(trial.seconds is not None for trial in trials)
    assert path.read_bytes() == before


def test_an_upgrade_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nas.db"
    shutil.copy(EXAMPLES / "0.1.db", path)
    whole = store.UPGRADES[3]
    monkeypatch.setitem(store.UPGRADES, 3, "ALTER TABLE absent ADD COLUMN gpus FLOAT")
    with pytest.raises(UserError):
        Store(str(path))
    monkeypatch.setitem(store.UPGRADES, 3, whole)
    assert len(Store(str(path), read_only=True).evaluations(1, Purpose.SEARCH)) == 8
    for _ in range(2):
        Store(str(path)).close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT version FROM schema").fetchall() == [(4,)]
        assert connection.execute("SELECT count(*), count(gpus) FROM evaluation").fetchall() == [(8, 0)]


def test_there_are_examples() -> None:
    assert list(EXAMPLES.glob("*.db"))
