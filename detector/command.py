"""What every command does the same way: one-line errors, exit codes, signals, files that are whole or absent."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any, NoReturn

from detector.errors import RunFailedError, UserError

LONGEST_LINE = 600
USER_ERROR, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143

_is_terminating = Event()


class Parser(argparse.ArgumentParser):
    """Its help has examples first and says defaults; a wrong option is reported in one line.

    examples: what is typed, and what that does. required: what a command needs at least, for the line of usage.
    """

    def __init__(self, prog: str, description: str, examples: Mapping[str, str], required: str = "") -> None:
        usage = " ".join(filter(None, (prog, required, "[options]")))
        super().__init__(prog, usage, f"{description}\n\n{_table(examples)}", formatter_class=_HelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help shows the options)")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Defaults are said where there is something to say."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, False, [])
        return super()._get_help_string(action) if has_default else action.help


def _table(examples: Mapping[str, str]) -> str:
    width = max(map(len, examples))
    return "\n".join(f"  {typed:{width}}   {meaning}" for typed, meaning in examples.items())


def count(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that is a whole number of `least` or more."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} given, must be a whole number of {least} or more")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"{text} given, must be {most} at most")
        return value

    return parse


def share(text: str) -> float:
    """The type of an option that is a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} given, must be a number from 0 to 1")
    return value


def guarded(name: str, command: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Run a command; its exit code: 2 and one line for a mistake, 1 if the run failed, 130 SIGINT, 143 SIGTERM.

    After a SIGTERM the code is 143 whatever the exit turned into on its way here: Ray changes it where it meets Ray's
    own code.
    """
    _is_terminating.clear()
    exit_on_sigterm()
    try:
        return command()
    except UserError as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return USER_ERROR
    except RunFailedError as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return FAILED
    except BrokenPipeError as error:  # as when head has read enough of its output; the rest cannot be flushed either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"{name}: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except BaseException:
        if not _is_terminating.is_set():
            raise
        print(f"{name}: {interrupted}", file=sys.stderr)
        return TERMINATED


def one_line(error: Exception) -> str:
    """A mistake as it is shown: what it quotes may be of any length, and hold what would confuse a terminal."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(str(error).split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} [...] {line[-LONGEST_LINE // 2 :]}"


def exit_on_sigterm() -> None:
    """Leave through `finally` clauses when asked to terminate. For the main thread."""
    signal.signal(signal.SIGTERM, _terminate)


@contextmanager
def signals_wait() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C are noted in the list that is yielded, and act at the end; the second one acts at once.

    What the process ignores, as one in the background of a script does Ctrl-C, is ignored here, too.

    Both often reach child processes, too. That these die does not count from then on, where PyTorch would raise.
    """
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if len(received) > 1:
            restore()
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
    if received:
        signal.raise_signal(received[0])


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    _is_terminating.set()
    raise SystemExit(TERMINATED)


def keep_ray_to_itself(address: str | None) -> None:
    """On one machine nothing need listen beyond loopback. Before Ray is imported, which reads this then."""
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def config_options(parser: Parser) -> None:
    """Of commands that take a --config."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the configuration, such as training.steps=200; may be given again",
    )
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration as YAML, and end")


def output_folder(path: Path) -> None:
    """Make the folder of --output. Raises UserError if it cannot be one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be a folder ({error.strerror})") from error


def write_json(path: Path, content: Mapping[str, Any], option: str = "--output") -> None:
    """See write_file."""
    write_file(path, json.dumps(content, indent=2) + "\n", option)


def write_file(path: Path, content: str | bytes, option: str = "--output") -> None:
    """Write whole or not at all. Raises UserError, naming the option, if the place cannot be written."""
    if path.is_dir() or not path.name:
        raise UserError(f"{option} {path}: is a folder; give a file")
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror})") from error
