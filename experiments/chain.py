"""What is a chain of pre-trainings worth? python -m experiments.chain --folder runs/chain --jobs 2

The winner of 2019 trained on COCO, from there on Objects365, from there on its tiny track. Here the tiny set, and the
full one, are trained from scratch and from the weights of each chain of the sets before them; printed is AP on each
set's own validation split, the mean over seeds, and the difference to training from scratch with its standard error.

With `shapes`, COCO is played by other pictures on which only the more frequent half of the classes is labelled, and the
tiny set are 500 pictures of three rare classes. With --data COCO FULL TINY they are folders in COCO form, read and
trained as --config says. The tiny set gets a quarter of the --steps.

Restartable: each run is one file in --folder, named by chain, seed and settings. --jobs runs several at a time.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from detector.coco import CocoData, load_split
from detector.config import DetectorSections
from detector.config_files import load_config
from detector.transfer import transfer
from experiments.runs import Run, Runs
from experiments.short_training import (
    ap_of,
    batch_size,
    configured,
    fit,
    load_trained,
    new_detector,
    settings,
    show,
)

COCO, FULL, TINY = "COCO", "full", "tiny"
THEN = " > "
TINY_SHARE = 4  # steps of the others for one on the tiny set
CHAINS = (  # by length: each starts from the weights of one before it
    (COCO,),
    (FULL,),
    (TINY,),
    (COCO, FULL),
    (COCO, TINY),
    (FULL, TINY),
    (COCO, FULL, TINY),
)


class Study(NamedTuple):
    """What is trained, on which folders (none with `shapes`), and where runs lie."""

    config: DetectorSections
    folders: Sequence[Path]
    steps: int
    runs: Runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="shapes", metavar="NAME|FILE")
    parser.add_argument("--data", type=Path, nargs=3, default=(), metavar=("COCO", "FULL", "TINY"))
    parser.add_argument("--folder", type=Path, default=Path("runs/chain"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs=2, metavar=("CHAIN", "SEED"), help="one run, in this process")
    args = parser.parse_args()
    study = study_of(args.config, args.data, args.folder, args.steps)
    if args.only:
        torch.set_num_threads(1)
        make_run(study, Run(args.only[0], int(args.only[1])))
        return
    for name in (COCO, FULL, TINY):
        splits_of(study, name)  # read or generated once, before the jobs need it
    for length in (1, 2, 3):
        chains = [THEN.join(chain) for chain in CHAINS if len(chain) == length]
        study.runs.make([Run(chain, seed) for seed in args.seeds for chain in chains], args.jobs)
    for target in (FULL, TINY):
        steps = steps_of(study, target)
        images = batch_size(study.config)
        print(f"\n{target}: {steps} steps of {images} images, seeds {args.seeds}; AP on its validation split")
        chains = [THEN.join(chain) for chain in CHAINS if chain[-1] == target]
        aps = {chain: [study.runs.read(Run(chain, seed))["ap"] for seed in args.seeds] for chain in chains}
        show("chain", aps, target)


def study_of(config: str, folders: Sequence[Path], folder: Path, steps: int) -> Study:
    arguments = ["--config", config, "--folder", str(folder), "--steps", str(steps)]
    arguments += ["--data", *map(str, folders)] if folders else []
    loaded = load_config(config, DetectorSections)
    runs = Runs(folder, settings(loaded, steps, folders), "experiments.chain", arguments)
    return Study(loaded, folders, steps, runs)


def make_run(study: Study, run: Run) -> None:
    """Train on a chain's last set from the weights of the chain before it; keep the weights beside the run."""
    before, _, name = run.name.rpartition(THEN)
    data, validation = splits_of(study, name)
    trained = new_detector(configured(study.config, {}, run.seed, steps_of(study, name)), None, data)
    if before:
        transfer(trained.model, trained.classes, load_trained(study.runs.file(Run(before, run.seed), ".pt")))
    fit(trained, data)
    trained.save(study.runs.file(run, ".pt"))
    study.runs.write(run, {"ap": ap_of(trained, validation)})


def steps_of(study: Study, name: str) -> int:
    return study.steps // TINY_SHARE if name == TINY else study.steps


def splits_of(study: Study, name: str) -> tuple[CocoData, CocoData]:
    """What a set is trained on, and judged on."""
    of_data = study.config.data
    if study.folders:
        folder = study.folders[(COCO, FULL, TINY).index(name)]
        return load_split(of_data, folder, "train"), load_split(of_data, folder, "val")
    if name == TINY:
        return load_split(of_data, None, "tiny"), load_split(of_data, None, "tiny_val")
    if name == FULL:
        return load_split(of_data, None, "train"), load_split(of_data, None, "val")
    other = of_data.model_copy(update={"shapes": of_data.shapes.model_copy(update={"seed": of_data.shapes.seed + 1})})
    data, validation = (load_split(other, None, split) for split in ("train", "val"))
    kept = np.sort(np.argsort(-np.bincount(data.labels, minlength=data.num_classes))[: data.num_classes // 2])
    return with_classes(data, kept), with_classes(validation, kept)


def with_classes(data: CocoData, kept: np.ndarray) -> CocoData:
    """The same images, on which the labels `kept` are known and other objects are not labelled."""
    row_of = np.full(data.num_classes, -1)
    row_of[kept] = np.arange(len(kept))
    labels = row_of[data.labels]
    chosen = labels >= 0
    return replace(
        data,
        start=np.concatenate(([0], np.cumsum(chosen)))[data.start],
        boxes=data.boxes[chosen],
        labels=labels[chosen],
        crowd=data.crowd[chosen],
        area=data.area[chosen],
        category_ids=tuple(data.category_ids[row] for row in kept),
        category_names=tuple(data.category_names[row] for row in kept),
    )


if __name__ == "__main__":
    main()
