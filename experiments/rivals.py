"""What REINFORCE is compared with beside random and evolution: local search, and Optuna's TPE."""

import json
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState, create_trial

from controller.decisions import Decisions, DecisionSpace, mutate, uniform
from controller.proposer import Proposal, ProposerState, Rewarded

optuna.logging.set_verbosity(optuna.logging.WARNING)
MAX_MUTATIONS = 4  # of the prior, in first proposals: as in controller/evolution.py


class LocalSearch:
    """Changes one or two decisions of the graph with the highest reward so far."""

    def __init__(self, space: DecisionSpace, prior: Decisions | None) -> None:
        self.space = space
        self.best = prior
        self.reward = -np.inf

    def propose(self, stream: np.random.Generator) -> Proposal:
        if self.best is None:
            return Proposal(uniform(self.space, stream), 0.0)
        return Proposal(mutate(self.space, self.best, int(stream.integers(1, 3)), stream), 0.0)

    def update(self, batch: Sequence[Rewarded]) -> None:
        for episode in batch:
            if episode.reward > self.reward:
                self.best, self.reward = episode.decisions, episode.reward

    def state(self) -> ProposerState:
        return ProposerState(json.dumps([self.best, float(self.reward)]).encode(), b"", None, None, None)

    def load(self, state: ProposerState) -> None:
        best, self.reward = json.loads(state.weights)
        self.best = None if best is None else tuple(best)


class Tpe:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) over the decisions as categories.

    It knows nothing of masks: a choice that is invalid after those before it becomes the next valid one. The first
    `startup` proposals are the prior's neighbours, or uniform.
    """

    def __init__(self, space: DecisionSpace, prior: Decisions | None, startup: int = 20) -> None:
        self.space = space
        self.prior = prior
        self.startup = startup
        self.known: list[tuple[Decisions, float]] = []
        self._told: optuna.Study | None = None
        self.distributions: dict[str, BaseDistribution] = {
            f"{t:02d}": CategoricalDistribution(range(space.sizes[kind])) for t, kind in enumerate(space.kinds)
        }

    def propose(self, stream: np.random.Generator) -> Proposal:
        if len(self.known) < self.startup:
            if self.prior is None:
                return Proposal(uniform(self.space, stream), 0.0)
            return Proposal(mutate(self.space, self.prior, int(stream.integers(1, MAX_MUTATIONS + 1)), stream), 0.0)
        study = self._study()
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=0, seed=int(stream.integers(2**31)))
        trial = study.ask(self.distributions)
        # Its reward comes with the batch's, and in another study; the sampler passes failed trials over.
        study.tell(trial, state=TrialState.FAIL)
        chosen = trial.params
        return Proposal(self._repaired([chosen[name] for name in self.distributions]), 0.0)

    def _study(self) -> optuna.Study:
        """All that is known, as Optuna has it; made once for each batch, since that takes longer than a proposal."""
        if self._told is None:
            self._told = optuna.create_study(direction="maximize")
            self._told.add_trials(
                [
                    create_trial(
                        params={f"{t:02d}": value for t, value in enumerate(decisions)},
                        distributions=self.distributions,
                        value=reward,
                    )
                    for decisions, reward in self.known
                ]
            )
        return self._told

    def _repaired(self, chosen: Sequence[int]) -> Decisions:
        drawn: list[int] = []
        for value in chosen:
            mask = self.space.mask(drawn)
            drawn.append(
                next((value + step) % len(mask) for step in range(len(mask)) if mask[(value + step) % len(mask)])
            )
        return tuple(drawn)

    def update(self, batch: Sequence[Rewarded]) -> None:
        self.known += [(episode.decisions, episode.reward) for episode in batch]
        self._told = None

    def state(self) -> ProposerState:
        return ProposerState(json.dumps(self.known).encode(), b"", None, None, None)

    def load(self, state: ProposerState) -> None:
        self.known = [(tuple(decisions), reward) for decisions, reward in json.loads(state.weights)]
        self._told = None
