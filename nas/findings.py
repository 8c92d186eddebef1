"""All that a report is about: one study as its database has it, and the figures that follow from that."""

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

from detector.architecture import PRIORS, Architecture
from nas.results import Verdict, by_reward, judged, pareto_front, prior_episode
from nas.store import Episode, Evaluation, PolicyFigures, Purpose, State, Store, Study

RECENT = 50  # episodes of a running mean
PART = 100  # episodes that are compared, first with last
LONG_PAUSE = 10  # times the median time between two trials: the search stood still


class Effort(NamedTuple):
    """Of all trials, confirming ones included. hours: of searching, without long pauses; worker_hours: in trials."""

    trials: int
    steps: int
    hours: float
    worker_hours: float
    workers: int

    @property
    def utilisation(self) -> float:
        """The share of the workers' time that trials took."""
        return min(1.0, self.worker_hours / (self.hours * self.workers)) if self.hours else 0.0


class Learned(NamedTuple):
    """Mean rewards of the first and of the last sampled episodes, and the standard error of their difference."""

    first: float
    last: float
    error: float
    episodes: int


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
        trials = [trial for purpose in Purpose for trial in store.evaluations(study_id, purpose)]
        found = cls(
            study,
            store.created(study_id),
            store.target(study_id),
            store.episodes(study_id),
            trials,
            store.policy_history(study_id),
            {},
        )
        shown = [*found.best[:best], *filter(None, [found.prior])]
        graphs = {episode.architecture_hash: store.architecture(episode.architecture_hash) for episode in shown}
        return cls(study, found.created, found.target, found.episodes, trials, found.policies, graphs)

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
        """What new seeds say, the winner first."""
        confirming = [trial for trial in self.trials if trial.measurement.purpose == Purpose.CONFIRM]
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
        ended = [trial for trial in self.trials if trial.ended is not None and trial.seconds is not None]
        worked = timedelta(seconds=sum(trial.seconds or 0.0 for trial in ended))
        steps = sum(trial.measurement.budget for trial in ended)
        searched = _time_without_pauses(ended)
        workers = _most_at_once(ended)
        return Effort(len(ended), steps, searched / timedelta(hours=1), worked / timedelta(hours=1), workers)

    @cached_property
    def learned(self) -> Learned | None:
        """None of a search too short to tell."""
        drawn = [e.reward for e in self.rewarded if e.log_prob is not None and e.reward is not None]
        if len(drawn) < 2 * RECENT:
            return None
        count = min(PART, len(drawn) // 2)
        first, last = drawn[:count], drawn[-count:]
        error = ((statistics.variance(first) + statistics.variance(last)) / count) ** 0.5
        return Learned(statistics.fmean(first), statistics.fmean(last), error, count)

    def is_comparable_with(self, other: "Findings") -> bool:
        """Whether rewards mean the same: equal data, detector and proxy. Who proposes may differ."""
        return self.study.data_hash == other.study.data_hash and _judge(self.study) == _judge(other.study)


def _judge(study: Study) -> dict[str, Any]:
    return {key: value for key, value in study.config.items() if key not in ("search", "training")}


def _time_without_pauses(ended: Sequence[Evaluation]) -> timedelta:
    """From the start of the first trial to the end of the last one, less the time in which none ended for long."""
    if not ended:
        return timedelta()
    ends = sorted(trial.ended for trial in ended if trial.ended is not None)
    first = ended[0].seconds or 0.0
    gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(ends)]
    longest = LONG_PAUSE * max(first, statistics.median(gaps) if gaps else 0.0)
    return timedelta(seconds=first + sum(gap for gap in gaps if gap <= longest))


def _most_at_once(ended: Sequence[Evaluation]) -> int:
    """Trials that ran at the same time, at most."""
    changes: list[tuple[datetime, int]] = []
    for trial in ended:
        if trial.ended is not None and trial.seconds:
            changes += [(trial.ended - timedelta(seconds=trial.seconds), 1), (trial.ended, -1)]
    running = itertools.accumulate(change for _, change in sorted(changes))
    return max(running, default=0)
