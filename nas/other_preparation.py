"""What another preparation of the proxy says of the best graphs.

New seeds take off the luck of a trial, and not what all trials share: the detector whose maps they read, and the pool
whose weights they start from. Each preparation favours some graphs by a little (docs/search.md). So the graphs that
were confirmed can be judged by others, prepared with other seeds; what they say counts then, and not what the one says
that the search was optimised for (nas/results.py).
"""

from collections.abc import Iterator, Sequence

from nas.attempts import OF_THE_GRAPH, described
from nas.budget import Budget
from nas.reruns import Reruns
from nas.store import Episode, Measurement, Outcome, Purpose, Store


class OtherPreparation(Reruns):
    """One run of every graph, by one preparation. It says something once it has judged them all."""

    def __init__(
        self,
        store: Store,
        study_id: int,
        budget: Budget,
        arms: Sequence[Episode],
        *,
        seed: int,
        steps: int,
        shares_gpu: bool = False,
    ) -> None:
        """arms: owners of the graphs that were confirmed. seed: of the preparation (proxy.seed), and of its trials."""
        measurement = Measurement(Purpose.PREPARATION, seed, steps)
        super().__init__(store, study_id, budget, arms, [measurement], shares_gpu=shares_gpu)
        self._failures: list[Outcome] = []  # that may go well another time

    @property
    def total(self) -> int:
        return len(self.arms)

    def _missing(self) -> Iterator[tuple[str, int]]:
        yield from ((graph_hash, 0) for graph_hash in self.arms if (graph_hash, 0) not in self.rewards)

    def _settle(self, outcome: Outcome) -> None:
        if outcome.cause is not None and outcome.cause not in OF_THE_GRAPH:
            self._failures.append(outcome)
        if self._failures and self.stopped is None and not self._waits():
            self.stopped = (
                f"{len(self._failures)} of {self.total} runs by another preparation failed, the last one with "
                f"{described(self._failures[-1])}; the same command tries them again"
            )
