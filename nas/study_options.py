"""What nas-search and nas-export share: where a study lies, and what is said if its database fails."""

import argparse
import sys
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from detector.command import FAILED, Parser
from nas.store import shown


def study_options(parser: Parser) -> None:
    parser.add_argument("--database", default="nas.db", metavar="FILE|URL", help="where results are kept")
    parser.add_argument("--study", default="default", metavar="NAME", help="which search in it")


def with_store_errors(name: str, command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """A database that fails underway (disk full, locked, damaged) is one line, and no traceback."""
    try:
        return command(args)
    except (SQLAlchemyError, UnicodeDecodeError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        print(f"{name}: --database {shown(args.database)} failed: {reason}", file=sys.stderr)
        return FAILED
