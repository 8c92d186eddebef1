"""Progress of long work: a bar on a terminal, plain lines elsewhere, both with the time left."""

import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

LINE_EVERY_S = 10.0
WIDE = 110  # characters; on a narrower terminal what matters would be cut off


class _BarAndLines(Bar):
    below: Sequence[str] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for line in self.below:
            yield Text(f"  {line}")


class Progress:
    """Call it with what is done, steps done and steps in all; a new `what` (up to the first comma) starts anew.

    below: lines to be shown under the bar, on a terminal only. is_quiet: nothing is shown at all.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        self.console = Console(stderr=True)
        self.is_quiet = is_quiet
        self.bar: _BarAndLines | None = None
        self.phase = ""
        self.started = self.printed = 0.0
        self.first_step = 0
        self.is_under_way = False

    @property
    def is_drawn(self) -> bool:
        """Whether there is a bar, with lines below it."""
        return self.console.is_terminal and not self.is_quiet

    def __call__(self, what: str, step: int, steps: int, below: Sequence[str] = ()) -> None:
        if self.is_quiet:
            return
        phase = what.split(",")[0]
        if phase != self.phase:
            self._close()
            self.phase, self.first_step = phase, step
            self.started, self.printed = time.monotonic(), 0.0
            self.is_under_way = False
        elif step > self.first_step and not self.is_under_way:  # the first step may have waited for processes to start
            self.is_under_way, self.first_step, self.started = True, step, time.monotonic()
        if self.is_drawn:
            self._draw(what, step, steps, below)
        elif step >= steps or time.monotonic() - self.printed >= LINE_EVERY_S:
            self.printed = time.monotonic()
            print(f"{what}: {step} of {steps}{self._left(step, steps)}", file=sys.stderr, flush=True)

    def _left(self, step: int, steps: int) -> str:
        done = step - self.first_step
        if done <= 0 or step >= steps:
            return ""
        left = (time.monotonic() - self.started) / done * (steps - step)
        return f", about {left:.0f} s left" if left < 120 else f", about {left / 60:.0f} min left"

    def _rate(self, step: int) -> str:
        """In whatever unit gives a number that can be read."""
        done, seconds = step - self.first_step, time.monotonic() - self.started
        if done <= 0 or seconds <= 0:
            return ""
        return f"{done / seconds:.1f} a second" if done > seconds else f"{3600 * done / seconds:.0f} an hour"

    def _draw(self, what: str, step: int, steps: int, below: Sequence[str]) -> None:
        if self.bar is None:
            columns: list[ProgressColumn] = [
                TextColumn("{task.description}"),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("left"),
            ]
            if self.console.width >= WIDE:
                columns[1:1] = [BarColumn()]
                columns += [TimeElapsedColumn(), TextColumn("gone"), TextColumn("{task.fields[rate]}")]
            self.bar = _BarAndLines(*columns, console=self.console)
            self.bar.start()
            self.bar.add_task(what, total=steps, completed=step, rate="")
        self.bar.below = below
        self.bar.update(self.bar.task_ids[0], description=what, completed=step, rate=self._rate(step))

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
