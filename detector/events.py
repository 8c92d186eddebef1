"""A file of events, for TensorBoard."""

import contextlib
import logging
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import image, scalar

from detector.errors import UserError

log = logging.getLogger(__name__)


class Events:
    """What is written by step. What cannot be written later is left out, with a warning: no work is to end over that.

    Written in this thread: tensorboardX's own, on a disk that is full, ends the process.
    """

    def __init__(self, folder: Path, suffix: str, option: str) -> None:
        """suffix ends the file's name. Raises UserError, naming the option, if the folder cannot be written."""
        self.option = option
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer: EventsWriter | None = EventsWriter(str(folder / "events"), suffix)
            self._writer.flush()
        except OSError as error:
            raise UserError(f"{option}: {folder} cannot be written ({error.strerror})") from error

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._write(scalar(tag, value), step)

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        self._write(image(tag, np.asarray(picture), dataformats="HWC"), step)

    def _write(self, summary: Summary, step: int) -> None:
        if self._writer is not None:
            try:
                self._writer.write_event(Event(summary=summary, step=step, wall_time=time.time()))
            except OSError as error:
                self._give_up(error)

    def flush(self) -> None:
        if self._writer is not None:
            try:
                self._writer.flush()
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def _give_up(self, error: OSError) -> None:
        log.warning("%s: no more events are written (%s)", self.option, error.strerror)
        self.close()
