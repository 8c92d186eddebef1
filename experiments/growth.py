"""How does cost grow? python -m experiments.growth --plot docs/growth.png

One thing at a time is made larger, the rest stays as in `shapes`:

* trials, in CPU seconds on one core (medians of --runs), by steps, image side, channels, and cells of the pyramid. What
  they share is prepared in PREPARATION steps only: times hardly depend on how good it is;
* searches, in episodes an hour, by workers: simulated ones, whose trials last half a second (as on `shapes`) or a
  minute, and real ones, whose trials sleep for two seconds in as many processes on this machine (experiments.scale);
* data sets, in memory of their first reading, by images (files with the statistics of Objects365).

Printed: the figures, and for each the fit that has the least relative error,
cost = fixed + slope * size ** exponent.

Restartable: what belongs on the same axes is one file in --folder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls

from detector.architecture import LEVELS, NUM_LEVELS, PRIORS, Architecture, MergeCell
from detector.coco import load_split
from detector.command import write_json
from detector.config_files import load_config
from detector.progress import Progress
from experiments.annotation_scale import BOXES, GB, IMAGES, generate
from experiments.scale import Cost, Setting, real, simulated, utilisation
from nas.config import Config
from nas.proxy import load_proxy

PRIOR = PRIORS["nas-fpn"]
PREPARATION = 10
PREPARED = [
    f"proxy.{part}.{key}" for part in ("pretrain", "pool") for key in (f"steps={PREPARATION}", "warmup_steps=1")
]
STEPS = (0, 25, 50, 100, 200)
SIDES = (64, 96, 128, 192, 256)
CHANNELS = (16, 32, 64, 128, 256)
CELLS = (5, 10, 15, 20)
WORKERS = (1, 4, 16, 64, 256)
PROCESSES = (1, 2, 4, 8)
BATCHES = 8
READ_IMAGES = (1000, 10_000, 100_000, IMAGES)
OF_A_TRIAL = "CPU seconds of a trial"
EXPONENTS = np.linspace(0.01, 3, 300)


class Curve(NamedTuple):
    """Costs by size."""

    name: str
    costs: Mapping[int, float]


class Panel(NamedTuple):
    """What belongs on the same axes."""

    size: str
    cost: str
    curves: Sequence[Curve]


class Fit(NamedTuple):
    """cost = fixed + slope * size ** exponent."""

    fixed: float
    slope: float
    exponent: float

    def at(self, size: float) -> float:
        return float(self.fixed + self.slope * size**self.exponent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/growth"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES, metavar="W")
    parser.add_argument("--images", type=int, nargs="+", default=READ_IMAGES, metavar="N")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    panels = []
    with tempfile.TemporaryDirectory(prefix="nas-growth-") as cache:
        os.environ["NAS_CACHE"] = cache
        for name, measure in PANELS.items():
            file = args.folder / f"{name}.json"
            if not file.exists():
                write_json(file, measure(args)._asdict())
            panels.append(panel_of(json.loads(file.read_text())))
            report(panels[-1])
    if args.plot is not None:
        plot(panels, args.plot)


def panel_of(content: Mapping[str, Any]) -> Panel:
    """As it was written."""
    curves = [Curve(name, {int(size): cost for size, cost in costs.items()}) for name, costs in content["curves"]]
    return Panel(content["size"], content["cost"], curves)


def by_steps(args: argparse.Namespace) -> Panel:
    costs = {steps: trial_seconds([], PRIOR, steps, args.runs) for steps in STEPS}
    return Panel("steps", OF_A_TRIAL, [Curve("trial", costs)])


def by_side(args: argparse.Namespace) -> Panel:
    changes = {n: [f"data.shapes.image_px={n}", f"proxy.canvas_hw=[{n},{n}]"] for n in SIDES}
    return Panel("image side in pixels", OF_A_TRIAL, by_length({n: (c, PRIOR) for n, c in changes.items()}, args.runs))


def by_channels(args: argparse.Namespace) -> Panel:
    settings = {n: ([f"detector.channels={n}"], PRIOR) for n in CHANNELS}
    return Panel("channels", OF_A_TRIAL, by_length(settings, args.runs))


def by_cells(args: argparse.Namespace) -> Panel:
    return Panel("cells", OF_A_TRIAL, by_length({n: ([], graph_of(n)) for n in CELLS}, args.runs))


def by_workers(args: argparse.Namespace) -> Panel:
    searches = {
        "simulated, trials of 0.5 s": {w: simulated(Setting(w, 1, BATCHES, "measured", 0.5)) for w in WORKERS},
        "simulated, trials of 60 s": {w: simulated(Setting(w, 1, BATCHES, "measured", 60.0)) for w in WORKERS},
        "processes, trials of 2 s": {w: real(Setting(w, 1, BATCHES, "measured", 2.0)) for w in args.processes},
    }
    rates = [Curve(name, {w: an_hour(found, w) for w, found in costs.items()}) for name, costs in searches.items()]
    return Panel("workers", "episodes an hour", rates)


def by_images(args: argparse.Namespace) -> Panel:
    return Panel("images", "GB at most, first reading", [Curve("annotations", {n: peak_gb(n) for n in args.images})])


PANELS: Mapping[str, Callable[[argparse.Namespace], Panel]] = {
    "steps": by_steps,
    "side": by_side,
    "channels": by_channels,
    "cells": by_cells,
    "workers": by_workers,
    "images": by_images,
}


def by_length(settings: Mapping[int, tuple[Sequence[str], Architecture]], runs: int) -> list[Curve]:
    return [
        Curve(f"{steps} steps", {n: trial_seconds(*setting, steps, runs) for n, setting in settings.items()})
        for steps in (0, 20)
    ]


def trial_seconds(changes: Sequence[str], graph: Architecture, steps: int, runs: int) -> float:
    """On one core; the first trial is not counted."""
    config = load_config("shapes", Config, [*PREPARED, *changes])
    data = load_split(config.data, None, "train")
    with Progress() as progress:
        proxy = load_proxy(config, data, graph, torch.device("cpu"), progress)
    taken = []
    for seed in range(runs + 1):
        start = time.process_time()
        proxy.evaluate(graph, seed, steps)
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def graph_of(cells: int) -> Architecture:
    """Each merges the two before it; their levels take turns, so that the mean cost of a cell stays the same."""
    return Architecture(
        tuple(MergeCell((n + NUM_LEVELS - 2, n + NUM_LEVELS - 1), LEVELS[n % NUM_LEVELS], "sum") for n in range(cells))
    )


def an_hour(search: Cost, workers: int) -> float:
    """Episodes that so many workers come to, busy as they were."""
    length = statistics.fmean(trial.end - trial.start for trial in search.trials)
    return 3600 * utilisation(search.trials, workers) * workers / length


def peak_gb(images: int) -> float:
    """Of a process that reads annotations for the first time."""
    boxes = images * BOXES // IMAGES
    with tempfile.TemporaryDirectory(prefix="nas-growth-") as folder:
        generate(Path(folder), images, boxes)
        command = [sys.executable, "-m", "experiments.annotation_scale", "--measure", "first reading"]
        sizes = ["--folder", folder, "--images", str(images), "--boxes", str(boxes)]
        environment = os.environ | {"NAS_CACHE": str(Path(folder) / "cache")}
        run = subprocess.run([*command, *sizes], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(run.stdout.splitlines()[-1])["peak"]) / GB


def fitted(costs: Mapping[int, float]) -> Fit:
    """Neither part below nothing."""
    sizes, values = np.array(list(costs), float), np.array(list(costs.values()))
    best, least = Fit(0.0, 0.0, 0.0), np.inf
    for exponent in EXPONENTS:
        terms = np.stack((np.ones_like(sizes), sizes**exponent), axis=1)
        (fixed, slope), error = nnls(terms / values[:, None], np.ones_like(values))
        if error < least:
            best, least = Fit(float(fixed), float(slope), float(exponent)), error
    return best


def report(panel: Panel) -> None:
    for curve in panel.curves:
        fit = fitted(curve.costs)
        print(f"\n| {panel.size} | {panel.cost} ({curve.name}) | fit |\n|---|---|---|")
        for size, cost in curve.costs.items():
            print(f"| {size:,} | {cost:.4g} | {fit.at(size):.4g} |")
        print(f"\nfixed {fit.fixed:.3g}, slope {fit.slope:.3g}, exponent {fit.exponent:.2f}", flush=True)


def plot(panels: Sequence[Panel], path: Path) -> None:
    """Logarithmic where sizes span more than five to one; fits as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 3).flat, panels, strict=True):
        for number, curve in enumerate(panel.curves):
            fit, sizes = fitted(curve.costs), list(curve.costs)
            axes.plot(sizes, list(curve.costs.values()), "o", color=f"C{number}", ms=4)
            between = np.linspace(min(sizes), max(sizes), 200)
            label = f"{curve.name}: exponent {fit.exponent:.2f}"
            axes.plot(between, [fit.at(size) for size in between], color=f"C{number}", lw=1, label=label)
        scale = "linear" if min(sizes) == 0 or max(sizes) <= 5 * min(sizes) else "log"
        axes.set(xlabel=panel.size, ylabel=panel.cost, xscale=scale, yscale=scale)
        axes.minorticks_off()
        measured = sorted({size for curve in panel.curves for size in curve.costs})
        axes.set_xticks(measured, [f"{size:,}" for size in measured])
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
