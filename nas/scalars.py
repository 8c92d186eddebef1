"""What a search writes for TensorBoard."""

from collections.abc import Iterable
from pathlib import Path

from detector.errors import UserError
from detector.events import Events
from nas.store import Episode, State

SUFFIX = ".nas-search"  # of the one file of a study
OPTION = "--tensorboard"


class Scalars:
    """Rewards, and the best so far, by episode; the policy's entropy by version, of this run.

    A search that goes on writes its episodes anew, so that the file is whole however the last run ended.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError if the folder cannot be written."""
        try:
            for earlier in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
                earlier.unlink()
        except OSError as error:
            raise UserError(f"{OPTION}: {folder} cannot be written ({error.strerror})") from error
        self._events = Events(folder, SUFFIX, OPTION)
        self._written: set[int] = set()
        self._best = float("-inf")
        self._version = 0

    def show(self, episodes: Iterable[Episode], version: int, entropy: float | None) -> None:
        """All episodes of the study, and the newest version of its policy."""
        for episode in episodes:
            if episode.state != State.RUNNING and episode.number not in self._written:
                self._written.add(episode.number)
                self._show_episode(episode)
        if entropy is not None and version > self._version:
            self._version = version
            self._events.scalar("policy/entropy", entropy, version)
        self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _show_episode(self, episode: Episode) -> None:
        if episode.reward is not None:
            self._best = max(self._best, episode.reward)
            self._events.scalar("reward/episode", episode.reward, episode.number)
            self._events.scalar("reward/best", self._best, episode.number)
