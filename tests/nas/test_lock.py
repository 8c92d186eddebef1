import fcntl
import subprocess
import sys

import pytest

from detector.errors import UserError
from nas import lock
from nas.lock import study_lock

HOLD = """
import time
from nas.lock import study_lock
with study_lock("a.db", "s"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_told_who_the_first_is(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):  # asking does not wipe the holder's name
            with pytest.raises(UserError, match=f"searched by process {holder.pid} on "), study_lock("a.db", "s"):
                pass
        with study_lock("a.db", "other"), study_lock("b.db", "s"):
            pass
        (tmp_path / "link.db").symlink_to("a.db")
        for same in (str(tmp_path / "a.db"), "link.db"):
            with pytest.raises(UserError), study_lock(same, "s"):
                pass
        holder.kill()
    with study_lock("./a.db", "s"):
        pass


def test_the_lock_is_free_after_use(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with study_lock("a.db", "s"):
            assert len(list(tmp_path.iterdir())) == 1
        assert not list(tmp_path.iterdir())


def test_a_lock_whose_file_its_last_holder_removed_is_taken_anew(tmp_path, monkeypatch) -> None:
    """Opened before the holder left, locked after: that file is no longer the one that others see."""
    monkeypatch.chdir(tmp_path)
    opened = lock.open_lock

    def open_while_the_last_holder_leaves(path, place):
        file = opened(path, place)
        monkeypatch.setattr(lock, "open_lock", opened)
        path.unlink()
        return file

    monkeypatch.setattr(lock, "open_lock", open_while_the_last_holder_leaves)
    with study_lock("a.db", "s"), open(*tmp_path.iterdir()) as seen, pytest.raises(BlockingIOError):
        fcntl.flock(seen, fcntl.LOCK_EX | fcntl.LOCK_NB)
