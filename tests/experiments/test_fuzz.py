from pathlib import Path

import pytest

from experiments import fuzz


@pytest.mark.parametrize("kind", list(fuzz.KINDS))
def test_damaged_files_load_or_are_refused(tmp_path: Path, kind: str) -> None:
    assert fuzz.run(tmp_path, inputs=40, seed=1, kinds=[kind]) == 0


def test_what_is_no_refusal_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def load(path: Path) -> None:
        raise KeyError(path.name)

    monkeypatch.setitem(fuzz.KINDS, "graph", (lambda _: b"[1]", load))
    assert fuzz.run(tmp_path, inputs=3, seed=1, kinds=["graph"]) == 3
    assert "graph, input 2: KeyError at test_fuzz.py" in capsys.readouterr().out


def test_what_takes_too_long_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    monkeypatch.setitem(fuzz.KINDS, "graph", (lambda _: b"[1]", load))
    assert fuzz.run(tmp_path, inputs=1, seed=1, kinds=["graph"]) == 1
