"""nas-completion: lets a shell complete the options of every command."""

import argparse
from pathlib import Path

import shtab

from detector import commands as of_detector
from nas import commands as of_service


def completion(args: argparse.Namespace) -> int:
    """nas-completion."""
    parsers = [make() for make in {**of_service.PARSERS, **of_detector.PARSERS}.values()]
    for parser in parsers:
        for action in parser._actions:  # argparse has no other way to them
            _complete_paths(action)
    print("\n".join(shtab.complete(parser, shell=args.shell) for parser in parsers))
    return 0


def _complete_paths(action: argparse.Action) -> None:
    """Options that take a file or a folder complete those."""
    kinds = str(action.metavar).split("|")
    if "DIR" in kinds:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif "FILE" in kinds or action.type is Path:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
