"""The documentation: complete, and true where that can be run."""

import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from controller.controller import Controller
from controller.proposer import Rewarded
from detector.architecture import PRIORS
from detector.commands import PARSERS as OF_DETECTOR
from nas.commands import PARSERS as OF_SERVICE
from nas.store import Base
from tests.nas.fakes import SPACE

DOCS = Path(__file__).parents[1] / "docs"
reference = SimpleNamespace(**runpy.run_path(str(DOCS / "reference.py")))  # docs/ is no package


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.S)


def test_every_key_of_the_configuration_is_documented() -> None:
    """python docs/reference.py makes the page anew."""
    assert (DOCS / "configuration.md").read_text() == reference.configuration()


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="help is laid out in another way")
def test_the_page_of_commands_is_up_to_date() -> None:
    """python docs/reference.py makes it anew."""
    assert (DOCS / "commands.md").read_text() == reference.commands()


@pytest.mark.parametrize("command", [*OF_SERVICE, *OF_DETECTOR])
def test_every_option_is_documented(command: str) -> None:
    """python docs/reference.py makes the page anew. How help is laid out differs from one Python to the next."""
    page = (DOCS / "commands.md").read_text()
    section = " ".join(page.partition(f"\n## {command}\n")[2].partition("\n## ")[0].split())
    parser = {**OF_SERVICE, **OF_DETECTOR}[command]()
    assert " ".join((parser.description or "").split()) in section
    for action in parser._actions:
        assert all(option in section for option in action.option_strings)
        assert " ".join((action.help or "").split()) in section


def test_every_column_of_the_database_is_documented() -> None:
    page = (DOCS / "database.md").read_text()
    for table in Base.metadata.sorted_tables:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{table.name}` |"))
        for column in table.columns:
            assert f"`{column.name}`" in row, f"{table.name}.{column.name}"


def test_the_example_of_a_search_algorithm_is_one() -> None:
    (example,) = (block for block in blocks("architecture.md", "python") if "class HillClimbing" in block)
    assert len(example.splitlines()) < 40
    names: dict[str, Any] = {}
    exec(compile(example, "architecture.md", "exec"), names)
    make = names["HillClimbing"]
    controller = Controller(make(SPACE, None), batch=4, lag=0, seed=0)
    for batch in range(3):
        proposals = [controller.propose(4 * batch + i) for i in range(4)]
        state = controller.update([Rewarded(p.decisions, p.log_prob, float(p.decisions[0])) for p in proposals])
    proposed = controller.propose(12)
    assert len(proposed.decisions) == len(SPACE.kinds)
    again = Controller(make(SPACE, None), batch=4, lag=0, seed=0)
    again.restore({3: state})
    assert again.propose(12) == proposed


def test_the_examples_from_python_run(here: Path) -> None:
    (here / "best.json").write_text(json.dumps(PRIORS["nas-fpn"].to_dict()))
    for block in blocks("python.md", "python")[:2]:
        exec(compile(block, "python.md", "exec"), {})
    assert (here / "best.svg").exists()


def test_figures_on_pages_exist() -> None:
    for page in DOCS.glob("*.md"):
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / name).is_file(), f"{page.name}: {name}"
    assert np.all([page.stat().st_size for page in DOCS.glob("*.png")])
