import os
import subprocess
import sys

import pytest

from detector.errors import UserError
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
        with pytest.raises(UserError), study_lock(str(tmp_path / "a.db"), "s"):
            pass
        holder.kill()
    with study_lock("./a.db", "s"):
        pass


def test_the_lock_is_free_after_use(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with study_lock("a.db", "s"):
            assert os.getpid()
