"""What a study has found: its graphs ranked, what new seeds say of the best ones, and the cheapest for their AP."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nas.store import Episode, Evaluation, Purpose, State, Store


def by_reward(episodes: Sequence[Episode]) -> list[Episode]:
    """The first episode of every rewarded graph, best first."""
    owners = [episode for episode in episodes if episode.state == State.DONE]
    return sorted(owners, key=lambda episode: (-(episode.reward or 0.0), episode.number))


def prior_episode(episodes: Sequence[Episode]) -> Episode | None:
    """Episode 0 of a study that began with a prior, if it has a reward."""
    first = episodes[0] if episodes else None
    return first if first is not None and first.log_prob is None and first.reward is not None else None


def pareto_front(ranked: Sequence[Episode], evaluations: Mapping[int, Evaluation]) -> list[Episode]:
    """The episodes that no other beats in both AP and GFLOPs, cheapest first."""

    def cost_then_ap(episode: Episode) -> tuple[float, float, int]:
        evaluation = evaluations[episode.evaluation_id]
        return evaluation.cost.gflops, -(evaluation.ap or 0.0), episode.number

    front: list[Episode] = []
    best = -math.inf
    for episode in sorted(ranked, key=cost_then_ap):
        ap = evaluations[episode.evaluation_id].ap or 0.0
        if ap > best:
            best = ap
            front.append(episode)
    return front


class Verdict(NamedTuple):
    """What new seeds say of one graph. mean and spread (standard deviation; None of one run) are of AP times the cost
    factor, like rewards. beats_prior: probability that its true mean is above the prior's, from the spread that all
    graphs share; None for the prior itself, and where that cannot be said. latency_ms: of its pyramid, one image.
    """

    architecture_hash: str
    mean: float
    spread: float | None
    runs: int
    beats_prior: float | None
    latency_ms: float | None

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" (standard deviation {self.spread:.4f})"
        against = "" if self.beats_prior is None else f", better than the prior with probability {self.beats_prior:.2f}"
        return f"mean {self.mean:.4f} of {self.runs} runs{spread}{against}"


def verdicts(store: Store, study_id: int, prior: Episode | None) -> dict[str, Verdict]:
    """Every confirmed graph by hash, the winner first: its mean, less one standard error, is the highest. So of two
    equal means the one with more runs behind it comes first."""
    return judged(store.evaluations(study_id, Purpose.CONFIRM), prior and prior.architecture_hash)


def judged(evaluations: Sequence[Evaluation], prior_hash: str | None) -> dict[str, Verdict]:
    """verdicts() of given evaluations. A graph with a failed one is no winner, and has no verdict."""
    failed = {evaluation.architecture_hash for evaluation in evaluations if evaluation.state == State.FAILED}
    rewards: dict[str, list[float]] = {}
    latencies: dict[str, float] = {}
    for evaluation in evaluations:
        if evaluation.reward is not None and evaluation.architecture_hash not in failed:
            rewards.setdefault(evaluation.architecture_hash, []).append(evaluation.reward)
            if evaluation.latency_ms is not None:
                latencies[evaluation.architecture_hash] = evaluation.latency_ms
    noise = shared_spread(list(rewards.values()))
    prior = rewards.get(prior_hash or "", [])
    found = []
    for graph_hash, sample in rewards.items():
        spread = statistics.stdev(sample) if len(sample) > 1 else None
        beats = None
        if prior and noise is not None and graph_hash != prior_hash:
            beats = probability_above(sample, prior, noise)
        mean = statistics.fmean(sample)
        found.append(Verdict(graph_hash, mean, spread, len(sample), beats, latencies.get(graph_hash)))
    found.sort(key=lambda verdict: (noise or 0.0) / verdict.runs**0.5 - verdict.mean)
    return {verdict.architecture_hash: verdict for verdict in found}


def shared_spread(samples: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation within samples, pooled over them; None if no sample has two values."""
    degrees = sum(max(0, len(sample) - 1) for sample in samples)
    squares = sum(statistics.variance(sample) * (len(sample) - 1) for sample in samples if len(sample) > 1)
    return (squares / degrees) ** 0.5 if degrees else None


def probability_above(ours: Sequence[float], theirs: Sequence[float], noise: float) -> float:
    """That the true mean of one sample is above the other's, both normal with a known spread and a flat prior."""
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    error = noise * (1 / len(ours) + 1 / len(theirs)) ** 0.5
    if error == 0:
        return 0.5 if difference == 0 else float(difference > 0)
    return statistics.NormalDist().cdf(difference / error)
