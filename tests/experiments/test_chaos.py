"""The chaos runner in a small form: searches that are killed end as if nobody had."""

import json
import sqlite3
import sys
from pathlib import Path

import pytest

from experiments import chaos

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    options = ["--episodes", "20", "--kills", "1", "--kinds", "group", "worker", "unlearned"]
    monkeypatch.setattr(sys, "argv", ["chaos", "--folder", str(folder), *options])
    with pytest.raises(SystemExit) as end:
        chaos.main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_killed_searches_end_as_undisturbed_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert run(tmp_path, monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "DIFFERS" not in shown
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("search-0-*.json"))]
    assert sum(len(result["kills"]) for result in results) >= 1

    # It would be seen if one reward were another, or one weight.
    reference = chaos.tables(tmp_path / "undisturbed")
    killed = tmp_path / "search-0-0"
    assert chaos.tables(killed) == reference
    for change in ("UPDATE episode SET reward = reward + 1e-9 WHERE number = 7", "UPDATE policy SET weights = X'00'"):
        with sqlite3.connect(killed / "nas.db") as connection:
            connection.execute(change)
        assert chaos.tables(killed) != reference
        reference = chaos.tables(killed)

    (tmp_path / "search-0-0.json").write_text(json.dumps({"kills": results[0]["kills"], "equal": False}))
    assert run(tmp_path, monkeypatch) == 1
    assert "DIFFERS" in capsys.readouterr().out
