"""nas-search, from its options to what it found. What can be checked without PyTorch and Ray is checked first."""

import argparse
import contextlib
import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from detector.architecture import Architecture
from detector.cluster_address import check_address
from detector.coco import CocoData, load_split
from detector.command import FAILED, INTERRUPTED, keep_ray_to_itself
from detector.config_files import as_yaml, load_config
from detector.errors import UserError
from detector.named_weights import named_weights
from nas.budget import Budget
from nas.config import PROXY_VERSION, Config
from nas.confirm import EPISODES_A_RUN, RUNS_A_CANDIDATE, SEEDS, Confirmation
from nas.lock import study_lock
from nas.other_preparation import OtherPreparation
from nas.prepared import is_prepared, other_preparation
from nas.results import LEAST_PREPARATIONS, by_reward, is_of_one_preparation, judged, prior_episode, verdicts
from nas.screen import Screen
from nas.space import load_prior, space_around
from nas.store import Purpose, State, Store, Study, flags_of, sqlite_path
from nas.store_errors import with_store_errors
from nas.tabular import table_digest

if TYPE_CHECKING:
    from nas.scalars import Scalars


def search(args: argparse.Namespace) -> int:
    """What nas-search does; its exit code."""
    return with_store_errors("nas-search", _search, args)


def _search(args: argparse.Namespace) -> int:
    _check_confirm(args.confirm)
    config = _resolve(args)
    _check_preparations(args, config)
    if args.print_config:
        print(as_yaml(config), end="")
        return 0
    prior = load_prior(config.search.prior)
    _check_rung(config, args.episodes)
    budget = Budget.of(config)
    budget.check(space_around(prior), prior)
    data = load_split(config.data, args.data, "train")
    screen = Screen(is_quiet=args.quiet, as_json=args.json)
    for line in data.left_out():
        screen.say(line)
    study = Study(args.study, _identity(config, prior), args.seed, data.hash)
    with study_lock(args.database, args.study):
        if _is_finished(args, study, budget, config, screen):
            return 0
        ended = _run(Checked(args, config, prior, budget, data, study, screen))
        if ended is not None:
            return ended
        store = Store(args.database, read_only=True)
        _say_found(args, store, screen.say)
        return 0


class Checked(NamedTuple):
    """What a command asks for, once it is known to make sense."""

    args: argparse.Namespace
    config: Config
    prior: Architecture | None
    budget: Budget
    data: CocoData
    study: Study
    screen: Screen


def _run(asked: Checked) -> int | None:
    """Prepare what trials share, start Ray, and search; the exit code of a run that was ended before its time."""
    args, screen, proxied = asked.args, asked.screen, (asked.config, asked.data, asked.prior)
    if args.address is not None:
        check_address(args.address)
    elif args.gpus_per_trial:
        _check_gpus(args.gpus_per_trial)
    with screen.progress as progress, _scalars(args.tensorboard, args.study) as scalars:
        if not is_prepared(*proxied):
            from nas.proxy import choose_device, prepare_proxy

            prepare_proxy(*proxied, choose_device(), progress)
        screen.note(f"prepared in {time.monotonic() - screen.started:.0f} s")
        keep_ray_to_itself(args.address)
        from nas.cluster import Cluster, cluster_session

        wanted = Cluster(args.study, args.workers, args.gpus_per_trial, args.address, args.verbose, args.trial_timeout)
        with _imported_meanwhile("torchvision") as wait, cluster_session(wanted) as (cluster, dashboard):
            screen.note(f"dashboard: http://{dashboard} (it asks for a token: ray get-auth-token)")
            screen.hint(f"dashboard http://{dashboard}; elsewhere: nas-status, nas-report, nas-control, nas-stop")
            wait()
            from nas.session import run_study

            ended, stopped = run_study(asked, cluster, scalars)
    if ended is not None:
        print("nas-search: stopped on request; the same command continues", file=sys.stderr)
        return INTERRUPTED
    if stopped is not None:
        print(f"nas-search: stopped: {stopped}", file=sys.stderr)
        return FAILED
    return None


@contextlib.contextmanager
def _scalars(folder: Path | None, study: str) -> Iterator["Scalars | None"]:
    """What writes for TensorBoard, if that was asked for."""
    if folder is None:
        yield None
        return
    from nas.scalars import Scalars  # imports PyTorch

    scalars = Scalars(folder / study)
    try:
        yield scalars
    finally:
        scalars.close()


@contextlib.contextmanager
def _imported_meanwhile(name: str) -> Iterator[Callable[[], None]]:
    """PyTorch takes seconds to import, and Ray's start mostly waits for other processes. Yields what waits for the
    import: to be called before anything else imports it, since two threads at it may meet half a module. Who leaves
    early does not wait, and a mistake is found when it is imported again.
    """

    def load() -> None:
        with contextlib.suppress(Exception):
            importlib.import_module(name)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    yield thread.join


def _check_gpus(per_trial: float) -> None:
    """Raises UserError for GPUs that this machine does not have: Ray would wait for ever."""
    import torch

    gpus = torch.cuda.device_count()
    if per_trial > gpus:
        raise UserError(f"--gpus-per-trial {per_trial:g}: this machine has {gpus} GPUs; give less, or --address ADDR")


def _check_confirm(runs: int | None) -> None:
    """Raises UserError for so few that no graph could be told from another."""
    if runs is not None and 0 < runs < RUNS_A_CANDIDATE:
        raise UserError(f"--confirm: {runs} given, must be {RUNS_A_CANDIDATE} or more, or 0 for none")


def _check_preparations(args: argparse.Namespace, config: Config) -> None:
    """Raises UserError for so few that their noise could not be told, and where they could say nothing."""
    count, runs = args.confirm_preparations, _confirming_runs(args, args.episodes)
    if not count:
        return
    if count < LEAST_PREPARATIONS:
        raise UserError(f"--confirm-preparations: {count} given, must be {LEAST_PREPARATIONS} or more, or 0 for none")
    if config.proxy.protocol != "frozen":
        raise UserError(
            f"--confirm-preparations: with proxy.protocol {config.proxy.protocol} trials share nothing that was "
            "trained; leave it out"
        )
    if runs < RUNS_A_CANDIDATE:
        raise UserError(
            f"--confirm-preparations: {runs} confirming runs leave no graphs to judge; give --confirm "
            f"{RUNS_A_CANDIDATE} or more"
        )
    if config.proxy.seed + count >= SEEDS:
        raise UserError(
            f"--confirm-preparations: proxy.seed {config.proxy.seed} leaves no seeds for them; set it lower"
        )


def _confirming_runs(args: argparse.Namespace, episodes: int) -> int:
    return episodes // EPISODES_A_RUN if args.confirm is None else int(args.confirm)


def _check_rung(config: Config, episodes: int) -> None:
    """Batches are halved as a whole, and a first training must be shorter than the second. Raises UserError."""
    search, steps = config.search, config.proxy.trial.steps
    if search.rung_steps is None:
        return
    if search.rung_steps >= steps:
        raise UserError(f"search.rung_steps is {search.rung_steps}, must be below proxy.trial.steps, {steps}")
    if episodes % search.batch:
        raise UserError(
            f"--episodes {episodes}: with search.rung_steps it must be a multiple of {search.batch}, a batch"
        )


def _is_finished(args: argparse.Namespace, study: Study, budget: Budget, config: Config, screen: Screen) -> bool:
    """Whether there is nothing to do, which is then said. A database that is not there yet is made once the search can
    run, not before."""
    path = sqlite_path(args.database)
    if path is not None and not path.exists():
        return False
    with contextlib.closing(Store(args.database, upgrade=False)) as store:  # what is refused leaves it as it is
        study_id = store.check_study(study)
        episodes = [] if study_id is None else store.episodes(study_id)
        if study_id is None or sum(episode.state != State.RUNNING for episode in episodes) < args.episodes:
            return False
        is_stopped = episodes[0].log_prob is None and episodes[0].state == State.FAILED  # the prior: nothing goes on
        learned, _ = store.policy_figures(study_id)
        if not is_stopped and learned < len(episodes) // config.search.batch:
            return False  # killed after the last reward, and before the policy had learned from it
        if is_stopped or not confirmation(args, store, study_id, budget, config).is_finished:
            return False
        if not all(other.is_finished for other in other_preparations(args, store, study_id, budget, config)):
            return False
        screen.say(
            f"study {args.study!r} has {len(episodes)} of {args.episodes} episodes: nothing to do; "
            f"--episodes {2 * len(episodes)} extends it, --study NAME starts anew"
        )
        _say_found(args, store, screen.say)
        return True


def confirmation(
    args: argparse.Namespace, store: Store, study_id: int, budget: Budget, config: Config, *, shares_gpu: bool = False
) -> Confirmation:
    """Of a search that has ended."""
    episodes = store.episodes(study_id)
    return Confirmation(
        store,
        study_id,
        budget,
        by_reward(episodes),
        prior_episode(episodes),
        runs=_confirming_runs(args, len(episodes)),
        seed=args.seed,
        steps=config.proxy.confirm_steps or config.proxy.trial.steps,
        shares_gpu=shares_gpu,
    )


def other_preparations(
    args: argparse.Namespace, store: Store, study_id: int, budget: Budget, config: Config, *, shares_gpu: bool = False
) -> list[OtherPreparation]:
    """What is to judge the graphs that a study has confirmed; of preparation 1, 2, ..."""
    if not args.confirm_preparations:
        return []
    owners = {episode.architecture_hash: episode for episode in by_reward(store.episodes(study_id))}
    confirmed = judged(store.evaluations(study_id, Purpose.CONFIRM), None)
    arms = [owners[graph_hash] for graph_hash in confirmed]
    steps = config.proxy.confirm_steps or config.proxy.trial.steps
    seeds = [other_preparation(config, number).proxy.seed for number in range(1, args.confirm_preparations + 1)]
    return [
        OtherPreparation(store, study_id, budget, arms, seed=seed, steps=steps, shares_gpu=shares_gpu) for seed in seeds
    ]


def _resolve(args: argparse.Namespace) -> Config:
    config = load_config(args.config, Config, args.set)
    keys = ("algorithm", "prior", "max_gflops", "max_params")
    given = {key: value for key in keys if (value := getattr(args, key)) is not None}
    return config.model_copy(update={"search": config.search.model_copy(update=given)})


def _identity(config: Config, prior: Architecture | None) -> dict[str, object]:
    """What decides proposals and rewards. Files (prior, weights) by their content, so that they may move."""
    proxy = config.proxy.model_copy(update={"detector": config.proxy.detector and named_weights(config.proxy.detector)})
    named = config.model_copy(update={"detector": named_weights(config.detector), "proxy": proxy})
    sections: dict[str, object] = named.model_dump(mode="json")
    search = config.search.model_dump(mode="json") | {"prior": prior.to_dict() if prior else None}
    version = table_digest() if config.proxy.protocol == "tabular" else PROXY_VERSION
    return sections | {"search": search, "proxy version": version}


def _say_found(args: argparse.Namespace, store: Store, say: Callable[[str], None]) -> None:
    study_id, study = store.find_study(args.study)
    episodes = store.episodes(study_id)
    ranked, prior = by_reward(episodes), prior_episode(episodes)
    failed = sum(episode.state == State.FAILED for episode in episodes)
    pruned = sum(episode.state == State.PRUNED for episode in episodes)
    stopped_early = f", {pruned} pruned" if pruned else ""
    say(f"{len(episodes)} episodes, {len(ranked)} distinct graphs{stopped_early}, {failed} failed")
    if not ranked:
        return
    best = ranked[0]
    against = f", the prior {prior.reward:.4f}" if prior is not None else ""
    say(f"highest reward: episode {best.number}, {best.reward:.4f}{against}")
    confirmed = verdicts(store, study_id, prior)
    again = f"nas-export --best{flags_of(args.database, args.study)}"
    if confirmed:
        winner = next(iter(confirmed.values()))
        judges = "by other preparations" if winner.preparations else "with new seeds"
        number = next(e.number for e in ranked if e.architecture_hash == winner.architecture_hash)
        if prior is not None and number == prior.number:
            say(f"{judges} none is better than the prior: {winner}")
            again = f"--episodes {2 * len(episodes)} searches on; {again} would write the prior itself"
        else:
            say(f"winner {judges}: episode {number}, {winner}")
            if prior is not None and prior.architecture_hash in confirmed:
                say(f"the prior, the same: {confirmed[prior.architecture_hash]}")
            if is_of_one_preparation(study, confirmed):
                confirm = "" if args.confirm is None else f"--confirm {args.confirm} "
                asking = f"{confirm}--confirm-preparations {LEAST_PREPARATIONS}"
                say(f"that is what one preparation of the proxy says; {asking} asks three others")
    elif args.confirm is None and len(episodes) < EPISODES_A_RUN * RUNS_A_CANDIDATE:
        say(
            f"not confirmed: that takes {RUNS_A_CANDIDATE} runs with new seeds for each graph, which is what "
            f"{EPISODES_A_RUN * RUNS_A_CANDIDATE} episodes bring; --confirm {RUNS_A_CANDIDATE} does it now"
        )
    say(f"next: {again}")
