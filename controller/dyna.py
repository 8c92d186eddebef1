"""REINFORCE that also learns from rewards it expects: a model of rewards is fitted to all trials so far, and the policy
takes further steps on sequences that the model judges (Dyna, Sutton 1991; for searches of few, costly rounds: DyNA-PPO,
Angermueller et al. 2020).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controller.decisions import Decisions, mutate
from controller.proposer import Proposal, ProposerState, Rewarded
from controller.reinforce import Reinforce, from_bytes, to_bytes
from controller.reward_model import RewardModel

FIRST_UPDATE = 2  # with a model: a single batch is little to judge by (docs/decisions.md)
MIN_KNOWN, MAX_KNOWN = 5, 500  # rewards that a model is fitted to: the newest, so that its cost stays bounded
NUM_BEST, MAX_CHANGED = 5, 3  # whose neighbours are imitated, and in how many decisions those differ

# Numbers (F,) that describe what was decided, equal where rewards must be; None for what may not be proposed.
Describe = Callable[[Decisions], NDArray[np.float64] | None]


class Dyna:
    """After each batch that `learner` learns from, `steps` steps of it on sequences that the model judges: `samples` of
    them drawn from its policy, and as many neighbours of the best that are known.

    A sequence is worth its expected reward, and less where it was measured already, so that a search does not end in
    proposing the same. Neighbours count only where they are worth more than what the policy draws: they are imitated
    (self-imitation, Oh et al. 2018), and let the policy find within a batch what it would rarely draw.
    """

    def __init__(self, learner: Reinforce, describe: Describe, *, steps: int, samples: int, seed: int) -> None:
        self.learner = learner
        self.describe = describe
        self.steps = steps
        self.samples = samples
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
        has_enough = self.updates >= FIRST_UPDATE and len(self.known) >= MIN_KNOWN
        if self.steps and self.learner.spread is not None and has_enough:
            self._learn_from_model(self.learner.spread)

    def _remember(self, decisions: Decisions, reward: float) -> None:
        features = self.describe(decisions)
        if features is not None:
            self.known.pop(features.tobytes(), None)
            self.known[features.tobytes()] = decisions, torch.from_numpy(features), reward
            if len(self.known) > MAX_KNOWN:
                del self.known[next(iter(self.known))]

    def _learn_from_model(self, spread: float) -> None:
        known, rows, rewards = zip(*self.known.values(), strict=True)
        features = torch.stack(rows)
        model = RewardModel(features, torch.tensor(rewards, dtype=torch.float64))
        order = model.expected(features).argsort(descending=True)
        best = [known[index] for index in order[:NUM_BEST].tolist()]
        stream = np.random.default_rng([self.seed, self.updates, 1])  # no episode's: theirs have two numbers
        for _ in range(self.steps):
            drawn, worth = self._judged(model, self._drawn(stream), spread)
            near, worth_near = self._judged(model, self._neighbours(best, stream), spread)
            if len(drawn) < 2:
                return
            advantage = torch.cat([worth - worth.mean(), (worth_near - worth.mean()).clamp(min=0)]) / spread
            sequences = drawn + near
            log_probs = self.learner.log_probs(sequences)
            self.learner.descend(sequences, log_probs, advantage.float(), torch.ones(len(sequences)))

    def _drawn(self, stream: np.random.Generator) -> list[Decisions]:
        return [proposal.decisions for proposal in self.learner.policy.sample([stream] * self.samples)]

    def _neighbours(self, best: Sequence[Decisions], stream: np.random.Generator) -> list[Decisions]:
        space = self.learner.policy.space
        parents = stream.integers(len(best), size=self.samples).tolist()
        return [mutate(space, best[i], int(stream.integers(1, MAX_CHANGED + 1)), stream) for i in parents]

    def _judged(
        self, model: RewardModel, sequences: Sequence[Decisions], spread: float
    ) -> tuple[list[Decisions], Tensor]:
        """Those that may be proposed, and what each is worth."""
        described = [(sequence, found) for sequence in sequences if (found := self.describe(sequence)) is not None]
        if not described:
            return [], torch.zeros(0, dtype=torch.float64)
        expected = model.expected(torch.from_numpy(np.array([found for _, found in described])))
        is_known = torch.tensor([found.tobytes() in self.known for _, found in described])
        return [sequence for sequence, _ in described], expected - spread * is_known

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
