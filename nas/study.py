"""One study under the schedule rule: which episode runs next, and what its end leads to. Knows nothing of Ray."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from controller.controller import version_of, versions_kept
from controller.proposer import Proposal, ProposerState, Rewarded
from detector.architecture import Architecture
from detector.errors import UserError
from nas.attempts import Attempts, described
from nas.budget import Budget
from nas.space import NasFpnSpace
from nas.store import Cause, Episode, Measurement, Outcome, Purpose, State, Store


class Proposes(Protocol):
    """The controller, here or in another process."""

    def propose(self, episode: int) -> Proposal: ...

    def update(self, batch: Sequence[Rewarded]) -> ProposerState: ...

    def restore(self, states: Mapping[int, ProposerState]) -> None: ...


class Plan(Protocol):
    """What is to be trained, job by job: a Schedule or a Confirmation."""

    stopped: str | None

    @property
    def settled(self) -> int: ...

    @property
    def is_finished(self) -> bool: ...

    def next(self) -> "Job | None": ...

    def finish(self, evaluation_id: int, outcome: Outcome) -> list[Episode]: ...


class Job(NamedTuple):
    """A graph to evaluate, for the episode that owns it."""

    episode: int
    evaluation_id: int
    architecture: Architecture
    measurement: Measurement
    is_timed: bool = False  # whether the pyramid's latency is measured, too
    is_alone: bool = False  # with a whole GPU, though trials share one


class Schedule:
    """Walks a study from wherever the store says it is to `episodes` episodes.

    The store is the only memory: whatever is running when the process dies runs again, and a batch that is complete
    but not yet used is used at the start.

    With rung_steps, every graph of a batch is first trained for so many steps, and the better half of them goes on to
    its reward (one round of successive halving; Karnin, Koren & Somekh 2013); the others are pruned. Batches are halved
    in order, by what their own graphs reached and which graphs came before, so nothing depends on who ends first.
    """

    def __init__(
        self,
        store: Store,
        study_id: int,
        controller: Proposes,
        space: NasFpnSpace,
        prior: Architecture | None,
        budget: Budget,
        *,
        episodes: int,
        batch: int,
        lag: int,
        seed: int,
        steps: int,
        rung_steps: int | None = None,
        shares_gpu: bool = False,
    ) -> None:
        self.store = store
        self.study_id = study_id
        self.controller = controller
        self.space = space
        self.prior = prior
        self.total = episodes
        self.batch = batch
        self.lag = lag
        self.budget = budget
        self.measurement = Measurement(Purpose.SEARCH, seed, steps)
        self.rung = Measurement(Purpose.RUNG, seed, rung_steps) if rung_steps is not None else None
        self.stopped: str | None = None  # why the search gave up
        self.episodes = {episode.number: episode for episode in store.episodes(study_id)}
        has_succeeded = any(episode.state == State.DONE for episode in self.episodes.values())
        self._attempts = Attempts(shares_gpu=shares_gpu, has_succeeded=has_succeeded)
        self._prior_failed = False
        self._skipped: set[int] = set()  # evaluations whose trials still run, for nothing

        stored = store.policies(study_id)
        if stored:
            controller.restore(stored)  # else it may still be on its way, while the first trial starts
        self.version = max(stored, default=0)
        # AP by evaluation, None until it has ended.
        self._rungs = {evaluation.id: evaluation.ap for evaluation in store.evaluations(study_id, Purpose.RUNG)}
        waiting = [episode for episode in self.episodes.values() if episode.state == State.RUNNING]
        running = [episode for episode in waiting if self._rungs.get(episode.evaluation_id) is None]
        owners = {episode.evaluation_id: episode for episode in reversed(running)}  # the lowest number stays
        self._dispatched = set(owners)
        self._again = deque(sorted(owners.values()))
        self._check_prior()
        self._advance()

    @property
    def settled(self) -> int:
        """How many episodes have ended."""
        return sum(episode.state != State.RUNNING for episode in self.episodes.values())

    @property
    def is_finished(self) -> bool:
        """Nothing is left to hand out, now or later: until all have ended, one may be lost."""
        return self.stopped is not None or self.settled >= self.total

    def next(self) -> Job | None:
        """The next graph to train. None if there is none yet (a batch must end first), or no more at all."""
        if self.stopped is not None:
            return None
        while self._again:
            episode = self._again.popleft()
            if job := self._job(episode, self.store.architecture(episode.architecture_hash)):
                return job
        while self.stopped is None and len(self.episodes) < self.total:
            number = len(self.episodes)
            if version_of(number, self.batch, self.lag) > self.version:
                return None
            episode, architecture = self._propose(number)
            self.episodes[number] = episode
            is_known = episode.evaluation_id in self._dispatched or self._rungs.get(episode.evaluation_id) is not None
            if episode.state == State.RUNNING and not is_known:
                self._dispatched.add(episode.evaluation_id)
                if job := self._job(episode, architecture):
                    return job
            self._advance()
        return None

    def _job(self, episode: Episode, architecture: Architecture) -> Job | None:
        """What is to be trained; None for a graph over the budget, which fails without."""
        self._attempts.begin(episode.evaluation_id)
        excess = self.budget.excess(architecture)
        if excess is None:
            is_rung = self.rung is not None and episode.evaluation_id in self._rungs
            measurement = self.rung if self.rung is not None and is_rung else self.measurement
            is_alone = self._attempts.is_alone(episode.evaluation_id)
            return Job(episode.number, episode.evaluation_id, architecture, measurement, is_alone=is_alone)
        self.finish(episode.evaluation_id, Outcome(None, Cause.INVALID, detail=excess))
        return None

    def finish(self, evaluation_id: int, outcome: Outcome) -> list[Episode]:
        """Record the end of a job, unless it is to be tried again; the episodes that it settled."""
        if evaluation_id in self._skipped:
            self._skipped.remove(evaluation_id)
            return []
        if self._attempts.again(evaluation_id, outcome):
            running = [episode for episode in self.episodes.values() if episode.evaluation_id == evaluation_id]
            self._again.append(min(running))
            return []
        outcome = outcome._replace(attempts=self._attempts.count(evaluation_id))
        settled = self.store.finish_evaluation(evaluation_id, outcome)
        if evaluation_id in self._rungs:
            self._rungs[evaluation_id] = outcome.ap
        self._dispatched.discard(evaluation_id)
        self.episodes.update({episode.number: episode for episode in settled})
        self.stopped = self._attempts.give_up(outcome, "evaluations") or self.stopped
        self._check_prior(described(outcome))
        self._advance()
        return settled

    def skip(self, number: int) -> str:
        """Let a running episode fail at once, and drop what its trial gives; what was done. Raises UserError."""
        episode = self.episodes.get(number)
        if episode is None or episode.state != State.RUNNING:
            raise UserError(f"episode {number} is {'not there yet' if episode is None else episode.state}, not running")
        if number == 0 and self.prior is not None:
            raise UserError("episode 0 is the prior: the search needs its reward")
        evaluation_id = episode.evaluation_id
        if evaluation_id in self._dispatched and all(e.evaluation_id != evaluation_id for e in self._again):
            self._skipped.add(evaluation_id)
        self._again = deque(e for e in self._again if e.evaluation_id != evaluation_id)
        self._dispatched.discard(evaluation_id)
        outcome = Outcome(None, Cause.SKIPPED, attempts=self._attempts.count(evaluation_id))
        settled = self.store.finish_evaluation(evaluation_id, outcome)
        self.episodes.update({episode.number: episode for episode in settled})
        self._advance()
        return f"skipped episode {', '.join(str(episode.number) for episode in settled)}; its trial runs on for nothing"

    def retry(self, number: int) -> str:
        """Let a failed episode run again; what was done. Raises UserError if the policy has learned without it."""
        episode = self.episodes.get(number)
        if episode is None or episode.state != State.FAILED:
            raise UserError(f"episode {number} is {'not there yet' if episode is None else episode.state}, not failed")
        same = [e for e in self.episodes.values() if e.evaluation_id == episode.evaluation_id]
        used = [e.number for e in same if e.number < self.version * self.batch and e.state == State.FAILED]
        if used:
            raise UserError(f"the policy has learned from the batch of episode {used[0]} already, without it")
        if episode.evaluation_id in self._skipped:
            raise UserError(
                f"the trial of episode {number}, which was skipped, still runs; ask again once it has ended"
            )
        again = self.store.retry(self.study_id, number)
        self.episodes.update({episode.number: episode for episode in again})
        self._dispatched.add(episode.evaluation_id)
        self._again.append(again[0])
        if self._prior_failed and again[0].number == 0:
            self._prior_failed, self.stopped = False, None
        return f"episode {', '.join(str(episode.number) for episode in again)} is tried again"

    def _propose(self, number: int) -> tuple[Episode, Architecture]:
        if number == 0 and self.prior is not None:
            proposal, log_prob = Proposal(self.space.decisions(self.prior), 0.0), None  # given, not drawn
        else:
            proposal = self.controller.propose(number)
            log_prob = proposal.log_prob
        architecture = self.space.architecture(proposal.decisions).canonical()
        version = version_of(number, self.batch, self.lag)
        episode = self.store.start_episode(
            self.study_id,
            number,
            architecture,
            proposal.decisions,
            log_prob,
            version,
            self.rung or self.measurement,
            self.budget.cost(architecture),
            self.budget.factor(architecture),
        )
        if self.rung is not None:
            self._rungs.setdefault(episode.evaluation_id, None)
        return episode, architecture

    def _advance(self) -> None:
        """Halve every batch whose rung has ended, and let the controller use those that are complete, in order."""
        if self.rung is not None:
            for number in range(self.version, len(self.episodes) // self.batch):
                self._halve(self._batch(number))
                if any(self._is_at_rung(episode) for episode in self._batch(number)):
                    break  # in order: the first batch that trains a graph again owns its reward
        while len(batch := self._batch(self.version)) == self.batch:
            if any(episode.state == State.RUNNING for episode in batch):
                return
            self.version += 1
            state = self.controller.update(_rewarded(batch))
            self.store.save_policy(self.study_id, self.version, state, versions_kept(self.lag))

    def _batch(self, number: int) -> list[Episode]:
        """The episodes of a batch that were proposed so far."""
        numbers = range(number * self.batch, (number + 1) * self.batch)
        return [self.episodes[e] for e in numbers if e in self.episodes]

    def _is_at_rung(self, episode: Episode) -> bool:
        return episode.state == State.RUNNING and episode.evaluation_id in self._rungs

    def _halve(self, batch: Sequence[Episode]) -> None:
        """End the batch's rung, if all of it has.

        The prior goes on, and so do graphs that were proposed in earlier batches: a second proposal is trained.
        """
        waiting = [episode for episode in batch if episode.state == State.RUNNING]
        aps = {episode.architecture_hash: self._rungs.get(episode.evaluation_id) for episode in waiting}
        ended = {graph_hash: ap for graph_hash, ap in aps.items() if ap is not None}
        if not waiting or len(ended) < len(aps):
            return
        going_on = {self.episodes[number].architecture_hash for number in range(batch[0].number)}
        if self.prior is not None:
            going_on.add(self.episodes[0].architecture_hash)
        ranked = sorted((h for h in ended if h not in going_on), key=lambda h: -ended[h])  # equals by number
        going_on |= set(ranked[: -(-len(ranked) // 2)])
        kept = [episode.number for episode in waiting if episode.architecture_hash in going_on]
        pruned = [episode.number for episode in waiting if episode.architecture_hash not in going_on]
        for episode in self.store.end_rung(self.study_id, kept, pruned, self.measurement):
            self.episodes[episode.number] = episode
            if episode.state == State.RUNNING and episode.evaluation_id not in self._dispatched:
                self._dispatched.add(episode.evaluation_id)
                self._again.append(episode)

    def _check_prior(self, cause: str = "") -> None:
        first = self.episodes.get(0)
        if self.prior is None or first is None or first.state != State.FAILED or self._prior_failed:
            return
        self._prior_failed = True
        self.stopped = (
            f"episode 0, the prior, failed with {cause or first.cause}: nothing can be compared with it; "
            "when that is mended, --study NAME starts anew"
        )


def _rewarded(batch: Sequence[Episode]) -> list[Rewarded]:
    """What the controller learns from. A pruned graph counts with the lowest full reward among its batch's survivors:
    its own short training is no upper bound, since AP grows with steps.
    """
    rewards = [episode.reward for episode in batch if episode.reward is not None]
    found = []
    for episode in batch:
        reward = episode.reward
        if episode.state == State.PRUNED and rewards:
            reward = min(rewards)
        if reward is not None:
            is_measured = episode.state != State.PRUNED
            found.append(Rewarded(episode.decisions, episode.log_prob, reward, is_measured))
    return found
