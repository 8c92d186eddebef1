"""export-final: trained weights as a program of torch and torchvision operators that runs without this package."""

import argparse
import io
import json
import sys
import warnings

import torch
from torch import Tensor, nn

from detector.cascade_rcnn import CascadeRcnn
from detector.checkpoint import TrainedModel, make_model, write_whole
from detector.command import FAILED
from detector.errors import UserError

TOLERANCE = 1e-3  # pixels, and a thousandth of that for scores
CHECKS = 3


def export_final(args: argparse.Namespace) -> int:
    """What export-final does; its exit code."""
    trained = TrainedModel.load(args.weights, torch.device("cpu"))
    if args.output.is_dir():
        raise UserError(f"--output {args.output}: is a folder; give a file")
    training = trained.config.training
    height, width = args.size or (training.short_side, training.long_side)
    # Batched forms are made of operators alone; the others ask for sizes along the way.
    model = make_model(trained.config, trained.architecture, len(trained.classes), pretrained=False, batched=True)
    model.load_state_dict(trained.model.state_dict())
    multiple = model.padding_multiple
    if args.size and (height % multiple or width % multiple):
        raise UserError(f"--size {height} {width}: sides must be multiples of {multiple}")
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    program, error = exported(model, (height, width))
    if not error <= TOLERANCE:  # NaN is none
        print(f"export-final: the program would be {error:g} pixels from the model; it is not written", file=sys.stderr)
        return FAILED
    about = {
        "classes": list(trained.classes),
        "size_hw": [height, width],
        "architecture": trained.architecture and trained.architecture.hash,
    }
    content = io.BytesIO()  # PyTorch's own writer ends the process when a disk is full
    torch.export.save(program, content, extra_files={"about.json": json.dumps(about)})
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(args.output, lambda file: file.write(content.getbuffer()))
    except OSError as failure:
        raise UserError(f"--output {args.output}: cannot be written ({failure.strerror})") from failure
    print(f"{args.output}: takes images (1, 3, {height}, {width}), RGB from 0 to 1, and their size (1, 2); gives boxes")
    print(f"and scores of {len(trained.classes)} classes; at most {error:.1g} from the model on {CHECKS} images")
    print("to load it: import torch, torchvision; torch.export.load(FILE).module()")
    return 0


class Scoring(nn.Module):
    """images (1, 3, H, W) in 0..1 and image_hw (1, 2) -> boxes (P, 4) xyxy pixels and scores (P, K), duplicates
    included; what is no region scores 0.
    """

    def __init__(self, model: CascadeRcnn) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, image_hw: Tensor) -> tuple[Tensor, Tensor]:
        regions, scores = self.model.score(images, image_hw)
        return regions.boxes[0], (scores * regions.valid[..., None])[0]


def exported(model: CascadeRcnn, size_hw: tuple[int, int]) -> tuple[torch.export.ExportedProgram, float]:
    """The program for images of that size, and how far it is from the model at most, in pixels or thousandths."""
    scoring = Scoring(model.eval())
    stream = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 3, *size_hw, generator=stream) for _ in range(CHECKS)]
    # The image may be smaller than the canvas it lies on.
    sizes = [torch.tensor([[size_hw[0] - 5 * check, size_hw[1] - 7 * check]]) for check in range(CHECKS)]
    with torch.no_grad():
        scoring(images[0], sizes[0])  # anchors are made once
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PyTorch says to itself
            program = torch.export.export(scoring, (images[0], sizes[0]), strict=False)
        inputs = list(zip(images, sizes, strict=True))
        differences = [_difference(scoring(*given), program.module()(*given)) for given in inputs]
        error = float(torch.stack(differences).max())
    return program, error


def _difference(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> Tensor:
    """In pixels; scores count a thousandfold. NaN stays NaN."""
    (boxes, scores), (other_boxes, other_scores) = ours, theirs
    return torch.stack(((boxes - other_boxes).abs().max(), 1000 * (scores - other_scores).abs().max())).max()
