"""How many trials an hour, against the naive way? python -m experiments.naive

The naive way is plain Ray Tune: a function that trains the whole detector from scratch on images, for each trial a
process of its own (protocol `full`, --steps steps of 16 images; how such rewards rank graphs, and how ours do, says
experiments.fidelity). Ours is nas-search on `shapes`, with all that its trials share prepared. Both with --workers at a
time on this machine, one way after the other, with graphs that were drawn at random; counted from the end of the first
trial to the end of the last.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from controller.decisions import uniform
from detector.architecture import PRIORS, Architecture
from detector.coco import load_split
from detector.command import keep_ray_to_itself
from detector.config_files import load_config
from nas.config import Config
from nas.space import space_around
from nas.store import Purpose, Store

SEARCH = [sys.executable, "-c", "import sys; from nas.commands import search; sys.exit(search())"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="shapes", metavar="NAME|FILE")
    parser.add_argument("--steps", type=int, default=200, help="of a naive trial")
    parser.add_argument("--trials", type=int, default=8, help="the naive way")
    parser.add_argument("--episodes", type=int, default=100, help="our way")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nas-naive-") as folder:
        mine = an_hour(ours(args.config, args.episodes, args.workers, Path(folder)))
        other = an_hour(naive(args.config, args.steps, args.trials, args.workers, Path(folder)))
    print("| way | trials an hour |\n|---|---|")
    print(f"| nas-search, `{args.config}` | {mine:.0f} |\n| Ray Tune, {args.steps} steps from scratch | {other:.0f} |")
    print(f"\nratio: {mine / other:.1f}, with {args.workers} workers")


def an_hour(ends: Sequence[float]) -> float:
    """Of trials that ended at these times, in seconds."""
    return 3600 * (len(ends) - 1) / (max(ends) - min(ends))


def ours(config: str, episodes: int, workers: int, folder: Path) -> list[float]:
    """When trials ended. A first search prepares."""
    command = [*SEARCH, "--config", config, "--algorithm", "random", "--confirm", "0", "--workers", str(workers)]
    for study, count in (("preparation", 1), ("measured", episodes)):
        subprocess.run([*command, "--study", study, "--episodes", str(count)], cwd=folder, check=True)
    store = Store(str(folder / "nas.db"), read_only=True)
    found = store.evaluations(store.find_study("measured")[0], Purpose.SEARCH)
    return [evaluation.ended.timestamp() for evaluation in found if evaluation.ended is not None]


def naive(config: str, steps: int, trials: int, workers: int, folder: Path) -> list[float]:
    """When trials ended."""
    keep_ray_to_itself(None)
    import ray
    from ray import tune

    space, stream = space_around(PRIORS["nas-fpn"]), np.random.default_rng(0)
    graphs = [space.architecture(uniform(space, stream)).to_dict() for _ in range(trials)]
    name = str(Path(config).absolute()) if Path(config).is_file() else config
    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        tuner = tune.Tuner(
            tune.with_parameters(trial, config_name=name, steps=steps),
            param_space={"graph": tune.grid_search(graphs)},
            run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
        )
        return [float(result.metrics["ended"]) for result in tuner.fit()]
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
    tune.report({"reward": reward, "ended": time.time()})


if __name__ == "__main__":
    main()
