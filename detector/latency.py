"""How long a pyramid takes, measured."""

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from detector.levels import Size

WARM_UP, TIMED_RUNS = 3, 10


@torch.no_grad()
def latency_ms(pyramid: nn.Module, channels: int, sizes: Sequence[Size], device: torch.device) -> float:
    """Milliseconds of one forward pass on maps P3..P7 of one image: the median of TIMED_RUNS."""
    pyramid = pyramid.to(memory_format=torch.channels_last).to(device).eval()
    features = [torch.randn(1, channels, *size, device=device) for size in sizes]
    features = [feature.to(memory_format=torch.channels_last) for feature in features]
    seconds = []
    for _ in range(WARM_UP + TIMED_RUNS):
        _wait(device)
        start = time.perf_counter()
        pyramid(features)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[WARM_UP:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
