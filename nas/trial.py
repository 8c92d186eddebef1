"""One trial: a graph to an outcome, whatever happens on the way."""

import functools
import json
import logging
import os
import socket
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from detector.architecture import Architecture
from detector.coco import load_split
from detector.errors import NonFiniteLossError, UserError
from detector.latency import latency_ms
from detector.nas_fpn import NasFpn
from nas.budget import Budget
from nas.config import Config
from nas.proxy import Proxy, choose_device, load_proxy
from nas.store import Cause, Outcome
from nas.time_limit import OutOfTimeError, time_limit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProxySource:
    """What a worker needs to load the proxy: plain values, the same for all trials of a study."""

    config_json: str
    root: str | None
    prior_json: str | None
    data_hash: str

    @classmethod
    def of(cls, config: Config, root: Path | None, prior: Architecture | None, data_hash: str) -> "ProxySource":
        prior_json = json.dumps(prior.to_dict()) if prior else None
        return cls(config.model_dump_json(), str(root) if root else None, prior_json, data_hash)

    def load(self) -> Proxy:
        """Prepares the proxy if this machine has not yet. Raises UserError."""
        config = Config.model_validate_json(self.config_json)
        prior = Architecture.from_dict(json.loads(self.prior_json)) if self.prior_json else None
        data = load_split(config.data, Path(self.root) if self.root else None, "train")
        if data.hash != self.data_hash:
            raise UserError(f"{data.annotations}: is not the data that the study began with; put that back")
        return load_proxy(config, data, prior, choose_device(), lambda what, step, steps: None)

    def latency_ms(self, architecture: Architecture) -> float:
        """Of the graph's pyramid, for one image at the final detector's size, on this worker."""
        config = Config.model_validate_json(self.config_json)
        budget, detector = Budget.of(config), config.detector
        pyramid = NasFpn(architecture.canonical(), detector.channels, detector.pyramid_norm)
        return latency_ms(pyramid, detector.channels, budget.level_sizes, choose_device())


@functools.lru_cache(maxsize=1)
def _loaded(source: ProxySource) -> Proxy:
    """Kept by a worker from trial to trial: CUDA context, data and caches are loaded once."""
    return source.load()


def evaluate(
    source: ProxySource,
    architecture: Architecture,
    seed: int,
    steps: int,
    *,
    is_timed: bool = False,
    timeout_s: float | None = None,
) -> Outcome:
    """Train and judge a graph. A failure is an outcome with its cause. is_timed: measure the pyramid's latency, too.
    timeout_s: how long the trial may take, loading aside.

    Raises UserError for a mistake that would fail every graph (it is no graph's fault), and torch.AcceleratorError
    when the device is in a state that only a new process can mend. The time is that of the trial, loading aside.
    """
    start = time.monotonic()
    worker = f"{socket.gethostname()}:{os.getpid()}"
    try:
        proxy = _loaded(source)
        start = time.monotonic()
        with time_limit(timeout_s):
            ap = proxy.evaluate(architecture, seed, steps)
        seconds = time.monotonic() - start
    except (UserError, torch.AcceleratorError):
        raise
    except OutOfTimeError:
        detail = f"{traceback.format_exc()}it took longer than --trial-timeout {timeout_s:g} s"
        return Outcome(None, Cause.TIMEOUT, time.monotonic() - start, worker, detail=detail)
    except Exception as error:
        return Outcome(None, cause_of(error), time.monotonic() - start, worker, detail=traceback.format_exc())
    return Outcome(ap, None, seconds, worker, latency_ms=_latency_ms(source, architecture) if is_timed else None)


def _latency_ms(source: ProxySource, architecture: Architecture) -> float | None:
    """None if it cannot be measured: an AP is not to be lost over that."""
    try:
        return source.latency_ms(architecture)
    except Exception:
        log.warning("the latency of a graph could not be measured", exc_info=True)
        return None


def cause_of(error: Exception) -> Cause:
    if isinstance(error, NonFiniteLossError):
        return Cause.NAN
    # PyTorch's allocator for the CPU has no exception of its own.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return Cause.OOM
    return Cause.ERROR
