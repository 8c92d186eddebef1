"""Graphs that a search has found, evaluated again: what the plans after a search share."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence

from nas.attempts import OF_THE_GRAPH, Attempts
from nas.budget import Budget
from nas.store import Episode, Measurement, Outcome, State, Store
from nas.study import Job


class Reruns(ABC):
    """Which graph runs next, and what its end leads to. Used as a Schedule is.

    The store remembers every run, so that a plan continues after an interruption.
    """

    def __init__(
        self,
        store: Store,
        study_id: int,
        budget: Budget,
        arms: Sequence[Episode],
        measurements: Sequence[Measurement],
        *,
        shares_gpu: bool = False,
    ) -> None:
        """arms: owners of distinct graphs. measurements: what run 0, 1, ... of each measures; all of one purpose."""
        self.store = store
        self.study_id = study_id
        self.budget = budget
        self.measurements = measurements
        self.stopped: str | None = None
        self.arms = {episode.architecture_hash: episode for episode in arms}
        self._graphs = {graph_hash: store.architecture(graph_hash) for graph_hash in self.arms}
        self.rewards: dict[tuple[str, int], float | None] = {}  # by graph and run; None of a failure
        self._running: dict[int, tuple[str, int]] = {}
        self._again: deque[int] = deque()
        self._attempts = Attempts(shares_gpu=shares_gpu, has_succeeded=True)  # the search has
        runs = {measurement: run for run, measurement in enumerate(measurements)}
        for purpose in {measurement.purpose for measurement in measurements}:
            for evaluation in store.evaluations(study_id, purpose):
                run = runs.get(evaluation.measurement)
                is_settled = evaluation.state == State.DONE or evaluation.cause in OF_THE_GRAPH
                if evaluation.architecture_hash in self.arms and run is not None and is_settled:
                    self.rewards[evaluation.architecture_hash, run] = evaluation.reward

    @property
    @abstractmethod
    def total(self) -> int:
        """Runs in all."""

    @abstractmethod
    def _missing(self) -> Iterator[tuple[str, int]]:
        """Graphs and runs that are still to be made, in order."""

    @property
    def settled(self) -> int:
        """Runs that have ended; all of them once nothing is missing."""
        return self.total if not self._waits() else min(len(self.rewards), self.total)

    @property
    def is_finished(self) -> bool:
        return self.stopped is not None or not self._waits()

    def next(self) -> Job | None:
        """The next run that is missing, None if all have been handed out."""
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
        self._settle(outcome)
        return []

    @abstractmethod
    def _settle(self, outcome: Outcome) -> None:
        """What else a run's end leads to."""

    def _is_timed(self, run: int) -> bool:
        """Whether the pyramid's latency is measured, too."""
        return False

    def _start(self, graph_hash: str, run: int) -> Job:
        graph, measurement = self._graphs[graph_hash], self.measurements[run]
        cost, factor = self.budget.cost(graph), self.budget.factor(graph)
        evaluation = self.store.start_evaluation(self.study_id, graph_hash, measurement, cost, factor)
        self._running[evaluation.id] = graph_hash, run
        return self._job(evaluation.id, graph_hash, run)

    def _job(self, evaluation_id: int, graph_hash: str, run: int) -> Job:
        self._attempts.begin(evaluation_id)
        number, graph = self.arms[graph_hash].number, self._graphs[graph_hash]
        is_alone = self._attempts.is_alone(evaluation_id)
        return Job(number, evaluation_id, graph, self.measurements[run], self._is_timed(run), is_alone)

    def _waits(self) -> bool:
        return next(self._missing(), None) is not None
