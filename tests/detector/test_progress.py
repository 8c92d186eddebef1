import pytest

from detector.progress import Progress


def test_the_time_left_leaves_out_how_long_the_first_step_waited(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr("detector.progress.time.monotonic", lambda: clock)
    with Progress() as progress:
        progress("searching", 0, 100)
        for step, seconds in ((1, 300.0), (2, 20.0), (12, 20.0), (12, 0.0)):  # the first waits for workers to start
            clock += seconds
            progress("searching, best reward 0.5", step, 100)
        progress("confirming", 0, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "searching: 0 of 100",
        "searching, best reward 0.5: 1 of 100",
        "searching, best reward 0.5: 2 of 100, about 33 min left",
        "searching, best reward 0.5: 12 of 100, about 5 min left",
        "confirming: 0 of 10",
    ]
