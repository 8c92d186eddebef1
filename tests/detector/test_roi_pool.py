import pytest
import torch

from detector.roi_pool import RoiAlign


def regions(batch: int, count: int, size: float) -> torch.Tensor:
    """Boxes of all sizes, some beyond the border, one empty and one inverted."""
    corner = torch.rand(batch, count, 2) * size * 1.1 - 0.05 * size
    boxes = torch.cat((corner, corner + torch.rand(batch, count, 2).square() * size), dim=-1)
    boxes[:, 0] = 0
    boxes[:, 1] = boxes[:, 1].flip(-1)
    return boxes


@pytest.mark.parametrize("sampling_ratio", [1, 2])
@pytest.mark.parametrize("pool_size", [2, 7])
def test_gathering_equals_torchvision_s_operator(pool_size: int, sampling_ratio: int) -> None:
    features = [torch.randn(2, 6, -(-40 // 2**i), -(-56 // 2**i), requires_grad=True) for i in range(5)]
    boxes = regions(2, 40, 200.0)
    results, gradients = [], []
    pool = RoiAlign(4, sampling_ratio, 3.0)
    for way in (pool.operate, pool.gather):
        pooled = way(features, boxes, pool_size)
        results.append(pooled)
        gradients.append(torch.autograd.grad(pooled.square().sum(), features))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_levels_follow_equation_1() -> None:
    pool = RoiAlign(8, 2, 14.0)
    sides = torch.tensor([1.0, 111, 113, 223, 224, 447, 448, 895, 896, 1791, 1792, 9000])
    boxes = torch.stack((torch.zeros_like(sides), torch.zeros_like(sides), sides, sides), dim=-1)
    # floor(4 + log2(side / 224)), as a level, clamped to P3..P7
    assert pool.levels(boxes).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
