import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from detector.architecture import PRIORS, Architecture, Attention, MergeCell
from detector.nas_fpn import NasFpn, combine, resize

NAS_FPN = PRIORS["nas-fpn"]
CONVENTIONS = [Attention(pool, gate) for pool, gate in itertools.product(("max", "avg"), ("coarser", "finer"))]


def maps(channels: int, height: int, width: int, batch: int = 2) -> list[Tensor]:
    """Random P3..P7 of an image whose P3 is height x width; sizes halve, rounded up."""
    sizes = [(math.ceil(height / 2**i), math.ceil(width / 2**i)) for i in range(5)]
    return [torch.randn(batch, channels, h, w) for h, w in sizes]


def obvious(graph: Architecture, features: list[Tensor], cells: list[tuple[nn.Conv2d, nn.Module]]) -> list[Tensor]:
    """The published definition written out, pixel by pixel where sizes change."""
    pool = list(features)
    level_of = [3, 4, 5, 6, 7]
    size = {3 + i: feature.shape[-2:] for i, feature in enumerate(features)}
    used: set[int] = set()
    for cell in graph.cells:
        used |= set(cell.inputs)
    for number, (cell, (conv, norm)) in enumerate(zip(graph.cells, cells, strict=True)):
        resized = []
        for source in cell.inputs:
            feature, height, width = pool[source], *size[cell.level]
            out = torch.empty(*feature.shape[:2], height, width)
            for y, x in itertools.product(range(height), range(width)):
                if level_of[source] < cell.level:
                    window = 2 ** (cell.level - level_of[source])
                    part = feature[:, :, y * window : (y + 1) * window, x * window : (x + 1) * window]
                    out[:, :, y, x] = part.flatten(2).max(2).values
                else:
                    out[:, :, y, x] = feature[:, :, y * feature.shape[2] // height, x * feature.shape[3] // width]
            resized.append(out)
        if cell.op == "sum":
            merged = resized[0] + resized[1]
        else:
            levels = [level_of[source] for source in cell.inputs]
            wanted = max(levels) if graph.attention.gate == "coarser" else min(levels)
            gate = levels.index(wanted)
            flat = resized[gate].flatten(2)
            pooled = flat.max(2).values if graph.attention.pool == "max" else flat.mean(2)
            merged = resized[gate] + resized[1 - gate] * torch.sigmoid(pooled)[:, :, None, None]
        if number >= len(graph.cells) - 5:
            for leaf in range(5 + len(graph.cells) - 5):
                if leaf not in used and level_of[leaf] == cell.level:
                    merged = merged + pool[leaf]
        pool.append(norm(conv(torch.relu(merged))))
        level_of.append(cell.level)
    return [pool[level_of.index(level, len(pool) - 5)] for level in (3, 4, 5, 6, 7)]


def convolutions_and_norms(pyramid: NasFpn) -> list[tuple[nn.Conv2d, nn.Module]]:
    """By registration order, as a stranger would find them."""
    modules = [m for m in pyramid.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    return list(zip(modules[::2], modules[1::2], strict=True))


@pytest.mark.parametrize("attention", CONVENTIONS)
@pytest.mark.parametrize("size", [(16, 16), (13, 21), (1, 3)])
def test_equals_the_obvious_form_on_random_graphs(random_graphs, attention: Attention, size: tuple[int, int]) -> None:
    for graph in [NAS_FPN, PRIORS["fpn"], *random_graphs(4)]:
        graph = Architecture(graph.cells, 1, attention)
        pyramid, features = NasFpn(graph, 4), maps(4, *size)
        pyramid.eval()
        wanted = obvious(graph, features, convolutions_and_norms(pyramid))
        for ours, theirs in zip(pyramid(features), wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_repeats_apply_the_graph_again_with_other_weights() -> None:
    stacked, features = NasFpn(Architecture(NAS_FPN.cells, 3), 4).eval(), maps(4, 8, 8)
    cells = convolutions_and_norms(stacked)
    wanted = features
    for repeat in range(3):
        wanted = obvious(NAS_FPN, wanted, cells[7 * repeat : 7 * repeat + 7])
    for ours, theirs in zip(stacked(features), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("attention", "wanted"),
    [
        # P4 = 2, P6 = -1 (level 6 is coarser): x + y * sigmoid(x)
        (Attention("max", "coarser"), -1 + 2 / (1 + math.exp(1))),
        (Attention("max", "finer"), 2 + -1 / (1 + math.exp(-2))),
    ],
)
def test_attention_by_hand(attention: Attention, wanted: float) -> None:
    cell, levels = MergeCell((1, 3), 4, "attention"), (3, 4, 5, 6, 7)
    p4, p6 = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), -1.0)
    assert combine(p4, p6, cell, levels, attention).item() == pytest.approx(wanted)
    swapped = MergeCell((3, 1), 4, "attention")
    assert combine(p6, p4, swapped, levels, attention).item() == pytest.approx(wanted)


def test_attention_pools_max_or_mean_by_hand() -> None:
    cell, levels = MergeCell((0, 1), 3, "attention"), (3, 4)
    x, y = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    for pool, value in (("max", 2.0), ("avg", 1.0)):
        merged = combine(x, y, cell, levels, Attention(pool, "finer"))  # level 3 is finer: the first input gates
        gate = 1 / (1 + math.exp(-value))
        assert merged.flatten().tolist() == pytest.approx([gate, 2 + gate])


def test_attention_between_equal_levels_gates_by_the_first_input() -> None:
    x, y = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 5.0)
    for attention in CONVENTIONS:
        merged = combine(x, y, MergeCell((0, 1), 3, "attention"), (3, 3), attention)
        assert merged.item() == pytest.approx(3 + 5 / (1 + math.exp(-3)))


def test_downsampling_never_lets_padding_win() -> None:
    negative = -torch.rand(1, 1, 5, 7) - 1
    pooled = resize(negative, 3, 5, torch.Size((2, 2)))
    assert pooled.max() < -1


def test_sizes_that_are_no_pyramid_are_refused() -> None:
    with pytest.raises(ValueError, match="must halve"):
        NasFpn(NAS_FPN, 2)([torch.randn(1, 2, s, s) for s in (15, 7, 3, 1, 1)])


def test_image_of_800_by_1333() -> None:
    features = maps(2, 100, 167, batch=1)
    outputs = NasFpn(NAS_FPN, 2, norm="gn")(features)
    assert [o.shape for o in outputs] == [f.shape for f in features]


def test_every_parameter_gets_a_gradient(random_graphs) -> None:
    """Of every cell that reaches an output, and by the leaf rule all do."""
    for graph in [NAS_FPN, *random_graphs(6)]:
        pyramid = NasFpn(graph, 3)
        sum(output.square().sum() for output in pyramid(maps(3, 16, 16))).backward()
        for name, parameter in pyramid.named_parameters():
            if not name.endswith("conv.bias"):  # batch norm takes the mean away
                assert parameter.grad.abs().sum() > 0, name
