"""Start a detector from the weights of another one, which may have other classes or other parts."""

from typing import NamedTuple

import torch

from detector.cascade_rcnn import CascadeRcnn
from detector.checkpoint import TrainedModel
from detector.errors import UserError

CLASS_LAYER = ".classify."  # its rows are classes, the last one background


class Transfer(NamedTuple):
    """What became of the weights, by name: taken over, left as the new detector was made, and not wanted by it.

    classes are those of the new detector that the other knew by name.
    """

    taken: list[str]
    left: list[str]
    unused: list[str]
    classes: list[str]


def transfer(model: CascadeRcnn, classes: tuple[str, ...], source: TrainedModel) -> Transfer:
    """Take over every weight whose name and shape fit; rows of class layers go by class name (case aside).

    Raises UserError if nothing fits.
    """
    row_of = {name.strip().casefold(): row for row, name in enumerate(source.classes)}
    pairs = [(row, row_of[name.strip().casefold()]) for row, name in enumerate(classes) if _known(name, row_of)]
    pairs.append((len(classes), len(source.classes)))  # background
    rows, source_rows = (torch.tensor(part) for part in zip(*pairs, strict=True))
    theirs, ours = source.model.state_dict(), model.state_dict()
    taken = []
    for name, weight in ours.items():
        if name not in theirs or theirs[name].shape[1:] != weight.shape[1:] or theirs[name].dtype != weight.dtype:
            continue
        if CLASS_LAYER in name:
            weight[rows.to(weight.device)] = theirs[name][source_rows.to(weight.device)]
        elif theirs[name].shape == weight.shape:
            weight.copy_(theirs[name])
        else:
            continue
        taken.append(name)
    if not taken:
        raise UserError("--init: no weight of that detector fits this one; give weights of the same backbone")
    left, unused = (sorted(a.keys() - b) for a, b in ((ours, taken), (theirs, taken)))
    return Transfer(taken, left, unused, [classes[row] for row, _ in pairs[:-1]])


def _known(name: str, row_of: dict[str, int]) -> bool:
    return name.strip().casefold() in row_of
