"""What nas-search shows while it works: one screen on a terminal, plain lines elsewhere, JSON for programs."""

import itertools
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from detector.progress import Progress
from nas.store import Episode, State

RECENT = 50  # episodes whose mean reward is shown
CURVE = 40  # characters
BARS = "▁▂▃▄▅▆▇█"


class Screen:
    """Told of everything that is to be seen. is_quiet: nothing is, but warnings and results. as_json: every episode
    that has ended is a line on standard output, and whatever is said goes to standard error.
    """

    def __init__(self, *, is_quiet: bool = False, as_json: bool = False) -> None:
        self.progress = Progress(is_quiet=is_quiet)
        self.is_quiet = is_quiet
        self.as_json = as_json
        self.started = time.monotonic()
        self.out = sys.stdout  # a bar that is drawn takes its place: well for words, not for JSON
        self._hints: list[str] = []

    def note(self, line: str) -> None:
        """What one need not know."""
        if not self.is_quiet:
            self.say(line)

    def say(self, line: str) -> None:
        print(line, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def hint(self, line: str) -> None:
        """To be seen all the time below the bar of a terminal."""
        self._hints.append(line)

    def searching(self, ended: Sequence[Episode], episodes: Iterable[Episode], settled: int, total: int) -> None:
        """The episodes that have just ended, all of them by number, and how many of how many are settled."""
        known = list(episodes)
        if self.as_json:
            for episode in ended:
                print(json.dumps(as_dict(episode)), file=self.out, flush=True)
        rewards = [episode.reward for episode in known if episode.reward is not None]
        best = f", best reward {max(rewards):.4f}" if rewards else ""
        below = [*lines(known), *self._hints] if self.progress.is_drawn else ()
        self.progress(f"searching{best}", settled, total, below)


def as_dict(episode: Episode) -> dict[str, object]:
    """An episode as --json prints it."""
    return {
        "episode": episode.number,
        "state": str(episode.state),
        "reward": episode.reward,
        "cause": None if episode.cause is None else str(episode.cause),
        "architecture": episode.architecture_hash,
        "policy_version": episode.policy_version,
    }


def lines(episodes: Sequence[Episode]) -> list[str]:
    """How a search stands: the curve of its rewards with figures, and its failures."""
    rewarded = [episode for episode in episodes if episode.reward is not None]
    rewards = [episode.reward for episode in rewarded if episode.reward is not None]
    if not rewards:
        return []
    best = max(rewarded, key=lambda episode: (episode.reward or 0.0, -episode.number))
    start = f", at the start {rewards[0]:.4f}" if rewarded[0].log_prob is None else ""
    recent = statistics.fmean(rewards[-RECENT:])
    shown = [
        f"reward {curve(rewards)} mean of the last {min(RECENT, len(rewards))} {recent:.4f}",
        f"best {best.reward:.4f} (episode {best.number}){start}",
    ]
    failed = Counter(str(episode.cause) for episode in episodes if episode.state == State.FAILED)
    if failed:
        causes = ", ".join(f"{count} {cause}" for cause, count in failed.most_common())
        shown.append(f"failed {sum(failed.values())}: {causes}")
    return shown


def curve(values: Sequence[float], width: int = CURVE) -> str:
    """Means of equal parts of the values as bars, from the lowest to the highest."""
    count = min(width, len(values))
    edges = [len(values) * part // count for part in range(count + 1)]
    means = [statistics.fmean(values[start:end]) for start, end in itertools.pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(BARS[round((mean - low) / span * (len(BARS) - 1)) if span else 0] for mean in means)
