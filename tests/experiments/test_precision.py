import sys

import torch

from experiments import precision


def test_a_table_compares_with_float32(monkeypatch, capsys) -> None:
    precision.report(0, "bfloat16", [0.1, 0.2, 0.3], [0.1, 0.23, 0.22])
    assert "| 0 | bfloat16 | 0.333 | -0.0167 | -0.0800 |" in capsys.readouterr().out


def test_trials_run_in_both_precisions(monkeypatch, capsys) -> None:
    first = dict(list(precision.graphs().items())[:2])
    monkeypatch.setattr(precision, "graphs", lambda: first)
    seen = []

    class Looking:
        def evaluate(self, _graph: object, seed: int, steps: int) -> float:
            seen.append((torch.is_autocast_enabled("cpu"), seed, steps))
            return 0.1 * len(seen)

    monkeypatch.setattr(precision, "load_proxy", lambda *_: Looking())
    monkeypatch.setattr(sys, "argv", ["x", "--config", "smoke", "--steps", "3"])
    precision.main()
    assert seen == [(False, 0, 3)] * 2 + [(True, 0, 3)] * 2 + [(False, 1, 3)] * 2
    assert capsys.readouterr().out.count("| 3 |") == 2
