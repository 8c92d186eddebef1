"""The policy: an autoregressive LSTM over masked decisions (Zoph & Le 2017, arXiv:1611.01578, section 3.1)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from controller.decisions import Decisions, DecisionSpace
from controller.proposer import Proposal

NUM_FIT_SAMPLES = 128
MAX_FIT_STEPS = 2000


class Policy(nn.Module):
    """A distribution over the valid sequences of a space.

    Decision t sees the decisions before it through the LSTM's state, and which decision it is through an embedding.
    Kinds of decisions have a table of embeddings and an output layer each, shared by all cells.
    """

    def __init__(self, space: DecisionSpace, hidden: int) -> None:
        super().__init__()
        self.space = space
        self.embed_decision = nn.ModuleDict({kind: nn.Embedding(size, hidden) for kind, size in space.sizes.items()})
        self.embed_position = nn.Embedding(len(space.kinds), hidden)
        self.cell = nn.LSTMCell(hidden, hidden)
        self.choose = nn.ModuleDict({kind: nn.Linear(hidden, size) for kind, size in space.sizes.items()})

    def forward(self, decisions: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Log-probabilities of all options of every decision: (G, T, largest kind), -inf where invalid.

        decisions (G, T); masks, one (G, size of the kind) for each t, as masks_of() gives them.
        """
        widest = max(self.space.sizes.values())
        state = self._start(len(decisions))
        out = []
        for t, mask in enumerate(masks):
            state = self._step(t, decisions[:, t - 1] if t else None, state)
            log_probs = self._log_probs(t, state[0], mask)
            out.append(nn.functional.pad(log_probs, (0, widest - mask.shape[1]), value=-torch.inf))
        return torch.stack(out, dim=1)

    def masks_of(self, sequences: Sequence[Decisions]) -> list[Tensor]:
        """The masks along given sequences, for forward()."""
        return [
            torch.from_numpy(np.stack([self.space.mask(sequence[:t]) for sequence in sequences]))
            for t in range(len(self.space.kinds))
        ]

    @torch.no_grad()
    def sample(self, streams: Sequence[np.random.Generator]) -> list[Proposal]:
        """One sequence for each stream, which gives one uniform number for each decision."""
        state = self._start(len(streams))
        drawn: list[list[int]] = [[] for _ in streams]
        totals = np.zeros(len(streams))
        for t in range(len(self.space.kinds)):
            previous = torch.tensor([sequence[-1] for sequence in drawn]) if t else None
            state = self._step(t, previous, state)
            masks = torch.from_numpy(np.stack([self.space.mask(sequence) for sequence in drawn]))
            log_probs = self._log_probs(t, state[0], masks).double().numpy()
            choices = draw(np.exp(log_probs), np.array([stream.random() for stream in streams]))
            totals += log_probs[np.arange(len(drawn)), choices]
            for sequence, choice in zip(drawn, choices.tolist(), strict=True):
                sequence.append(choice)
        return [Proposal(tuple(sequence), total) for sequence, total in zip(drawn, totals.tolist(), strict=True)]

    def _start(self, count: int) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(count, self.cell.hidden_size)
        return zeros, zeros

    def _step(self, t: int, previous: Tensor | None, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        inputs = self.embed_position.weight[t].expand(len(state[0]), -1)
        if previous is not None:
            inputs = inputs + self.embed_decision[self.space.kinds[t - 1]](previous)
        hidden, memory = self.cell(inputs, state)
        return hidden, memory

    def _log_probs(self, t: int, hidden: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.choose[self.space.kinds[t]](hidden)
        return logits.masked_fill(~mask, -torch.inf).log_softmax(-1)


def draw(probabilities: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """The options (G,) that uniform numbers (G,) in [0, 1) fall on; probabilities (G, options)."""
    cumulative = probabilities.cumsum(axis=1)
    choices = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(axis=1)
    last_valid = probabilities.shape[1] - 1 - (probabilities[:, ::-1] > 0).argmax(axis=1)  # rounding ends here
    return np.asarray(np.minimum(choices, last_valid), dtype=np.int64)


def chosen_log_prob(log_probs: Tensor, decisions: Tensor) -> Tensor:
    """(G, T, options) and (G, T) -> (G, T)."""
    return log_probs.gather(2, decisions[..., None]).squeeze(2)


def entropies(log_probs: Tensor) -> Tensor:
    """Entropy of each decision in nats: (G, T, options) -> (G, T). Invalid options contribute nothing."""
    finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)  # before the product: 0 * inf has no gradient
    return -(log_probs.exp() * finite).sum(2)


def fit_to_prior(policy: Policy, prior: Decisions, distance: float, seed: int) -> None:
    """Move a fresh policy until its samples differ from the prior in `distance` decisions on average.

    Cross-entropy on the policy's own samples: after whatever came before, the next decision should be the prior's
    (where that is still valid), so that one deviation does not derail the rest. Label smoothing spreads the wanted
    distance evenly, so that no decision becomes nearly certain.
    """
    smoothing = 0.9 * distance / len(prior)  # a little less than wanted, so that the distance is reached
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    goal = torch.tensor(prior)
    for step in range(MAX_FIT_STEPS):
        streams = [np.random.default_rng([seed, step, i]) for i in range(NUM_FIT_SAMPLES)]
        samples = [proposal.decisions for proposal in policy.sample(streams)]
        decisions = torch.tensor(samples)
        if float((decisions != goal).sum(1).float().mean()) <= distance:
            return
        log_probs = policy(decisions, policy.masks_of(samples))
        is_valid = log_probs > -torch.inf
        wanted = nn.functional.one_hot(goal, log_probs.shape[2]) * is_valid  # (G, T, options)
        rest = is_valid * (1 - wanted)
        target = (1 - smoothing) * wanted + smoothing * rest / rest.sum(2, keepdim=True).clamp(min=1)
        target = target / target.sum(2, keepdim=True)
        loss = -torch.where(is_valid, target * log_probs, torch.zeros_like(log_probs)).sum(2).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    raise RuntimeError(f"the policy did not come within {distance} decisions of the prior in {MAX_FIT_STEPS} steps")
