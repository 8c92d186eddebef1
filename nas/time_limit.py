"""A limit on the time that a piece of work may take."""

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_S = 30.0
STDERR = 2  # the descriptor: sys.stderr may be anything


class OutOfTimeError(BaseException):
    """The time is over. No Exception, so that no handler on its way takes it for one of its own."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise OutOfTimeError once the work inside has taken so long. For the main thread of a process; None: no limit.

    Python raises it between two of its own instructions. Where the work hangs in foreign code and never comes back to
    them, GRACE_S later the process ends, with every thread's traceback on stderr.
    """
    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True, file=STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _out_of_time(_signal: int, _frame: FrameType | None) -> None:
    raise OutOfTimeError
