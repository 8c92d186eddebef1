"""What a search writes for TensorBoard."""

import contextlib
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from detector.errors import UserError
from nas.store import Episode, State

log = logging.getLogger(__name__)

SUFFIX = ".nas-search"  # of the one file of a study


class Scalars:
    """Rewards, and the best so far, by episode; the policy's entropy by version, of this run.

    A search that goes on writes its episodes anew, so that the file is whole however the last run ended. What cannot
    be written later is left out, with a warning: a search is not to end over that.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError if the folder cannot be written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for earlier in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
                earlier.unlink()
            self._events: EventsWriter | None = EventsWriter(str(folder / "events"), SUFFIX)
            self._events.flush()
        except OSError as error:
            raise UserError(f"--tensorboard: {folder} cannot be written ({error.strerror})") from error
        self._written: set[int] = set()
        self._best = float("-inf")
        self._version = 0

    def show(self, episodes: Iterable[Episode], version: int, entropy: float | None) -> None:
        """All episodes of the study, and the newest version of its policy."""
        if self._events is None:
            return
        try:
            for episode in episodes:
                if episode.state != State.RUNNING and episode.number not in self._written:
                    self._written.add(episode.number)
                    self._show_episode(self._events, episode)
            if entropy is not None and version > self._version:
                self._version = version
                _write(self._events, "policy/entropy", entropy, version)
            self._events.flush()
        except OSError as error:
            log.warning("--tensorboard: no more events are written (%s)", error.strerror)
            self.close()

    def close(self) -> None:
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None

    def _show_episode(self, events: EventsWriter, episode: Episode) -> None:
        if episode.reward is not None:
            self._best = max(self._best, episode.reward)
            _write(events, "reward/episode", episode.reward, episode.number)
            _write(events, "reward/best", self._best, episode.number)


def _write(events: EventsWriter, tag: str, value: float, step: int) -> None:
    events.write_event(Event(summary=scalar(tag, value), step=step, wall_time=time.time()))
