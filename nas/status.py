"""nas-status: where a search stands, on one screen."""

import argparse
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from nas.lock import holder_of
from nas.results import Verdict, by_reward, prior_episode, verdicts
from nas.store import Episode, Evaluation, Purpose, State, Store
from nas.store_errors import with_store_errors

RECENT = 50  # trials from whose ends the rate is told, and episodes whose mean reward is shown
SHOWN_FAILURES = 5


class Failure(NamedTuple):
    """A graph that failed, by the episode that owns it."""

    episode: int
    cause: str
    detail: str


class Status(NamedTuple):
    """What nas-status says, and --json prints. Rewards are AP times the cost factor; null where there is none yet."""

    study: str
    algorithm: str
    seed: int
    searched_by: str | None
    target: int
    episodes: dict[str, int]  # by state
    trials_an_hour: float | None
    hours_left: float | None
    best: float | None
    best_episode: int | None
    prior: float | None
    recent_mean: float | None
    policy_version: int
    entropy: float | None
    winner_episode: int | None
    winner: str | None
    failures: list[Failure]


def status(args: argparse.Namespace) -> int:
    """What nas-status does; its exit code."""
    return with_store_errors("nas-status", _status, args)


def _status(args: argparse.Namespace) -> int:
    store, console = Store(args.database, read_only=True), Console()
    while True:
        found = look(store, args.database, args.study)
        if args.json:
            print(json.dumps(found._asdict() | {"failures": [f._asdict() for f in found.failures]}), flush=True)
        else:
            if args.watch and console.is_terminal:
                console.clear()
            console.print(_screen(found))
        if not args.watch:
            return 0
        time.sleep(args.every)


def look(store: Store, database: str, name: str) -> Status:
    """Raises UserError if there is no such study."""
    study_id, study = store.find_study(name)
    episodes = store.episodes(study_id)
    evaluations = store.evaluations(study_id, Purpose.SEARCH)
    target = max(store.target(study_id), len(episodes))
    ranked, prior = by_reward(episodes), prior_episode(episodes)
    rewards = [episode.reward for episode in episodes if episode.reward is not None]
    states = Counter(str(episode.state) for episode in episodes)
    per_hour = rate(evaluations)
    left = target - sum(count for state, count in states.items() if state != State.RUNNING)
    settled_a_trial = _settled_a_trial(episodes)
    figures = store.policy_figures(study_id)
    confirmed = verdicts(store, study_id, prior)
    winner = next(iter(confirmed.values()), None)
    return Status(
        study=name,
        algorithm=str(study.config["search"]["algorithm"]),
        seed=study.seed,
        searched_by=holder_of(database, name),
        target=target,
        episodes=dict(states),
        trials_an_hour=per_hour,
        hours_left=left / settled_a_trial / per_hour if per_hour and left else None,
        best=ranked[0].reward if ranked else None,
        best_episode=ranked[0].number if ranked else None,
        prior=prior.reward if prior is not None else None,
        recent_mean=statistics.fmean(rewards[-RECENT:]) if rewards else None,
        policy_version=figures[0],
        entropy=figures[1],
        winner_episode=_episode_of(winner, ranked),
        winner=str(winner) if winner is not None else None,
        failures=_failures(episodes, evaluations),
    )


def rate(evaluations: Sequence[Evaluation]) -> float | None:
    """Trials an hour, from the ends of the last RECENT ones; pauses longer than ten times the median count as none."""
    ends = sorted(evaluation.ended for evaluation in evaluations if evaluation.ended is not None)[-RECENT:]
    gaps = [(after - before) / timedelta(hours=1) for before, after in itertools.pairwise(ends)]
    if not gaps:
        return None
    longest = 10 * statistics.median(gaps)
    counted = [gap for gap in gaps if gap <= longest] if longest > 0 else gaps
    return len(counted) / sum(counted) if sum(counted) > 0 else None


def _settled_a_trial(episodes: Sequence[Episode]) -> float:
    """Episodes that one trial settles, on average: more than one where graphs come again."""
    settled = [episode for episode in episodes if episode.state != State.RUNNING]
    return len(settled) / max(1, len({episode.evaluation_id for episode in settled}))


def _episode_of(winner: Verdict | None, ranked: Sequence[Episode]) -> int | None:
    if winner is None:
        return None
    return next(episode.number for episode in ranked if episode.architecture_hash == winner.architecture_hash)


def _failures(episodes: Sequence[Episode], evaluations: Sequence[Evaluation]) -> list[Failure]:
    """The newest last, one for every graph."""
    detail = {evaluation.id: evaluation.detail or "" for evaluation in evaluations}
    owners: dict[int, Failure] = {}
    for episode in episodes:
        if episode.state == State.FAILED and episode.evaluation_id not in owners:
            lines = detail.get(episode.evaluation_id, "").strip().splitlines()
            owners[episode.evaluation_id] = Failure(episode.number, str(episode.cause), lines[-1] if lines else "")
    return list(owners.values())


def _screen(found: Status) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("study", f"{found.study}: {found.algorithm}, seed {found.seed}")
    table.add_row("search", f"by {found.searched_by}" if found.searched_by else "none runs here")
    settled = sum(count for state, count in found.episodes.items() if state != State.RUNNING)
    states = ", ".join(f"{count} {state}" for state, count in sorted(found.episodes.items()))
    table.add_row("episodes", f"{settled} of {found.target}" + (f" ({states})" if states else ""))
    if found.trials_an_hour is not None:
        left = f", {_duration(found.hours_left)} left" if found.hours_left is not None else ""
        rate = found.trials_an_hour
        table.add_row("speed", (f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}") + f" trials an hour{left}")
    if found.best is not None:
        prior = f", the prior {found.prior:.4f}" if found.prior is not None else ""
        of = f"the last {RECENT}" if settled > RECENT else "all"
        recent = f", mean of {of} {found.recent_mean:.4f}" if found.recent_mean is not None else ""
        table.add_row("reward", f"best {found.best:.4f} (episode {found.best_episode}){prior}{recent}")
    entropy = f", entropy {found.entropy:.3f} a decision" if found.entropy is not None else ""
    table.add_row("policy", f"version {found.policy_version}{entropy}")
    if found.winner is not None:
        table.add_row("winner", f"episode {found.winner_episode}, {found.winner}")
    for failure in found.failures[-SHOWN_FAILURES:]:
        detail = f": {failure.detail}" if failure.detail else ""
        table.add_row("failure", f"episode {failure.episode}, {failure.cause}{detail}")
    return table


def _duration(hours: float) -> str:
    if hours < 1:
        return f"about {60 * hours:.0f} min"
    end = datetime.now(UTC) + timedelta(hours=hours)
    return f"about {hours:.1f} h (until {end:%Y-%m-%d %H:%M} UTC)"
