"""The figures mean nothing here; that each of them is of what it says is looked at."""

import sys

import pytest
import torch

from detector.evaluate import average_precision, coco_metrics
from detector.nas_fpn import NasFpn
from experiments import parts, profile, speed

CPU = torch.device("cpu")


def test_every_part_of_a_search_is_profiled(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--config", "smoke", "--runs", "1"])
    profile.main()
    printed = capsys.readouterr().out
    tables = printed.strip().split("\n\n")
    assert [table.splitlines()[0].split(" | ")[0] for table in tables] == [
        "| a trial of no steps",
        "| a step of a trial, 16 images",
        "| a step of full training, 8 images",
    ]
    for table in tables:
        rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
        assert {"pyramid", "RPN", "RoIAlign", "head 1", "head 2", "head 3"} <= {
            row[0].partition(": ")[2] for row in rows
        }
        assert sum(float(row[1]) for row in rows[:-1]) == pytest.approx(float(rows[-1][1]), abs=1)


def test_time_of_parts_is_part_of_the_time() -> None:
    pyramid = NasFpn(speed.GRAPH, 8)
    features = [torch.randn(2, 8, size, size) for size in (16, 8, 4, 2, 1)]
    with parts.timed({"all": pyramid, "first cell": pyramid.cells[0]}, CPU) as spent:
        whole = parts.seconds(lambda: pyramid(features), CPU)
    assert 0 < spent["first cell"] < spent["all"] < whole
    before = dict(spent)
    pyramid(features)
    assert spent == before  # no longer looked at


def test_both_ways_to_judge_say_the_same(monkeypatch) -> None:
    monkeypatch.setattr(speed, "IMAGES", 40)
    data, found = speed.made_up()
    ap = average_precision(data, found)
    assert 0.05 < ap < 0.95
    assert ap == pytest.approx(coco_metrics(data, found).ap, abs=1e-6)


def test_both_pyramids_are_the_same_work() -> None:
    steps = speed.pyramids(2, 8, (64, 64), 4)
    features = [torch.randn(2, 8, size, size) for size in (16, 8, 4, 2, 1)]
    ours, straight = (step.args[0](list(features)) for step in steps)
    for mine, other in zip(ours, straight, strict=True):
        torch.testing.assert_close(mine, other)
    for step in steps:
        step()


def test_a_search_that_fails_is_no_measurement(tmp_path) -> None:
    with pytest.raises(SystemExit, match="ended with 1"):
        speed.seconds_to_first_episode(["false"], str(tmp_path))
