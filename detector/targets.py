"""What goes into and comes out of the detector: padded ground truth, padded proposals, and detections."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PADDING = -1


class Targets(NamedTuple):
    """Ground truth of a batch. boxes (B, N, 4) absolute xyxy pixels; labels (B, N) in 0..K-1, PADDING where unused."""

    boxes: Tensor
    labels: Tensor

    @property
    def valid(self) -> Tensor:
        """(B, N), True where there is an object."""
        return self.labels >= 0

    def to(self, device: torch.device) -> "Targets":
        return Targets(self.boxes.to(device, non_blocking=True), self.labels.to(device, non_blocking=True))

    @classmethod
    def pad(cls, boxes: list[Tensor], labels: list[Tensor]) -> "Targets":
        """From one (N_i, 4) and one (N_i,) tensor per image; at least one column, so that no shape is empty."""
        columns = max(1, *(len(entry) for entry in labels))
        padded = cls(boxes[0].new_zeros(len(boxes), columns, 4), labels[0].new_full((len(boxes), columns), PADDING))
        for row, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            padded.boxes[row, : len(box)] = box
            padded.labels[row, : len(label)] = label
        return padded


class Proposals(NamedTuple):
    """Regions of a batch. boxes (B, P, 4) absolute xyxy pixels; valid (B, P), False where padded."""

    boxes: Tensor
    valid: Tensor

    @classmethod
    def pad(cls, boxes: list[Tensor]) -> "Proposals":
        padded = pad_sequence(boxes, batch_first=True)
        if not padded.shape[1]:
            padded = padded.new_zeros(len(boxes), 1, 4)
        counts = torch.tensor([len(entry) for entry in boxes], device=padded.device)
        return cls(padded, torch.arange(padded.shape[1], device=padded.device) < counts[:, None])


class Detections(NamedTuple):
    """The objects found in one image, best first. boxes (N, 4) xyxy pixels, scores (N,), labels (N,) in 0..K-1."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
