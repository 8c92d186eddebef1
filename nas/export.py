"""nas-export: found graphs as files."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from detector.architecture import Architecture
from detector.command import write_file
from detector.errors import UserError
from detector.levels import level_sizes
from nas.drawing import check_picture, draw, text
from nas.foreign_formats import FORMATS, SUFFIXES, onnx_model
from nas.results import Verdict, by_reward, pareto_front, prior_episode, verdicts
from nas.store import Episode, Evaluation, Purpose, Store, Study, check_apart
from nas.store_errors import with_store_errors


def export(args: argparse.Namespace) -> int:
    """What nas-export does; its exit code."""
    return with_store_errors("nas-export", _export, args)


def _export(args: argparse.Namespace) -> int:
    store = Store(args.database, read_only=True)
    study_id, study = store.find_study(args.study)
    episodes = store.episodes(study_id)
    prior = prior_episode(episodes)
    confirmed = verdicts(store, study_id, prior)
    evaluations = {evaluation.id: evaluation for evaluation in store.evaluations(study_id, Purpose.SEARCH)}
    chosen = [
        (path, episode, _found(store, study, prior, episode, evaluations[episode.evaluation_id], confirmed))
        for path, episode in _chosen(args, episodes, evaluations, confirmed)
    ]
    if args.picture is not None:
        check_apart(args.picture, "--picture", args.database)
        check_picture(args.picture)
    option = "--pareto" if args.pareto else "--output"
    for path, _, _ in chosen:
        if path is not None:
            check_apart(path, option, args.database)
    contents = [_content(graph, args.format, study) for _, _, graph in chosen]  # all or none
    for (path, episode, graph), content in zip(chosen, contents, strict=True):
        if path is None:
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
        else:
            write_file(path, content, option)
            cost = f", {graph.found['gflops']:.4g} GFLOPs" if args.pareto and graph.found else ""
            verdict = confirmed.get(episode.architecture_hash)
            itself = " (where the search started)" if prior is not None and episode.number == prior.number else ""
            figures = str(verdict) if verdict else _reward(episode)
            print(f"{path}: episode {episode.number}{itself}, {figures}{cost}")
        if args.show:
            print(f"\n{text(graph, _prior_of(study))}\n", file=sys.stderr if path is None else sys.stdout)
    if args.top is not None and args.top > len(chosen):
        print(f"study {args.study!r} has {len(chosen)} graphs with a reward, fewer than {args.top}", file=sys.stderr)
    if args.picture is not None:
        _, episode, graph = chosen[-1] if args.pareto else chosen[0]  # a front ends with its best
        verdict = confirmed.get(episode.architecture_hash)
        figure = f"mean {verdict.mean:.4f} of {verdict.by}" if verdict else _reward(episode)
        draw(graph, args.picture, _prior_of(study), f"{study.name}, episode {episode.number}: {figure}")
        print(f"{args.picture}: episode {episode.number} as a picture")
    return 0


def _content(graph: Architecture, form: str, study: Study) -> bytes:
    """Of a file. Raises UserError if the graph would be another one in that form."""
    if form == "json":
        return f"{json.dumps(graph.to_dict(), indent=2)}\n".encode()
    detector, training = study.config["detector"], study.config["training"]
    if form == "onnx":
        sizes = level_sizes((training["short_side"], training["long_side"]), detector["base_stride"])
        return onnx_model(graph, detector["channels"], detector["pyramid_norm"], sizes)
    return FORMATS[form](graph, detector["channels"], detector["pyramid_norm"]).encode()


def _reward(episode: Episode) -> str:
    return f"reward {episode.reward:.4f}"


def _prior_of(study: Study) -> Architecture | None:
    """What the study started from."""
    prior = study.config["search"]["prior"]
    return None if prior is None else Architecture.from_dict(prior)


def _chosen(
    args: argparse.Namespace,
    episodes: list[Episode],
    evaluations: Mapping[int, Evaluation],
    confirmed: Mapping[str, Verdict],
) -> list[tuple[Path | None, Episode]]:
    """What to write where; path None is standard output."""
    ranked = by_reward(episodes)
    if args.pareto is not None and args.output is not None:
        raise UserError("--output: with --pareto DIR files are named by their episodes; leave it out")
    if args.format == "onnx" and args.output == "-" and args.top is not None and args.top > 1:
        raise UserError("--output -: models of several graphs would become one; give a file, or --best")
    path = None if args.output == "-" else Path(args.output or f"best{SUFFIXES[args.format]}")
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
    if args.pareto is not None:
        front = pareto_front(ranked, evaluations)
        return [(args.pareto / f"episode-{episode.number}{SUFFIXES[args.format]}", episode) for episode in front]
    order = list(confirmed)  # best first; the others follow by reward
    ranked.sort(key=lambda e: order.index(e.architecture_hash) if e.architecture_hash in confirmed else len(order))
    if args.best:
        return [(path, ranked[0])]
    if path is None:
        return [(None, episode) for episode in ranked[: args.top]]
    return [(path.with_stem(f"{path.stem}-{rank}"), episode) for rank, episode in enumerate(ranked[: args.top], 1)]


def _found(
    store: Store,
    study: Study,
    prior: Episode | None,
    episode: Episode,
    evaluation: Evaluation,
    confirmed: Mapping[str, Verdict],
) -> Architecture:
    graph = store.architecture(episode.architecture_hash)
    found = {
        "study": study.name,
        "episode": episode.number,
        "reward": episode.reward,
        "prior_reward": prior and prior.reward,
        "ap": evaluation.ap,
        "gflops": evaluation.cost.gflops,
        "params": evaluation.cost.params,
        "config": {key: study.config[key] for key in ("data", "detector", "training")},
    }
    verdict = confirmed.get(episode.architecture_hash)
    if verdict is not None:
        found["confirmed"] = {key: value for key, value in verdict._asdict().items() if key != "architecture_hash"}
    return Architecture(graph.cells, graph.repeats, graph.attention, found)
