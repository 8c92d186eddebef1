"""Both ways to run trials, on the smallest of searches."""

import re

import pytest

from experiments import naive


@pytest.mark.slow
@pytest.mark.ray
def test_both_ways_run_and_are_compared(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "smoke", "--steps", "2", "--trials", "2", "--episodes", "4", "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["naive", *arguments])
    naive.main()
    shown = capfd.readouterr().out
    ours, theirs = (int(number) for number in re.findall(r"^\| .* \| (\d+) \|$", shown, re.MULTILINE))
    ratio = float(re.search(r"^ratio: ([\d.]+), with 1 workers$", shown, re.MULTILINE)[1])
    assert theirs > 0
    assert ratio == pytest.approx(ours / theirs, rel=0.02)
