"""The controller as a named actor. Its process imports no more than it needs, so that it is soon there."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError

from controller.controller import Controller, versions_kept
from controller.proposer import Proposal, ProposerState, Rewarded
from detector.errors import UserError
from detector.ray_session import NAMESPACE, first_line, here
from nas.store import Episode

log = logging.getLogger(__name__)

MAX_DEATHS = 3  # of the controller's process, in one run of a search
NAME_TAKEN_S = 15.0  # how long a driver that was killed keeps its controller's name in a cluster, and some more


class ControllerActor:
    """The controller, in a process of its own. Holds no database connection."""

    def __init__(self, make: Callable[[], Controller]) -> None:
        torch.set_num_threads(1)
        self.controller = make()

    def propose(self, episode: int) -> Proposal:
        return self.controller.propose(episode)

    def update(self, batch: Sequence[Rewarded]) -> ProposerState:
        return self.controller.update(batch)

    def restore(self, states: Mapping[int, ProposerState]) -> None:
        self.controller.restore(states)

    def note(self) -> None:
        """Does nothing: the name of the call is what the dashboard shows."""


class RemoteController:
    """The actor as a plain object. Its calls are named after episodes, for the dashboard.

    An actor that dies is replaced, by one that is given the versions that the driver has seen last: it is then what
    the old one was, as after an interruption of the whole search.
    """

    def __init__(self, study: str, make: Callable[[], Controller], lag: int) -> None:
        self.name = f"nas-controller-{study}"
        self.make = make
        self.kept = versions_kept(lag)
        self.states: dict[int, ProposerState] = {}
        self.deaths = 0
        self.is_restored = True  # an actor that has replaced another one is not, at first
        self._start()

    def propose(self, episode: int) -> Proposal:
        proposal: Proposal = self._call("propose", f"propose episode {episode}", episode)
        return proposal

    def update(self, batch: Sequence[Rewarded]) -> ProposerState:
        mean = sum(episode.reward for episode in batch) / max(1, len(batch))
        name = f"learn from {len(batch)} episodes, mean reward {mean:.4f}"
        state: ProposerState = self._call("update", name, list(batch))
        self._keep({max(self.states, default=0) + 1: state})
        return state

    @property
    def entropy(self) -> float | None:
        """Of the newest version, as far as it has been told."""
        return self.states[max(self.states)].entropy if self.states else None

    def restore(self, states: Mapping[int, ProposerState]) -> None:
        self._keep(states)
        self._call("restore", "restore", self.states)

    def _start(self) -> None:
        actor = ray.remote(num_cpus=0)(ControllerActor).options(
            name=self.name, namespace=NAMESPACE, scheduling_strategy=here()
        )
        until = time.monotonic() + NAME_TAKEN_S
        while True:
            try:
                self.actor = actor.remote(self.make)
                return
            except ValueError as error:
                if "already taken" not in str(error):
                    raise
                if time.monotonic() > until:
                    raise UserError(
                        f"{self.name} runs in this cluster already, for another database; give --study NAME"
                    ) from error
                time.sleep(0.5)

    def _call(self, method: str, name: str, argument: Any) -> Any:
        while True:
            try:
                if not self.is_restored and method != "restore":
                    ray.get(self.actor.restore.remote(self.states))
                self.is_restored = True
                return ray.get(getattr(self.actor, method).options(name=name).remote(argument))
            except RayActorError as error:
                self.deaths += 1
                if self.deaths > MAX_DEATHS:
                    raise UserError(
                        f"the controller's process died {self.deaths} times ({first_line(error)}); mend that, then the "
                        "same command continues"
                    ) from error
                log.warning("the controller's process died (%s); it is started again", first_line(error))
                ray.kill(self.actor)  # it would keep its name, though dead
                self._start()
                self.is_restored = False

    def _keep(self, states: Mapping[int, ProposerState]) -> None:
        self.states |= states
        self.states = {version: self.states[version] for version in sorted(self.states)[-self.kept :]}

    def note(self, episodes: Sequence[Episode]) -> None:
        """Let the dashboard's list of tasks show how episodes ended."""
        for episode in episodes:
            end = episode.cause if episode.reward is None else f"reward {episode.reward:.4f}"
            self.actor.note.options(name=f"episode {episode.number} {episode.state}: {end}").remote()
