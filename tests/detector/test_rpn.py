import math
from functools import partial

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from detector.config import RpnConfig
from detector.rpn import BatchedRpn, Rpn, mean_losses
from detector.targets import Targets

CONFIG = RpnConfig(samples=100_000, train_candidates=30, train_proposals=20, test_candidates=25, test_proposals=15)


def pair() -> tuple[Rpn, BatchedRpn]:
    plain, batched = Rpn(CONFIG, 8, 4), BatchedRpn(CONFIG, 8, 4)
    batched.load_state_dict(plain.state_dict())
    return plain, batched


def inputs() -> tuple[list[torch.Tensor], torch.Tensor, Targets]:
    features = [torch.randn(3, 8, 16 // 2**i, 32 // 2**i) for i in range(5)]
    boxes = [torch.tensor([[3.0, 4, 30, 30], [60, 10, 70, 22], [0, 0, 128, 64]]), torch.zeros(0, 4)]
    boxes.append(torch.tensor([[5.0, 5, 9, 9]]))
    targets = Targets.pad(boxes, [torch.zeros(len(box), dtype=torch.long) for box in boxes])
    return features, torch.tensor([[64, 128], [50, 100], [64, 128]]), targets


def test_batched_proposals_equal_torchvision_s() -> None:
    plain, batched = pair()
    features, image_hw, _ = inputs()
    for network in (plain, batched):
        network.eval()
    theirs, ours = plain(features, image_hw, None)[0], batched(features, image_hw, None)[0]
    assert theirs.valid.equal(ours.valid)
    torch.testing.assert_close(ours.boxes, theirs.boxes)


def test_batched_losses_equal_torchvision_s_when_all_anchors_are_sampled() -> None:
    """Half of the samples may be positive, so a sample larger than twice the anchors takes them all."""
    plain, batched = pair()
    data = inputs()
    theirs, ours = plain(*data)[1], batched(*data)[1]
    assert theirs.keys() == ours.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [4, 32, 256])
def test_losses_equal_torchvision_s_for_the_anchors_that_it_samples(samples: int) -> None:
    anchors = 400
    stream = torch.Generator().manual_seed(0)
    scores, deltas = (torch.randn(2 * anchors, width, generator=stream) for width in (1, 4))
    labels = [torch.randint(-1, 2, (anchors,), generator=stream).float() for _ in range(2)]
    goals = [torch.randn(anchors, 4, generator=stream) for _ in range(2)]
    scores[torch.cat(labels) == -1] = torch.inf  # what is not sampled does not count
    network = Rpn(RpnConfig(samples=samples), 8, 4).network
    found = []
    for compute in (network.compute_loss, partial(RegionProposalNetwork.compute_loss, network)):
        torch.manual_seed(0)
        found.append(torch.stack(compute(scores, deltas, labels, goals)))
    torch.testing.assert_close(found[0], found[1])


def test_what_is_not_sampled_costs_nothing() -> None:
    is_object, valid = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    deltas = torch.tensor([1.0, torch.inf, torch.inf, torch.inf])[:, None].expand(4, 4)
    scores = torch.tensor([0.0, torch.inf, 0.0, -torch.inf])
    objectness, box = mean_losses(scores, is_object, deltas, torch.zeros(4, 4), valid)
    assert objectness.item() == pytest.approx(math.log(2))
    assert box.item() == pytest.approx(4 * (1 - 0.5 / 9) / 2)


def test_images_without_objects_cost_no_box_loss() -> None:
    for network in pair():
        features, image_hw, _ = inputs()
        empty = Targets.pad([torch.zeros(0, 4)] * 3, [torch.zeros(0, dtype=torch.long)] * 3)
        losses = network(features, image_hw, empty)[1]
        assert losses["rpn_box"] == 0
        assert losses["rpn_objectness"] > 0


def test_anchors_are_exact_in_mixed_precision() -> None:
    """In bfloat16 corners beyond 256 px would be rounded to multiples of 2 and more."""
    maps = [torch.zeros(1, 8, 512 // 2**i, 512 // 2**i, dtype=torch.bfloat16) for i in range(5)]
    exact = BatchedRpn(CONFIG, 8, 4)._anchors([feature.float() for feature in maps])
    assert BatchedRpn(CONFIG, 8, 4)._anchors(maps).equal(exact)
    assert exact.max() > 2000


def test_anchors_stand_at_the_levels_strides_for_maps_of_odd_size() -> None:
    """800x1344 has a P7 of 7x11 cells; dividing the image by them would give strides of 114 and 122, not 128."""
    sizes = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
    network = Rpn(RpnConfig(anchor_ratios=(1.0,)), 4, 8)
    maps = [torch.zeros(1, 4, *size) for size in sizes]
    (anchors,) = network.network.anchor_generator(ImageList(torch.zeros(1, 3, 800, 1344), [(800, 1333)]), maps)
    coarsest = anchors[-77:].view(7, 11, 4)
    centres = (coarsest[..., :2] + coarsest[..., 2:]) / 2
    assert centres[..., 0].unique().tolist() == [128 * i for i in range(11)]
    assert centres[..., 1].unique().tolist() == [128 * i for i in range(7)]
    assert (coarsest[..., 2:] - coarsest[..., :2]).unique().tolist() == [512]
