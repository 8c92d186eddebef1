"""What a search reports to Ray's metrics, which Prometheus scrapes."""

import statistics
from collections import Counter
from collections.abc import Iterable

import torch
from ray.util.metrics import Gauge, Histogram

from nas.store import Episode, Outcome, State

SECONDS = [0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0]  # bounds of the histogram of trials
RECENT = 50  # episodes whose mean reward is shown


class SearchMetrics:
    """Of the driver. All are tagged with the study; Prometheus sees their names with ray_ before them."""

    def __init__(self, study: str) -> None:
        self.study = study
        self._episodes = self._gauge("nas_episodes", "Episodes by state.", "state")
        self._last = self._gauge("nas_reward_last", "Reward of the newest episode that has one.")
        self._mean = self._gauge("nas_reward_mean", f"Mean reward of the newest {RECENT} episodes that have one.")
        self._best = self._gauge("nas_reward_best", "Highest reward.")
        self._version = self._gauge("nas_policy_version", "Batches that the policy has learned from.")
        self._entropy = self._gauge("nas_policy_entropy", "Mean entropy of a decision, in nats.")

    def _gauge(self, name: str, what: str, *more: str) -> Gauge:
        gauge = Gauge(name, description=what, tag_keys=("study", *more))
        gauge.set_default_tags({"study": self.study})
        return gauge

    def show(self, episodes: Iterable[Episode], version: int, entropy: float | None) -> None:
        """All episodes of the study, by number, and the newest version of its policy."""
        states: Counter[str] = Counter()
        rewards: list[float] = []
        for episode in episodes:
            states[str(episode.state)] += 1
            if episode.reward is not None:
                rewards.append(episode.reward)
        for state in State:
            self._episodes.set(states[str(state)], tags={"state": str(state)})
        if rewards:
            self._last.set(rewards[-1])
            self._mean.set(statistics.fmean(rewards[-RECENT:]))
            self._best.set(max(rewards))
        self._version.set(version)
        if entropy is not None:
            self._entropy.set(entropy)


class TrialMetrics:
    """Of a worker."""

    def __init__(self, study: str) -> None:
        keys = {"study": study}
        self._seconds = Histogram("nas_trial_seconds", "How long trials took.", SECONDS, ("study", "cause"))
        self._memory = Gauge("nas_gpu_memory_bytes", "Most memory that a trial's tensors took on its GPU.", ("study",))
        self._seconds.set_default_tags(keys)
        self._memory.set_default_tags(keys)

    def show(self, outcome: Outcome) -> None:
        """A trial that has ended."""
        if outcome.seconds is not None:
            self._seconds.observe(outcome.seconds, tags={"cause": str(outcome.cause or "none")})
        if torch.cuda.is_available():
            self._memory.set(torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
