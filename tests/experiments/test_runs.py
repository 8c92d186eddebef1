"""A study of three runs whose module is this test's own script."""

import subprocess
from pathlib import Path

import pytest

from experiments.runs import Run, Runs

SCRIPT = """
import sys
from pathlib import Path
from experiments.runs import Run, Runs
folder, name, seed = Path(sys.argv[1]), sys.argv[3], int(sys.argv[4])
Path(folder / "log").open("a").write(f"{name} {seed}\\n")
if name == "bad":
    raise SystemExit(3)
Runs(folder, "v", "none", []).write(Run(name, seed), {"twice": 2 * seed})
"""


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    runs = Runs(tmp_path / "runs", "v", "none", [])
    (tmp_path / "script.py").write_text(SCRIPT)
    runs.command = [runs.command[0], str(tmp_path / "script.py"), str(runs.folder)]
    return runs


def test_what_is_there_is_not_run_again(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.write(Run("a (b)", 1), {"twice": 0})
    runs.make([Run("a (b)", seed) for seed in (1, 2, 3)], jobs=2)
    assert [runs.read(Run("a (b)", seed))["twice"] for seed in (1, 2, 3)] == [0, 4, 6]
    assert sorted((runs.folder / "log").read_text().splitlines()) == ["a (b) 2", "a (b) 3"]
    assert "a (b), seed 3: 2 of 2" in capsys.readouterr().out
    assert not list(runs.folder.glob("*.partial"))


def test_a_run_that_fails_ends_the_study_and_leaves_no_result(runs: Runs) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        runs.make([Run("bad", 0)], jobs=1)
    assert not runs.file(Run("bad", 0)).exists()


def test_what_is_kept_with_the_code_is_not_run_again(runs: Runs, tmp_path: Path) -> None:
    wanted = [Run("a (b)", seed) for seed in (1, 2)]
    runs.kept = tmp_path / "kept.json"
    runs.make(wanted[:1], jobs=1)
    runs.keep(wanted)  # of which one was made
    elsewhere = Runs(tmp_path / "elsewhere", "v", "none", [], runs.kept)
    elsewhere.command = runs.command
    elsewhere.make(wanted[:1], jobs=1)
    assert (runs.folder / "log").read_text().splitlines() == ["a (b) 1"]
    elsewhere.write(wanted[1], {"twice": 7})
    elsewhere.keep(wanted[1:])
    again = Runs(tmp_path / "third", "v", "none", [], runs.kept)
    assert [again.read(run)["twice"] for run in wanted] == [2, 7]
    assert len(runs.kept.read_text().splitlines()) == 4
    other = Runs(tmp_path / "third", "w", "none", [], runs.kept)
    with pytest.raises(FileNotFoundError):
        other.read(wanted[0])


def test_runs_of_other_names_seeds_and_settings_have_other_files(tmp_path: Path) -> None:
    files = {Runs(tmp_path, variant, "m", []).file(Run(n, s)) for variant in "ab" for n in ("x", "y") for s in (0, 1)}
    assert len(files) == 8
