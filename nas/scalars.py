"""What a search writes for TensorBoard."""

import time
from collections.abc import Iterable
from pathlib import Path

from tensorboardX import SummaryWriter

from detector.errors import UserError
from nas.store import Episode, State


class Scalars:
    """Rewards, and the best so far, by episode; the policy's entropy by version.

    A search that goes on writes a file more into the same folder; what had ended before is not written again.
    """

    def __init__(self, folder: Path, before: Iterable[Episode]) -> None:
        """before: the episodes of earlier runs. Raises UserError if the folder cannot be written."""
        try:
            is_new = not folder.exists()
            self._writer = SummaryWriter(str(folder), filename_suffix=f".{time.time_ns()}")  # else one a second
        except OSError as error:
            raise UserError(f"--tensorboard: {folder} cannot be written ({error.strerror})") from error
        ended = [] if is_new else [episode for episode in before if episode.state != State.RUNNING]
        self._written = {episode.number for episode in ended}
        self._best = max((episode.reward for episode in ended if episode.reward is not None), default=float("-inf"))
        self._version = 0

    def show(self, episodes: Iterable[Episode], version: int, entropy: float | None) -> None:
        """All episodes of the study, and the newest version of its policy."""
        for episode in episodes:
            if episode.state == State.RUNNING or episode.number in self._written:
                continue
            self._written.add(episode.number)
            if episode.reward is not None:
                self._best = max(self._best, episode.reward)
                self._writer.add_scalar("reward/episode", episode.reward, episode.number)
                self._writer.add_scalar("reward/best", self._best, episode.number)
        if entropy is not None and version > self._version:
            self._version = version
            self._writer.add_scalar("policy/entropy", entropy, version)
        self._writer.flush()  # a killed search has written what it had recorded

    def close(self) -> None:
        self._writer.close()
