"""Found graphs for other people's code: a PyTorch module of its own, ONNX, and TensorFlow's block specification."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec

from detector.architecture import LEVELS, NUM_LEVELS, Architecture
from detector.choices import Norm
from detector.errors import UserError

SUFFIXES = {"json": ".json", "torch": ".py", "tensorflow": ".py", "onnx": ".onnx"}

POOLS = {"max": "x.amax((2, 3), keepdim=True)", "avg": "x.mean((2, 3), keepdim=True)"}
MODULE = '''"""A NAS-FPN pyramid, {hash}.

Written by nas-export. Needs PyTorch only. Its weights have the names of those of `heads.pyramid` in a model.pt.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class Pyramid(nn.Module):
    """[P3, P4, P5, P6, P7] -> the same, each (B, channels, H, W); every level has half the size of the one before,
    odd sizes rounded up.
    """

    def __init__(self, channels: int = {channels}) -> None:
        super().__init__()
        self.cells = nn.ModuleList(Cell(channels) for _ in range({cells}))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        for start in range(0, len(self.cells), {graph_cells}):
            features = self.merge(features, self.cells[start : start + {graph_cells}])
        return features

    def merge(self, features: list[Tensor], cells: nn.ModuleList) -> list[Tensor]:
        p3, p4, p5, p6, p7 = features
{lines}
        return [{outputs}]


class Cell(nn.Module):
    """What follows every merge: ReLU, 3x3 convolution, norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = {norm}

    def forward(self, merged: Tensor) -> Tensor:
        return self.norm(self.conv(merged.relu()))


def up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def down(x: Tensor, levels: int) -> Tensor:
    return F.max_pool2d(x, kernel_size=2**levels, stride=2**levels, ceil_mode=True)


def attention(x: Tensor, y: Tensor) -> Tensor:
    return x + y * {pool}.sigmoid()
'''


def torch_module(architecture: Architecture, channels: int, norm: Norm) -> str:
    """The source of a module that computes what NasFpn does."""
    names = [f"p{level}" for level in LEVELS] + [f"c{index}" for index in range(len(architecture.cells))]
    levels, lines = architecture.feature_levels, []
    for index, cell in enumerate(architecture.cells):
        first, second = (_resized(names[i], levels[i], cell.level) for i in cell.inputs)
        merged = f"{first} + {second}"
        if cell.op == "attention":
            coarser = levels[cell.inputs[1]] > levels[cell.inputs[0]]
            finer = levels[cell.inputs[1]] < levels[cell.inputs[0]]
            is_swapped = coarser if architecture.attention.gate == "coarser" else finer
            x, y = (second, first) if is_swapped else (first, second)
            merged = f"attention({x}, {y})"
        leaves = "".join(f" + {names[leaf]}" for leaf in architecture.leaves_into(index))
        lines.append(f"        c{index} = cells[{index}]({merged}{leaves})  # level {cell.level}")
    outputs = dict(zip(levels[-NUM_LEVELS:], names[-NUM_LEVELS:], strict=True))
    count = len(architecture.cells)
    return MODULE.format(
        hash=architecture.hash,
        channels=channels,
        cells=count * architecture.repeats,
        graph_cells=count,
        lines="\n".join(lines),
        outputs=", ".join(outputs[level] for level in LEVELS),
        norm=_norm(norm, channels),
        pool=POOLS[architecture.attention.pool],
    )


def _norm(norm: Norm, channels: int) -> str:
    """sync_bn is bn in a single process, and its weights have the same names."""
    if norm != "gn":
        return "nn.BatchNorm2d(channels)"
    from detector.norm import group_norm  # PyTorch takes seconds to import

    return f"nn.GroupNorm({group_norm(channels).num_groups}, channels)"


def _resized(name: str, source: int, target: int) -> str:
    if source == target:
        return name
    return f"up({name}, p{target})" if source > target else f"down({name}, {target - source})"


def onnx_model(architecture: Architecture, channels: int, norm: Norm, sizes: Sequence[tuple[int, int]]) -> bytes:
    """The pyramid for maps (1, channels, H, W) of these sizes, with weights as they are before training: for programs
    that show graphs or measure their latency. Inputs P3..P7, outputs N3..N7. Raises UserError without the packages.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs {' and '.join(missing)}: pip install -e '.[onnx]'")
    import torch  # takes seconds

    names: dict[str, type[torch.nn.Module]] = {}
    exec(compile(torch_module(architecture, channels, norm), architecture.hash, "exec"), names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same graph is the same file
        pyramid = names["Pyramid"]().eval()
    features = [torch.zeros(1, channels, *size) for size in sizes]
    program = torch.onnx.export(
        pyramid,
        (features,),
        input_names=[f"P{level}" for level in LEVELS],
        output_names=[f"N{level}" for level in LEVELS],
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # paths of this machine
    content: bytes = model.SerializeToString()
    return content


def tensorflow_block_specs(architecture: Architecture, channels: int, norm: Norm) -> str:
    """The block specification of TensorFlow's model garden (official/vision/modeling/decoders/nasfpn.py), as Python.

    There a cell's attention is gated by the maximum of the coarser source, and a feature that no cell has consumed
    *yet* is added to the output of its level, whether or not a later one consumes it. Raises UserError for graphs that
    would be others there.
    """
    if (architecture.attention.pool, architecture.attention.gate) != ("max", "coarser"):
        raise UserError("--format tensorflow: its attention is gated by the maximum of the coarser input; this is not")
    _check_order(architecture)
    rows = [
        f"    {(cell.level, cell.op, cell.inputs, index >= architecture.num_intermediate)!r},"
        for index, cell in enumerate(architecture.cells)
    ]
    head = (
        f"# NAS-FPN graph {architecture.hash}, written by nas-export.\n"
        "# For official.vision.modeling.decoders.nasfpn: build_block_specs(NASFPN_BLOCK_SPECS),\n"
        f"# num_filters={channels}, num_repeats={architecture.repeats}"
        + ("" if norm != "gn" else "; it knows batch norms only, this pyramid was found with group norms")
        + ".\n# (block_level, combine_fn, (input_offset0, input_offset1), is_output)\n"
    )
    return head + "NASFPN_BLOCK_SPECS = [\n" + "\n".join(rows) + "\n]\n"


def _check_order(architecture: Architecture) -> None:
    """Raises UserError for a feature that is consumed only after the output cell of its level."""
    levels = architecture.feature_levels
    ends = {cell.level: i for i, cell in enumerate(architecture.cells) if i >= architecture.num_intermediate}
    for feature in range(NUM_LEVELS + architecture.num_intermediate):
        users = [index for index, cell in enumerate(architecture.cells) if feature in cell.inputs]
        if users and min(users) > ends[levels[feature]]:
            name = f"P{levels[feature]}" if feature < NUM_LEVELS else f"cell {feature - NUM_LEVELS}"
            raise UserError(
                f"--format tensorflow: {name} is first consumed after the output of level {levels[feature]}; there it "
                "would be added to that output, too, which is another graph"
            )


FORMATS: Mapping[str, Callable[[Architecture, int, Norm], str]] = {
    "torch": torch_module,
    "tensorflow": tensorflow_block_specs,
}
