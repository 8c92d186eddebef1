"""The tutorial, typed line by line on a small set of the same form."""

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from detector.config_files import load_config
from detector.shapes import shapes_folder
from nas.config import Config
from tests.test_docs import DOCS, blocks

SCRIPTS = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]["scripts"]
SMALL = "base: smoke\ndata: {source: coco}\n"


def run(line: str, folder: Path) -> str:
    """A command of the tutorial; what it prints."""
    name, *arguments = shlex.split(line)
    if name == "python":
        command = [sys.executable, *arguments]
    else:
        module, function = SCRIPTS[name].split(":")
        command = [
            sys.executable,
            "-c",
            f"import sys; from {module} import {function}; sys.exit({function}())",
            *arguments,
        ]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, f"{line}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def test_its_configuration_is_valid(tmp_path: Path) -> None:
    (yaml,) = blocks("tutorial.md", "yaml")
    (tmp_path / "mine.yaml").write_text(yaml)
    assert load_config(str(tmp_path / "mine.yaml"), Config) != load_config("bccd", Config)


@pytest.mark.ray
@pytest.mark.slow
def test_a_newcomer_can_type_it(tmp_path: Path) -> None:
    made = shapes_folder(load_config("smoke", Config).data.shapes)
    (tmp_path / "blood").mkdir()
    for name, of in {"annotations": "annotations", "train": "train", "val": "val", "images": "val"}.items():
        (tmp_path / "blood" / name).symlink_to(made / of)
    (tmp_path / "mine.yaml").write_text(SMALL)
    lines = [line for block in blocks("tutorial.md", "console") for line in block.strip().splitlines()]
    assert [shlex.split(line)[0] for line in lines] == [
        *("python", "nas-search", "nas-report", "nas-export", "train-final", "train-final", "eval-final", "detect"),
    ]
    printed = {}
    for line in lines:
        # A model that has seen 160 pictures for 20 steps is sure of nothing.
        small = line.replace("--episodes 60", "--episodes 8 --confirm 6").replace("--threshold 0.5", "--threshold 0")
        printed[line] = run(small, tmp_path)
    assert "| classes |" in printed[lines[0]]
    assert "next: nas-export --best" in printed[lines[1]]
    assert (tmp_path / "report.html").stat().st_size > 10**6
    assert (tmp_path / "runs" / "final" / "model.pt").is_file()
    assert len(list((tmp_path / "runs" / "detect").glob("*.png"))) == 24
