"""Costs are those of the built module, counted by PyTorch."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from detector.architecture import PRIORS, Architecture
from detector.choices import Norm
from detector.cost import cost_of
from detector.levels import level_sizes
from detector.nas_fpn import NasFpn


@pytest.mark.parametrize("name", sorted(PRIORS))
@pytest.mark.parametrize(("channels", "norm", "repeats"), [(8, "bn", 1), (16, "gn", 3)])
def test_cost_is_that_of_the_module(name: str, channels: int, norm: Norm, repeats: int) -> None:
    graph = Architecture(PRIORS[name].cells, repeats, PRIORS[name].attention, None)
    sizes = level_sizes((96, 160), 4)
    pyramid = NasFpn(graph, channels, norm)
    counter = FlopCounterMode(display=False)
    with counter:
        pyramid([torch.randn(1, channels, *size) for size in sizes])
    cost = cost_of(graph, channels, sizes)
    assert cost.gflops * 1e9 == pytest.approx(counter.get_total_flops() / 2, abs=0.5)
    assert cost.params == sum(parameter.numel() for parameter in pyramid.parameters())


def test_sizes_round_up() -> None:
    assert (
        level_sizes((800, 1333), 8)
        == level_sizes((800, 1344), 8)
        == [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
    )
