"""What another preparation of the proxy says of the best graphs.

New seeds take off the luck of a trial, and not what all trials share: the detector whose maps they read, and the pool
whose weights they start from. Each preparation favours some graphs by a little (docs/search.md). So the graphs that
were confirmed can be judged by others, prepared with other seeds; what they say counts then, and not what the one says
that the search was optimised for (nas/results.py).
"""

from collections.abc import Iterator, Sequence

from nas.budget import Budget
from nas.reruns import Reruns
from nas.store import Episode, Measurement, Purpose, Store


class OtherPreparation(Reruns):
    """One run of every graph, by one preparation."""

    purpose = Purpose.PREPARATION

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
        """seed: of the preparation (proxy.seed), and of its trials."""
        self.measurement = Measurement(Purpose.PREPARATION, seed, steps)
        super().__init__(store, study_id, budget, arms, shares_gpu=shares_gpu)

    @property
    def total(self) -> int:
        return len(self.arms)

    def _measurement(self, run: int) -> Measurement:
        return self.measurement

    def _run_of(self, measurement: Measurement) -> int | None:
        return 0 if measurement == self.measurement else None

    def _missing(self) -> Iterator[tuple[str, int]]:
        yield from ((graph_hash, 0) for graph_hash in self.arms if (graph_hash, 0) not in self.rewards)
