"""What nas-search shows."""

import io
import json

import pytest
from rich.console import Console

from nas.screen import BARS, Screen, curve, lines
from nas.store import Cause, Episode, State


def episode(number: int, reward: float | None, cause: Cause | None = None) -> Episode:
    state = State.FAILED if cause else State.DONE if reward is not None else State.RUNNING
    return Episode(number, f"hash {number}", number, (), None if number == 0 else -1.0, 0, state, cause, reward)


def test_the_curve_rises_as_rewards_do() -> None:
    drawn = curve([number / 1000 for number in range(1000)])
    assert len(drawn) == 40
    assert list(drawn) == sorted(drawn, key=BARS.index)
    assert (drawn[0], drawn[-1]) == (BARS[0], BARS[-1])
    assert curve([0.3, 0.3]) == BARS[0] * 2
    assert curve([0.5]) == BARS[0]


def test_lines_say_how_it_stands() -> None:
    assert lines([]) == lines([episode(0, None)]) == []
    shown = lines([episode(0, 0.3), episode(1, 0.5), episode(2, None, Cause.OOM), episode(3, 0.1), episode(4, None)])
    assert shown[0].endswith("mean of the last 3 0.3000")
    assert shown[1:] == ["best 0.5000 (episode 1), at the start 0.3000", "failed 1: 1 oom"]


def searched(screen: Screen) -> None:
    episodes = [episode(0, 0.3), episode(1, 0.5)]
    screen.note("prepared")
    screen.hint("dashboard here")
    with screen.progress:
        for count in range(3):
            screen.searching(episodes[max(0, count - 1) : count], episodes[:count], count, 2)
    screen.say("found")


def test_a_terminal_has_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.progress.console = Console(file=io.StringIO(), force_terminal=True, width=110)
    searched(screen)
    shown = screen.progress.console.file.getvalue()
    assert "best 0.5000 (episode 1), at the start 0.3000" in shown
    assert "dashboard here" in shown
    assert capsys.readouterr() == ("prepared\nfound\n", "")


def test_elsewhere_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    searched(Screen())
    out, err = capsys.readouterr()
    assert out == "prepared\nfound\n"
    assert err.splitlines() == ["searching: 0 of 2", "searching, best reward 0.5000: 2 of 2"]


def test_quiet_says_only_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    searched(Screen(is_quiet=True))
    assert capsys.readouterr() == ("found\n", "")


def test_lines_for_programs_go_to_standard_output_though_a_bar_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(as_json=True)
    screen.progress.console = Console(file=io.StringIO(), force_terminal=True, width=110)
    searched(screen)
    out, _ = capsys.readouterr()
    assert [json.loads(line)["episode"] for line in out.splitlines()] == [0, 1]


def test_for_programs_every_episode_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    searched(Screen(as_json=True))
    out, err = capsys.readouterr()
    printed = [json.loads(line) for line in out.splitlines()]
    assert [(e["episode"], e["state"], e["reward"], e["cause"]) for e in printed] == [
        (0, "done", 0.3, None),
        (1, "done", 0.5, None),
    ]
    assert "found" in err
