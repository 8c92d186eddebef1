"""One run of a search: Ray, the proxy, trials until all episodes have ended, and runs that confirm the best."""

import argparse
import contextlib
import sys
import time
from functools import partial

import torch

from detector.architecture import Architecture
from detector.coco import CocoData
from detector.command import FAILED, INTERRUPTED
from detector.errors import UserError
from detector.progress import Progress
from nas.algorithms import make_controller
from nas.budget import Budget
from nas.cluster import Cluster, Delivery, cluster_session
from nas.config import Config
from nas.confirm import Confirmation
from nas.control import Controlled
from nas.metrics import SearchMetrics
from nas.proxy import choose_device, prepare_proxy
from nas.remote_controller import RemoteController
from nas.scalars import Scalars
from nas.screen import Screen
from nas.search import run
from nas.service import confirmation
from nas.space import space_around
from nas.store import Episode, Store, Study
from nas.study import Schedule
from nas.trial import ProxySource


def run_study(
    args: argparse.Namespace,
    config: Config,
    prior: Architecture | None,
    budget: Budget,
    data: CocoData,
    study: Study,
    screen: Screen,
) -> int | None:
    """Search and confirm; the exit code of a run that was ended before its time."""
    cluster = _cluster(args)
    source = ProxySource.of(config, args.data and args.data.absolute(), prior, data.hash)
    space = space_around(prior)
    with screen.progress as progress, contextlib.ExitStack() as closing:
        shown: list[SearchMetrics | Scalars] = []
        if args.tensorboard is not None:
            scalars = Scalars(args.tensorboard / args.study)
            closing.callback(scalars.close)
            shown.append(scalars)
        prepared = prepare_proxy(config, data, prior, choose_device(), progress)
        torch.cuda.empty_cache()  # the device belongs to the trials now
        screen.note(f"prepared in {time.monotonic() - screen.started:.0f} s")
        with cluster_session(cluster) as (cluster, dashboard):
            screen.note(f"dashboard: http://{dashboard} (it asks for a token: ray get-auth-token)")
            screen.hint(f"dashboard http://{dashboard}; elsewhere: nas-status, nas-report, nas-control, nas-stop")
            delivery = Delivery.of(prepared) if cluster.address is not None else None
            make = partial(make_controller, config.search, space, prior, args.seed, budget)
            controller = RemoteController(args.study, make, config.search.lag)
            store = Store(args.database)
            study_id = store.open_study(study)
            store.set_target(study_id, args.episodes)
            schedule = Schedule(
                store,
                study_id,
                controller,
                space,
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

            shown.append(SearchMetrics(args.study))

            def on_episodes(ended: list[Episode]) -> None:
                controller.note(ended)
                for figures in shown:
                    figures.show(schedule.episodes.values(), schedule.version, controller.entropy)
                screen.searching(ended, schedule.episodes.values(), schedule.settled, schedule.total)

            on_episodes([])
            plan = Controlled(schedule, store, study_id)
            plan.listen()  # to what was asked before
            run(plan, source, cluster, on_episodes, delivery)
            stopped = plan.stopped
            if stopped is None and plan.ending is None:
                shares_gpu = cluster.shares_gpu
                confirming = confirmation(args, store, study_id, budget, config, shares_gpu=shares_gpu)
                report = partial(_report_confirmation, progress, confirming)
                report([])
                plan = Controlled(confirming, store, study_id)
                run(plan, source, cluster, report, delivery)
                stopped = plan.stopped
    if plan.ending is not None:
        print("nas-search: stopped on request; the same command continues", file=sys.stderr)
        return INTERRUPTED
    if stopped is not None:
        print(f"nas-search: stopped: {stopped}", file=sys.stderr)
        return FAILED
    return None


def _report_confirmation(progress: Progress, confirmation: Confirmation, _ended: list[Episode]) -> None:
    if not confirmation.arms:
        return
    left = len(confirmation.left)
    progress(f"confirming the best graphs, {left} left", confirmation.settled, confirmation.total)


def _cluster(args: argparse.Namespace) -> Cluster:
    """Raises UserError for GPUs that this machine does not have: Ray would wait for ever."""
    gpus, per_trial = torch.cuda.device_count(), args.gpus_per_trial
    if args.address is None and per_trial is None:  # Ray also counts GPUs that PyTorch here cannot use
        per_trial = float(gpus > 0)
    if args.address is None and per_trial > gpus:
        raise UserError(f"--gpus-per-trial {per_trial:g}: this machine has {gpus} GPUs; give less, or --address ADDR")
    return Cluster(args.study, args.workers, per_trial, args.address, args.verbose, args.trial_timeout)
