"""REINFORCE that also learns from rewards it expects: a model of rewards is fitted to all trials so far, and the policy
takes further steps on samples that the model judges (Dyna, Sutton 1991; for searches of few, costly rounds: DyNA-PPO,
Angermueller et al. 2020).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controller.decisions import Decisions
from controller.policy import Proposal
from controller.proposer import ProposerState, Rewarded
from controller.reinforce import Reinforce, from_bytes, to_bytes
from controller.reward_model import RewardModel

MIN_KNOWN, MAX_KNOWN = 5, 500  # rewards that a model is fitted to: the newest, so that its cost stays bounded

# Numbers (F,) that describe what was decided, equal where rewards must be; None for what may not be proposed.
Describe = Callable[[Decisions], NDArray[np.float64] | None]


class Dyna:
    """After each batch that `learner` learns from, `steps` steps of it on `samples` sequences each, drawn from its
    policy.

    A sequence is worth its expected reward less `caution` standard deviations of it, so that few rewards do not lure
    the policy away to where nothing is known.
    """

    def __init__(
        self, learner: Reinforce, describe: Describe, *, steps: int, samples: int, caution: float, seed: int
    ) -> None:
        self.learner = learner
        self.describe = describe
        self.steps = steps
        self.samples = samples
        self.caution = caution
        self.seed = seed
        self.updates = 0
        self.known: dict[bytes, tuple[Decisions, Tensor, float]] = {}  # by features, the newest last

    def propose(self, stream: np.random.Generator) -> Proposal:
        return self.learner.propose(stream)

    def update(self, batch: Sequence[Rewarded]) -> None:
        self.learner.update(batch)
        if not batch:
            return
        self.updates += 1
        for episode in batch:
            if episode.is_measured:
                self._remember(episode.decisions, episode.reward)
        if self.steps and self.learner.spread is not None and len(self.known) >= MIN_KNOWN:
            self._learn_from_model(self.learner.spread)

    def _remember(self, decisions: Decisions, reward: float) -> None:
        features = self.describe(decisions)
        if features is not None:
            self.known.pop(features.tobytes(), None)
            self.known[features.tobytes()] = decisions, torch.from_numpy(features), reward
            if len(self.known) > MAX_KNOWN:
                del self.known[next(iter(self.known))]

    def _learn_from_model(self, spread: float) -> None:
        _, features, rewards = zip(*self.known.values(), strict=True)
        model = RewardModel(torch.stack(features), torch.tensor(rewards, dtype=torch.float64))
        stream = np.random.default_rng([self.seed, self.updates, 1])  # no episode's: theirs have two numbers
        for _ in range(self.steps):
            drawn = [proposal.decisions for proposal in self.learner.policy.sample([stream] * self.samples)]
            described = [(sequence, found) for sequence in drawn if (found := self.describe(sequence)) is not None]
            if len(described) < 2:
                return
            sequences = [sequence for sequence, _ in described]
            expected = model.expected(torch.from_numpy(np.array([found for _, found in described])))
            worth = expected.mean - self.caution * expected.sd
            advantage = ((worth - worth.mean()) / spread).float()
            log_probs = self.learner.log_probs(sequences)
            self.learner.descend(sequences, log_probs, advantage, torch.ones(len(sequences)))

    def state(self) -> ProposerState:
        known = [(list(decisions), reward) for decisions, _, reward in self.known.values()]
        state = self.learner.state()
        learned = {"learner": state.optimizer, "updates": self.updates, "known": known}
        return state._replace(optimizer=to_bytes(learned))

    def load(self, state: ProposerState) -> None:
        learned = from_bytes(state.optimizer)
        self.learner.load(state._replace(optimizer=learned["learner"]))
        self.updates = learned["updates"]
        self.known = {}
        for decisions, reward in learned["known"]:
            self._remember(tuple(decisions), reward)
