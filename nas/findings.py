"""All that a report is about: one study as its database has it, and the figures that follow from that."""

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from detector.architecture import PRIORS, Architecture
from nas.results import CONFIRMING, Verdict, by_reward, judged, pareto_front, prior_episode
from nas.store import Episode, Evaluation, PolicyFigures, Purpose, State, Store, Study

RECENT = 50  # episodes of a running mean
PART = 100  # episodes that are compared, first with last
PAUSE_S = 60.0  # without a trial: the search stood still
LEAST_DIFFERENT = 10  # graphs in a part, for its mean to say anything


class Effort(NamedTuple):
    """Of some trials. hours: from the first to the last, without pauses; worker_hours: in trials; gpu_hours: what GPUs
    were held by trials, None where the database does not know it.
    """

    trials: int
    steps: int
    hours: float
    worker_hours: float
    workers: int
    gpu_hours: float | None

    @property
    def utilisation(self) -> float:
        """The share of the workers' time that trials took."""
        return self.worker_hours / (self.hours * self.workers) if self.hours else 0.0


class Learned(NamedTuple):
    """Mean rewards of the different graphs among the first `episodes` samples and among the last, the standard error of
    their difference, and how many different ones there are among the last.
    """

    first: float
    last: float
    error: float
    episodes: int
    different: int


@dataclass(frozen=True)
class Findings:
    """One study. trials are all evaluations, in the order in which they were started."""

    study: Study
    created: datetime
    target: int
    episodes: Sequence[Episode]
    trials: Sequence[Evaluation]
    policies: Sequence[PolicyFigures]
    graphs: Mapping[str, Architecture]  # of the episodes in `best`, of the winner, and of the prior

    @classmethod
    def of(cls, store: Store, name: str, best: int) -> "Findings":
        """With the graphs of the `best` ones. Raises UserError if there is no such study."""
        study_id, study = store.find_study(name)
        episodes = store.episodes(study_id)  # first: what they wait for is then there, though the search goes on
        trials = [trial for purpose in Purpose for trial in store.evaluations(study_id, purpose)]
        found = cls(
            study,
            store.created(study_id),
            store.target(study_id),
            episodes,
            trials,
            store.policy_history(study_id),
            {},
        )
        shown = [*found.best[:best], *filter(None, [found.prior])]
        graphs = {episode.architecture_hash: store.architecture(episode.architecture_hash) for episode in shown}
        return replace(found, graphs=graphs)

    @property
    def algorithm(self) -> str:
        return str(self.study.config["search"]["algorithm"])

    @property
    def prior_graph(self) -> Architecture | None:
        """What the search started from."""
        prior = self.study.config["search"]["prior"]
        return None if prior is None else Architecture.from_dict(prior)

    @property
    def prior_name(self) -> str | None:
        """Of a published graph."""
        graph = self.prior_graph
        return next((name for name, known in PRIORS.items() if graph and known.hash == graph.hash), None)

    @cached_property
    def prior(self) -> Episode | None:
        return prior_episode(self.episodes)

    @cached_property
    def evaluations(self) -> dict[int, Evaluation]:
        return {trial.id: trial for trial in self.trials}

    @cached_property
    def ranked(self) -> list[Episode]:
        """The first episode of every rewarded graph, by reward."""
        return by_reward(self.episodes)

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """What new seeds or other preparations say, the winner first."""
        confirming = [trial for trial in self.trials if trial.measurement.purpose in CONFIRMING]
        return judged(confirming, self.prior and self.prior.architecture_hash)

    @cached_property
    def best(self) -> list[Episode]:
        """Of every graph its first episode: confirmed ones first, in that order, then by reward."""
        place = {graph_hash: number for number, graph_hash in enumerate(self.verdicts)}
        return sorted(self.ranked, key=lambda episode: place.get(episode.architecture_hash, len(place)))

    @cached_property
    def front(self) -> list[Episode]:
        """None is beaten in both AP and cost; cheapest first."""
        return pareto_front(self.ranked, self.evaluations)

    @property
    def settled(self) -> int:
        return sum(episode.state != State.RUNNING for episode in self.episodes)

    @cached_property
    def rewarded(self) -> list[Episode]:
        """By number."""
        return [episode for episode in self.episodes if episode.reward is not None]

    @cached_property
    def causes(self) -> list[tuple[str, int, str]]:
        """Causes of failed episodes: how many, and the last line of what the newest such trial left. Most first."""
        failed = [episode for episode in self.episodes if episode.state == State.FAILED]
        details = {str(episode.cause): self._last_line(episode) for episode in failed}
        return [(cause, n, details[cause]) for cause, n in Counter(str(e.cause) for e in failed).most_common()]

    def _last_line(self, episode: Episode) -> str:
        lines = (self.evaluations[episode.evaluation_id].detail or "").strip().splitlines()
        return lines[-1] if lines else ""

    @cached_property
    def effort(self) -> Effort:
        """Of all trials, confirming ones included."""
        return _effort(self.trials)

    @cached_property
    def effort_of_search(self) -> Effort:
        """Without confirming runs."""
        return _effort([trial for trial in self.trials if trial.measurement.purpose not in CONFIRMING])

    @cached_property
    def learned(self) -> Learned | None:
        """None of a search too short to tell, or one that proposes the same few graphs."""
        drawn = [episode for episode in self.rewarded if episode.log_prob is not None]
        count = min(PART, len(drawn) // 2)
        first, last = ([*_different(part).values()] for part in (drawn[:count], drawn[len(drawn) - count :]))
        if count < RECENT or min(len(first), len(last)) < LEAST_DIFFERENT:
            return None
        error = (statistics.variance(first) / len(first) + statistics.variance(last) / len(last)) ** 0.5
        return Learned(statistics.fmean(first), statistics.fmean(last), error, count, len(last))


def are_comparable(ours: Study, theirs: Study) -> bool:
    """Whether rewards mean the same: equal data, detector and proxy. Who proposes may differ."""
    return ours.data_hash == theirs.data_hash and _judge(ours) == _judge(theirs)


def _judge(study: Study) -> dict[str, Any]:
    """What rewards follow from. Sizes of the final detector matter where cost is priced into them."""
    target = study.config["search"]["target_gflops"]
    of_search = {"search", "training"} if target is None else {"search"}
    return {key: value for key, value in study.config.items() if key not in of_search} | {"target": target}


def _different(episodes: Sequence[Episode]) -> dict[int, float]:
    """Rewards by evaluation: a graph that came again says nothing new."""
    return {episode.evaluation_id: episode.reward for episode in episodes if episode.reward is not None}


def _effort(trials: Sequence[Evaluation]) -> Effort:
    spans = sorted(
        (trial.ended.timestamp() - trial.seconds, trial.ended.timestamp())
        for trial in trials
        if trial.ended is not None and trial.seconds is not None
    )
    steps = sum(trial.measurement.budget for trial in trials if trial.ended is not None)
    searched = until = 0.0
    for start, end in spans:
        if until:
            searched += min(max(0.0, end - until), end - start) if start - until > PAUSE_S else max(0.0, end - until)
        else:
            searched = end - start
        until = max(until, end)
    worked = sum(end - start for start, end in spans)
    return Effort(len(spans), steps, searched / 3600, worked / 3600, _most_at_once(spans), _gpu_hours(trials))


def _gpu_hours(trials: Sequence[Evaluation]) -> float | None:
    timed = [trial for trial in trials if trial.seconds is not None]
    if any(trial.gpus is None for trial in timed):
        return None
    return sum((trial.seconds or 0.0) * (trial.gpus or 0.0) for trial in timed) / 3600


def _most_at_once(spans: Sequence[tuple[float, float]]) -> int:
    """Trials that ran at the same time, at most."""
    changes = [(start, 1) for start, end in spans if end > start] + [(end, -1) for start, end in spans if end > start]
    return max(itertools.accumulate(change for _, change in sorted(changes)), default=0)
