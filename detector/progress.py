"""Progress of long work: a bar on a terminal, plain lines elsewhere, both with the time left."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_EVERY_S = 10.0


class Progress:
    """Call it with what is done, steps done and steps in all; a new `what` (up to the first comma) starts anew."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar: Bar | None = None
        self.phase = ""
        self.started = self.printed = 0.0
        self.first_step = 0
        self.is_under_way = False

    def __call__(self, what: str, step: int, steps: int) -> None:
        phase = what.split(",")[0]
        if phase != self.phase:
            self._close()
            self.phase, self.first_step = phase, step
            self.started, self.printed = time.monotonic(), 0.0
            self.is_under_way = False
        elif step > self.first_step and not self.is_under_way:  # the first step may have waited for processes to start
            self.is_under_way, self.first_step, self.started = True, step, time.monotonic()
        if self.console.is_terminal:
            self._draw(what, step, steps)
        elif step >= steps or time.monotonic() - self.printed >= LINE_EVERY_S:
            self.printed = time.monotonic()
            print(f"{what}: {step} of {steps}{self._left(step, steps)}", file=sys.stderr, flush=True)

    def _left(self, step: int, steps: int) -> str:
        done = step - self.first_step
        if done <= 0 or step >= steps:
            return ""
        left = (time.monotonic() - self.started) / done * (steps - step)
        return f", about {left:.0f} s left" if left < 120 else f", about {left / 60:.0f} min left"

    def _draw(self, what: str, step: int, steps: int) -> None:
        if self.bar is None:
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bar.start()
            self.bar.add_task(what, total=steps, completed=step)
        self.bar.update(self.bar.task_ids[0], description=what, completed=step)

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
