"""nas-search and nas-export."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from sqlalchemy.exc import SQLAlchemyError

from controller.controller import Controller
from controller.evolution import Evolution
from controller.proposer import Proposer
from controller.reinforce import Reinforce, Untrained
from detector.architecture import Architecture
from detector.backbone import named_weights
from detector.coco import CocoData, load_split
from detector.command import FAILED, Parser, count, guarded, write_json
from detector.config import load_config, presets
from detector.errors import UserError
from detector.progress import Progress
from nas.config import Config, SearchConfig
from nas.drawing import check_picture, draw, text
from nas.lock import study_lock
from nas.preparation import VERSION as PROXY_VERSION
from nas.proxy import choose_device, prepare_proxy
from nas.space import NasFpnSpace, load_prior, space_around
from nas.store import Episode, State, Store, Study, shown, sqlite_path
from nas.study import Schedule
from nas.trial import ProxySource

log = logging.getLogger(__name__)

MAX_SEED = 2**63 - 1  # what databases keep in a column


def search(argv: Sequence[str] | None = None) -> int:
    """Entry point of nas-search."""
    return guarded(
        "nas-search",
        lambda: _with_store_errors("nas-search", _search, _search_parser().parse_args(argv)),
        interrupted="interrupted; the same command continues",
    )


def export(argv: Sequence[str] | None = None) -> int:
    """Entry point of nas-export."""
    return guarded("nas-export", lambda: _with_store_errors("nas-export", _export, _export_parser().parse_args(argv)))


def _with_store_errors(name: str, command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """A database that fails underway (disk full, locked, damaged) is one line, and no traceback."""
    try:
        return command(args)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        print(f"{name}: --database {shown(args.database)} failed: {reason}", file=sys.stderr)
        return FAILED


def _search_parser() -> Parser:
    parser = Parser(
        "nas-search", "Search for a feature pyramid. The same command continues a study after any interruption."
    )
    _study_options(parser)
    parser.add_argument("--config", default="shapes", metavar="NAME|FILE", help=f"{', '.join(presets())} or a file")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set in COCO form")
    parser.add_argument("--episodes", type=count(1), default=400, metavar="N", help="in all, earlier runs included")
    parser.add_argument("--algorithm", choices=("reinforce", "random", "evolution"), help="who proposes")
    parser.add_argument("--prior", metavar="NAME|FILE|none", help="where to start: nas-fpn, fpn or a best.json")
    parser.add_argument("--seed", type=count(0, MAX_SEED), default=0, metavar="N", help="of the study")
    parser.add_argument("--workers", type=count(1), metavar="N", help="trials at a time; default: GPUs, else cores")
    parser.add_argument("--gpus-per-trial", type=_share, metavar="X", help="default: 1, or 0 without a GPU")
    parser.add_argument("--address", metavar="ADDR", help="a running Ray cluster to join")
    parser.add_argument("--verbose", action="store_true", help="show Ray's own messages")
    return parser


def _export_parser() -> Parser:
    parser = Parser("nas-export", "Write found graphs as files that train-final takes.")
    _study_options(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--best", action="store_true", help="the graph with the highest reward")
    which.add_argument("--top", type=count(1), metavar="K", help="the K best graphs, as NAME-1.json to NAME-K.json")
    which.add_argument("--episode", type=count(0), metavar="N", help="the graph of one episode")
    parser.add_argument("--output", default="best.json", metavar="FILE|-", help="- prints it")
    parser.add_argument("--show", action="store_true", help="draw each graph on the terminal, too")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the best one, as .svg or .png")
    return parser


def _study_options(parser: Parser) -> None:
    parser.add_argument("--database", default="nas.db", metavar="FILE|URL", help="where results are kept")
    parser.add_argument("--study", default="default", metavar="NAME", help="which search in it")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (0 <= value <= 1 or (value.is_integer() and value > 0)):
        raise argparse.ArgumentTypeError(f"{text} given, must be a share of a GPU (0 to 1) or a whole number")
    return value


def _search(args: argparse.Namespace) -> int:
    config = _resolve(args)
    prior = load_prior(config.search.prior)
    start = time.monotonic()
    data = load_split(config.data, args.data, "train")
    if data.skipped:
        print(f"{data.annotations}: {data.skipped} boxes without area left out")
    study = Study(args.study, _identity(config, prior), args.seed, data.hash)
    with study_lock(args.database, args.study):
        episodes = _stored_episodes(args.database, study)
        if sum(episode.state != State.RUNNING for episode in episodes) >= args.episodes:
            _say_finished(args, episodes)
            return 0
        return _run(args, config, prior, data, study, start)


def _stored_episodes(database: str, study: Study) -> list[Episode]:
    """What the study has so far. A database that is not there yet is made once the search can run, not before."""
    path = sqlite_path(database)
    if path is not None and not path.exists():
        return []
    store = Store(database)
    study_id = store.check_study(study)
    return [] if study_id is None else store.episodes(study_id)


def _resolve(args: argparse.Namespace) -> Config:
    config = load_config(args.config, Config)
    given = {key: value for key in ("algorithm", "prior") if (value := getattr(args, key)) is not None}
    return config.model_copy(update={"search": config.search.model_copy(update=given)})


def _identity(config: Config, prior: Architecture | None) -> dict[str, object]:
    """What decides proposals and rewards. Files (prior, weights) by their content, so that they may move."""
    proxy = config.proxy.model_copy(update={"detector": config.proxy.detector and named_weights(config.proxy.detector)})
    named = config.model_copy(update={"detector": named_weights(config.detector), "proxy": proxy})
    sections: dict[str, object] = named.model_dump(mode="json")
    search = config.search.model_dump(mode="json") | {"prior": prior.to_dict() if prior else None}
    return sections | {"search": search, "proxy version": PROXY_VERSION}


def _run(
    args: argparse.Namespace,
    config: Config,
    prior: Architecture | None,
    data: CocoData,
    study: Study,
    start: float,
) -> int:
    if args.address is None:  # on one machine nothing need listen beyond loopback; Ray reads this when imported
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from nas.search import Cluster, RemoteController, ray_session, run  # Ray takes seconds to import

    cluster = Cluster(*_resources(args), args.address, args.verbose)
    source = ProxySource.of(config, args.data and args.data.absolute(), prior, data.hash)
    space = space_around(prior)
    with Progress() as progress:
        prepare_proxy(config, data, prior, choose_device(), progress)
        torch.cuda.empty_cache()  # the device belongs to the trials now
        print(f"prepared in {time.monotonic() - start:.0f} s", flush=True)
        with ray_session(cluster) as dashboard:
            print(f"dashboard: http://{dashboard} (it asks for a token: ray get-auth-token)", flush=True)
            make = partial(make_controller, config.search, space, prior, args.seed)
            controller = RemoteController(args.study, make)
            store = Store(args.database)
            schedule = Schedule(
                store,
                store.open_study(study),
                controller,
                space,
                prior,
                episodes=args.episodes,
                batch=config.search.batch,
                lag=config.search.lag,
                seed=args.seed,
                budget=config.proxy.trial.steps,
            )

            def on_episodes(ended: list[Episode]) -> None:
                controller.note(ended)
                rewards = [e.reward for e in schedule.episodes.values() if e.reward is not None]
                best = f", best reward {max(rewards):.4f}" if rewards else ""
                progress(f"searching{best}", schedule.settled, schedule.total)

            on_episodes([])
            run(schedule, source, cluster, on_episodes)
    if schedule.stopped is not None:
        print(f"nas-search: stopped: {schedule.stopped}", file=sys.stderr)
        return FAILED
    _say_found(args, list(schedule.episodes.values()))
    return 0


def make_controller(search: SearchConfig, space: NasFpnSpace, prior: Architecture | None, seed: int) -> Controller:
    """The controller that a configuration describes."""
    decisions = space.decisions(prior) if prior is not None else None
    proposer: Proposer
    if search.algorithm == "evolution":
        proposer = Evolution(space, population=search.population, tournament=search.tournament, prior=decisions)
    else:
        learner = Reinforce if search.algorithm == "reinforce" else Untrained
        proposer = learner(
            space,
            hidden=search.hidden,
            learning_rate=search.learning_rate,
            entropy_weight=search.entropy_weight,
            baseline_decay=search.baseline_decay,
            prior=decisions,
            prior_distance=search.prior_distance,
            seed=seed,
        )
    return Controller(proposer, batch=search.batch, lag=search.lag, seed=seed)


def _resources(args: argparse.Namespace) -> tuple[int, float]:
    """Trials at a time, and GPUs for each. Raises UserError for GPUs that are not there: Ray would wait for ever."""
    gpus = torch.cuda.device_count()
    per_trial = args.gpus_per_trial if args.gpus_per_trial is not None else float(gpus > 0)
    if args.address is None and per_trial > gpus:
        raise UserError(f"--gpus-per-trial {per_trial:g}: this machine has {gpus} GPUs; give less, or --address ADDR")
    default = int(gpus / per_trial) if per_trial else os.cpu_count() or 1
    return args.workers or max(1, default), per_trial


def _by_reward(episodes: Sequence[Episode]) -> list[Episode]:
    """The first episode of every rewarded graph, best first."""
    owners = [episode for episode in episodes if episode.state == State.DONE]
    return sorted(owners, key=lambda episode: (-(episode.reward or 0.0), episode.number))


def _say_found(args: argparse.Namespace, episodes: list[Episode]) -> None:
    ranked = _by_reward(episodes)
    failed = sum(episode.state == State.FAILED for episode in episodes)
    print(f"{len(episodes)} episodes, {len(ranked)} distinct graphs, {failed} failed")
    if ranked:
        best, first = ranked[0], episodes[0]
        prior = f", the prior {first.reward:.4f}" if first.log_prob is None and first.reward is not None else ""
        print(f"best: episode {best.number}, reward {best.reward:.4f}{prior}")
        print(f"next: nas-export --best{_study_flags(args)}")


def _say_finished(args: argparse.Namespace, episodes: list[Episode]) -> None:
    print(
        f"study {args.study!r} has {len(episodes)} of {args.episodes} episodes: nothing to do; "
        f"--episodes {2 * len(episodes)} extends it, --study NAME starts anew"
    )
    _say_found(args, episodes)


def _study_flags(args: argparse.Namespace) -> str:
    database = "" if args.database == "nas.db" else f" --database {shown(args.database)}"
    return database + ("" if args.study == "default" else f" --study {args.study}")


def _export(args: argparse.Namespace) -> int:
    store = Store(args.database, read_only=True)
    study_id, study = store.find_study(args.study)
    episodes = store.episodes(study_id)
    chosen = [(path, episode, _found(store, study, episodes, episode)) for path, episode in _chosen(args, episodes)]
    if args.picture is not None:
        check_picture(args.picture)
    for path, episode, graph in chosen:
        if path is None:
            print(json.dumps(graph.to_dict(), indent=2))
        else:
            write_json(path, graph.to_dict())
            print(f"{path}: episode {episode.number}, reward {episode.reward:.4f}")
        if args.show:
            print(f"\n{text(graph, _prior_of(study))}\n", file=sys.stderr if path is None else sys.stdout)
    if args.picture is not None:
        _draw(args, study, chosen[0][1], chosen[0][2])
    return 0


def _prior_of(study: Study) -> Architecture | None:
    """What the study started from."""
    prior = study.config["search"]["prior"]
    return None if prior is None else Architecture.from_dict(prior)


def _draw(args: argparse.Namespace, study: Study, episode: Episode, graph: Architecture) -> None:
    draw(graph, args.picture, _prior_of(study), f"{study.name}, episode {episode.number}: reward {episode.reward:.4f}")
    print(f"{args.picture}: episode {episode.number} as a picture")


def _chosen(args: argparse.Namespace, episodes: list[Episode]) -> list[tuple[Path | None, Episode]]:
    """What to write where; path None is standard output."""
    ranked = _by_reward(episodes)
    path = None if args.output == "-" else Path(args.output)
    if path is not None and (path.is_dir() or not path.name):
        raise UserError(f"--output {args.output}: is a folder; give a file")
    if args.episode is not None:
        of_number = [episode for episode in episodes if episode.number == args.episode]
        if not of_number:
            raise UserError(f"study {args.study!r} has no episode {args.episode}; it has {len(episodes)}, from 0")
        if of_number[0].reward is None:
            raise UserError(f"episode {args.episode} of study {args.study!r} has no reward: it is {of_number[0].state}")
        return [(path, of_number[0])]
    if not ranked:
        raise UserError(f"study {args.study!r} has no episode with a reward yet")
    if args.best:
        return [(path, ranked[0])]
    if path is None:
        return [(None, episode) for episode in ranked[: args.top]]
    return [(path.with_stem(f"{path.stem}-{rank}"), episode) for rank, episode in enumerate(ranked[: args.top], 1)]


def _found(store: Store, study: Study, episodes: list[Episode], episode: Episode) -> Architecture:
    graph = store.architecture(episode.architecture_hash)
    first = episodes[0]
    sections = {key: study.config[key] for key in ("data", "detector", "training")}
    found = {
        "study": study.name,
        "episode": episode.number,
        "reward": episode.reward,
        "prior_reward": first.reward if first.log_prob is None else None,
        "config": sections,
    }
    return Architecture(graph.cells, graph.repeats, graph.attention, found)
