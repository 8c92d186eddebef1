"""Trials that fail, by real faults. (Workers that die: test_search.py; graphs over the budget: test_study.py.)"""

import contextlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.architecture import PRIORS
from detector.cache import cache_folder
from detector.coco import load_split
from detector.config_files import load_config
from nas import trial
from nas.config import Config
from nas.store import Cause
from nas.time_limit import OutOfTimeError, time_limit
from nas.trial import ProxySource, evaluate

CONFIG = load_config("smoke", Config)
PRIOR = PRIORS["nas-fpn"]


def source(**of_trial: float) -> ProxySource:
    changed = CONFIG.proxy.trial.model_copy(update=of_trial)
    config = CONFIG.model_copy(update={"proxy": CONFIG.proxy.model_copy(update={"trial": changed})})
    return ProxySource.of(config, None, PRIOR, load_split(config.data, None, "train").hash)


def test_a_trial_ends_with_an_ap() -> None:
    outcome = evaluate(source(), PRIOR, 0, 3, timeout_s=100.0)
    assert outcome.cause is None
    assert outcome.ap is not None
    assert 0 <= outcome.ap <= 1
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_training_that_diverges_is_nan() -> None:
    outcome = evaluate(source(learning_rate=1e25), PRIOR, 0, 3)
    assert (outcome.cause, outcome.ap) == (Cause.NAN, None)
    assert "NonFiniteLossError" in (outcome.detail or "")


def test_a_trial_that_takes_too_long_is_ended_and_the_worker_goes_on() -> None:
    evaluate(source(), PRIOR, 0, 3)  # loads the proxy, which does not count
    start = time.monotonic()
    outcome = evaluate(source(), PRIOR, 0, 10**6, timeout_s=0.5)
    assert (outcome.cause, outcome.ap) == (Cause.TIMEOUT, None)
    assert time.monotonic() - start < 20
    assert (outcome.detail or "").endswith("it took longer than --trial-timeout 0.5 s")
    assert evaluate(source(), PRIOR, 0, 3).cause is None


def test_no_handler_on_the_way_swallows_the_end_of_time() -> None:
    def work() -> None:
        with contextlib.suppress(Exception):  # as libraries do
            time.sleep(10)
        time.sleep(10)

    start = time.monotonic()
    with pytest.raises(OutOfTimeError), time_limit(0.1):
        work()
    assert time.monotonic() - start < 5


def in_a_process(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120)


def test_a_hang_in_foreign_code_ends_the_process_and_says_where() -> None:
    process = in_a_process(
        """
        import ctypes
        from nas import time_limit
        mutex = ctypes.create_string_buffer(64)
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)
        time_limit.GRACE_S = 0.5
        with time_limit.time_limit(0.5):
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)  # for ever, and with the interpreter's lock
        """
    )
    assert process.returncode == 1
    assert "Timeout" in process.stderr
    assert "line 8" in process.stderr


def test_a_trial_without_memory_is_oom() -> None:
    process = in_a_process(
        """
        import resource
        from pathlib import Path
        from tests.nas.test_trial import PRIOR, evaluate, source
        assert evaluate(source(), PRIOR, 0, 3).cause is None
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        outcome = evaluate(source(batch_size=20_000), PRIOR, 0, 3)
        print(outcome.cause, outcome.detail)
        """
    )
    assert process.stdout.startswith("oom Traceback"), process.stderr


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(2**55), lambda: np.zeros(2**55), lambda: [0] * 2**55],
    ids=["torch", "numpy", "list"],
)
def test_every_allocator_s_refusal_is_oom(allocate: Callable[[], object]) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as error:
        allocate()
    assert trial.cause_of(error.value) == Cause.OOM


def test_an_error_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file of the preparation."""
    evaluate(source(), PRIOR, 0, 3)
    shutil.copytree(cache_folder(), tmp_path / "cache", symlinks=True)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    for pool in (tmp_path / "cache").rglob("pool.pt"):
        pool.write_bytes(pool.read_bytes()[:100])
    trial._loaded.cache_clear()
    outcome = evaluate(source(), PRIOR, 0, 3)
    trial._loaded.cache_clear()
    assert (outcome.cause, outcome.ap) == (Cause.ERROR, None)
    assert "load_heads" in (outcome.detail or "")
