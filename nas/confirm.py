"""An honest winner: the best graphs of a search run again with new seeds, by successive rejects.

The highest of many noisy rewards is mostly a lucky one. So the best candidates and the prior are evaluated on seeds
that the search has not used; phase by phase the worst candidate is left out (Audibert, Bubeck & Munos 2010, Best arm
identification in multi-armed bandits, section 3), until one is left, or the best is apart from the next one. The prior
is never left out: it is what the winner is compared with. It may win.

The store remembers every run, so that a confirmation continues after an interruption. What came of it: nas/results.py.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from nas.attempts import Attempts
from nas.budget import Budget
from nas.results import probability_above, without_seeds
from nas.store import Cause, Episode, Measurement, Outcome, Purpose, State, Store
from nas.study import Job

MOST_CANDIDATES = 8
RUNS_A_CANDIDATE = 6  # fewer runs in all than this for each candidate: fewer candidates, so that each has two at least
APART = 0.95  # probability
SEEDS = 2**63
OF_THE_GRAPH = (Cause.NAN, Cause.INVALID)  # failures that would come again; others are tried again by the next search


class Confirmation:
    """Which graph runs next with which seed, and what its end leads to. Used as a Schedule is."""

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
        self.store = store
        self.study_id = study_id
        self.budget = budget
        self.prior = prior
        self.seed = seed
        self.steps = steps
        self.total = runs
        self.stopped: str | None = None
        chosen = [episode for episode in candidates if prior is None or episode.number != prior.number]
        chosen = chosen[: min(MOST_CANDIDATES, runs // RUNS_A_CANDIDATE)]
        self.arms = {episode.architecture_hash: episode for episode in chosen}
        if prior is not None and chosen:
            self.arms[prior.architecture_hash] = prior
        self._graphs = {graph_hash: store.architecture(graph_hash) for graph_hash in self.arms}
        self.left = list(self.arms)  # not left out yet
        self.rewards: dict[tuple[str, int], float | None] = {}  # by graph and run; None of a failure
        self._running: dict[int, tuple[str, int]] = {}
        self._again: deque[int] = deque()
        self._attempts = Attempts(shares_gpu=shares_gpu, has_succeeded=True)  # the search has
        self._phase = 1
        for evaluation in store.evaluations(study_id, Purpose.CONFIRM):
            run = (evaluation.measurement.seed - seed - 1) % SEEDS
            is_ours = evaluation.architecture_hash in self.arms and evaluation.measurement == self._measurement(run)
            is_settled = evaluation.state == State.DONE or evaluation.cause in OF_THE_GRAPH
            if is_ours and is_settled and run < runs:
                self.rewards[evaluation.architecture_hash, run] = evaluation.reward
        self._settle()

    @property
    def settled(self) -> int:
        """Runs that have ended; all of them once there is a verdict."""
        return self.total if not self._waits() else min(len(self.rewards), self.total)

    @property
    def is_finished(self) -> bool:
        return self.stopped is not None or not self._waits()

    def next(self) -> Job | None:
        """The next run of this phase, None if all have been handed out."""
        if self.is_finished:
            return None
        if self._again:
            evaluation_id = self._again.popleft()
            return self._job(evaluation_id, *self._running[evaluation_id])
        out = set(self._running.values())
        return next((self._start(*missing) for missing in self._missing() if missing not in out), None)

    def finish(self, evaluation_id: int, outcome: Outcome) -> list[Episode]:
        """Record the end of a job, unless it is to be tried again. No episode is settled by it."""
        if self._attempts.again(evaluation_id, outcome):
            self._again.append(evaluation_id)
            return []
        graph_hash, run = self._running.pop(evaluation_id)
        self.store.finish_evaluation(evaluation_id, outcome._replace(attempts=self._attempts.count(evaluation_id)))
        factor = self.budget.factor(self._graphs[graph_hash])
        self.rewards[graph_hash, run] = None if outcome.ap is None else outcome.ap * factor
        self.stopped = self._attempts.give_up(outcome, "confirming runs") or self.stopped
        self._settle()
        return []

    def _start(self, graph_hash: str, run: int) -> Job:
        graph = self._graphs[graph_hash]
        cost, factor = self.budget.cost(graph), self.budget.factor(graph)
        evaluation = self.store.start_evaluation(self.study_id, graph_hash, self._measurement(run), cost, factor)
        self._running[evaluation.id] = graph_hash, run
        return self._job(evaluation.id, graph_hash, run)

    def _job(self, evaluation_id: int, graph_hash: str, run: int) -> Job:
        self._attempts.begin(evaluation_id)
        number, graph = self.arms[graph_hash].number, self._graphs[graph_hash]
        is_alone = self._attempts.is_alone(evaluation_id)
        return Job(number, evaluation_id, graph, self._measurement(run), run == 0, is_alone)

    def _measurement(self, run: int) -> Measurement:
        return Measurement(Purpose.CONFIRM, (self.seed + 1 + run) % SEEDS, self.steps)

    def _runs_each(self) -> int:
        return runs_each(self._phase, len(self.arms), self.total)

    def _missing(self) -> Iterator[tuple[str, int]]:
        """What the phase lacks, run by run: nothing once there is a verdict, and nothing of graphs that failed."""
        if len(self.left) > 1:
            sound = [graph_hash for graph_hash in self.left if not self._has_failed(graph_hash)]
            wanted = ((graph_hash, run) for run in range(self._runs_each()) for graph_hash in sound)
            yield from (key for key in wanted if key not in self.rewards)

    def _waits(self) -> bool:
        return next(self._missing(), None) is not None

    def _settle(self) -> None:
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
