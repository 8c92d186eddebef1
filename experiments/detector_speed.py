"""Our Cascade R-CNN beside torchvision's Faster R-CNN: python -m experiments.detector_speed

Both have the same ResNet-50, FPN of five levels, anchors, numbers of proposals and samples, and batch norm; neither has
a pyramid behind the FPN. Prints the time of one training step and of one detection for batches of images of 800x1333,
the ratios (runs of the two alternate, and the median of the pairs counts), and where the time of ours goes.
"""

import argparse
import statistics
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from detector.cascade_rcnn import CascadeRcnn
from detector.config import BackboneConfig, DetectorConfig
from detector.targets import Targets
from experiments.parts import parts_of, seconds, timed

CLASSES = 80
OBJECTS = 16  # in each image
IMAGE_HW = (800, 1333)
PADDED_HW = (800, 1344)
CONFIG = DetectorConfig(backbone=BackboneConfig(name="resnet50", weights="none", norm="bn"))


class NamedFeatures(nn.Module):
    """Backbone and FPN as torchvision's detectors want them."""

    out_channels = CONFIG.channels

    def __init__(self, ours: CascadeRcnn) -> None:
        super().__init__()
        self.backbone, self.fpn = ours.backbone, ours.fpn

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict((str(i), feature) for i, feature in enumerate(self.fpn(self.backbone(images))))


def faster_rcnn() -> FasterRCNN:
    rpn, cascade = CONFIG.rpn, CONFIG.cascade
    sides = [int(rpn.anchor_scale * CONFIG.base_stride * 2**level) for level in range(5)]
    return FasterRCNN(
        NamedFeatures(CascadeRcnn(CONFIG, None, CLASSES)),
        num_classes=CLASSES + 1,
        min_size=IMAGE_HW[0],
        max_size=IMAGE_HW[1],
        rpn_anchor_generator=AnchorGenerator(tuple((side,) for side in sides), (rpn.anchor_ratios,) * 5),
        rpn_pre_nms_top_n_train=rpn.train_candidates,
        rpn_post_nms_top_n_train=rpn.train_proposals,
        rpn_pre_nms_top_n_test=rpn.test_candidates,
        rpn_post_nms_top_n_test=rpn.test_proposals,
        box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(5)], cascade.pool_size, cascade.sampling_ratio),
        box_batch_size_per_image=cascade.samples,
        box_score_thresh=cascade.score_threshold,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    ours = CascadeRcnn(CONFIG, None, CLASSES).to(memory_format=torch.channels_last).to(device)
    theirs = faster_rcnn().to(memory_format=torch.channels_last).to(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{IMAGE_HW[0]}x{IMAGE_HW[1]}, ResNet-50, {name}; medians of {args.runs} pairs")
    print("| what | batch | Cascade R-CNN (ours) | Faster R-CNN (torchvision) | ratio |")
    print("|---|---|---|---|---|")
    for batch in args.batches:
        images, objects = inputs(batch, device)
        steps = (partial(our_step, ours, images, objects), partial(their_step, theirs, images, objects))
        looks = (partial(our_detection, ours, images), partial(their_detection, theirs, images))
        for what, pair, is_training in (("training step", steps, True), ("detection", looks, False)):
            for model in (ours, theirs):
                model.train(is_training)
            times = [(seconds(pair[0], device), seconds(pair[1], device)) for _ in range(args.runs + 1)][1:]
            mine, other = (statistics.median(side) for side in zip(*times, strict=True))
            ratio = statistics.median(a / b for a, b in times)
            print(f"| {what} | {batch} | {mine:.3f} s | {other:.3f} s | {ratio:.2f} |", flush=True)
    images, objects = inputs(1, device)
    ours.train()
    breakdown("training step, forward", ours, partial(our_loss, ours, images, objects), device)
    ours.eval()
    breakdown("detection", ours, partial(our_detection, ours, images), device)


def inputs(batch: int, device: torch.device) -> tuple[Tensor, Targets]:
    corner = torch.rand(batch, OBJECTS, 2) * torch.tensor([IMAGE_HW[1] - 200.0, IMAGE_HW[0] - 200.0])
    boxes = torch.cat((corner, corner + 20 + torch.rand(batch, OBJECTS, 2) * 180), dim=2)
    targets = Targets(boxes, torch.randint(0, CLASSES, (batch, OBJECTS)))
    return torch.rand(batch, 3, *IMAGE_HW).to(device), targets.to(device)


def padded(images: Tensor) -> tuple[Tensor, Tensor]:
    pad = (0, PADDED_HW[1] - images.shape[3], 0, PADDED_HW[0] - images.shape[2])
    hw = torch.tensor([IMAGE_HW] * len(images), device=images.device)
    return nn.functional.pad(images, pad).contiguous(memory_format=torch.channels_last), hw


def our_loss(model: CascadeRcnn, images: Tensor, objects: Targets) -> Tensor:
    losses: dict[str, Tensor] = model(*padded(images), objects)
    return torch.stack(list(losses.values())).sum()


def our_step(model: CascadeRcnn, images: Tensor, objects: Targets) -> None:
    our_loss(model, images, objects).backward()  # type: ignore[no-untyped-call]
    model.zero_grad()


def their_step(model: FasterRCNN, images: Tensor, objects: Targets) -> None:
    pairs = zip(objects.boxes, objects.labels, strict=True)
    losses = model(list(images), [{"boxes": boxes, "labels": labels + 1} for boxes, labels in pairs])
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    model.zero_grad()


def our_detection(model: CascadeRcnn, images: Tensor) -> None:
    model.detect(*padded(images))


@torch.no_grad()
def their_detection(model: FasterRCNN, images: Tensor) -> None:
    model(list(images))


def breakdown(what: str, model: CascadeRcnn, run: Callable[[], object], device: torch.device) -> None:
    """Seconds inside each part of ours; what a part calls is not counted again in the rest."""
    run()
    with timed({"backbone": model.backbone, "FPN": model.fpn} | parts_of(model.heads), device) as spent:
        total = seconds(run, device)
    spent["the rest (assignment, losses, suppression)"] = total - sum(spent.values())
    print(f"\n{what}, batch 1: {total:.3f} s")
    for name, part in spent.items():
        print(f"  {name}: {part:.3f} s, {100 * part / total:.0f} %")


if __name__ == "__main__":
    main()
