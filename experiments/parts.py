"""Where time goes inside a model: seconds of each of its modules, forward."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from detector.cascade_rcnn import DetectionHeads


def parts_of(heads: DetectionHeads) -> dict[str, nn.Module]:
    """What follows the FPN, by name. What is left of a forward pass is assignment, losses and suppression."""
    cascade = heads.cascade
    parts: dict[str, nn.Module] = {"pyramid": heads.pyramid, "RPN": heads.rpn, "RoIAlign": cascade.pool}
    return parts | {f"head {number}": head for number, head in enumerate(cascade.heads, 1)}


@contextmanager
def timed(parts: Mapping[str, nn.Module], device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds spent in each module while this lasts. On a GPU every look waits for it."""
    spent = dict.fromkeys(parts, 0.0)
    hooks = []
    for name, module in parts.items():

        def before(_module: nn.Module, _inputs: object, name: str = name) -> None:
            wait(device)
            spent[name] -= time.perf_counter()

        def after(_module: nn.Module, _inputs: object, _output: object, name: str = name) -> None:
            wait(device)
            spent[name] += time.perf_counter()

        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def seconds(run: Callable[[], object], device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
