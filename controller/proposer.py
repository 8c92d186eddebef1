"""What every algorithm is to the controller: something that proposes decisions and learns from batches."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from controller.decisions import Decisions


class Proposal(NamedTuple):
    """A sequence of decisions and the log-probability with which its proposer drew it."""

    decisions: Decisions
    log_prob: float


class Rewarded(NamedTuple):
    """One episode that got a reward. log_prob is None for an episode that was given and not drawn: the prior.
    is_measured: the graph's own reward, and not one that is assumed of it.
    """

    decisions: Decisions
    log_prob: float | None
    reward: float
    is_measured: bool = True


class ProposerState(NamedTuple):
    """Everything that a proposer is, to be stored and loaded, and figures to look at.

    probabilities: for each decision, the mean probability of each of its options over the last batch.
    """

    weights: bytes
    optimizer: bytes
    baseline: float | None
    entropy: float | None
    probabilities: list[list[float]] | None


class Proposer(Protocol):
    """One version of an algorithm. update() makes it the next version."""

    def propose(self, stream: np.random.Generator) -> Proposal:
        """Draw a sequence of decisions; the stream is the only source of randomness."""
        ...

    def update(self, batch: Sequence[Rewarded]) -> None:
        """Learn from the episodes of one complete batch, in the order of their numbers. May be empty."""
        ...

    def state(self) -> ProposerState: ...

    def load(self, state: ProposerState) -> None:
        """Become what state() described."""
        ...
