"""One run of a search: trials until all episodes have ended, and runs that confirm the best."""

import contextlib
import time
from functools import partial

from detector.progress import Progress
from nas.algorithms import make_controller
from nas.cluster import Cluster, Delivery
from nas.config import Config
from nas.confirm import Confirmation
from nas.control import Controlled
from nas.metrics import SearchMetrics
from nas.other_preparation import OtherPreparation
from nas.preparation import OnProgress
from nas.prepared import delivered, other_preparation
from nas.proxy import choose_device, prepare_proxy
from nas.remote_controller import RemoteController
from nas.scalars import Scalars
from nas.search import LISTEN_EVERY_S, run
from nas.service import Checked, confirmation, other_preparations
from nas.space import space_around
from nas.store import Action, Episode, Store
from nas.study import Schedule
from nas.trial import ProxySource


def run_study(asked: Checked, cluster: Cluster, scalars: Scalars | None) -> tuple[Action | None, str | None]:
    """Search and confirm on a cluster that is up. If that ended before its time: what was asked for, or what failed."""
    config, prior = asked.config, asked.prior
    make = partial(make_controller, config.search, space_around(prior), prior, asked.args.seed, asked.budget)
    controller = RemoteController(asked.args.study, make, config.search.lag)
    # Opened once there is a controller, for what is refused leaves nothing; closed, so that SQLite's file is whole.
    with contextlib.closing(Store(asked.args.database)) as store:
        return _search_and_confirm(asked, cluster, scalars, controller, store)


def _search_and_confirm(
    asked: Checked, cluster: Cluster, scalars: Scalars | None, controller: RemoteController, store: Store
) -> tuple[Action | None, str | None]:
    args, config, prior, budget, _, study, screen = asked
    study_id = store.open_study(study)
    store.set_target(study_id, args.episodes)
    source, delivery = _shared(asked, config, cluster)
    shown: list[SearchMetrics | Scalars] = [SearchMetrics(args.study)]
    shown += [] if scalars is None else [scalars]
    schedule = Schedule(
        store,
        study_id,
        controller,
        space_around(prior),
        prior,
        budget,
        episodes=args.episodes,
        batch=config.search.batch,
        lag=config.search.lag,
        seed=args.seed,
        steps=config.proxy.trial.steps,
        rung_steps=config.search.rung_steps,
        shares_gpu=cluster.shares_gpu,
    )

    def on_episodes(ended: list[Episode]) -> None:
        controller.note(ended)
        for figures in shown:
            figures.show(schedule.episodes.values(), schedule.version, controller.entropy)
        screen.searching(ended, schedule.episodes.values(), schedule.settled, schedule.total)

    on_episodes([])
    plan = Controlled(schedule, store, study_id)
    plan.listen()  # to what was asked before
    run(plan, source, cluster, on_episodes, delivery)
    if plan.stopped is None and plan.ending is None:
        _confirm(asked, cluster, plan)
    return plan.ending, plan.stopped


def _confirm(asked: Checked, cluster: Cluster, plan: Controlled) -> None:
    """Judge the best graphs of a search again: with new seeds, and by other preparations of the proxy, if that was
    asked for. plan is that of the search.
    """
    args, config, prior, budget, data, _, screen = asked
    store, study_id, shares_gpu = plan.store, plan.study_id, cluster.shares_gpu
    confirming = confirmation(args, store, study_id, budget, config, shares_gpu=shares_gpu)
    plan.turn_to(confirming)
    report = partial(_report_confirmation, screen.progress, confirming)
    report([])
    source, delivery = _shared(asked, config, cluster)
    run(plan, source, cluster, report, delivery)
    for number, other in enumerate(other_preparations(args, store, study_id, budget, config, shares_gpu=shares_gpu), 1):
        if plan.stopped is not None or plan.ending is not None:
            return
        if not other.is_finished:
            plan.turn_to(other)
            which = f"other preparation {number} of {args.confirm_preparations}"
            changed = other_preparation(config, number)
            with contextlib.suppress(EndedError):
                prepare_proxy(changed, data, prior, choose_device(), _listening(plan, screen.progress, which))
                shown = partial(_report_preparation, screen.progress, which, other)
                source, delivery = _shared(asked, changed, cluster)
                run(plan, source, cluster, shown, delivery)


class EndedError(Exception):
    """Somebody asked for the end of the search while it prepared."""


def _listening(plan: Controlled, progress: Progress, which: str) -> OnProgress:
    """Progress of a preparation in the middle of a study, which hears requests meanwhile, and stands still in a pause.
    Raises EndedError.
    """
    listened = time.monotonic()

    def on_progress(what: str, step: int, steps: int) -> None:
        nonlocal listened
        progress(f"{which}: {what}", step, steps)
        if time.monotonic() - listened < LISTEN_EVERY_S:
            return
        plan.listen()
        while plan.is_paused and plan.ending is None:
            time.sleep(LISTEN_EVERY_S)
            plan.listen()
        listened = time.monotonic()
        if plan.ending is not None:
            raise EndedError

    return on_progress


def _shared(asked: Checked, config: Config, cluster: Cluster) -> tuple[ProxySource, Delivery | None]:
    """How workers come by what was prepared, and machines without it."""
    args, _, prior, _, data, _, _ = asked
    source = ProxySource.of(config, args.data and args.data.absolute(), prior, data.hash)
    return source, Delivery.of(delivered(config, data, prior)) if cluster.address is not None else None


def _report_preparation(progress: Progress, which: str, other: OtherPreparation, _ended: list[Episode]) -> None:
    progress(f"{which}: judging the best graphs", other.settled, other.total)


def _report_confirmation(progress: Progress, confirmation: Confirmation, _ended: list[Episode]) -> None:
    if not confirmation.arms:
        return
    left = len(confirmation.left)
    progress(f"confirming the best graphs, {left} left", confirmation.settled, confirmation.total)
