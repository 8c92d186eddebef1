"""REINFORCE: a policy that learns from rewards (Williams 1992)."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from controller.decisions import Decisions, DecisionSpace
from controller.policy import Policy, chosen_log_prob, entropies, fit_to_prior
from controller.proposer import Proposal, ProposerState, Rewarded

MAX_IMPORTANCE = 2.0
MAX_GRADIENT_NORM = 5.0


def reinforce_loss(
    log_prob: Tensor, entropy: Tensor, advantage: Tensor, importance: Tensor, entropy_weight: float
) -> Tensor:
    """Score-function loss (Williams 1992); a scalar to minimise.

    log_prob, entropy: (G, T), one per decision. advantage (G,): reward minus a baseline that has not seen it, or the
    gradient would be biased. importance (G,): the episode's probability now, over that when it was drawn.
    """
    weight = (advantage * importance).detach()
    return -(weight * log_prob.sum(1) + entropy_weight * entropy.sum(1)).mean()


class Reinforce:
    """The policy, its optimizer and its baseline.

    The baseline is a moving mean of batch rewards that starts at the prior's reward; advantages are divided by a
    moving root mean square of earlier ones (the first batch's by its own), so that entropy_weight means the same at
    any scale of rewards.
    """

    def __init__(
        self,
        space: DecisionSpace,
        *,
        hidden: int,
        learning_rate: float,
        entropy_weight: float,
        baseline_decay: float,
        prior: Decisions | None,
        prior_distance: float,
        seed: int,
    ) -> None:
        self.entropy_weight = entropy_weight
        self.baseline_decay = baseline_decay
        self.baseline: float | None = None
        self.spread: float | None = None
        self.entropy: float | None = None
        self.probabilities: list[list[float]] | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = Policy(space, hidden)
        if prior is not None:
            fit_to_prior(self.policy, prior, prior_distance, seed)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=learning_rate)

    def propose(self, stream: np.random.Generator) -> Proposal:
        return self.policy.sample([stream])[0]

    def update(self, batch: Sequence[Rewarded]) -> None:
        drawn = [episode for episode in batch if episode.log_prob is not None]
        given = [episode.reward for episode in batch if episode.log_prob is None]
        if given:
            self.baseline = given[0]
        if drawn and self.baseline is not None:
            self._step(drawn, self.baseline)
        if drawn:
            mean = sum(episode.reward for episode in drawn) / len(drawn)
            decay = self.baseline_decay
            self.baseline = mean if self.baseline is None else decay * self.baseline + (1 - decay) * mean

    def _step(self, drawn: Sequence[Rewarded], baseline: float) -> None:
        sequences = [episode.decisions for episode in drawn]
        log_probs = self.log_probs(sequences)
        before = torch.tensor([episode.log_prob for episode in drawn])
        chosen = chosen_log_prob(log_probs.detach(), torch.tensor(sequences))
        importance = (chosen.sum(1) - before).exp().clamp(max=MAX_IMPORTANCE)
        advantage = torch.tensor([episode.reward for episode in drawn]) - baseline
        square = float(advantage.square().mean())
        spread = self.spread if self.spread is not None else max(square, 1e-12) ** 0.5
        self.descend(sequences, log_probs, advantage / spread, importance)
        decay = self.baseline_decay
        self.spread = max(decay * spread**2 + (1 - decay) * square, 1e-12) ** 0.5
        self.entropy = float(entropies(log_probs.detach()).mean())
        widths = [self.policy.space.sizes[kind] for kind in self.policy.space.kinds]
        means = log_probs.detach().exp().mean(0)
        self.probabilities = [row[:width].tolist() for row, width in zip(means, widths, strict=True)]

    def log_probs(self, sequences: Sequence[Decisions]) -> Tensor:
        """Of all options of every decision, now: (G, T, options)."""
        return self.policy(torch.tensor(sequences), self.policy.masks_of(sequences))  # type: ignore[no-any-return]

    def descend(self, sequences: Sequence[Decisions], log_probs: Tensor, advantage: Tensor, importance: Tensor) -> None:
        """One step of the optimizer; log_probs (G, T, options) as log_probs() gives them, the others (G,)."""
        log_prob = chosen_log_prob(log_probs, torch.tensor(sequences))
        loss = reinforce_loss(log_prob, entropies(log_probs), advantage, importance, self.entropy_weight)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()

    def state(self) -> ProposerState:
        optimizer = {"adam": self.optimizer.state_dict(), "spread": self.spread}
        return ProposerState(
            to_bytes(self.policy.state_dict()), to_bytes(optimizer), self.baseline, self.entropy, self.probabilities
        )

    def load(self, state: ProposerState) -> None:
        self.policy.load_state_dict(from_bytes(state.weights))
        optimizer = from_bytes(state.optimizer)
        self.optimizer.load_state_dict(optimizer["adam"])
        self.spread = optimizer["spread"]
        self.baseline, self.entropy, self.probabilities = state.baseline, state.entropy, state.probabilities


class Untrained(Reinforce):
    """The control: draws from the same first policy for ever, and learns nothing."""

    def update(self, batch: Sequence[Rewarded]) -> None:
        pass


def to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return state
