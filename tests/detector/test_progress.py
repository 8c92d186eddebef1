import io

import pytest
from rich.console import Console

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


@pytest.mark.parametrize("width", [70, 160])
def test_a_narrow_terminal_shows_what_matters_whole(width: int) -> None:
    """Steps and the time left; the rate where there is room."""
    out = io.StringIO()
    progress = Progress()
    progress.console = Console(file=out, force_terminal=True, width=width)
    with progress:
        progress("training the detector, loss 2.163", 1, 1500)
        progress("training the detector, loss 2.163", 30, 1500)
    shown = out.getvalue()
    assert "30/1500" in shown
    assert "left" in shown
    assert "…" not in shown
    assert ("gone" in shown) == (width == 160)
