"""The schedule rule: which version of an algorithm proposes which episode, and when it learns.

Episodes come in batches of `batch`. Episode e, of batch b = e // batch, is proposed by the version that has used
batches 0 .. b - 1 - lag; its random stream depends on (seed, e) only. So, given equal rewards, proposals do not
depend on how many trials run at once, which ends first, or how often the search was interrupted. Proposals that are
not acceptable (too costly) are drawn again, from the same stream.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from controller.decisions import Decisions
from controller.proposer import Proposal, Proposer, ProposerState, Rewarded

MAX_DRAWS = 100  # for one episode

Accepts = Callable[[Decisions], bool]


class Controller:
    """The versions of one proposer that may still be asked."""

    def __init__(
        self, proposer: Proposer, *, batch: int, lag: int, seed: int, accepts: Accepts = lambda decisions: True
    ) -> None:
        self.accepts = accepts
        self.batch = batch
        self.lag = lag
        self.seed = seed
        self.versions: dict[int, Proposer] = {0: proposer}

    @property
    def newest(self) -> int:
        return max(self.versions)

    def propose(self, episode: int) -> Proposal:
        """The proposal of an episode: the first acceptable of MAX_DRAWS draws, the last of them if none is.

        Raises LookupError if batches that it depends on were not used yet.
        """
        version = version_of(episode, self.batch, self.lag)
        if version not in self.versions:
            raise LookupError(f"episode {episode} needs version {version}, the newest is {self.newest}")
        stream = np.random.default_rng([self.seed, episode])
        for _ in range(MAX_DRAWS):
            proposal = self.versions[version].propose(stream)
            if self.accepts(proposal.decisions):
                break
        return proposal

    def update(self, batch: Sequence[Rewarded]) -> ProposerState:
        """Use the next complete batch; returns the version that results, to be stored."""
        proposer = copy.deepcopy(self.versions[self.newest])
        proposer.update(batch)
        self._keep(self.newest + 1, proposer)
        return proposer.state()

    def restore(self, states: Mapping[int, ProposerState]) -> None:
        """Go on from stored versions."""
        for version in sorted(states):
            proposer = copy.deepcopy(self.versions[self.newest])
            proposer.load(states[version])
            self._keep(version, proposer)

    def _keep(self, version: int, proposer: Proposer) -> None:
        self.versions[version] = proposer
        self.versions = {v: p for v, p in self.versions.items() if v > version - versions_kept(self.lag)}


def version_of(episode: int, batch: int, lag: int) -> int:
    """The version that proposes an episode."""
    return max(0, episode // batch - lag)


def versions_kept(lag: int) -> int:
    """How many of the newest versions can still be needed: lag + 1 to propose, and one that is being replaced."""
    return lag + 2
