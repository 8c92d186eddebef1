"""What the tests of distributed training do in each process.

python -m tests.detector.together RANK COUNT FOLDER, or, for the training of FOLDER/c.yaml into FOLDER/OUTPUT,
python -m tests.detector.together RANK COUNT FOLDER OUTPUT.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from detector.architecture import PRIORS
from detector.cascade_rcnn import CascadeRcnn
from detector.coco import load_split
from detector.config import DetectorSections
from detector.config_files import load_config
from detector.final_training import FinalTraining, Job
from detector.inference import detect_together
from detector.loader import training_loader
from detector.norm import SyncBatchNormOnCpu
from detector.processes import Processes, normaliser
from detector.sampling import draws_of
from detector.train import Training
from detector.train_final import Terminal

CPU = torch.device("cpu")
STEPS = 3
CASES = {
    "batched, group norm": ("gn", True, 1),
    "batched, synchronised norm": ("sync_bn", True, 1),
    "torchvision's proposals": ("gn", False, 1),
    "in two parts": ("gn", True, 2),
}
ALL = 100_000  # more samples than there are candidates: no choice is left to chance


def config_of(norm: str) -> DetectorSections:
    """The smoke configuration without chance, with a norm that sees all processes or a single image."""
    found = load_config("smoke", DetectorSections)
    detector = found.detector
    rpn = detector.rpn.model_copy(update={"samples": ALL})
    cascade = detector.cascade.model_copy(update={"samples": ALL, "positive_fraction": 1.0})
    backbone = detector.backbone.model_copy(update={"norm": norm})
    parts = {"rpn": rpn, "cascade": cascade, "backbone": backbone, "pyramid_norm": norm}
    training = {"optimizer": "sgd", "learning_rate": 0.02, "batch_size": 4, "steps": STEPS, "warmup_steps": 0}
    return found.model_copy(
        update={
            "detector": detector.model_copy(update=parts),
            "training": found.training.model_copy(update=training | {"clip_norm": 5.0}),
        }
    )


def trained(norm: str, batched: bool, accumulate: int) -> dict[str, Any]:
    """Weights and losses after a few steps."""
    config = config_of(norm)
    torch.manual_seed(Processes.here().rank)  # the first one's weights are everyone's
    data = load_split(config.data, None, "train")
    model = CascadeRcnn(config.detector, PRIORS["nas-fpn"], data.num_classes, batched=batched)
    processes = Processes.here()
    draws = draws_of(data, config.training).batches(0, processes.rank, processes.count)
    training = Training(model, config.training, CPU, average_decay=0.5, accumulate=accumulate, seed=0)
    losses: list[dict[str, float]] = []
    batches = training_loader(data, config.training, model.padding_multiple).load(draws)
    training.run(batches, lambda _step, found: losses.append(dict(found)))
    return {"weights": model.state_dict(), "average": training.result.state_dict(), "losses": losses}


def detected() -> list[Any]:
    """Of a model whose statistics differ from process to process."""
    config = config_of("bn")
    torch.manual_seed(0)
    data = load_split(config.data, None, "val")
    model = CascadeRcnn(config.detector, PRIORS["nas-fpn"], data.num_classes, batched=True)
    if rank := Processes.here().rank:
        for buffer in model.buffers():
            buffer += rank if buffer.is_floating_point() else 0
    few = config.training.model_copy(update={"batch_size": 5})  # 24 images: the last batch is short
    return detect_together(model, data, few, config.detector.testing, CPU)


def told() -> dict[str, Any]:
    """What processes say to each other."""
    processes = Processes.here()
    return {
        "any": [processes.any(processes.rank == 1), processes.any(False)],
        "mean": processes.mean(torch.tensor([1.0, processes.rank])),
        "gathered": processes.gather(f"of {processes.rank}"),
        "normalisers": [float(normaliser(torch.arange(n) < n)) for n in (3 + 2 * processes.rank, 0)],
        "normalisers of one": float(normaliser(torch.arange(2) < processes.rank)),
    }


def normalised(maps: torch.Tensor) -> dict[str, Any]:
    """A synchronised norm's output, gradient and statistics for this process's share of maps."""
    processes = Processes.here()
    norm = SyncBatchNormOnCpu(maps.shape[1])
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    own = maps[processes.rank :: processes.count].clone().requires_grad_()
    out = norm(own)
    out.pow(3).sum().backward()
    return {"out": out.detach(), "gradient": own.grad, "mean": norm.running_mean, "variance": norm.running_var}


def maps() -> torch.Tensor:
    return 100 + torch.randn(6, 5, 4, 3, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 6)[:, None, None]


def run(count: int, folder: Path, *options: str) -> None:
    """So many processes, to their end."""
    command = [sys.executable, "-m", "tests.detector.together"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen([*command, str(rank), str(count), str(folder), *options], cwd=root, env=environment)
        for rank in range(count)
    ]
    assert [process.wait(timeout=240) for process in started] == [0] * count


def main() -> None:
    rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=count)
    if len(sys.argv) > 4:
        config = load_config(str(folder / "c.yaml"), DetectorSections)
        output = folder / sys.argv[4]
        output.mkdir(exist_ok=True)
        FinalTraining(Job(PRIORS["nas-fpn"], config, None, None, output, 10, {}), CPU, Terminal(is_quiet=True)).run()
    else:
        found = {name: trained(*case) for name, case in CASES.items()}
        content = {"trained": found, "detected": detected(), "told": told(), "normalised": normalised(maps())}
        torch.save(content, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
