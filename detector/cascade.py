"""The cascade of box heads (Cai & Vasconcelos 2018, arXiv:1712.00726)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from detector import matching
from detector.boxes import clip, decode, encode
from detector.config import CascadeConfig
from detector.roi_pool import RoiAlign
from detector.targets import Detections, Proposals, Targets


class BoxHead(nn.Module):
    """Classify and refine the regions of one cascade stage: two fully connected layers (Lin et al. 2017).

    pooled (R, C, S, S) -> logits (R, K + 1), deltas (R, 4). Class K is background; the deltas are shared by all
    classes, as in arXiv:1712.00726.
    """

    def __init__(self, channels: int, pool_size: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels * pool_size**2, width)
        self.mix = nn.Linear(width, width)
        self.classify = nn.Linear(width, num_classes + 1)
        self.regress = nn.Linear(width, 4)
        for layer, std in ((self.classify, 0.01), (self.regress, 0.001)):  # Girshick 2015, arXiv:1504.08083, 4.1
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        regions = self.mix(self.reduce(pooled.flatten(1)).relu()).relu()  # (R, width)
        return self.classify(regions), self.regress(regions)


class Cascade(nn.Module):
    """Three heads, each trained on the boxes that the one before it refined, at a rising IoU."""

    delta_stds: Tensor

    def __init__(self, config: CascadeConfig, pool: RoiAlign, channels: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.pool = pool
        self.heads = nn.ModuleList(BoxHead(channels, config.pool_size, num_classes, config.width) for _ in config.ious)
        self.register_buffer("delta_stds", torch.tensor(config.delta_stds), persistent=False)

    def losses(
        self, features: list[Tensor], proposals: Proposals, targets: Targets, image_hw: Tensor
    ) -> dict[str, Tensor]:
        """Classification and box loss of each stage, weighted.

        Ground truth joins the regions of every stage, so that late stages see objects that early ones missed.
        """
        losses: dict[str, Tensor] = {}
        regions, is_truth = self._sample(proposals, targets)
        for stage, head in enumerate(self.heads):
            pooled = self.pool(features, regions.boxes)
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

    def detect(self, features: list[Tensor], proposals: Proposals, image_hw: Tensor) -> list[Detections]:
        """Objects of each image, tested as `input`: every head scores the features at its own input box.

        Scores are the mean of the heads' softmax, boxes are the last stage's.
        """
        regions, scores = proposals, torch.zeros((), device=proposals.boxes.device)
        for stage, head in enumerate(self.heads):
            logits, deltas = (out.view(*regions.valid.shape, -1) for out in head(self.pool(features, regions.boxes)))
            scores = scores + logits.float().softmax(-1) / len(self.heads)
            regions = self._refine(regions, deltas, self.delta_stds[stage], image_hw)
        return select(regions, scores[..., : self.num_classes], self.config)


def stage_losses(logits: Tensor, deltas: Tensor, labels: Tensor, goal: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Classification and box loss of one stage, both divided by the number of sampled regions.

    logits (B, P, K + 1), deltas and goal (B, P, 4), labels (B, P) with background K, valid (B, P). Smooth L1 with
    beta 1 on normalised deltas, as in arXiv:1712.00726.
    """
    background = logits.shape[-1] - 1
    total = valid.sum().clamp(min=1)
    classification = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    distance = F.smooth_l1_loss(deltas, goal, reduction="none").sum(-1)
    is_object = valid & (labels != background)
    # where, not a product: regions that are padding have meaningless deltas, perhaps infinite ones
    return (
        torch.where(valid, classification, 0.0).sum() / total,
        torch.where(is_object, distance, 0.0).sum() / total,
    )


def select(regions: Proposals, scores: Tensor, config: CascadeConfig) -> list[Detections]:
    """Threshold, NMS within each class, and the best of each image. regions (B, P), scores (B, P, K)."""
    batch, _, num_classes = scores.shape
    image, region, label = ((scores > config.score_threshold) & regions.valid[..., None]).nonzero(as_tuple=True)
    boxes, score = regions.boxes[image, region], scores[image, region, label]
    kept = batched_nms(boxes, score, image * num_classes + label, config.nms_iou)  # best first
    of_image = [kept[image[kept] == i][: config.detections] for i in range(batch)]
    return [Detections(boxes[index], score[index], label[index]) for index in of_image]
