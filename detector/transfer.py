"""Start a detector from the weights of another one, which may have other classes or other parts."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from detector.cascade_rcnn import CascadeRcnn
from detector.checkpoint import TrainedModel
from detector.errors import UserError

CLASS_LAYER = ".classify."  # its rows are classes, the last one background
OFFSETS = ".predict."  # of deformable convolutions: these do start anew


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

    A convolution that is deformable or standardised in one of the two is the same convolution. Raises UserError if
    nothing fits.
    """
    row_of = {name.strip().casefold(): row for row, name in enumerate(source.classes)}
    pairs = [(row, row_of[name.strip().casefold()]) for row, name in enumerate(classes) if _known(name, row_of)]
    pairs.append((len(classes), len(source.classes)))  # background
    rows, source_rows = (torch.tensor(part) for part in zip(*pairs, strict=True))
    theirs, ours = ({_layer(name): (name, w) for name, w in m.state_dict().items()} for m in (source.model, model))
    taken = []
    for layer, (_, weight) in ours.items():
        _, given = theirs.get(layer, ("", None))
        if given is None or given.shape[1:] != weight.shape[1:] or given.dtype != weight.dtype:
            continue
        if CLASS_LAYER in layer:
            weight[rows.to(weight.device)] = given[source_rows.to(weight.device)]
        elif given.shape == weight.shape:
            weight.copy_(given)
        else:
            continue
        taken.append(layer)
    if not taken:
        raise UserError("--init: no weight of that detector fits this one; give weights of the same backbone")
    left, unused = (sorted(named[layer][0] for layer in named.keys() - taken) for named in (ours, theirs))
    return Transfer([ours[layer][0] for layer in taken], left, unused, [classes[row] for row, _ in pairs[:-1]])


def _layer(name: str) -> str:
    """The name of a weight in a detector whose convolutions are plain."""
    return name.replace(".plain.", ".").replace(".parametrizations.weight.original", ".weight")


def _known(name: str, row_of: dict[str, int]) -> bool:
    return name.strip().casefold() in row_of


def take_over(
    model: CascadeRcnn, classes: tuple[str, ...], path: Path, say: Callable[[str], None], *, needs_backbone: bool
) -> None:
    """The weights of --init, and say which. Raises UserError, also where a backbone would lack weights it needs."""
    source = TrainedModel.load(path, torch.device("cpu"))
    result = transfer(model, classes, source)
    new = [name for name in classes if name not in result.classes]
    say(f"--init {path}: {len(result.taken)} weights taken, {len(result.classes)} of {len(classes)} classes mapped")
    for what, names in (
        ("classes that start anew", new),
        ("weights that start anew", result.left),
        ("weights in the file without a use", result.unused),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            say(f"  {what}: {', '.join(names[:5])}{more}")
    if needs_backbone:
        _check_backbone(result.left, path)


def _check_backbone(left: list[str], path: Path) -> None:
    """--init stands in for the backbone's own weights. Raises UserError for what neither would give."""
    absent = [name for name in left if name.startswith("backbone.") and OFFSETS not in name]
    if absent:
        raise UserError(
            f"--init {path}: lacks weights of this backbone ({absent[0]} and {len(absent) - 1} more), which would "
            "start at random; give weights with the same backbone"
        )
