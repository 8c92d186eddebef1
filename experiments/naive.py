"""How many trials an hour, against the naive way? python -m experiments.naive

The naive way is plain Ray Tune: a function that trains the whole detector from scratch on images, for each trial a
process of its own (protocol `full`, --steps steps of 16 images; how such rewards rank graphs, and how ours do, says
experiments.fidelity). Ours is nas-search on `shapes`, with all that its trials share prepared. Both with --workers at a
time on this machine's processor, one way after the other, with graphs that were drawn at random; counted from the start
of the first trial to the end of the last, Ray being up.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from controller.decisions import uniform
from detector.architecture import PRIORS, Architecture
from detector.coco import load_split
from detector.command import keep_ray_to_itself
from detector.config_files import load_config
from experiments.benchmark import minutes
from nas.config import Config
from nas.space import space_around
from nas.store import Purpose, Store

SEARCH = [sys.executable, "-c", "import sys; from nas.commands import search; sys.exit(search())"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="shapes", metavar="NAME|FILE")
    parser.add_argument("--steps", type=int, default=200, help="of a naive trial")
    parser.add_argument("--trials", type=int, help="the naive way; default: four for each worker")
    parser.add_argument("--episodes", type=int, default=100, help="our way")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # both on the processor
    config = str(Path(args.config).absolute()) if Path(args.config).is_file() else args.config
    with tempfile.TemporaryDirectory(prefix="nas-naive-") as folder:
        mine = ours(config, args.episodes, args.workers, Path(folder))
        other = naive(config, args.steps, args.trials or 4 * args.workers, args.workers, Path(folder))
    print("| way | trials an hour |\n|---|---|")
    print(f"| nas-search, `{args.config}` | {mine:.0f} |\n| Ray Tune, {args.steps} steps from scratch | {other:.0f} |")
    print(f"\nratio: {mine / other:.1f}, with {args.workers} workers")


def ours(config: str, episodes: int, workers: int, folder: Path) -> float:
    """Trials an hour. A first search prepares."""
    command = [*SEARCH, "--config", config, "--algorithm", "random", "--confirm", "0", "--workers", str(workers)]
    for study, count in (("preparation", 1), ("measured", episodes)):
        subprocess.run([*command, "--study", study, "--episodes", str(count)], cwd=folder, check=True)
    store = Store(str(folder / "nas.db"), read_only=True)
    found = store.evaluations(store.find_study("measured")[0], Purpose.SEARCH)
    return 60 * len(found) / minutes(found)


def naive(config: str, steps: int, trials: int, workers: int, folder: Path) -> float:
    """Trials an hour."""
    keep_ray_to_itself(None)
    import ray
    from ray import tune

    space, stream = space_around(PRIORS["nas-fpn"]), np.random.default_rng(0)
    graphs = [space.architecture(uniform(space, stream)).to_dict() for _ in range(trials)]
    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        tuner = tune.Tuner(
            tune.with_parameters(trial, config_name=config, steps=steps),
            param_space={"graph": tune.grid_search(graphs)},
            run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
        )
        start = time.time()
        tuner.fit()
        return 3600 * trials / (time.time() - start)
    finally:
        ray.shutdown()


def trial(config: dict[str, Any], config_name: str, steps: int) -> None:
    """What Tune's documentation calls a trainable function."""
    import torch
    from ray import tune

    from nas.proxy import FullProxy, choose_device

    torch.set_num_threads(1)
    whole = load_config(config_name, Config)
    proxy = FullProxy(whole, load_split(whole.data, None, "train"), choose_device())
    reward = proxy.evaluate(Architecture.from_dict(config["graph"]), 0, steps)
    tune.report({"reward": reward})


if __name__ == "__main__":
    main()
