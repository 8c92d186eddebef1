"""What each switch of the detector is worth on `shapes`: python -m experiments.ablation --folder runs/ablation

Trains the configuration `shapes` for --steps steps of 16 images with one switch changed at a time, on the same seeds,
without a pyramid, and prints AP on the validation split: the mean over seeds, and the difference to the baseline of the
same seed with its standard error. Switches of testing, and an ensemble, are measured on weights so trained. Transfer is
measured on the `tiny` split, which holds few images of three rare classes: from scratch, and from the baseline's
weights. --plot draws AP over iterations for the three samplings.

Restartable: each run is one file in --folder, named by switch, seed and steps. --jobs runs several at a time.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from detector.architecture import PRIORS, Architecture
from detector.checkpoint import TrainedModel, make_model
from detector.coco import CocoData, load_split
from detector.config import DetectorSections
from detector.config_files import load_config
from detector.ensemble import fuse
from detector.evaluate import average_precision
from detector.inference import detect_split, views_of
from detector.loader import training_loader
from detector.sampling import draws_of
from detector.targets import Detections
from detector.train import OnCheck, train
from detector.transfer import transfer
from experiments.runs import Run, Runs

CPU = torch.device("cpu")
CURVE_POINTS = 5
BATCH_SIZE = 16  # half of the configuration's: more steps for the same time

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
ENSEMBLE = "ensemble: baseline and gn, by weighted boxes fusion"
ENSEMBLED = (BASELINE, "backbone norm gn")
SCRATCH, TRANSFER = "tiny split, from scratch", "tiny split, from the baseline"
TINY_STEPS = 4  # a run on the tiny split has one step for so many of the others
ON_TINY = (SCRATCH, TRANSFER)
LATER = (ENSEMBLE, *ON_TINY)  # these start from weights that earlier runs trained
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
    runs = runs_in(args.folder, args.steps)
    if args.only:
        make_run(runs, Run(args.only[0], int(args.only[1])), args.steps)
        return
    load_split(load_config("shapes", DetectorSections).data, None, "train")  # generated once, before the jobs need it
    for names in (tuple(TRAINED), LATER):
        runs.make([Run(name, seed) for seed in args.seeds for name in names], args.jobs)
    results = {name: [runs.read(Run(name, seed)) for seed in args.seeds] for name in (*TRAINED, *LATER)}
    report(results, args.seeds, args.steps)
    if args.plot is not None:
        plot(results, args.plot)


def runs_in(folder: Path, steps: int) -> Runs:
    return Runs(folder, f"steps{steps}", "experiments.ablation", ["--folder", str(folder), "--steps", str(steps)])


def make_run(runs: Runs, run: Run, steps: int) -> None:
    """Make one run and write what it measured."""
    torch.set_num_threads(1)
    if run.name == ENSEMBLE:
        result = ensemble_run(runs, run)
    elif run.name in ON_TINY:
        result = tiny_run(runs, run, steps)
    else:
        result = training_run(runs, run, steps)
    runs.write(run, result)


def training_run(runs: Runs, run: Run, steps: int) -> dict[str, Any]:
    """Train the detector with one switch changed, and keep its weights beside the run."""
    changes = TRAINED[run.name]
    config = changed(load_config("shapes", DetectorSections), changes, run.seed, steps)
    prior = PRIORS[changes["pyramid"]["prior"]] if "pyramid" in changes else None
    data, validation_data = (load_split(config.data, None, split) for split in ("train", "val"))
    trained = new_detector(config, prior, data)
    model, curve = trained.model, []

    def look(step: int, _losses: Mapping[str, float]) -> None:
        if run.name in CURVES and step % (steps // CURVE_POINTS) == 0 and step < steps:
            curve.append((step, ap_of(trained, validation_data)))
            model.train()

    fit(trained, data, look)
    trained.save(runs.file(run, ".pt"))
    ap = ap_of(trained, validation_data)
    result: dict[str, Any] = {"ap": ap, "curve": [*curve, (steps, ap)]}
    if run.name == BASELINE:
        result["tested"] = {test: ap_of(trained, validation_data, **change) for test, change in TESTED.items()}
    return result


def ensemble_run(runs: Runs, run: Run) -> dict[str, Any]:
    models = [load_trained(runs, Run(name, run.seed)) for name in ENSEMBLED]
    data = load_split(models[0].config.data, None, "val")
    of_models = [detections_of(trained, data) for trained in models]
    limit = models[0].config.detector.cascade.detections
    sizes = torch.from_numpy(data.image_hw)
    return {
        "ap": average_precision(
            data,
            [fuse(of_image, size, "wbf", limit) for *of_image, size in zip(*of_models, sizes, strict=True)],
        )
    }


def tiny_run(runs: Runs, run: Run, steps: int) -> dict[str, Any]:
    config = changed(load_config("shapes", DetectorSections), {}, run.seed, steps // TINY_STEPS)
    data, validation_data = (load_split(config.data, None, split) for split in ("tiny", "tiny_val"))
    trained = new_detector(config, None, data)
    if run.name == TRANSFER:
        transfer(trained.model, trained.classes, load_trained(runs, Run(BASELINE, run.seed)))
    fit(trained, data)
    return {"ap": ap_of(trained, validation_data)}


def new_detector(config: DetectorSections, architecture: Architecture | None, data: CocoData) -> TrainedModel:
    torch.manual_seed(config.training.seed)
    model = make_model(config, architecture, data.num_classes)
    return TrainedModel(model.to(memory_format=torch.channels_last), architecture, config, data.category_names)


def load_trained(runs: Runs, run: Run) -> TrainedModel:
    return TrainedModel.load(runs.file(run, ".pt"), CPU)


def fit(trained: TrainedModel, data: CocoData, on_check: OnCheck | None = None) -> None:
    training = trained.config.training
    loader = training_loader(data, training, trained.model.padding_multiple)
    train(trained.model, loader.load(draws_of(data, training).batches()), training, CPU, on_check)


def changed(config: DetectorSections, changes: Changes, seed: int, steps: int) -> DetectorSections:
    detector, training = config.detector, config.training
    detector = detector.model_copy(
        update={
            "backbone": detector.backbone.model_copy(update=dict(changes.get("backbone", {}))),
            "cascade": detector.cascade.model_copy(update=dict(changes.get("cascade", {}))),
        }
    )
    of_run = {"seed": seed, "steps": steps, "batch_size": BATCH_SIZE}
    training = training.model_copy(update={**of_run, **changes.get("training", {})})
    return config.model_copy(update={"detector": detector, "training": training})


def ap_of(trained: TrainedModel, data: CocoData, **test: Any) -> float:
    """AP on a split, tested with changes."""
    return average_precision(data, detections_of(trained, data, **test))


def detections_of(trained: TrainedModel, data: CocoData, **test: Any) -> list[Detections]:
    heads, training = trained.model.heads, trained.config.training
    before = heads.testing
    heads.testing = before.model_copy(update=test)
    views = views_of(data, training, heads.testing, trained.model.padding_multiple)
    found = detect_split(trained.model, views, data.image_hw, CPU)
    heads.testing = before
    return found


def report(results: Mapping[str, Sequence[Mapping[str, Any]]], seeds: Sequence[int], steps: int) -> None:
    aps = {name: [run["ap"] for run in of_switch] for name, of_switch in results.items()}
    for test in TESTED:
        aps[test] = [run["tested"][test] for run in results[BASELINE]]
    on_tiny = {name: aps.pop(name) for name in ON_TINY}
    print(
        f"shapes, {steps} steps of {BATCH_SIZE} images, seeds {', '.join(map(str, seeds))}; AP on the validation split"
    )
    show(aps, BASELINE)
    print(f"\nthe tiny split, {steps // TINY_STEPS} steps; AP on its own validation split")
    show(on_tiny, SCRATCH)


def show(aps: Mapping[str, Sequence[float]], baseline: str) -> None:
    print("| switch | AP | difference | standard error |")
    print("|---|---|---|---|")
    for name, values in aps.items():
        differences = [ours - base for ours, base in zip(values, aps[baseline], strict=True)]
        error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
        shown = "" if name == baseline else f"{statistics.fmean(differences):+.4f} | {error:.4f}"
        print(f"| {name} | {statistics.fmean(values):.4f} | {shown or ' | '} |")


def plot(results: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Validation AP over iterations for the samplings, mean over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for name in CURVES:
        steps = [step for step, _ in results[name][0]["curve"]]
        means = [statistics.fmean(run["curve"][i][1] for run in results[name]) for i in range(len(steps))]
        axes.plot(steps, means, "o-", label=name.replace(BASELINE, "sampling uniform"))
    axes.set(xlabel="iteration", ylabel="validation AP")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
