"""Box heads: pooled regions to class scores and box deltas."""

from torch import Tensor, nn

from detector.choices import HeadKind
from detector.norm import norm_layer


class BoxHead(nn.Module):
    """Classify and refine the regions of one cascade stage.

    pooled (R, C, S, S) -> logits (R, K + 1), deltas (R, 4). Class K is background; the deltas are shared by all
    classes, as in arXiv:1712.00726. `2fc`: two fully connected layers (Lin et al. 2017, arXiv:1612.03144). `4conv1fc`:
    four 3x3 convolutions with GroupNorm before one such layer (Wu & He 2018, arXiv:1803.08494, section 4.2). Either
    takes any S; 14 is the large-resolution head of the Objects365 winner of 2019.
    """

    def __init__(self, kind: HeadKind, channels: int, pool_size: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.convolve = nn.Sequential(*(ConvNormRelu(channels) for _ in range(4 if kind == "4conv1fc" else 0)))
        self.reduce = nn.Linear(channels * pool_size**2, width)
        self.mix = nn.Linear(width, width) if kind == "2fc" else None
        self.classify = nn.Linear(width, num_classes + 1)
        self.regress = nn.Linear(width, 4)
        for layer, std in ((self.classify, 0.01), (self.regress, 0.001)):  # Girshick 2015, arXiv:1504.08083, 4.1
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        regions = self.reduce(self.convolve(pooled).flatten(1)).relu()  # (R, width)
        if self.mix is not None:
            regions = self.mix(regions).relu()
        return self.classify(regions), self.regress(regions)


class ConvNormRelu(nn.Module):
    """3x3 convolution, GroupNorm, ReLU. (R, C, S, S) -> (R, C, S, S)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.norm = norm_layer("gn")(channels)

    def forward(self, regions: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(regions)).relu()
        return out
