"""Region proposals: torchvision's network (Ren et al. 2015, arXiv:1506.01497) for our padded batches."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from detector import matching
from detector.architecture import NUM_LEVELS
from detector.boxes import clip, decode, encode
from detector.config import RpnConfig
from detector.processes import normaliser
from detector.suppression import nms_mask
from detector.targets import Proposals, Targets

FOREGROUND_IOU = 0.7
BACKGROUND_IOU = 0.3
POSITIVE_FRACTION = 0.5
MIN_SIDE = 1e-3


class FloatRpnHead(RPNHead):  # type: ignore[misc]  # torchvision ships without types
    """torchvision's head with float32 outputs: in bfloat16 the decoded boxes would be pixels off."""

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, deltas = super().forward(features)
        return [score.float() for score in scores], [delta.float() for delta in deltas]


class PyramidAnchors(AnchorGenerator):  # type: ignore[misc]
    """torchvision's anchors, one side for each level, at the levels' own strides.

    torchvision divides the image by the map to find a stride, which is wrong for maps of odd size (a P7 of 7 cells
    for 800 pixels would get 114), and takes the maps' precision (bfloat16 moves anchors by up to 4 pixels).
    """

    def __init__(self, sides: list[float], ratios: tuple[float, ...], strides: list[int]) -> None:
        super().__init__(tuple((side,) for side in sides), (ratios,) * len(sides))
        self.strides = strides

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        sizes = [list(feature.shape[-2:]) for feature in feature_maps]
        steps = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        of_image: Tensor = torch.cat(self.grid_anchors(sizes, steps))
        return [of_image] * len(image_list.image_sizes)


class Network(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's network, with losses that are means over the sampled anchors of all processes."""

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """objectness (A, 1) and deltas (A, 4) of all anchors of a batch -> its two losses."""
        positive, negative = (torch.cat(of_images).bool() for of_images in self.fg_bg_sampler(labels))
        valid = positive | negative
        return mean_losses(objectness.flatten(), positive, pred_bbox_deltas, torch.cat(regression_targets), valid)


def mean_losses(
    scores: Tensor, is_object: Tensor, deltas: Tensor, goals: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Objectness and box loss, both divided by the number of sampled anchors; all (..., A), boxes (..., A, 4)."""
    total = normaliser(valid)
    objectness = F.binary_cross_entropy_with_logits(scores, is_object.to(scores.dtype), reduction="none")
    distance = F.smooth_l1_loss(deltas, goals, beta=1 / 9, reduction="none").sum(-1)
    # where, not a product: what is not sampled may be infinite
    return torch.where(valid, objectness, 0.0).sum() / total, torch.where(
        valid & is_object, distance, 0.0
    ).sum() / total


class Rpn(nn.Module):
    """Pyramid maps -> proposals, for images of any sizes.

    features [(B, C, H_l, W_l)], image_hw (B, 2) pixels -> Proposals, and in training the two losses.
    """

    def __init__(self, config: RpnConfig, channels: int, base_stride: int) -> None:
        super().__init__()
        self.config = config
        self.base_stride = base_stride
        ratios = config.anchor_ratios
        strides = [base_stride * 2**level for level in range(NUM_LEVELS)]
        anchors = PyramidAnchors([config.anchor_scale * stride for stride in strides], ratios, strides)
        self.network = Network(
            anchors,
            FloatRpnHead(channels, len(ratios)),
            fg_iou_thresh=FOREGROUND_IOU,
            bg_iou_thresh=BACKGROUND_IOU,
            batch_size_per_image=config.samples,
            positive_fraction=POSITIVE_FRACTION,
            pre_nms_top_n={"training": config.train_candidates, "testing": config.test_candidates},
            post_nms_top_n={"training": config.train_proposals, "testing": config.test_proposals},
            nms_thresh=config.nms_iou,
        )

    def forward(
        self, features: list[Tensor], image_hw: Tensor, targets: Targets | None
    ) -> tuple[Proposals, dict[str, Tensor]]:
        height, width = (self.base_stride * side for side in features[0].shape[-2:])
        batch = features[0].new_zeros(len(image_hw), 0, height, width)  # only its shape is read
        images = ImageList(batch, [(h, w) for h, w in image_hw.tolist()])
        truth = None
        if targets is not None:
            pairs = zip(targets.boxes, targets.valid, strict=True)
            truth = [{"boxes": boxes[valid]} for boxes, valid in pairs]
        boxes, losses = self.network(images, {str(i): feature for i, feature in enumerate(features)}, truth)
        renamed = {"rpn_objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg"}
        proposals = Proposals.pad(boxes)
        proposals = proposals._replace(boxes=clip(proposals.boxes, image_hw))
        return proposals, {ours: losses[theirs] for ours, theirs in renamed.items() if losses}


class BatchedRpn(Rpn):
    """The same network, a batch at a time: anchors are kept, targets are assigned to all images at once.

    Proposals equal torchvision's; losses too, when all anchors are sampled (sampling draws other numbers).
    """

    def __init__(self, config: RpnConfig, channels: int, base_stride: int) -> None:
        super().__init__(config, channels, base_stride)
        self._kept_anchors: dict[tuple[tuple[int, ...], ...], Tensor] = {}

    def forward(
        self, features: list[Tensor], image_hw: Tensor, targets: Targets | None
    ) -> tuple[Proposals, dict[str, Tensor]]:
        scores, deltas = self.network.head(features)
        counts = [score[0].numel() for score in scores]
        scores, deltas = concat_box_prediction_layers(scores, deltas)
        scores, deltas = scores.view(len(image_hw), -1), deltas.view(len(image_hw), -1, 4)  # (B, A), (B, A, 4)
        anchors = self._anchors(features)
        proposals = self._propose(scores.detach(), deltas.detach(), anchors, counts, image_hw)
        return proposals, {} if targets is None else self._losses(scores, deltas, anchors, targets)

    def _anchors(self, features: list[Tensor]) -> Tensor:
        key = tuple(tuple(feature.shape[-2:]) for feature in features)
        if key not in self._kept_anchors:
            height, width = (self.base_stride * side for side in key[0])
            images = ImageList(features[0].new_zeros(1, 0, height, width), [(height, width)])
            self._kept_anchors[key] = self.network.anchor_generator(images, features)[0]
        return self._kept_anchors[key].to(features[0].device)

    @torch.no_grad()
    def _propose(
        self, scores: Tensor, deltas: Tensor, anchors: Tensor, counts: list[int], image_hw: Tensor
    ) -> Proposals:
        """The best of each level, duplicates among them removed, and of the rest the best of the image."""
        config = self.config
        candidates = config.train_candidates if self.training else config.test_candidates
        limit = config.train_proposals if self.training else config.test_proposals
        offset, chosen, ranks = 0, [], []
        for count, score in zip(counts, torch.split(scores, counts, dim=1), strict=True):
            top = score.topk(min(candidates, count), dim=1)
            index = top.indices + offset
            boxes = clip(decode(matching.gather_boxes(deltas, index), anchors[index]), image_hw)
            is_large = ((boxes[..., 2:] - boxes[..., :2]) >= MIN_SIDE).all(-1)
            kept = nms_mask(boxes, is_large, config.nms_iou)
            chosen.append(boxes)
            ranks.append(top.values.masked_fill(~kept, -torch.inf))
            offset += count
        rank = torch.cat(ranks, dim=1)
        best = rank.topk(min(limit, rank.shape[1]), dim=1)
        return Proposals(matching.gather_boxes(torch.cat(chosen, dim=1), best.indices), best.values > -torch.inf)

    def _losses(self, scores: Tensor, deltas: Tensor, anchors: Tensor, targets: Targets) -> dict[str, Tensor]:
        boxes = anchors.expand(len(scores), -1, -1)
        iou = matching.overlaps(boxes, targets)  # (B, A, G)
        best = iou.max(dim=2)
        # An object whose best anchor overlaps it little still gets that anchor, ties included.
        peak = iou.amax(dim=1, keepdim=True)
        is_peak = ((iou == peak) & targets.valid[:, None]).any(dim=2)
        positive = (best.values >= FOREGROUND_IOU) | is_peak
        negative = (best.values < BACKGROUND_IOU) & ~positive
        index, valid = matching.sample(positive, negative, self.config.samples, POSITIVE_FRACTION)
        labels = positive.gather(1, index)
        score = scores.gather(1, index)
        delta = matching.gather_boxes(deltas, index)
        reference = matching.gather_boxes(targets.boxes, best.indices.gather(1, index))
        goal = encode(reference, anchors[index])
        objectness, box = mean_losses(score, labels, delta, goal, valid)
        return {"rpn_objectness": objectness, "rpn_box": box}
