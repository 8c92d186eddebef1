"""An honest winner: the best graphs of a search run again with new seeds, by successive rejects.

The highest of many noisy rewards is mostly a lucky one. So the best candidates and the prior are evaluated on seeds
that the search has not used; phase by phase the worst candidate is left out (Audibert, Bubeck & Munos 2010, Best arm
identification in multi-armed bandits, section 3), until one is left, or the best is apart from the next one. The prior
is never left out: it is what the winner is compared with. It may win.

What came of it: nas/results.py. What other preparations of the proxy say: nas/other_preparation.py.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from nas.budget import Budget
from nas.reruns import Reruns
from nas.results import probability_above, without_seeds
from nas.store import Episode, Measurement, Outcome, Purpose, Store

EPISODES_A_RUN = 6  # of a search, for each run that confirms its best graphs
MOST_CANDIDATES = 8
RUNS_A_CANDIDATE = 6  # fewer runs in all than this for each candidate: fewer candidates, so that each has two at least
APART = 0.95  # probability
SEEDS = 2**63


class Confirmation(Reruns):
    """Successive rejects: run k of every graph has the same seed, one that the search has not used."""

    def __init__(
        self,
        store: Store,
        study_id: int,
        budget: Budget,
        candidates: Sequence[Episode],
        prior: Episode | None,
        *,
        runs: int,
        seed: int,
        steps: int,
        shares_gpu: bool = False,
    ) -> None:
        """candidates: owners of distinct graphs, best first; the prior may be one of them. runs: in all."""
        self.prior = prior
        chosen = [episode for episode in candidates if prior is None or episode.number != prior.number]
        chosen = chosen[: min(MOST_CANDIDATES, runs // RUNS_A_CANDIDATE)]
        arms = [*chosen, prior] if prior is not None and chosen else chosen
        measurements = [Measurement(Purpose.CONFIRM, (seed + 1 + run) % SEEDS, steps) for run in range(runs)]
        super().__init__(store, study_id, budget, arms, measurements, shares_gpu=shares_gpu)
        self.left = list(self.arms)  # not left out yet
        self._phase = 1
        self._end_phases()

    @property
    def total(self) -> int:
        return len(self.measurements)

    def _is_timed(self, run: int) -> bool:
        return run == 0

    def _runs_each(self) -> int:
        return runs_each(self._phase, len(self.arms), self.total)

    def _missing(self) -> Iterator[tuple[str, int]]:
        """What the phase lacks, run by run: nothing once there is a verdict, and nothing of graphs that failed."""
        if len(self.left) > 1:
            sound = [graph_hash for graph_hash in self.left if not self._has_failed(graph_hash)]
            wanted = ((graph_hash, run) for run in range(self._runs_each()) for graph_hash in sound)
            yield from (key for key in wanted if key not in self.rewards)

    def _settle(self, outcome: Outcome) -> None:
        self._end_phases()

    def _end_phases(self) -> None:
        """End every phase that has all its runs: leave out what failed, or the worst.

        Only the phase's own runs count, so that a confirmation that is walked through again takes the same turns.
        """
        while len(self.left) > 1 and not self._waits():
            of_phase = {graph_hash: self._of_phase(graph_hash) for graph_hash in self.left}
            sound = {graph_hash: rewards for graph_hash, rewards in of_phase.items() if rewards}
            if not sound:
                self.stopped = "every graph failed a confirming run; the same command tries them again"
                return
            best = max(sound, key=lambda graph_hash: statistics.fmean(sound[graph_hash]))
            prior_hash = self.prior and self.prior.architecture_hash
            others = [graph_hash for graph_hash in self.left if graph_hash != prior_hash]
            out = [graph_hash for graph_hash in others if graph_hash not in sound]
            if not out:
                out = [min(others, key=lambda graph_hash: statistics.fmean(sound[graph_hash]))]
                if _is_apart(sound) or self._phase >= len(self.arms) - 1:
                    self.left = [best]
                    return
            self.left = [graph_hash for graph_hash in self.left if graph_hash not in out]
            self._phase += len(out)

    def _has_failed(self, graph_hash: str) -> bool:
        """A graph that may fail is no winner."""
        return any(reward is None for (of, _), reward in self.rewards.items() if of == graph_hash)

    def _of_phase(self, graph_hash: str) -> list[float]:
        """The rewards that the phase is decided by; none of a graph that failed."""
        if self._has_failed(graph_hash):
            return []
        return [self.rewards[graph_hash, run] or 0.0 for run in range(self._runs_each())]


def _is_apart(of_phase: Mapping[str, Sequence[float]]) -> bool:
    """Whether the best is apart from the next. All have run with the same seeds."""
    samples, spread = without_seeds({graph_hash: dict(enumerate(runs)) for graph_hash, runs in of_phase.items()})
    ranked = sorted(samples.values(), key=statistics.fmean, reverse=True)
    return spread is not None and len(ranked) > 1 and probability_above(ranked[0], ranked[1], spread) >= APART


def runs_each(phase: int, arms: int, runs: int) -> int:
    """How many runs every graph that is left has had at the end of a phase (1, 2, ...) of successive rejects."""
    weight = 0.5 + sum(1 / i for i in range(2, arms + 1))
    return max(1, math.ceil((runs - arms) / (weight * (arms + 1 - phase))))
