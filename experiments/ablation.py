"""What each switch of the detector is worth on `shapes`: python -m experiments.ablation --folder runs/ablation

Trains the configuration `shapes` for --steps steps with one switch changed at a time, on the same seeds, without a
pyramid, and prints AP on the validation split: the mean over seeds, and the difference to the baseline of the same
seed with its standard error. Switches of testing are measured on the baseline's weights. --plot draws AP over
iterations for the three samplings.

Restartable: each run is one file in --folder, named by switch, seed and steps. --jobs runs several at a time.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from detector.architecture import PRIORS
from detector.cascade_rcnn import CascadeRcnn, padding_multiple
from detector.checkpoint import make_model
from detector.coco import CocoData, load_split
from detector.config import DetectorSections, load_config
from detector.evaluate import average_precision
from detector.inference import detect_split, views_of
from detector.loader import DetectionDataset, Loader, fit
from detector.sampling import draw, image_weights
from detector.train import train

CPU = torch.device("cpu")
CURVE_POINTS = 5

Changes = Mapping[str, Mapping[str, Any]]
BASELINE = "baseline"
TRAINED: dict[str, Changes] = {  # section -> changes
    BASELINE: {},
    "sampling class_aware": {"training": {"sampling": "class_aware"}},
    "sampling class_diversity": {"training": {"sampling": "class_diversity"}},
    "box head 4conv1fc": {"cascade": {"head": "4conv1fc"}},
    "pooling 8x8 (twice the resolution)": {"cascade": {"pool_size": 8}},
    "4conv1fc on 8x8": {"cascade": {"head": "4conv1fc", "pool_size": 8}},
    "backbone norm gn": {"backbone": {"norm": "gn"}},
    "gn and weight standardisation": {"backbone": {"norm": "gn", "weight_standardisation": True}},
    "deformable v1 in C4, C5": {"backbone": {"deformable": "v1", "deformable_stages": (4, 5)}},
    "deformable v2 in C4, C5": {"backbone": {"deformable": "v2", "deformable_stages": (4, 5)}},
    "multi-scale training 48-80": {"training": {"multi_scale": (48, 80), "multi_scale_long_side": 80}},
    "published NAS-FPN behind the FPN": {"pyramid": {"prior": "nas-fpn"}},
}
TESTED: dict[str, Mapping[str, Any]] = {
    "test: cascade shared": {"cascade": "shared"},
    "test: cascade adaptive": {"cascade": "adaptive"},
    "test: Soft-NMS linear": {"nms": "linear"},
    "test: Soft-NMS gaussian": {"nms": "gaussian"},
    "test: mirrored, too": {"flip": True},
    "test: scales 56, 64, 72": {"scales": (56, 64, 72)},
}
CURVES = (BASELINE, "sampling class_aware", "sampling class_diversity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--only", nargs=2, metavar=("SWITCH", "SEED"), help="one run, in this process")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.only:
        write_run(args.folder, args.only[0], int(args.only[1]), args.steps)
        return
    load_split(load_config("shapes", DetectorSections).data, None, "train")  # generated once, before the jobs need it
    wanted = [(name, seed) for seed in args.seeds for name in TRAINED]
    missing = [run for run in wanted if not run_file(args.folder, *run, args.steps).exists()]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(partial(start_run, args.folder, args.steps), missing))
    runs = {
        name: [json.loads(run_file(args.folder, name, seed, args.steps).read_text()) for seed in args.seeds]
        for name in TRAINED
    }
    report(runs, args.seeds, args.steps)
    if args.plot is not None:
        plot(runs, args.plot)


def run_file(folder: Path, name: str, seed: int, steps: int) -> Path:
    words = "".join(letter if letter.isalnum() else "-" for letter in name)
    return folder / f"{words}-seed{seed}-steps{steps}.json"


def start_run(folder: Path, steps: int, run: tuple[str, int]) -> None:
    name, seed = run
    command = [sys.executable, "-m", "experiments.ablation", "--folder", str(folder), "--steps", str(steps)]
    subprocess.run([*command, "--only", name, str(seed)], check=True)
    print(f"done: {name}, seed {seed}", flush=True)


def write_run(folder: Path, name: str, seed: int, steps: int) -> None:
    """Train one detector and write its APs."""
    torch.set_num_threads(1)
    config = changed(load_config("shapes", DetectorSections), TRAINED[name], seed, steps)
    prior = PRIORS[TRAINED[name]["pyramid"]["prior"]] if "pyramid" in TRAINED[name] else None
    training_data, validation_data = (load_split(config.data, None, split) for split in ("train", "val"))
    torch.manual_seed(seed)
    model = make_model(config, prior, training_data.num_classes).to(memory_format=torch.channels_last)
    curve: list[tuple[int, float]] = []

    def look(step: int, _loss: float) -> None:
        if name in CURVES and step % (steps // CURVE_POINTS) == 0 and step < steps:
            curve.append((step, ap_of(model, config, validation_data, {})))
            model.train()

    train(model, batches_of(config, training_data), config.training, CPU, look)
    ap = ap_of(model, config, validation_data, {})
    result: dict[str, Any] = {"ap": ap, "curve": [*curve, (steps, ap)]}
    if name == BASELINE:
        result["tested"] = {test: ap_of(model, config, validation_data, change) for test, change in TESTED.items()}
    path = run_file(folder, name, seed, steps)
    path.with_suffix(".partial").write_text(json.dumps(result))
    path.with_suffix(".partial").replace(path)


def changed(config: DetectorSections, changes: Changes, seed: int, steps: int) -> DetectorSections:
    detector, training = config.detector, config.training
    detector = detector.model_copy(
        update={
            "backbone": detector.backbone.model_copy(update=dict(changes.get("backbone", {}))),
            "cascade": detector.cascade.model_copy(update=dict(changes.get("cascade", {}))),
        }
    )
    training = training.model_copy(update={"seed": seed, "steps": steps, **changes.get("training", {})})
    return config.model_copy(update={"detector": detector, "training": training})


def batches_of(config: DetectorSections, data: CocoData) -> Iterable[Any]:
    training = config.training
    weights = None
    if training.sampling != "uniform":
        weights = image_weights(data, training.sampling, training.diversity_epsilon)
    draws = draw(
        weights,
        len(data),
        training.steps,
        training.batch_size,
        training.seed,
        flip=training.flip,
        short_sides=training.multi_scale,
    )
    long_side = training.multi_scale_long_side if training.multi_scale else training.long_side
    size_of = partial(fit, short_side=training.short_side, long_side=long_side)
    return Loader(DetectionDataset(data, size_of), padding_multiple(config.detector.base_stride)).load(draws.batches())


def ap_of(model: CascadeRcnn, config: DetectorSections, data: CocoData, test: Mapping[str, Any]) -> float:
    """AP on the validation split, tested with changes."""
    before = model.heads.testing
    model.heads.testing = before.model_copy(update=dict(test))
    views = views_of(data, config.training, model.heads.testing, padding_multiple(config.detector.base_stride))
    ap = average_precision(data, detect_split(model, views, data.image_hw, CPU))
    model.heads.testing = before
    return ap


def report(runs: Mapping[str, Sequence[Mapping[str, Any]]], seeds: Sequence[int], steps: int) -> None:
    aps = {name: [run["ap"] for run in of_switch] for name, of_switch in runs.items()}
    for test in TESTED:
        aps[test] = [run["tested"][test] for run in runs[BASELINE]]
    print(f"shapes, {steps} steps, seeds {', '.join(map(str, seeds))}; AP on the validation split")
    print("| switch | AP | difference | standard error |")
    print("|---|---|---|---|")
    for name, values in aps.items():
        differences = [ours - base for ours, base in zip(values, aps[BASELINE], strict=True)]
        error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
        shown = "" if name == BASELINE else f"{statistics.fmean(differences):+.4f} | {error:.4f}"
        print(f"| {name} | {statistics.fmean(values):.4f} | {shown or ' | '} |")


def plot(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Validation AP over iterations for the samplings, mean over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for name in CURVES:
        steps = [step for step, _ in runs[name][0]["curve"]]
        means = [statistics.fmean(run["curve"][i][1] for run in runs[name]) for i in range(len(steps))]
        axes.plot(steps, means, "o-", label=name.replace(BASELINE, "sampling uniform"))
    axes.set(xlabel="iteration", ylabel="validation AP")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
