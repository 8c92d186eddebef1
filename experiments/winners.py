"""Is what was found better? python -m experiments.winners --database runs/winners.db --folder runs/winners --jobs 2

The full path, on `shapes`: searches of 400 episodes with the defaults (REINFORCE on three seeds, random draws from its
first policy on one), each with its confirmed winner, and then full training, three seeds each, of

* the plain FPN, and plain stacks of convolutions behind it, at every level as deep as the published graph is there;
* a graph like BiFPN (down, then up), and the published NAS-FPN;
* the best of 400 random graphs, and what each search by REINFORCE found.

Printed: AP on the validation split, which no search has seen, with standard errors, and the differences to the
published graph. Restartable: searches continue, and each training is one file in --folder. Those that are kept with
the code, in experiments/winners.json, are not made again; --keep adds those of --folder, and ends.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from detector.architecture import LEVELS, PRIORS, Architecture
from detector.choices import Norm
from detector.config_files import load_config
from detector.nas_fpn import ReluConvNorm
from experiments.fidelity import graphs
from experiments.full_training import LEARNING_RATE, WARMUP_STEPS, full_training
from experiments.runs import Run, Runs
from nas.config import PROXY_VERSION, Config
from nas.results import by_reward, prior_episode, verdicts
from nas.store import Store

EPISODES = 400
KEPT = Path(__file__).with_suffix(".json")
SEARCHES = {f"REINFORCE, seed {seed}": ("reinforce", seed) for seed in range(3)} | {"best of random": ("random", 0)}
PUBLISHED = "published NAS-FPN"
STACK = "plain stacks"
FIXED: Mapping[str, Architecture | None] = {
    "plain FPN": None,
    STACK: None,
    "like BiFPN": graphs()["down, then up"],
    PUBLISHED: PRIORS["nas-fpn"],
}


class PlainStacks(nn.Module):
    """At every level as many ReLU, convolution and norm as lie on the graph's longest path to it; no merging."""

    def __init__(self, architecture: Architecture, channels: int, norm: Norm) -> None:
        super().__init__()
        depths = depths_of(architecture)
        self.stacks = nn.ModuleList(
            nn.Sequential(*(ReluConvNorm(channels, norm) for _ in range(depths[level]))) for level in LEVELS
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [stack(feature) for stack, feature in zip(self.stacks, features, strict=True)]


def depths_of(architecture: Architecture) -> dict[int, int]:
    """The number of cells on the longest path to each output level."""
    depth = [0] * len(LEVELS)
    for index, cell in enumerate(architecture.cells):
        depth.append(1 + max(depth[source] for source in (*cell.inputs, *architecture.leaves_into(index))))
    return dict(zip((cell.level for cell in architecture.cells), depth[len(LEVELS) :], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, default=Path("runs/winners.db"))
    parser.add_argument("--folder", type=Path, default=Path("runs/winners"))
    parser.add_argument("--steps", type=int, default=2000, help="of full training, 16 images each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of full training")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--keep", action="store_true", help=f"add the runs that were made to {KEPT.name}, and end")
    parser.add_argument("--only", nargs=2, metavar=("RUN", "SEED"), help="one training, in this process")
    args = parser.parse_args()
    arguments = ["--folder", str(args.folder), "--database", str(args.database), "--steps", str(args.steps)]
    runs = Runs(
        args.folder,
        f"v{PROXY_VERSION}-steps{args.steps}-rate{LEARNING_RATE}-warmup{WARMUP_STEPS}",
        "experiments.winners",
        arguments,
        KEPT,
    )
    if args.only:
        torch.set_num_threads(1)
        run = Run(args.only[0], int(args.only[1]))
        runs.write(run, make_run(run, args.database, args.steps))
        return
    for algorithm, seed in SEARCHES.values():
        search(args.database, algorithm, seed)
    names = {name: name for name in FIXED} | {name: run_name(name, args.database) for name in SEARCHES}
    trained = [Run(name, seed) for seed in args.seeds for name in names.values()]
    if args.keep:
        runs.keep(trained)
        return
    runs.make(trained, args.jobs)
    aps = {name: [runs.read(Run(of_run, seed))["ap"] for seed in args.seeds] for name, of_run in names.items()}
    report(aps, args.steps)
    if args.plot is not None:
        plot(aps, args.plot)


def run_name(name: str, database: Path) -> str:
    """With the winner's hash: another winner is another run."""
    return f"{name}: {winner(database, *SEARCHES[name]).hash[:8]}"


def search(database: Path, algorithm: str, seed: int) -> None:
    command = [sys.executable, "-c", "import sys; from nas.commands import search; sys.exit(search())"]
    command += ["--database", str(database), "--study", f"{algorithm}-{seed}", "--algorithm", algorithm]
    subprocess.run([*command, "--seed", str(seed), "--episodes", str(EPISODES)], check=True)


def make_run(run: Run, database: Path, steps: int) -> dict[str, float]:
    config = load_config("shapes", Config)
    if run.name == STACK:
        stacks = partial(PlainStacks, PRIORS["nas-fpn"], config.detector.channels, config.detector.pyramid_norm)
        return full_training(config, None, run.seed, steps, stacks)
    name = run.name.partition(": ")[0]
    graph = FIXED[name] if name in FIXED else winner(database, *SEARCHES[name])
    return full_training(config, graph and graph.canonical(), run.seed, steps)


def winner(database: Path, algorithm: str, seed: int) -> Architecture:
    """What new seeds say is best, the prior aside: that it is no worse than that is to be shown here."""
    store = Store(str(database), read_only=True)
    study_id, _ = store.find_study(f"{algorithm}-{seed}")
    episodes = store.episodes(study_id)
    prior = prior_episode(episodes)
    ranked = [*verdicts(store, study_id, prior), *(episode.architecture_hash for episode in by_reward(episodes))]
    return store.architecture(next(h for h in ranked if prior is None or h != prior.architecture_hash))


def report(aps: dict[str, list[float]], steps: int) -> None:
    print(f"{steps} steps of 16 images from scratch, {len(aps[PUBLISHED])} seeds, AP on `val`")
    print("| pyramid behind the FPN | AP | standard error | difference to the published | standard error |")
    print("|---|---|---|---|---|")
    for name, values in aps.items():
        differences = [ours - theirs for ours, theirs in zip(values, aps[PUBLISHED], strict=True)]
        against = "|" if name == PUBLISHED else f"{statistics.fmean(differences):+.4f} | {_error(differences):.4f}"
        print(f"| {name} | {statistics.fmean(values):.4f} | {_error(values):.4f} | {against} |")
    found = [list(values) for name, values in aps.items() if SEARCHES.get(name, ("",))[0] == "reinforce"]
    of_searches = [statistics.fmean(values) for values in found]
    of_published = statistics.fmean(aps[PUBLISHED])
    print(
        f"found by REINFORCE, mean over searches: {statistics.fmean(of_searches):.4f}, "
        f"{statistics.fmean(of_searches) - of_published:+.4f} to the published"
    )


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def plot(aps: dict[str, list[float]], path: Path) -> None:
    """Every seed a dot, means as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, values) in enumerate(reversed(aps.items())):
        axes.plot(values, [place] * len(values), "o", color="C0" if name in FIXED else "C1", ms=4)
        axes.plot([statistics.fmean(values)] * 2, [place - 0.3, place + 0.3], color="black", lw=1)
    axes.set_yticks(range(len(aps)), list(reversed(aps)))
    axes.set_xlabel("AP on the validation split")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
