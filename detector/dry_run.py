"""What a final training would do: its data, graph, cost, and a step of it, without leaving anything."""

import resource
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from detector.cascade_rcnn import CascadeRcnn
from detector.coco import CocoData
from detector.config import TrainingConfig
from detector.final_training import Job, Reporter, memory_is_told, sampling_line
from detector.inference import detect_split, views_of
from detector.loader import training_loader
from detector.sampling import draws_of
from detector.train import Training

STEPS = 3  # tried; the first one is slower than those that follow


def dry_run(job: Job, workers: int, device: torch.device, reporter: Reporter) -> None:
    """Say it, a line each, for the share of one of `workers` processes. Raises UserError."""
    job.checkpoints.load()  # of another run, or such that cannot be read
    with memory_is_told():
        _dry_run(job, workers, device, reporter.say)


def _dry_run(job: Job, workers: int, device: torch.device, say: Callable[[str], None]) -> None:
    training = job.config.training
    data, validation = job.splits()
    for name, split in (("training", data), ("validation", validation)):
        say(f"{name}: {len(split)} images, {split.num_objects} boxes, {split.num_classes} classes")
    say(sampling_line(data, training))
    graph = job.architecture
    say("pyramid: plain FPN" if graph is None else f"pyramid: {graph.hash[:12]}, {len(graph.cells)} merging cells")
    model = job.new_model(data.category_names, say)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    total = sum(weight.numel() for weight in model.parameters())
    say(f"weights: {total / 1e6:.1f} million, {trained / 1e6:.1f} million of them trained")
    epochs = training.steps * training.batch_size / len(data)
    say(f"training: {training.steps} steps of {training.batch_size} images, {epochs:.1f} times the data, on {device}")
    tried = _try(model, data, training, device, workers)
    say(f"one process of {workers}: {tried.seconds:.2f} s a step, {tried.gib:.1f} GiB of {tried.memory}")
    say(f"about {_duration(tried.seconds * training.steps)} for all steps, without loading images or evaluations")
    first = validation.subset(np.arange(min(len(validation), training.batch_size)))
    views = views_of(first, training, job.config.detector.testing, model.padding_multiple)
    begun = time.monotonic()
    found = detect_split(model, views, first.image_hw, device)
    seconds = (time.monotonic() - begun) / len(first) * len(validation)
    say(f"evaluation: about {_duration(seconds)} for {len(validation)} images; it works on the first {len(found)}")
    steps = job.checkpoints.newest_step()
    say(f"{job.output}: " + (f"would go on after step {steps}" if steps else "would start anew"))


class _Tried(NamedTuple):
    """Seconds a step, and the most memory (GiB) of a kind."""

    seconds: float
    gib: float
    memory: str


def _try(model: CascadeRcnn, data: CocoData, training: TrainingConfig, device: torch.device, workers: int) -> _Tried:
    loader = training_loader(data, training, model.padding_multiple)
    few = training.model_copy(update={"steps": STEPS, "warmup_steps": 0, "learning_rate": 1e-9})
    batches = list(loader.load(draws_of(data, few).batches(0, 0, workers)))
    at: list[float] = []

    def on_step(_step: int) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        at.append(time.monotonic())

    model = model.to(memory_format=torch.channels_last).to(device)
    tried = Training(
        model,
        few,
        device,
        average_decay=training.average_decay,
        accumulate=training.accumulate,
        seed=training.seed,
    )
    tried.run(batches, None, on_step)
    if device.type == "cuda":
        return _Tried(at[-1] - at[-2], torch.cuda.max_memory_allocated(device) / 2**30, "the GPU's memory")
    return _Tried(at[-1] - at[-2], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "memory")


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
