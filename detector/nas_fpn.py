"""The NAS-FPN pyramid: an Architecture as a module (Ghiasi et al. 2019, arXiv:1904.07392, section 3)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from detector.architecture import LEVELS, NUM_LEVELS, Architecture, Attention, MergeCell
from detector.choices import Norm
from detector.norm import norm_layer


class NasFpn(nn.Module):
    """Five maps in, five maps of the same shapes out, through the graph's merging cells.

    features [(B, C, H_l, W_l)] for P3..P7 -> [(B, C, H_l, W_l)] for P3..P7. Neighbouring levels differ by a stride
    of 2; odd sizes round up. `cells` holds the cells' weights in cell order, repeat after repeat; given ones are used
    in the place of new ones.
    """

    def __init__(
        self, architecture: Architecture, channels: int, norm: Norm = "bn", cells: Sequence[nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.architecture = architecture
        if cells is None:
            cells = [ReluConvNorm(channels, norm) for _ in range(architecture.repeats) for _ in architecture.cells]
        self.cells = nn.ModuleList(cells)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        count = len(self.architecture.cells)
        for repeat in range(self.architecture.repeats):
            features = self._merge(features, list(self.cells[repeat * count : (repeat + 1) * count]))
        return features

    def _merge(self, features: list[Tensor], modules: list[nn.Module]) -> list[Tensor]:
        graph = self.architecture
        sizes = {level: feature.shape[-2:] for level, feature in zip(LEVELS, features, strict=True)}
        levels, pool = graph.feature_levels, list(features)
        for index, (cell, module) in enumerate(zip(graph.cells, modules, strict=True)):
            size = sizes[cell.level]
            first, second = (resize(pool[i], levels[i], cell.level, size) for i in cell.inputs)
            merged = combine(first, second, cell, levels, graph.attention)
            for leaf in graph.leaves_into(index):
                merged = merged + pool[leaf]
            pool.append(module(merged))
        outputs = dict(zip(levels[-NUM_LEVELS:], pool[-NUM_LEVELS:], strict=True))
        return [outputs[level] for level in LEVELS]


class ReluConvNorm(nn.Module):
    """What follows every merge: ReLU, 3x3 convolution with bias, norm. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = norm_layer(norm)(channels)

    def forward(self, merged: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(merged.relu()))
        return out


def resize(feature: Tensor, source: int, target: int, size: tuple[int, ...]) -> Tensor:
    """Bring a map of level `source` to `size`, the size of level `target`'s own map.

    Up: nearest. Down: max pooling over windows of the stride ratio; the last window may be cut short, but nothing
    is padded, since zeros would win over negative values. Raises ValueError if the sizes are no pyramid.
    """
    if source == target:
        return feature
    if source > target:
        return F.interpolate(feature, size=size, mode="nearest")
    ratio = 2 ** (target - source)
    pooled = F.max_pool2d(feature, kernel_size=ratio, stride=ratio, ceil_mode=True)
    if pooled.shape[-2:] != size:
        raise ValueError(
            f"P{source} of {tuple(feature.shape[-2:])} pools to {tuple(pooled.shape[-2:])}, but P{target} is "
            f"{tuple(size)}: neighbouring levels must halve, odd sizes rounded up"
        )
    return pooled


def combine(first: Tensor, second: Tensor, cell: MergeCell, levels: tuple[int, ...], attention: Attention) -> Tensor:
    """Merge two maps of one size: their sum, or x + y * sigmoid(pool(x)) with x chosen by the source levels."""
    if cell.op == "sum":
        return first + second
    level_first, level_second = (levels[i] for i in cell.inputs)
    is_swapped = level_second > level_first if attention.gate == "coarser" else level_second < level_first
    x, y = (second, first) if is_swapped else (first, second)
    pooled = x.amax((2, 3), keepdim=True) if attention.pool == "max" else x.mean((2, 3), keepdim=True)
    return x + y * pooled.sigmoid()
