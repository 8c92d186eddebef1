"""Two processes, each with half of every batch, do what one does with all of it."""

from typing import Any

import pytest
import torch

from detector.norm import norm_layer
from detector.processes import Processes, normaliser
from tests.detector import together

COUNT = 2


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("together")
    together.run(COUNT, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(COUNT)]


@pytest.mark.parametrize("name", together.CASES)
def test_a_training_of_two_processes_is_that_of_one(of_two: list[dict[str, Any]], name: str) -> None:
    norm, batched, _ = together.CASES[name]
    alone = together.trained(norm, batched, 1)
    for part in ("weights", "average"):
        for key, value in alone[part].items():
            theirs = of_two[0]["trained"][name][part][key]
            if name == "in two parts" and part == "weights":  # a part's losses are divided by its own number of samples
                assert (theirs.float() - value.float()).abs().max() < 0.02 * max(1.0, float(value.abs().max()))
            elif name != "in two parts":
                torch.testing.assert_close(theirs, value, rtol=2e-4, atol=2e-5, msg=f"{part} {key}")
    for ours, theirs in zip(alone["losses"], of_two[0]["trained"][name]["losses"], strict=True):
        assert theirs == pytest.approx(ours, rel=0.05 if name == "in two parts" else 1e-4)


@pytest.mark.parametrize("name", together.CASES)
def test_both_processes_have_the_same_weights(of_two: list[dict[str, Any]], name: str) -> None:
    first, second = (found["trained"][name]["weights"] for found in of_two)
    assert all(value.equal(second[key]) for key, value in first.items())


def test_a_split_is_tested_together_as_by_one(of_two: list[dict[str, Any]]) -> None:
    alone = together.detected()
    assert of_two[1]["detected"] == []
    assert len(of_two[0]["detected"]) == len(alone) == 24
    assert sum(len(found.scores) for found in alone) > 20
    for ours, theirs in zip(alone, of_two[0]["detected"], strict=True):
        for part, other in zip(ours, theirs, strict=True):
            assert part.equal(other)


def test_processes_hear_each_other(of_two: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(of_two):
        told = found["told"]
        assert told["any"] == [True, False]
        assert told["mean"].tolist() == [1.0, 0.5]
        assert told["gathered"] == (["of 0", "of 1"] if rank == 0 else [])
        assert told["normalisers"] == [4.0, 0.5]  # 3 and 5 samples; none at all
        assert told["normalisers of one"] == 0.5


def test_one_process_needs_nobody() -> None:
    alone = Processes.here()
    assert (alone.rank, alone.count, alone.is_first) == (0, 1, True)
    assert alone.any(True)
    assert not alone.any(False)
    assert alone.gather("mine") == ["mine"]
    assert [int(normaliser(torch.arange(n) < n)) for n in (3, 0)] == [3, 1]


def test_a_synchronised_norm_on_the_cpu_is_bn_of_all(of_two: list[dict[str, Any]]) -> None:
    plain = norm_layer("bn")(5)
    with torch.no_grad():
        plain.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    maps = together.maps().requires_grad_()
    out = plain(maps)
    out.pow(3).sum().backward()
    for rank, found in enumerate(of_two):
        share = slice(rank, None, COUNT)
        torch.testing.assert_close(found["normalised"]["out"], out.detach()[share], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["normalised"]["gradient"], maps.grad[share], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found["normalised"]["mean"], plain.running_mean)
        torch.testing.assert_close(found["normalised"]["variance"], plain.running_var)
