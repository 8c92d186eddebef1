"""How close to what is possible? python -m experiments.speed

Ratios, each of two things that were measured in turn in the same run (medians of --runs pairs):

* the pyramid, forward and backward, and the same graph as straight-line PyTorch (nas-export --format torch);
* pycocotools, and what rewards are computed with, on 5,000 images of 100 detections and 80 classes; and whether both
  say the same;
* a trial of `shapes` in a process that is there already, as searches have them, and in a new process, in CPU seconds.

And times from the start of a command: of --help, of nas-status, and to the first episode of a search that has all it
needs in the cache.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from detector.architecture import PRIORS
from detector.coco import CocoData, load_split
from detector.config_files import load_config
from detector.evaluate import average_precision, coco_metrics
from detector.levels import level_sizes
from detector.nas_fpn import NasFpn
from detector.progress import Progress
from detector.targets import Detections
from experiments.parts import seconds
from nas.config import Config
from nas.foreign_formats import torch_module
from nas.proxy import choose_device, load_proxy

GRAPH = PRIORS["nas-fpn"].canonical()
IMAGES, DETECTIONS, CLASSES, OBJECTS = 5000, 100, 80, 7
PYRAMIDS = {"shapes": (16, 32, (64, 64), 4), "coco": (2, 256, (800, 1344), 8)}  # images, channels, size, stride
ONE_TRIAL = """
import torch
from detector.architecture import PRIORS
from detector.coco import load_split
from detector.config_files import load_config
from nas.config import Config
from nas.proxy import choose_device, load_proxy
config = load_config("shapes", Config)
data = load_split(config.data, None, "train")
proxy = load_proxy(config, data, PRIORS["nas-fpn"], choose_device(), lambda what, step, steps: None)
proxy.evaluate(PRIORS["nas-fpn"], 0)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| what | ours | the other | ratio |\n|---|---|---|---|")
    for name, shape in PYRAMIDS.items():
        row(f"pyramid, forward and backward, sizes of `{name}`", *pyramids(*shape), args.runs)
    evaluation(args.runs)
    trials(args.runs)
    starts(args.runs)


def row(what: str, ours: Callable[[], object], other: Callable[[], object], runs: int) -> None:
    """Once each to warm up, then in turn."""
    pairs = [(seconds(ours, choose_device()), seconds(other, choose_device())) for _ in range(runs + 1)][1:]
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"| {what} | {mine:.4g} s | {theirs:.4g} s | {statistics.median(a / b for a, b in pairs):.3f} |", flush=True)


def pyramids(
    images: int, channels: int, image_hw: tuple[int, int], stride: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A step of ours, and of the same graph written out."""
    device = choose_device()
    names: dict[str, Any] = {}
    exec(compile(torch_module(GRAPH, channels, "bn"), "straight-line", "exec"), names)
    ours, straight = NasFpn(GRAPH, channels), names["Pyramid"]()
    straight.load_state_dict(ours.state_dict())
    features = [torch.randn(images, channels, *size, device=device) for size in level_sizes(image_hw, stride)]
    features = [f.to(memory_format=torch.channels_last).requires_grad_() for f in features]

    def step(pyramid: nn.Module) -> None:
        torch.stack([out.mean() for out in pyramid(list(features))]).sum().backward()  # type: ignore[no-untyped-call]
        pyramid.zero_grad()

    made = [pyramid.to(memory_format=torch.channels_last).to(device) for pyramid in (ours, straight)]
    return partial(step, made[0]), partial(step, made[1])


def evaluation(runs: int) -> None:
    data, found = made_up()
    ours, theirs = average_precision(data, found), coco_metrics(data, found).ap
    what = f"AP, {IMAGES} images (the other: pycocotools, all numbers; difference {abs(ours - theirs):.1g})"
    row(what, lambda: average_precision(data, found), lambda: coco_metrics(data, found), max(1, runs // 3))


def made_up() -> tuple[CocoData, list[Detections]]:
    """Objects, and detections of which some lie on them."""
    stream = np.random.default_rng(0)
    corner, side = stream.uniform(0, 400, (IMAGES * OBJECTS, 2)), stream.uniform(8, 200, (IMAGES * OBJECTS, 2))
    boxes = np.hstack((corner, corner + side)).astype(np.float32)
    labels = stream.integers(0, CLASSES, IMAGES * OBJECTS)
    data = CocoData(
        annotations=Path("made up"),
        folder=Path(),
        image_ids=np.arange(1, IMAGES + 1),
        image_hw=np.full((IMAGES, 2), 600),
        file_names=[""] * IMAGES,
        start=np.arange(IMAGES + 1) * OBJECTS,
        boxes=boxes,
        labels=labels,
        crowd=np.zeros(len(boxes), bool),
        area=side.prod(1).astype(np.float32),
        category_ids=tuple(range(1, CLASSES + 1)),
        category_names=tuple(f"class {number}" for number in range(CLASSES)),
        hash="made up",
    )
    found = []
    for image in range(IMAGES):
        own = np.arange(DETECTIONS) % OBJECTS + image * OBJECTS
        moved = boxes[own] + stream.normal(0, 12, (DETECTIONS, 4)).astype(np.float32)
        of_class = np.where(stream.random(DETECTIONS) < 0.7, labels[own], stream.integers(0, CLASSES, DETECTIONS))
        scores = torch.from_numpy(stream.random(DETECTIONS))
        found.append(Detections(torch.from_numpy(moved).float(), scores.float(), torch.from_numpy(of_class)))
    return data, found


def trials(runs: int) -> None:
    config = load_config("shapes", Config)
    with Progress() as progress:
        proxy = load_proxy(config, load_split(config.data, None, "train"), GRAPH, choose_device(), progress)
    proxy.evaluate(GRAPH, 0)
    ours, new = [], []
    for _ in range(runs):
        start = time.process_time()
        proxy.evaluate(GRAPH, 0)
        ours.append(time.process_time() - start)
        new.append(cpu_seconds([sys.executable, "-c", ONE_TRIAL]))
    ratio = statistics.median(a / b for a, b in zip(ours, new, strict=True))
    mine, other = statistics.median(ours), statistics.median(new)
    print(
        f"| a trial of `shapes`, CPU seconds (the other: in a new process) | {mine:.3g} | {other:.3g} | {ratio:.3f} |"
    )


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def starts(runs: int) -> None:
    print("\n| from the start of a command | seconds |\n|---|---|")
    programs = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(prefix="nas-speed-") as folder:
        search = [str(programs / "nas-search"), "--episodes", "1", "--confirm", "0"]
        first = [seconds_to_first_episode([*search, "--study", str(n)], folder) for n in range(max(1, runs // 2))]
        for what, command in {
            "nas-search --help": [str(programs / "nas-search"), "--help"],
            "nas-status": [str(programs / "nas-status"), "--study", "0"],
            "train-final --help": [str(programs / "train-final"), "--help"],
        }.items():
            run = partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
            print(f"| {what} | {statistics.median(seconds(run, torch.device('cpu')) for _ in range(runs)):.2f} |")
    print(f"| nas-search, until its first episode has its reward | {statistics.median(first):.1f} |")


def seconds_to_first_episode(command: list[str], folder: str) -> float:
    """As the search tells it (--json)."""
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, "--json"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        took = time.perf_counter() - start
        process.communicate()
    if process.returncode or json.loads(first)["reward"] is None:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode} and {first}")
    return took


if __name__ == "__main__":
    main()
