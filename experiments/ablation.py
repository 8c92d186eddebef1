"""What is each switch of the detector worth? python -m experiments.ablation --folder runs/ablation

Trains a configuration (--config, --data; `shapes` if nothing is said) for --steps steps of 16 images with one switch
changed at a time, on the same seeds, without a pyramid, and prints AP on the validation split: the mean over seeds, and
the difference to the baseline of the same seed with its standard error. Switches of testing, and ensembles, are
measured on weights so trained. --plot draws AP over iterations for the three samplings.

Switches that a configuration has on already are left out.

Restartable: each run is one file in --folder, named by switch, seed and settings. --jobs runs several at a time.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detector.architecture import PRIORS
from detector.coco import CocoData, load_split
from detector.config import DetectorSections
from detector.config_files import load_config
from detector.ensemble import fuse
from detector.evaluate import average_precision
from experiments.runs import Run, Runs
from experiments.short_training import (
    Changes,
    ap_of,
    batch_size,
    configured,
    detections_of,
    fit,
    load_trained,
    new_detector,
    settings,
    show,
)

CURVE_POINTS = 5
BASELINE, CLASS_AWARE, CLASS_DIVERSITY = "baseline", "sampling class_aware", "sampling class_diversity"
LARGE_POOLING, GN, GN_WS = "pooling of twice the resolution", "backbone norm gn", "gn and weight standardisation"
DEFORMABLE_V1, DEFORMABLE_V2 = "deformable v1 in C4, C5", "deformable v2 in C4, C5"
NAS_FPN = "published NAS-FPN behind the FPN"
CURVES = (BASELINE, CLASS_AWARE, CLASS_DIVERSITY)
ENSEMBLES: dict[str, Sequence[str]] = {  # fused by weighted boxes fusion
    "ensemble of 2: baseline and gn": (BASELINE, GN),
    "ensemble of 8: those, both samplings, deformable v1 and v2, twice the resolution, NAS-FPN": (
        BASELINE,
        GN,
        CLASS_AWARE,
        CLASS_DIVERSITY,
        DEFORMABLE_V1,
        DEFORMABLE_V2,
        LARGE_POOLING,
        NAS_FPN,
    ),
}


class Study(NamedTuple):
    """What is measured on which data, where runs lie."""

    config: DetectorSections
    root: Path | None
    steps: int
    runs: Runs

    def split(self, name: str) -> CocoData:
        return load_split(self.config.data, self.root, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="shapes", metavar="NAME|FILE")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set in COCO form, with a validation split")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--only", nargs=2, metavar=("SWITCH", "SEED"), help="one run, in this process")
    args = parser.parse_args()
    study = study_of(args.config, args.data, args.folder, args.steps)
    if args.only:
        torch.set_num_threads(1)
        make_run(study, Run(args.only[0], int(args.only[1])))
        return
    study.split("train")  # read or generated once, before the jobs need it
    switches = trained_switches(study.config)
    for names in (tuple(switches), tuple(ENSEMBLES)):  # the latter use weights of the former
        study.runs.make([Run(name, seed) for seed in args.seeds for name in names], args.jobs)
    results = {name: [study.runs.read(Run(name, seed)) for seed in args.seeds] for name in (*switches, *ENSEMBLES)}
    images = batch_size(study.config)
    print(f"{args.config}, {args.steps} steps of {images} images, seeds {args.seeds}; AP on the validation split")
    report(results)
    if args.plot is not None:
        plot(results, args.plot, f"sampling {study.config.training.sampling}")


def study_of(config: str, data: Path | None, folder: Path, steps: int) -> Study:
    arguments = ["--config", config, "--folder", str(folder), "--steps", str(steps)]
    arguments += [] if data is None else ["--data", str(data)]
    loaded = load_config(config, DetectorSections)
    runs = Runs(folder, settings(loaded, steps, [] if data is None else [data]), "experiments.ablation", arguments)
    return Study(loaded, data, steps, runs)


def trained_switches(config: DetectorSections) -> dict[str, Changes]:
    """What trainings differ in from the baseline, and the baseline; sizes are relative to the configuration's."""
    pooling = {"pool_size": 2 * config.detector.cascade.pool_size}
    short, long = config.training.short_side, config.training.long_side
    sides = {"multi_scale": (short * 3 // 4, short * 5 // 4), "multi_scale_long_side": long * 5 // 4}
    switches: dict[str, Changes] = {
        BASELINE: {},
        CLASS_AWARE: {"training": {"sampling": "class_aware"}},
        CLASS_DIVERSITY: {"training": {"sampling": "class_diversity"}},
        "box head 4conv1fc": {"cascade": {"head": "4conv1fc"}},
        LARGE_POOLING: {"cascade": pooling},
        "4conv1fc on twice the resolution": {"cascade": {"head": "4conv1fc", **pooling}},
        GN: {"backbone": {"norm": "gn"}},
        GN_WS: {"backbone": {"norm": "gn", "weight_standardisation": True}},
        DEFORMABLE_V1: {"backbone": {"deformable": "v1", "deformable_stages": (4, 5)}},
        DEFORMABLE_V2: {"backbone": {"deformable": "v2", "deformable_stages": (4, 5)}},
        "multi-scale training, 3/4 to 5/4": {"training": sides},
        NAS_FPN: {},
    }
    baseline = configured(config, {}, 0, 1)
    return {
        name: changes
        for name, changes in switches.items()
        if not changes or configured(config, changes, 0, 1) != baseline
    }


def tested_switches(config: DetectorSections) -> dict[str, Mapping[str, Any]]:
    """What testing the same weights may differ in."""
    short = config.training.short_side
    switches: dict[str, Mapping[str, Any]] = {
        "test: cascade shared": {"cascade": "shared"},
        "test: cascade adaptive": {"cascade": "adaptive"},
        "test: Soft-NMS linear": {"nms": "linear"},
        "test: Soft-NMS gaussian": {"nms": "gaussian"},
        "test: mirrored, too": {"flip": True},
        "test: scales 7/8, 1, 9/8": {"scales": (short * 7 // 8, short, short * 9 // 8)},
    }
    testing = config.detector.testing
    return {name: test for name, test in switches.items() if testing.model_copy(update=dict(test)) != testing}


def make_run(study: Study, run: Run) -> None:
    """Make one run and write what it measured."""
    study.runs.write(run, ensemble_run(study, run) if run.name in ENSEMBLES else training_run(study, run))


def training_run(study: Study, run: Run) -> dict[str, Any]:
    """Train the detector with one switch changed, and keep its weights beside the run."""
    config = configured(study.config, trained_switches(study.config)[run.name], run.seed, study.steps)
    data, validation = study.split("train"), study.split("val")
    trained = new_detector(config, PRIORS["nas-fpn"] if run.name == NAS_FPN else None, data)
    model, curve, steps = trained.model, list[tuple[int, float]](), study.steps

    def look(step: int, _losses: Mapping[str, float]) -> None:
        if run.name in CURVES and step % max(1, steps // CURVE_POINTS) == 0 and step < steps:
            curve.append((step, ap_of(trained, validation)))
            model.train()

    fit(trained, data, look)
    trained.save(study.runs.file(run, ".pt"))
    ap = ap_of(trained, validation)
    result: dict[str, Any] = {"ap": ap, "curve": [*curve, (steps, ap)]}
    if run.name == BASELINE:
        result["tested"] = {test: ap_of(trained, validation, **c) for test, c in tested_switches(config).items()}
    return result


def ensemble_run(study: Study, run: Run) -> dict[str, Any]:
    validation = study.split("val")
    names = [name for name in ENSEMBLES[run.name] if name in trained_switches(study.config)]
    members = [load_trained(study.runs.file(Run(name, run.seed), ".pt")) for name in names]
    of_members = [detections_of(trained, validation) for trained in members]
    limit = study.config.detector.cascade.detections
    sizes = torch.from_numpy(validation.image_hw)
    fused = [fuse(of_image, size, "wbf", limit) for *of_image, size in zip(*of_members, sizes, strict=True)]
    return {"ap": average_precision(validation, fused)}


def report(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    aps = {name: [run["ap"] for run in of_switch] for name, of_switch in results.items()}
    for test in results[BASELINE][0]["tested"]:
        aps[test] = [run["tested"][test] for run in results[BASELINE]]
    show("switch", aps, BASELINE)


def plot(results: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, baseline: str) -> None:
    """Validation AP over iterations for the samplings, mean over seeds. baseline: what the baseline is called."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for name in (name for name in CURVES if name in results):
        steps = [step for step, _ in results[name][0]["curve"]]
        means = [statistics.fmean(run["curve"][i][1] for run in results[name]) for i in range(len(steps))]
        axes.plot(steps, means, "o-", label=name.replace(BASELINE, baseline))
    axes.set(xlabel="iteration", ylabel="validation AP")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
