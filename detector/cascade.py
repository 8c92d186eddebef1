"""The cascade of box heads (Cai & Vasconcelos 2018, arXiv:1712.00726)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detector import matching
from detector.box_head import BoxHead
from detector.boxes import clip, decode, encode
from detector.choices import CascadeTest
from detector.config import CascadeConfig
from detector.processes import normaliser
from detector.roi_pool import RoiAlign
from detector.targets import Proposals, Targets


class Cascade(nn.Module):
    """Three heads, each trained on the boxes that the one before it refined, at a rising IoU."""

    delta_stds: Tensor

    def __init__(self, config: CascadeConfig, pool: RoiAlign, channels: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.pool = pool
        self.heads = nn.ModuleList(
            BoxHead(kind, channels, size, num_classes, config.width)
            for kind, size in zip(config.head_kinds, config.pool_sizes, strict=True)
        )
        self.register_buffer("delta_stds", torch.tensor(config.delta_stds), persistent=False)

    def losses(
        self, features: list[Tensor], proposals: Proposals, targets: Targets, image_hw: Tensor
    ) -> dict[str, Tensor]:
        """Classification and box loss of each stage, weighted.

        Ground truth joins the regions before they are sampled, and stays where it is from stage to stage, so that late
        stages see objects that early ones missed.
        """
        features = self.pool.prepared(features)
        losses: dict[str, Tensor] = {}
        regions, is_truth = self._sample(proposals, targets)
        for stage, head in enumerate(self.heads):
            pooled = self.pool(features, regions.boxes, self.config.pool_sizes[stage])
            logits, deltas = (out.view(*regions.valid.shape, -1) for out in head(pooled))
            std = self.delta_stds[stage]
            labels, goal = self._assign(regions.boxes, targets, self.config.ious[stage], std)
            classification, box = stage_losses(logits, deltas, labels, goal, regions.valid)
            weight = self.config.loss_weights[stage]
            losses[f"stage{stage}_class"] = weight * classification
            losses[f"stage{stage}_box"] = weight * box
            regions = self._refine(regions, deltas.detach(), std, image_hw, is_truth)
        return losses

    def _sample(self, proposals: Proposals, targets: Targets) -> tuple[Proposals, Tensor]:
        """Regions of the first stage, and which of them are ground truth."""
        boxes = torch.cat((proposals.boxes, targets.boxes), dim=1)
        valid = torch.cat((proposals.valid, targets.valid), dim=1)
        is_positive = matching.match(boxes, targets).iou >= self.config.ious[0]
        index, chosen = matching.sample(
            is_positive & valid, ~is_positive & valid, self.config.samples, self.config.positive_fraction
        )
        is_truth = index >= proposals.boxes.shape[1]
        return Proposals(matching.gather_boxes(boxes, index), chosen), is_truth

    def _assign(self, boxes: Tensor, targets: Targets, iou: float, std: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (B, P), background K included, and goal deltas (B, P, 4)."""
        match = matching.match(boxes, targets)
        labels = targets.labels.gather(1, match.place).masked_fill(match.iou < iou, self.num_classes)
        return labels, encode(matching.gather_boxes(targets.boxes, match.place), boxes, std)

    def _refine(
        self, regions: Proposals, deltas: Tensor, std: Tensor, image_hw: Tensor, is_truth: Tensor | None = None
    ) -> Proposals:
        """The boxes that a stage predicts; ground truth stays where it is."""
        boxes = clip(decode(deltas.float(), regions.boxes, std), image_hw)
        if is_truth is not None:
            boxes = torch.where(is_truth[..., None], regions.boxes, boxes)
        return Proposals(boxes, regions.valid & (boxes[..., 2:] > boxes[..., :2]).all(-1))

    def score(
        self, features: list[Tensor], proposals: Proposals, image_hw: Tensor, mode: CascadeTest
    ) -> tuple[Proposals, Tensor]:
        """The last stage's boxes (B, P), and the mean of the heads' softmax without background, (B, P, K).

        B0 are the proposals, B1..B3 what each stage makes of the boxes before. mode says where each head scores:
        `input` at its own input box (B0, B1, B2), `shared` all heads at the last stage's input (B2, as in the paper),
        `adaptive` each at the box that it predicted itself (B1, B2, B3). Whatever is pooled is pooled once: three
        poolings, in `adaptive` four.
        """
        features = self.pool.prepared(features)
        stages, sizes = len(self.heads), self.config.pool_sizes
        boxes = [proposals]
        pooled: dict[tuple[int, int], Tensor] = {}
        outputs: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

        def run(stage: int, place: int) -> tuple[Tensor, Tensor]:
            """Logits (B, P, K + 1) and deltas (B, P, 4) of a head at boxes B_place."""
            if (place, sizes[stage]) not in pooled:
                pooled[place, sizes[stage]] = self.pool(features, boxes[place].boxes, sizes[stage])
            if (stage, place) not in outputs:
                logits, deltas = self.heads[stage](pooled[place, sizes[stage]])
                shape = proposals.valid.shape
                outputs[stage, place] = logits.view(*shape, -1), deltas.view(*shape, -1)
            return outputs[stage, place]

        for stage in range(stages):
            _, deltas = run(stage, stage)
            boxes.append(self._refine(boxes[stage], deltas, self.delta_stds[stage], image_hw))
        places = {
            "input": range(stages),
            "shared": [stages - 1] * stages,
            "adaptive": range(1, stages + 1),
        }[mode]
        scores = torch.zeros((), device=proposals.boxes.device)
        for stage, place in enumerate(places):
            scores = scores + run(stage, place)[0].float().softmax(-1) / stages
        return boxes[-1], scores[..., : self.num_classes]


def stage_losses(logits: Tensor, deltas: Tensor, labels: Tensor, goal: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Classification and box loss of one stage, both divided by the number of sampled regions of all processes.

    logits (B, P, K + 1), deltas and goal (B, P, 4), labels (B, P) with background K, valid (B, P). Smooth L1 with
    beta 1 on normalised deltas, as in arXiv:1712.00726.
    """
    background = logits.shape[-1] - 1
    total = normaliser(valid)
    classification = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    distance = F.smooth_l1_loss(deltas, goal, reduction="none").sum(-1)
    is_object = valid & (labels != background)
    # where, not a product: regions that are padding have meaningless deltas, perhaps infinite ones
    return (
        torch.where(valid, classification, 0.0).sum() / total,
        torch.where(is_object, distance, 0.0).sum() / total,
    )
