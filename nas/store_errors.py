"""What the commands say if their database fails."""

import argparse
import sys
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from detector.command import FAILED, USER_ERROR
from detector.errors import UserError
from nas.lock import holder_of
from nas.store import NoStudyError, shown


def with_store_errors(name: str, command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """A database that fails underway (disk full, locked, damaged) is one line, and no traceback."""
    try:
        return command(args)
    except NoStudyError as error:
        holder = holder_of(args.database, args.study)
        if holder is None:
            raise
        raise UserError(
            f"study {args.study!r} is being prepared by {holder}: there is something to see once episodes have begun"
        ) from error
    except UnicodeEncodeError as error:  # bytes of the command line that are no text
        print(f"{name}: {error.object[:80]!a} is no text", file=sys.stderr)
        return USER_ERROR
    except (SQLAlchemyError, UnicodeDecodeError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        print(f"{name}: --database {shown(args.database)} failed: {reason}", file=sys.stderr)
        return FAILED
