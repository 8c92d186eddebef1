"""Regularised evolution (Real et al. 2018, arXiv:1802.01548): mutate a tournament's winner, let the oldest die."""

import json
from collections.abc import Sequence

import numpy as np

from controller.decisions import Decisions, DecisionSpace, mutate, uniform
from controller.proposer import Proposal, ProposerState, Rewarded


class Evolution:
    """A population of the last `population` rewarded episodes, oldest first.

    Until it is full, proposals are the prior with one to four mutations, or uniform without a prior.
    """

    def __init__(self, space: DecisionSpace, *, population: int, tournament: int, prior: Decisions | None) -> None:
        self.space = space
        self.population = population
        self.tournament = tournament
        self.prior = prior
        self.members: list[tuple[Decisions, float]] = []

    def propose(self, stream: np.random.Generator) -> Proposal:
        """The log-probability is given as 0: nothing here uses it."""
        if len(self.members) < self.population:
            if self.prior is None:
                return Proposal(uniform(self.space, stream), 0.0)
            return Proposal(mutate(self.space, self.prior, int(stream.integers(1, 5)), stream), 0.0)
        rivals = stream.choice(len(self.members), size=min(self.tournament, len(self.members)), replace=False)
        parent, _ = max((self.members[i] for i in rivals), key=lambda member: member[1])
        return Proposal(mutate(self.space, parent, 1, stream), 0.0)

    def update(self, batch: Sequence[Rewarded]) -> None:
        self.members += [(episode.decisions, episode.reward) for episode in batch]
        self.members = self.members[-self.population :]

    def state(self) -> ProposerState:
        return ProposerState(json.dumps(self.members).encode(), b"", None, None, None)

    def load(self, state: ProposerState) -> None:
        self.members = [(tuple(decisions), reward) for decisions, reward in json.loads(state.weights)]
