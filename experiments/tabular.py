"""Makes the tabular benchmark: python -m experiments.tabular --folder runs/tabular --jobs 2

Measures graphs of `shapes` with the default proxy: uniformly random ones, neighbours of the published one (one to six
decisions changed), and those that searches propose (REINFORCE, its first policy, evolution); all with one seed, and
every tenth with two more, for the noise. Writes tabular.csv and tabular.json into --output, and prints how well graphs
are predicted that the regression has not seen: random ones, the best tenth, and all that evolution proposed.

Restartable: each piece of 20 graphs is one file in --folder.
"""

import argparse
import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau

from controller.decisions import mutate, uniform
from detector.architecture import PRIORS, Architecture
from detector.coco import load_split
from detector.config_files import load_config
from experiments.full_training import CPU
from experiments.learning import search
from experiments.runs import Run, Runs
from nas.config import PROXY_VERSION, Config
from nas.graph_regression import fitted, predict
from nas.proxy import load_proxy
from nas.space import load_prior, space_around
from nas.store import Purpose, Store, Study
from nas.tabular import Row, Tabular, from_text, to_text, write_rows

PIECE = 20
SEED = 0  # of all graphs
MORE_SEEDS = (1, 2)
SEARCHES = {"random": 150, "evolution": 400, "reinforce": 400}  # episodes
REPEATED = 10  # every tenth graph is measured with more seeds
MOST_CHANGED = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/tabular"))
    parser.add_argument("--output", type=Path, default=Path("experiments"))
    parser.add_argument("--uniform", type=int, default=400, help="graphs")
    parser.add_argument("--neighbours", type=int, default=400, help="graphs")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs=2, metavar=("SOURCE", "PIECE"), help="one piece, in this process")
    args = parser.parse_args()
    runs = Runs(args.folder, f"v{PROXY_VERSION}", "experiments.tabular", ["--folder", str(args.folder)])
    if args.only:
        torch.set_num_threads(1)
        run = Run(args.only[0], int(args.only[1]))
        runs.write(run, {"measured": list(measure(wanted(runs, run)))})
        return
    pieces = [Run("uniform", piece) for piece in range(args.uniform // PIECE)]
    pieces += [Run("neighbours", piece) for piece in range(args.neighbours // PIECE)]
    runs.make(pieces, args.jobs)
    database = args.folder / "searches.db"
    for algorithm, episodes in SEARCHES.items():
        search("shapes", database, algorithm, algorithm, SEED, episodes)
    once = joined(runs, pieces, database)
    repeats = [Run("repeats", piece) for piece in range(-(-len(once[::REPEATED]) // PIECE))]
    (args.folder / "repeated.json").write_text(json.dumps([to_text(row.graph) for row in once[::REPEATED]]))
    runs.make(repeats, args.jobs)
    rows = with_repeats(once, runs, repeats)
    tabular = Tabular.measured(rows)
    write_rows(args.output / "tabular.csv", tabular.rows)
    description = describe(args) | {"noise": tabular.sd, "prediction error": tabular.off}
    (args.output / "tabular.json").write_text(json.dumps(description, indent=2) + "\n")
    report(tabular)


def wanted(runs: Runs, run: Run) -> Iterator[tuple[Architecture, int]]:
    """The graphs of a piece, with the seeds to measure them with."""
    if run.name == "repeats":
        chosen = json.loads((runs.folder / "repeated.json").read_text())[run.seed * PIECE : (run.seed + 1) * PIECE]
        for text in chosen:
            for seed in MORE_SEEDS:
                yield from_text(text), seed
        return
    prior = PRIORS["nas-fpn"]
    space, stream = space_around(prior), np.random.default_rng([run.name == "uniform", run.seed])
    for _ in range(PIECE):
        if run.name == "uniform":
            decisions = uniform(space, stream)
        else:
            decisions = mutate(space, space.decisions(prior), int(stream.integers(1, MOST_CHANGED + 1)), stream)
        yield space.architecture(decisions), SEED


def measure(graphs: Iterator[tuple[Architecture, int]]) -> Iterator[tuple[str, int, float]]:
    config = load_config("shapes", Config)
    data = load_split(config.data, None, "train")
    proxy = load_proxy(config, data, load_prior(config.search.prior), CPU, lambda what, step, steps: None)
    for graph, seed in graphs:
        yield to_text(graph), seed, proxy.evaluate(graph, seed)


def joined(runs: Runs, pieces: Sequence[Run], database: Path) -> list[Row]:
    """One row for every graph, by whoever proposed it first; a reward for every seed."""
    found: dict[str, tuple[str, str, dict[int, float]]] = {}
    for piece in pieces:
        for text, seed, reward in runs.read(piece)["measured"]:
            found.setdefault(from_text(text).hash, (text, piece.name, {}))[2][seed] = reward
    store = Store(str(database), read_only=True)
    for name in store.studies():
        study_id, study = store.find_study(name)
        _check_proxy(study)
        for evaluation in store.evaluations(study_id, Purpose.SEARCH):
            if evaluation.ap is not None:
                graph = store.architecture(evaluation.architecture_hash)
                source = str(study.config["search"]["algorithm"])
                found.setdefault(graph.hash, (to_text(graph), source, {}))[2][study.seed] = evaluation.ap
    return [Row(from_text(text), source, rewards) for text, source, rewards in found.values()]


def _check_proxy(study: Study) -> None:
    """Rewards are comparable if proxy, detector, data and the prior that the pool was trained around are the same."""
    config = load_config("shapes", Config)
    prior = load_prior(config.search.prior)
    sections = config.model_dump(mode="json")
    ours = [sections["proxy"], sections["detector"], PROXY_VERSION, prior and prior.to_dict()]
    theirs = [study.config[key] for key in ("proxy", "detector", "proxy version")] + [study.config["search"]["prior"]]
    data = load_split(config.data, None, "train")
    if json.dumps([*ours, data.hash]) != json.dumps([*theirs, study.data_hash]):
        raise SystemExit(f"study {study.name!r} was measured with another proxy or data set than today's default ones")


def with_repeats(once: Sequence[Row], runs: Runs, repeats: Sequence[Run]) -> list[Row]:
    more: dict[str, dict[int, float]] = {}
    for piece in repeats:
        for text, seed, reward in runs.read(piece)["measured"]:
            more.setdefault(from_text(text).hash, {})[seed] = reward
    return [row._replace(rewards={**row.rewards, **more.get(row.graph.hash, {})}) for row in once]


def describe(args: argparse.Namespace) -> dict[str, Any]:
    config = load_config("shapes", Config)
    return {
        "command": f"python -m experiments.tabular --uniform {args.uniform} --neighbours {args.neighbours}",
        "proxy version": PROXY_VERSION,
        "data hash": load_split(config.data, None, "train").hash,
        "config": config.model_dump(mode="json"),
        "seeds": [SEED, *MORE_SEEDS],
        "machine": f"{platform.machine()}, CPU, one thread a trial",
    }


def report(tabular: Tabular) -> None:
    rows = tabular.rows
    sources = np.array([row.source for row in rows])
    print(f"{len(rows)} graphs, {sum(len(row.rewards) for row in rows)} rewards, noise {tabular.sd:.4f}")
    for source in sorted(set(sources)):
        of_source = tabular.means[sources == source]
        print(f"  {source}: {len(of_source)} graphs, mean {of_source.mean():.4f}, best {of_source.max():.4f}")
    print("\n| held out | graphs | R2 | tau | error | of it noise |\n|---|---|---|---|---|---|")
    features, means = tabular.features, tabular.means
    show("random tenths", np.array([row.predicted for row in rows]), means, tabular.sd)
    for name, held in (
        ("the best tenth", means >= np.quantile(means, 0.9)),
        ("all that evolution proposed", sources == "evolution"),
    ):
        if held.any():
            predicted = predict(fitted(features[~held], means[~held]), features[held])
            show(name, predicted, means[held], tabular.sd)


def show(name: str, predicted: NDArray[np.float64], means: NDArray[np.float64], noise: float) -> None:
    error = float(np.sqrt(np.mean((predicted - means) ** 2)))
    explained = 1 - error**2 / float(means.var())
    tau = float(kendalltau(predicted, means).statistic)
    print(f"| {name} | {len(means)} | {explained:.3f} | {tau:.3f} | {error:.4f} | {noise:.4f} |")


if __name__ == "__main__":
    main()
