"""What a study has found: its graphs ranked, what new seeds say of the best ones, and the cheapest for their AP."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr

from nas.attempts import OF_THE_GRAPH
from nas.store import Episode, Evaluation, Purpose, State, Store, Study

CONFIRMING = (Purpose.CONFIRM, Purpose.PREPARATION)
LEAST_PREPARATIONS = 3  # to tell their disagreement from


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
    """What new seeds say of one graph, or other preparations of the proxy. mean and spread (standard deviation; None of
    one run) are of AP times the cost factor, like rewards, less what a seed does to all graphs alike; steps: of
    training in each run. beats_prior: probability that its true mean is above the prior's; None for the prior itself,
    and where that cannot be said. latency_ms: of its pyramid, one image, on a worker while others trained.
    preparations: by so many other ones it was judged, once each; 0: by that of the search.
    """

    architecture_hash: str
    mean: float
    spread: float | None
    runs: int
    steps: int
    beats_prior: float | None
    latency_ms: float | None
    preparations: int = 0

    @property
    def by(self) -> str:
        """What judged it."""
        if self.preparations:
            return f"{self.preparations} other preparations of the proxy"
        return "one run with a new seed" if self.runs == 1 else f"{self.runs} runs with new seeds"

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" (standard deviation {self.spread:.4f})"
        against = "" if self.beats_prior is None else f", better than the prior with probability {self.beats_prior:.2f}"
        runs = f"{self.runs} runs of {self.steps} steps"
        if self.preparations:
            runs = f"{self.preparations} other preparations, one run of {self.steps} steps each"
        return f"mean {self.mean:.4f} of {runs}{spread}{against}"


class Spread(NamedTuple):
    """A standard deviation, and the degrees of freedom that it was estimated with."""

    deviation: float
    degrees: int


def verdicts(store: Store, study_id: int, prior: Episode | None) -> dict[str, Verdict]:
    """Every confirmed graph by hash, the winner first: its mean, less one standard error, is the highest. So of two
    equal means the one with more runs behind it comes first. A graph with a failed run has no verdict."""
    found = [evaluation for purpose in CONFIRMING for evaluation in store.evaluations(study_id, purpose)]
    return judged(found, prior and prior.architecture_hash)


def judged(evaluations: Sequence[Evaluation], prior_hash: str | None) -> dict[str, Verdict]:
    """verdicts() of given evaluations, whose purpose is one of CONFIRMING.

    Other preparations of the proxy decide once there are LEAST_PREPARATIONS that have judged every graph with a sound
    confirmation, for the search was optimised for its own. Until then new seeds do.
    """
    new_seeds = [evaluation for evaluation in evaluations if evaluation.measurement.purpose == Purpose.CONFIRM]
    failed = {evaluation.architecture_hash for evaluation in new_seeds if evaluation.state == State.FAILED}
    sound = _rewarded(new_seeds, failed)
    by_others = _by_other_preparations(evaluations, {evaluation.architecture_hash for evaluation in sound})
    rewards: dict[str, dict[int, float]] = {}
    steps: dict[str, int] = {}
    for evaluation in by_others or sound:
        rewards.setdefault(evaluation.architecture_hash, {})[evaluation.measurement.seed] = evaluation.reward or 0.0
        steps[evaluation.architecture_hash] = evaluation.measurement.budget
    latencies = {e.architecture_hash: e.latency_ms for e in evaluations if e.latency_ms is not None}
    samples, spread = without_seeds(rewards)
    beats = {}
    if spread is not None and prior_hash is not None and prior_hash in samples:
        beats = _beating(samples, prior_hash, spread)
    found = []
    for graph_hash, sample in samples.items():
        deviation = statistics.stdev(sample) if len(sample) > 1 else None
        mean, latency = statistics.fmean(sample), latencies.get(graph_hash)
        count, beats_prior = len(sample), beats.get(graph_hash)
        preparations = count if by_others else 0
        found.append(Verdict(graph_hash, mean, deviation, count, steps[graph_hash], beats_prior, latency, preparations))
    noise = spread.deviation if spread is not None else 0.0
    found.sort(key=lambda verdict: noise / verdict.runs**0.5 - verdict.mean)
    return {verdict.architecture_hash: verdict for verdict in found}


def is_of_one_preparation(study: Study, verdicts: Mapping[str, Verdict]) -> bool:
    """Whether other preparations of the proxy could say something else than the search's own, and were not asked."""
    is_frozen = study.config["proxy"]["protocol"] == "frozen"
    return is_frozen and bool(verdicts) and not any(verdict.preparations for verdict in verdicts.values())


def _rewarded(evaluations: Sequence[Evaluation], failed: set[str]) -> list[Evaluation]:
    """Those with a reward, of graphs that have not failed."""
    return [e for e in evaluations if e.reward is not None and e.architecture_hash not in failed]


def _by_other_preparations(evaluations: Sequence[Evaluation], confirmed: set[str]) -> list[Evaluation]:
    """What preparations say that have judged all of these graphs; nothing if there are not enough of them. A graph that
    cannot be trained on one is left out, as one that fails a confirming run.
    """
    others = [e for e in evaluations if e.measurement.purpose == Purpose.PREPARATION]
    failed = {evaluation.architecture_hash for evaluation in others if evaluation.cause in OF_THE_GRAPH}
    left = confirmed - failed
    judged_by: dict[int, list[Evaluation]] = {}
    for evaluation in _rewarded(others, failed):
        if evaluation.architecture_hash in left:
            judged_by.setdefault(evaluation.measurement.seed, []).append(evaluation)
    whole = [of_seed for of_seed in judged_by.values() if len(of_seed) == len(left)]
    return [evaluation for of_seed in whole for evaluation in of_seed] if len(whole) >= LEAST_PREPARATIONS else []


def _beating(samples: Mapping[str, Sequence[float]], prior_hash: str, spread: Spread) -> dict[str, float]:
    """The probability of each candidate to be better than the prior.

    The best-looking of several candidates looks better than it is. So their means are drawn together, by as much as
    noise and not truth parts them (empirical Bayes; Efron & Morris 1975): were all the same, none would beat another.
    """
    names = [graph_hash for graph_hash in samples if graph_hash != prior_hash]
    prior = samples[prior_hash]
    means = np.array([statistics.fmean(samples[graph_hash]) for graph_hash in names])
    squares = spread.deviation**2 / np.array([len(samples[graph_hash]) for graph_hash in names])
    if len(names) > 1 and spread.deviation > 0:  # a single candidate was not chosen for its looks
        truth = max(0.0, float(means.var(ddof=1) - squares.mean()))  # the variance of true means
        centre = np.average(means, weights=1 / (truth + squares))
        means = centre + truth / (truth + squares) * (means - centre)
    errors = np.sqrt(squares + spread.deviation**2 / len(prior))
    differences = means - statistics.fmean(prior)
    return {
        graph_hash: _probability(difference, error, spread.degrees)
        for graph_hash, difference, error in zip(names, differences.tolist(), errors.tolist(), strict=True)
    }


def without_seeds(rewards: Mapping[str, Mapping[int, float]]) -> tuple[dict[str, list[float]], Spread | None]:
    """Rewards by graph, less what their seeds do to all graphs alike, and the standard deviation of what is left; None
    where nothing is left to tell it from.

    Graphs that were left out early have run with the first seeds only, and these may have been kind ones. Rewards are
    taken as graph + seed + noise, by least squares; effects of seeds add up to nothing.
    """
    graphs, seeds = list(rewards), sorted({seed for of_graph in rewards.values() for seed in of_graph})
    entries = [(graph, seed, reward) for graph in graphs for seed, reward in rewards[graph].items()]
    if not entries:
        return {}, None
    design = np.zeros((len(entries), len(graphs) + len(seeds)))
    for row, (graph, seed, _) in enumerate(entries):
        design[row, graphs.index(graph)] = design[row, len(graphs) + seeds.index(seed)] = 1.0
    found = np.array([reward for _, _, reward in entries])
    solution, _, rank, _ = np.linalg.lstsq(design, found)
    effects = solution[len(graphs) :] - solution[len(graphs) :].mean()
    degrees = len(entries) - int(rank)
    squares = float(np.square(found - design @ solution).sum())
    adjusted: dict[str, list[float]] = {graph: [] for graph in graphs}
    for graph, seed, reward in entries:
        adjusted[graph].append(reward - float(effects[seeds.index(seed)]))
    return adjusted, Spread((squares / degrees) ** 0.5, degrees) if degrees else None


def probability_above(ours: Sequence[float], theirs: Sequence[float], spread: Spread) -> float:
    """That the true mean of one sample is above the other's, nothing else being known: Student's t."""
    error = spread.deviation * (1 / len(ours) + 1 / len(theirs)) ** 0.5
    return _probability(statistics.fmean(ours) - statistics.fmean(theirs), error, spread.degrees)


def _probability(difference: float, error: float, degrees: int) -> float:
    if error == 0:
        return 0.5 if difference == 0 else float(difference > 0)
    return float(stdtr(degrees, difference / error))
