import sys
from pathlib import Path

import numpy as np
import pytest

from detector.architecture import PRIORS, Architecture
from experiments import growth
from experiments.scale import Cost, Trial


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("fixed", [0.0, 3.0])
def test_a_fit_finds_what_the_costs_were_made_of(exponent: float, fixed: float) -> None:
    fit = growth.fitted({size: fixed + 2 * size**exponent for size in (1, 2, 5, 20, 60)})
    assert fit.exponent == pytest.approx(exponent, abs=0.01)
    assert fit.fixed == pytest.approx(fixed, abs=0.05)
    assert fit.at(10) == pytest.approx(fixed + 2 * 10**exponent, rel=0.01)


def test_costs_that_start_at_nothing_have_a_fit() -> None:
    fit = growth.fitted({size: 0.5 + 0.1 * size for size in (0, 10, 20)})
    assert (fit.fixed, fit.exponent) == (pytest.approx(0.5, abs=0.01), pytest.approx(1.0, abs=0.01))


def test_graphs_have_as_many_cells_as_asked_for_and_none_is_left_out() -> None:
    for cells in growth.CELLS:
        graph = growth.graph_of(cells)
        assert len(graph.cells) == cells
        assert len(graph.canonical().cells) == cells


def test_workers_that_are_always_busy_come_to_as_many_as_there_is_time_for() -> None:
    trials = [Trial(start, start + 30) for start in (0, 30, 60, 90) for _ in range(4)]
    assert growth.an_hour(Cost(0.0, 16, trials), 4) == pytest.approx(4 * 120)
    assert growth.an_hour(Cost(0.0, 16, trials), 8) == pytest.approx(4 * 120)  # half of them have nothing to do


def test_everything_is_measured_and_drawn(tmp_path: Path, monkeypatch, capsys) -> None:
    asked = []

    def trial_seconds(changes: list[str], graph: Architecture, steps: int, runs: int) -> float:
        asked.append((tuple(changes), len(graph.cells), steps))
        return 1.0 + len(asked)

    monkeypatch.setattr(growth, "trial_seconds", trial_seconds)
    monkeypatch.setattr(growth, "peak_gb", lambda images: images / 1000)
    monkeypatch.setattr(growth, "WORKERS", (1, 3))
    monkeypatch.setattr(growth, "BATCHES", 1)
    monkeypatch.setattr(growth, "real", growth.simulated)  # the other starts Ray
    monkeypatch.setenv("NAS_CACHE", "")  # put back afterwards
    path = tmp_path / "growth.png"
    options = ["--folder", str(tmp_path), "--processes", "1", "2", "--images", "20", "60", "--plot", str(path)]
    monkeypatch.setattr(sys, "argv", ["x", *options])
    growth.main()
    assert len(asked) == len(set(asked)) == 5 + 2 * (5 + 5 + 4)
    printed = capsys.readouterr().out
    assert printed.count("exponent") == 11
    assert path.stat().st_size > 10_000
    asked.clear()
    growth.main()  # what was measured is not measured again
    assert asked == []
    assert capsys.readouterr().out == printed


def test_a_longer_trial_costs_more(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NAS_CACHE", str(tmp_path))
    of_smoke = growth.load_config
    monkeypatch.setattr(growth, "load_config", lambda name, model, changes: of_smoke("smoke", model, changes))
    few, many = (growth.trial_seconds([], PRIORS["nas-fpn"], steps, 1) for steps in (1, 20))
    assert many > 1.5 * few


def test_memory_of_a_first_reading_is_that_of_its_process() -> None:
    before = growth.peak_gb(50)
    assert before > 0.02
    np.ones(10**8).sum()  # 0.8 GB
    assert growth.peak_gb(50) == pytest.approx(before, abs=0.1)
