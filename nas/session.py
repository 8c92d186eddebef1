"""One run of a search: trials until all episodes have ended, and runs that confirm the best."""

from contextlib import closing
from functools import partial

from detector.progress import Progress
from nas.algorithms import make_controller
from nas.cluster import Cluster, Delivery
from nas.config import Config
from nas.confirm import Confirmation
from nas.control import Controlled
from nas.metrics import SearchMetrics
from nas.other_preparation import OtherPreparation
from nas.prepared import delivered, other_preparation
from nas.proxy import choose_device, prepare_proxy
from nas.remote_controller import RemoteController
from nas.scalars import Scalars
from nas.search import run
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
    with closing(Store(asked.args.database)) as store:
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
        plan = _confirm(asked, cluster, store, study_id, source, delivery)
    return plan.ending, plan.stopped


def _confirm(
    asked: Checked, cluster: Cluster, store: Store, study_id: int, source: ProxySource, delivery: Delivery | None
) -> Controlled:
    """Judge the best graphs again: with new seeds, and by other preparations of the proxy, if that was asked for. The
    plan that came last, or ended before its time.
    """
    args, config, prior, budget, data, _, screen = asked
    confirming = confirmation(args, store, study_id, budget, config, shares_gpu=cluster.shares_gpu)
    plan = Controlled(confirming, store, study_id)
    report = partial(_report_confirmation, screen.progress, confirming)
    report([])
    run(plan, source, cluster, report, delivery)
    others = other_preparations(args, store, study_id, budget, config, confirming, shares_gpu=cluster.shares_gpu)
    for number, other in enumerate(others, 1):
        if plan.stopped is not None or plan.ending is not None:
            break
        if not other.is_finished:
            changed = other_preparation(config, number)
            prepare_proxy(changed, data, prior, choose_device(), screen.progress)
            plan = Controlled(other, store, study_id)
            report = partial(_report_preparation, screen.progress, f"{number} of {len(others)}", other)
            report([])
            source, delivery = _shared(asked, changed, cluster)
            run(plan, source, cluster, report, delivery)
    return plan


def _shared(asked: Checked, config: Config, cluster: Cluster) -> tuple[ProxySource, Delivery | None]:
    """How workers come by what was prepared, and machines without it."""
    args, _, prior, _, data, _, _ = asked
    source = ProxySource.of(config, args.data and args.data.absolute(), prior, data.hash)
    return source, Delivery.of(delivered(config, data, prior)) if cluster.address is not None else None


def _report_preparation(progress: Progress, which: str, other: OtherPreparation, _ended: list[Episode]) -> None:
    progress(f"judging the best graphs by other preparation {which}", other.settled, other.total)


def _report_confirmation(progress: Progress, confirmation: Confirmation, _ended: list[Episode]) -> None:
    if not confirmation.arms:
        return
    left = len(confirmation.left)
    progress(f"confirming the best graphs, {left} left", confirmation.settled, confirmation.total)
