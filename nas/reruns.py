"""Graphs that a search has found, evaluated again: what the plans after a search share."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence

from nas.attempts import Attempts
from nas.budget import Budget
from nas.store import Cause, Episode, Measurement, Outcome, Purpose, State, Store
from nas.study import Job

OF_THE_GRAPH = (Cause.NAN, Cause.INVALID)  # failures that would come again; others are tried again by the next search


class Reruns(ABC):
    """Which graph runs next, and what its end leads to. Used as a Schedule is.

    The store remembers every run, so that a plan continues after an interruption.
    """

    purpose: Purpose

    def __init__(
        self, store: Store, study_id: int, budget: Budget, arms: Sequence[Episode], *, shares_gpu: bool = False
    ) -> None:
        """arms: owners of distinct graphs."""
        self.store = store
        self.study_id = study_id
        self.budget = budget
        self.stopped: str | None = None
        self.arms = {episode.architecture_hash: episode for episode in arms}
        self._graphs = {graph_hash: store.architecture(graph_hash) for graph_hash in self.arms}
        self.rewards: dict[tuple[str, int], float | None] = {}  # by graph and run; None of a failure
        self._running: dict[int, tuple[str, int]] = {}
        self._again: deque[int] = deque()
        self._attempts = Attempts(shares_gpu=shares_gpu, has_succeeded=True)  # the search has
        for evaluation in store.evaluations(study_id, self.purpose):
            run = self._run_of(evaluation.measurement)
            is_settled = evaluation.state == State.DONE or evaluation.cause in OF_THE_GRAPH
            if evaluation.architecture_hash in self.arms and run is not None and is_settled:
                self.rewards[evaluation.architecture_hash, run] = evaluation.reward

    @property
    @abstractmethod
    def total(self) -> int:
        """Runs in all."""

    @abstractmethod
    def _measurement(self, run: int) -> Measurement: ...

    @abstractmethod
    def _run_of(self, measurement: Measurement) -> int | None:
        """The run that it is of; None if it is of another plan."""

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

    @property
    def sound(self) -> list[Episode]:
        """The owners of graphs without a failed run."""
        return [episode for graph_hash, episode in self.arms.items() if not self._has_failed(graph_hash)]

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
        is_timed = self.purpose == Purpose.CONFIRM and run == 0
        is_alone = self._attempts.is_alone(evaluation_id)
        return Job(number, evaluation_id, graph, self._measurement(run), is_timed, is_alone)

    def _waits(self) -> bool:
        return next(self._missing(), None) is not None

    def _has_failed(self, graph_hash: str) -> bool:
        """A graph that may fail is no winner."""
        return any(reward is None for (of, _), reward in self.rewards.items() if of == graph_hash)
