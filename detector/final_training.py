"""The final training of one detector, from a job to weights and figures: alone, or as one process of several."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from detector.architecture import Architecture
from detector.cascade_rcnn import CascadeRcnn
from detector.checkpoint import TrainedModel, make_model
from detector.coco import CocoData, load_split
from detector.command import write_json
from detector.config import DetectorSections, TrainingConfig
from detector.drawing import draw_detections
from detector.errors import NonFiniteLossError, UserError
from detector.evaluate import coco_metrics
from detector.events import Events
from detector.inference import detect_together
from detector.levels import padding_multiple
from detector.loader import Batch, training_loader
from detector.processes import Processes
from detector.resume import Checkpoints
from detector.sampling import draws_of, image_weights, single_class_share
from detector.targets import Detections
from detector.train import Training
from detector.transfer import take_over

log = logging.getLogger(__name__)

EVENTS = ".train-final"  # how the names of files for TensorBoard end
SAMPLES = 4  # pictures with detections, for each evaluation
SAMPLE_SCORE = 0.3  # of what is drawn


class Reporter(Protocol):
    """Who a training tells how it goes, and who may ask it to stop."""

    def progress(self, what: str, step: int, steps: int) -> None: ...

    def say(self, line: str) -> None: ...

    def warn(self, line: str) -> None: ...

    def stops(self) -> bool:
        """Whether the training is to end after this step."""
        ...

    def attentive(self) -> AbstractContextManager[None]:
        """Within it signals are not acted on but noted, for stops."""
        ...


@dataclass(frozen=True)
class Job:
    """What is to be trained, from what, and where results go. identity: plain values that say what it is."""

    architecture: Architecture | None
    config: DetectorSections
    data: Path | None
    init: Path | None
    output: Path
    checkpoint_minutes: int
    identity: Mapping[str, Any]

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.output / "checkpoints", self.identity)

    def splits(self) -> tuple[CocoData, CocoData]:
        """For training and validation. Raises UserError."""
        training, validation = (load_split(self.config.data, self.data, split) for split in ("train", "val"))
        return training, validation

    def new_model(self, classes: tuple[str, ...], say: Callable[[str], None]) -> CascadeRcnn:
        """With the weights that it starts from. Raises UserError."""
        torch.manual_seed(self.config.training.seed)
        model = make_model(self.config, self.architecture, len(classes), pretrained=self.init is None)
        if self.init is not None:
            needs_backbone = self.config.detector.backbone.weights != "none"
            take_over(model, classes, self.init, say, needs_backbone=needs_backbone)
        return model


@contextmanager
def memory_is_told() -> Iterator[None]:
    """Raises UserError where a GPU's memory is too small."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory is too small for this training ({' '.join(str(error).split())[:120]}); lower "
            "training.batch_size, raise training.accumulate, or give --workers more GPUs"
        ) from error


def sampling_line(data: CocoData, training: TrainingConfig) -> str:
    share = single_class_share(data, image_weights(data, training.sampling, training.diversity_epsilon))
    return f"sampling {training.sampling}: {100 * share:.1f} % of the draws go to images of a single class"


class _Lap:
    """Seconds since the last call."""

    def __init__(self) -> None:
        self.begun = time.monotonic()

    def __call__(self) -> float:
        before, self.begun = self.begun, time.monotonic()
        return self.begun - before


class FinalTraining:
    """A job under way. All processes of a distributed run make one each; the first writes files and speaks."""

    def __init__(self, job: Job, device: torch.device, reporter: Reporter) -> None:
        """Goes on from the newest checkpoint. Raises UserError."""
        self.job = job
        self.config = job.config.training
        self.device = device
        self.reporter = reporter
        self.processes = Processes.here()
        self.training_data, self.validation_data = job.splits()
        self.draws = draws_of(self.training_data, self.config)
        interrupted, damaged = job.checkpoints.load()
        classes = self.training_data.category_names
        if interrupted is None:
            model = job.new_model(classes, reporter.say)
        else:
            model = make_model(job.config, job.architecture, len(classes), pretrained=False)
        multiple = padding_multiple(job.config.detector.base_stride)
        self.loader = training_loader(self.training_data, self.config, multiple)
        self.training = Training(
            model.to(memory_format=torch.channels_last).to(device),
            self.config,
            device,
            average_decay=self.config.average_decay,
            accumulate=self.config.accumulate,
            seed=self.config.seed,
        )
        self.waited = self.fitted = 0.0  # seconds of training: for images, and all others
        self.evaluations: list[tuple[int, float]] = []  # AP by step
        self.is_stopping = False
        self._damaged = damaged
        if interrupted is not None:
            self._load(interrupted)

    def _load(self, content: Mapping[str, Any]) -> None:
        self.training.load(content["training"])
        self.waited, self.fitted = content["waited"], content["fitted"]
        self.evaluations = [(int(step), float(ap)) for step, ap in content["evaluations"]]

    def run(self) -> None:
        """Train to the end, with a checkpoint now and then; save, and evaluate. Asked to stop it ends before that, and
        the same job goes on where it was.
        """
        with memory_is_told(), self._records():
            self._run()

    def _run(self) -> None:
        if self.processes.is_first:
            for path in self._damaged:
                self.reporter.say(f"train-final: {path} cannot be read and is passed over")
                path.unlink()
        line = sampling_line(self.training_data, self.config)
        self.reporter.say(line)
        log.info(line)
        if self.training.step:
            line = f"going on after step {self.training.step} of {self.config.steps}"
            self.reporter.say(f"train-final: {line}")
            log.info(line)
        with self.reporter.attentive():
            self._train()
        if self.training.step < self.config.steps:
            if self.is_stopping:
                return
            raise RuntimeError(f"the training ended after step {self.training.step} of {self.config.steps}")
        if self.processes.is_first:
            try:
                self._result().save(self.job.output / "model.pt")
            except OSError as error:
                raise UserError(f"--output {self.job.output}: model.pt cannot be written ({error.strerror})") from error
        self._evaluate()

    @contextmanager
    def _records(self) -> Iterator[None]:
        """train.log, in which a diverged training ends, and events; the first process writes them."""
        if not self.processes.is_first:
            yield
            return
        self.events = Events(self.job.output, EVENTS, "--output")
        handler = logging.FileHandler(self.job.output / "train.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
        try:
            yield
        except NonFiniteLossError as error:
            log.error("%s", error)
            raise
        finally:
            log.removeHandler(handler)
            handler.close()
            self.events.close()

    def _train(self) -> None:
        lap, saved = _Lap(), time.monotonic()
        every_s = 60.0 * self.job.checkpoint_minutes

        def on_step(step: int) -> None:
            nonlocal saved
            self._listen()  # which waits for the others
            self.fitted += lap()
            self._evaluate_if_due()
            if time.monotonic() - saved >= every_s:
                self._save()
                saved = time.monotonic()
            lap()

        def batches() -> Iterator[Batch]:
            rank, count = self.processes.rank, self.processes.count
            try:
                for batch in self.loader.load(self.draws.batches(self.training.step, rank, count)):
                    self.waited += lap()
                    yield batch
                    if self.is_stopping:
                        return
            except RuntimeError:
                if not self._is_signal():
                    raise
                self.is_stopping = True

        self._evaluate_if_due()  # a signal may have come in between
        self._listen()
        if not self.is_stopping:
            self.training.run(batches(), self._on_check, on_step)
        self._save()

    def _listen(self) -> None:
        """Whether one of the processes is to stop: then all of them do, after the same step."""
        self.is_stopping = self.processes.any(self.reporter.stops())

    def _is_signal(self) -> bool:
        """Whether an error may come from loader processes that got the signal, too. Of several processes none may go
        its own way.
        """
        return self.processes.count == 1 and self.reporter.stops()

    def _on_check(self, step: int, losses: Mapping[str, float]) -> None:
        if not self.processes.is_first:
            return
        speed = self.config.batch_size * step / max(1e-9, self.waited + self.fitted)
        rate = self.training.optimizer.param_groups[0]["lr"]
        waited = f", {self._data_wait():.0%} of it waiting for them" if self._data_wait() >= 0.01 else ""
        line = f"training, loss {losses['loss']:.3f}, {speed:.3g} images/s{waited}{self._memory()}"
        self.reporter.progress(line, step, self.config.steps)
        log.info("step %d of %d, loss %.4f", step, self.config.steps, losses["loss"])
        for name, value in losses.items():
            self.events.scalar(f"train/{name}", value, step)
        self.events.scalar("train/learning_rate", rate, step)
        self.events.scalar("train/images_per_second", speed, step)
        self.events.scalar("train/data_wait", self._data_wait(), step)
        self.events.flush()

    def _memory(self) -> str:
        if self.device.type != "cuda":
            return ""
        return f", {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB"

    def _evaluate_if_due(self) -> None:
        step, every = self.training.step, self.config.evaluate_steps
        if every is None or not step or step % every or step == self.config.steps:
            return
        if step in dict(self.evaluations):
            return
        try:
            self._evaluate()
        except RuntimeError:  # it is made up for
            if not self._is_signal():
                raise
            self.is_stopping = True
        self.training.model.train()

    def _save(self) -> None:
        """A checkpoint."""
        if not self.processes.is_first:
            return
        content = {
            "training": self.training.state(),
            "waited": self.waited,
            "fitted": self.fitted,
            "evaluations": self.evaluations,
        }
        checkpoints = self.job.checkpoints
        try:
            checkpoints.save(self.training.step, content)
        except OSError as error:  # a training that could go on is not to end over that
            self._warn(f"no checkpoint after step {self.training.step}: {checkpoints.folder} {error.strerror}")

    def _warn(self, line: str) -> None:
        self.reporter.warn(f"train-final: {line}")
        log.warning(line)

    def _result(self) -> TrainedModel:
        job = self.job
        return TrainedModel(self.training.result, job.architecture, job.config, self.training_data.category_names)

    def _evaluate(self) -> None:
        """On the validation split; keeps the best weights where there is more than one evaluation, and writes
        metrics.json after the last.
        """
        step, data, result = self.training.step, self.validation_data, self._result()
        found = detect_together(
            result.model,
            data,
            self.config,
            self.job.config.detector.testing,
            self.device,
            partial(self.reporter.progress, "evaluating"),
        )
        if not self.processes.is_first:
            self.evaluations.append((step, math.nan))
            return
        metrics = coco_metrics(data, found)
        log.info("AP %.4f after step %d", metrics.ap, step)
        self.events.scalar("val/AP", metrics.ap, step)
        self.events.scalar("val/AP50", metrics.ap50, step)
        self._show_samples(found)
        if self.config.evaluate_steps is not None and metrics.ap > max((ap for _, ap in self.evaluations), default=-1):
            try:
                result.save(self.job.output / "best.pt")
            except OSError as error:
                self._warn(f"the best weights so far, after step {step}, are not kept: {error.strerror}")
        self.evaluations.append((step, metrics.ap))
        if step == self.config.steps:
            content = {"split": "val", "images": len(data), **self._figures()}
            write_json(self.job.output / "metrics.json", metrics.to_dict() | content)
            self.job.checkpoints.remove()
            self.reporter.say(
                f"AP {metrics.ap:.4f}  AP50 {metrics.ap50:.4f}  AP75 {metrics.ap75:.4f}  on {len(data)} images"
            )

    def _show_samples(self, found: list[Detections]) -> None:
        data = self.validation_data
        for index in range(min(SAMPLES, len(data))):
            shown = Detections(*(part[found[index].scores >= SAMPLE_SCORE] for part in found[index]))
            picture = Image.fromarray(data.image(index).permute(1, 2, 0).numpy())
            drawn = draw_detections(picture, shown, data.category_names)
            self.events.picture(f"val/image_{data.image_ids[index]}", drawn, self.training.step)
        self.events.flush()

    def _data_wait(self) -> float:
        return self.waited / max(1e-9, self.waited + self.fitted)

    def _figures(self) -> dict[str, Any]:
        """For metrics.json; data_wait is the share of the time in which training waited for images."""
        seconds = self.waited + self.fitted
        of_gpu = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        counts = {
            name: {"images": len(data), "boxes_left_out": data.skipped, "images_left_out": data.missing}
            for name, data in (("train", self.training_data), ("val", self.validation_data))
        }
        return {
            "data": counts,
            "processes": self.processes.count,
            "training_seconds": round(seconds, 1),
            "images_per_second": round(self.config.batch_size * self.config.steps / seconds, 2),
            "data_wait": round(self._data_wait(), 3),
            "gpu_bytes": of_gpu,
            "ap_by_step": [list(evaluation) for evaluation in self.evaluations],
        }
