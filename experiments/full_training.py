"""Full training, which proxies and searches are judged by: the whole detector, from scratch or from a backbone that was
pre-trained, as train-final does it.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detector.architecture import Architecture
from detector.checkpoint import make_model
from detector.coco import load_split
from detector.evaluate import ap_and_ap50
from detector.inference import detect_split, views_of
from detector.loader import training_loader
from detector.sampling import draws_of
from detector.train import train
from nas.config import Config
from nas.preparation import DETECTOR_FILE, features_folder, prepare
from nas.prepared import other_preparation
from nas.space import load_prior

CPU = torch.device("cpu")
# What trains furthest in 2000 steps (pilots, whose script is not kept). The published graph came to an AP of 0.441 and
# 0.413 (two seeds) at a rate of 0.003, to 0.486 and 0.463 at 0.006, to 0.501 and 0.156 at 0.012. After a warm-up of 100
# steps some trainings break off (the loss of the first stage's classes stays where it is): the graphs "top-down" and
# "down, then up" ended at 0.233 and 0.259. After 400 steps the same seeds come to 0.470 and 0.489.
LEARNING_RATE = 0.006
WARMUP_STEPS = 400
CLIP_NORM = 1.0
NAME = "full training"
FROM_BACKBONE = "full training from a backbone"
BACKBONE = "backbone."  # of the detector's weights


def full_training(
    config: Config,
    graph: Architecture | None,
    seed: int,
    steps: int,
    pyramid: Callable[[], nn.Module] | None = None,
    backbone: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """AP and AP50 on the validation split, and CPU seconds. None is the plain FPN; pyramid makes what is to stand
    behind it instead of a graph; backbone is the state that it starts from instead of random weights. Batches are of
    the proxy's size, which is half of train-final's on `shapes`; the learning rate is that of so short a training.
    """
    start = time.process_time()
    length = {"seed": seed, "steps": steps, "batch_size": config.proxy.trial.batch_size}
    update = length | {
        "learning_rate": LEARNING_RATE,
        "warmup_steps": min(WARMUP_STEPS, steps // 5),
        "clip_norm": CLIP_NORM,
    }
    training = config.training.model_copy(update=update)
    data, validation = (load_split(config.data, None, split) for split in ("train", "val"))
    torch.manual_seed(seed)
    model = make_model(config, graph, data.num_classes)
    if pyramid is not None:
        model.heads.pyramid = pyramid()
    if backbone is not None:
        model.backbone.load_state_dict(backbone)
    model = model.to(memory_format=torch.channels_last)
    loader = training_loader(data, training, model.padding_multiple)
    train(model, loader.load(draws_of(data, training).batches()), training, CPU)
    views = views_of(validation, training, config.detector.testing, model.padding_multiple)
    ap, ap50 = ap_and_ap50(validation, detect_split(model, views, validation.image_hw, CPU))
    return {"ap": ap, "ap50": ap50, "seconds": time.process_time() - start}


def trained_backbone(config: Config, seed: int) -> dict[str, Tensor]:
    """The state of a backbone that was trained in a detector with the plain FPN, on the proxy's pretrain part.

    It is of another preparation (proxy.seed) than the one that judges graphs, so that what agrees with the proxy is not
    an opinion of one set of maps. Prepared at the first call on this machine.
    """
    data, prior = load_split(config.data, None, "train"), load_prior(config.search.prior)
    folder = prepare(other_preparation(config, 1 + seed), data, prior, CPU, lambda what, step, steps: None)
    state = torch.load(features_folder(folder) / DETECTOR_FILE, weights_only=True)
    return {name.removeprefix(BACKBONE): weight for name, weight in state.items() if name.startswith(BACKBONE)}
