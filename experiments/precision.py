"""Does bfloat16 rank graphs as float32 does? python -m experiments.precision

Trials of `shapes` (as they are by default, and with --steps) of the sixteen graphs of experiments.fidelity, in float32
and under bfloat16 autocast, on the same seed. Printed: Kendall's tau between both, the mean and the largest difference,
and what another seed in float32 differs by. Numbers are rounded alike on CPUs and GPUs; how much sooner a GPU is
through, this does not say.
"""

import argparse
import statistics
from collections.abc import Sequence

import torch
from scipy.stats import kendalltau

from detector.architecture import PRIORS
from detector.coco import load_split
from detector.config_files import load_config
from detector.progress import Progress
from experiments.fidelity import graphs
from nas.config import Config
from nas.proxy import Proxy, choose_device, load_proxy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="shapes")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 20])
    args = parser.parse_args()
    config = load_config(args.config, Config)
    data = load_split(config.data, None, "train")
    with Progress() as progress:
        proxy = load_proxy(config, data, PRIORS["nas-fpn"], choose_device(), progress)
    print("| steps | compared with float32 | tau | mean difference | largest |\n|---|---|---|---|---|")
    for steps in args.steps:
        exact = rewards(proxy, 0, steps)
        report(steps, "bfloat16", exact, rewards(proxy, 0, steps, torch.bfloat16))
        report(steps, "another seed", exact, rewards(proxy, 1, steps))


def rewards(proxy: Proxy, seed: int, steps: int, dtype: torch.dtype = torch.float32) -> list[float]:
    """Of all graphs, in their order."""
    with torch.autocast(choose_device().type, dtype=dtype, enabled=dtype != torch.float32):
        return [proxy.evaluate(graph.canonical(), seed, steps) for graph in graphs().values()]


def report(steps: int, what: str, exact: Sequence[float], other: Sequence[float]) -> None:
    differences = [theirs - ours for ours, theirs in zip(exact, other, strict=True)]
    tau = float(kendalltau(exact, other).statistic)
    largest = max(differences, key=abs)
    print(f"| {steps} | {what} | {tau:.3f} | {statistics.fmean(differences):+.4f} | {largest:+.4f} |", flush=True)


if __name__ == "__main__":
    main()
