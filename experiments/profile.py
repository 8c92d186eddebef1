"""Where does the time go? python -m experiments.profile

Of a search on `shapes` (or --config): a trial as it is by default, a step of a trial that trains, and a step of full
training; by part, in milliseconds and shares, medians of --runs. On one core, as a trial has it, or on a GPU if there
is one. What is prepared is made first, if the cache does not have it.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from detector.architecture import PRIORS
from detector.cascade_rcnn import CascadeRcnn
from detector.checkpoint import make_model
from detector.coco import CocoData, load_split
from detector.config_files import load_config
from detector.evaluate import average_precision
from detector.loader import training_loader
from detector.progress import Progress
from detector.sampling import draws_of
from detector.train import make_optimizer
from experiments.parts import parts_of, seconds, timed
from nas.config import Config
from nas.pool import estimate_statistics, reset_statistics
from nas.preparation import FeatureBatch, load_heads
from nas.proxy import EVALUATION_BATCH, FrozenProxy, choose_device, load_proxy

GRAPH = PRIORS["nas-fpn"].canonical()
Times = dict[str, float]  # seconds by part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="shapes")
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    device = choose_device()
    config = load_config(args.config, Config)
    data = load_split(config.data, args.data, "train")
    with Progress() as progress:
        proxy = load_proxy(config, data, GRAPH, device, progress)
    assert isinstance(proxy, FrozenProxy), "what is profiled is the frozen protocol"
    torch.set_num_threads(1)
    report("a trial of no steps", partial(trial, proxy), args.runs)
    report(f"a step of a trial, {config.proxy.trial.batch_size} images", step_of_trial(proxy), args.runs)
    report(f"a step of full training, {config.training.batch_size} images", step_of_training(config, data), args.runs)


def report(what: str, run: Callable[[], Times], runs: int) -> None:
    """A table; the first run is not counted."""
    measured = [run() for _ in range(runs + 1)][1:]
    medians = {part: statistics.median(times[part] for times in measured) for part in measured[0]}
    total = sum(medians.values())
    print(f"\n| {what} | ms | share |\n|---|---|---|")
    for part, of_part in medians.items():
        print(f"| {part} | {1000 * of_part:.1f} | {of_part / total:.0%} |")
    print(f"| all | {1000 * total:.1f} | |", flush=True)


def trial(proxy: FrozenProxy) -> Times:
    """As FrozenProxy.evaluate does it without training."""
    device, classes = proxy.device, proxy.reward.num_classes
    heads = load_heads(proxy.folder, proxy.config, classes, GRAPH, device)
    times = {"loading weights": seconds(lambda: load_heads(proxy.folder, proxy.config, classes, GRAPH, device), device)}
    heads = heads.to(memory_format=torch.channels_last)
    reset_statistics(heads.pyramid)
    batches = list(proxy.trial_cache.shuffled(EVALUATION_BATCH, proxy.config.proxy.norm_batches, 0))
    times["statistics of norms"] = seconds(lambda: estimate_statistics(heads.pyramid, batches), device)
    with timed(parts_of(heads), device) as spent:
        detecting = seconds(lambda: proxy.detections(heads), device)
    times |= {f"detection: {part}": of_part for part, of_part in spent.items()}
    times["detection: suppression and the rest"] = detecting - sum(spent.values())
    found = proxy.detections(heads)
    times["AP"] = seconds(lambda: average_precision(proxy.reward, found), device)
    return times


def step_of_trial(proxy: FrozenProxy) -> Callable[[], Times]:
    heads = load_heads(proxy.folder, proxy.config, proxy.reward.num_classes, GRAPH, proxy.device)
    heads = heads.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(heads, proxy.config.proxy.trial)
    size = proxy.config.proxy.trial.batch_size

    def run() -> Times:
        batch: list[FeatureBatch] = []
        load = seconds(lambda: batch.extend(proxy.trial_cache.shuffled(size, 1, 0)), proxy.device)
        losses: list[torch.Tensor] = []
        with timed(parts_of(heads), proxy.device) as spent:
            forward = seconds(lambda: losses.extend(heads(*batch[0]).values()), proxy.device)
        return _step_times(load, forward, spent, losses, optimizer, proxy.device)

    return run


def step_of_training(config: Config, data: CocoData) -> Callable[[], Times]:
    device = choose_device()
    model: CascadeRcnn = make_model(config, GRAPH, data.num_classes, pretrained=False)
    model = model.to(memory_format=torch.channels_last).to(device).train()
    optimizer = make_optimizer(model, config.training)
    batches = training_loader(data, config.training, model.padding_multiple).load(
        draws_of(data, config.training).batches()
    )
    parts = {"backbone": model.backbone, "FPN": model.fpn} | parts_of(model.heads)

    def run() -> Times:
        batch = []
        load = seconds(lambda: batch.append(next(batches).to(device)), device)
        losses: list[torch.Tensor] = []
        with timed(parts, device) as spent:
            forward = seconds(lambda: losses.extend(model(*batch[0]).values()), device)
        return _step_times(load, forward, spent, losses, optimizer, device)

    return run


def _step_times(
    load: float,
    forward: float,
    spent: Mapping[str, float],
    losses: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> Times:
    """The rest of a step is done here."""

    def backward() -> None:
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    times = {"data": load} | {f"forward: {part}": of_part for part, of_part in spent.items()}
    times["forward: assignment, losses, the rest"] = forward - sum(spent.values())
    return times | {"backward": seconds(backward, device), "optimizer": seconds(update, device)}


if __name__ == "__main__":
    main()
