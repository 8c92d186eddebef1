"""The processes of a distributed training: which one this is, and what they tell each other."""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Content = TypeVar("Content")


@dataclass(frozen=True)
class Processes:
    """This one is `rank` of `count`. A single one needs no torch.distributed, and all of it does nothing then.

    What tensors on the CPU say goes through gloo, so that no device is waited for.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> "Processes":
        """As torch.distributed was set up."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        """The one that writes files and speaks."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether it holds in one of them; all have to ask."""
        if self.count == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all of them, on every one; no gradient goes through it."""
        if self.count == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def gather(self, content: Content) -> list[Content]:
        """What each of them has, in the order of ranks, on the first; nothing on the others."""
        if self.count == 1:
            return [content]
        gathered: list[Any] | None = [None] * self.count if self.is_first else None
        dist.gather_object(content, gathered)
        return gathered or []

    def align_buffers(self, module: nn.Module) -> None:
        """Give all of them the first one's statistics, which batch norms have gathered in each by itself."""
        if self.count > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum over all processes, on every one. Gradients go through it."""
    total: Tensor = _Sum.apply(value)
    return total


class _Sum(torch.autograd.Function):
    """PyTorch's own is deprecated, and what is to take its place is not public."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """Every process's result depends on each one's value alike."""
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def normaliser(valid: Tensor) -> Tensor:
    """What a sum over entries that are True is divided by to make a mean: their number, 1 at least.

    Of several processes it is the number in all of them, divided by how many they are: gradients, which these average,
    are then those of a single process that has all images.
    """
    processes = Processes.here()
    total = valid.sum()
    return total.clamp(min=1) if processes.count == 1 else processes.mean(total.float()).clamp(min=1 / processes.count)
