import pytest
import torch

from detector.cascade import Cascade, stage_losses
from detector.config import CascadeConfig
from detector.roi_pool import RoiAlign
from detector.targets import Proposals, Targets

CONFIG = CascadeConfig(pool_size=3, sampling_ratio=1, level_cells=3.0, width=16, samples=24, positive_fraction=0.5)
IMAGE_HW = torch.tensor([[64, 64], [64, 64]])


def cascade() -> Cascade:
    return Cascade(CONFIG, RoiAlign(4, 1, 3.0), 8, num_classes=3)


def features() -> list[torch.Tensor]:
    return [torch.randn(2, 8, 16 // 2**i, 16 // 2**i, requires_grad=True) for i in range(5)]


def targets(second_image_empty: bool = True) -> Targets:
    boxes = [torch.tensor([[4.0, 4, 30, 30], [40, 40, 60, 50]]), torch.zeros(0, 4)]
    labels = [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.long)]
    return Targets.pad(boxes, labels) if second_image_empty else Targets.pad(boxes[:1] * 2, labels[:1] * 2)


def proposals() -> Proposals:
    corner = torch.rand(2, 20, 2) * 40
    boxes = torch.cat((corner, corner + torch.rand(2, 20, 2) * 20 + 2), dim=-1)
    boxes[0, 0] = torch.tensor([5.0, 4, 30, 30])
    return Proposals(boxes, torch.rand(2, 20) > 0.2)


def test_an_image_without_objects_costs_no_box_loss_and_has_finite_gradients() -> None:
    network, maps = cascade(), features()
    empty = Targets.pad([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2)
    losses = network.losses(maps, proposals(), empty, IMAGE_HW)
    assert all(losses[f"stage{stage}_box"] == 0 for stage in range(3))
    sum(losses.values()).backward()
    assert all(feature.grad.isfinite().all() for feature in maps)


def test_every_parameter_gets_a_gradient() -> None:
    network = cascade()
    sum(network.losses(features(), proposals(), targets(), IMAGE_HW).values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_no_proposals_at_all_still_trains_on_the_ground_truth() -> None:
    none = Proposals(torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.bool))
    losses = cascade().losses(features(), none, targets(), IMAGE_HW)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["stage2_class"] > 0


def test_ground_truth_trains_every_stage_however_bad_the_boxes_became() -> None:
    """Stage 2 asks for IoU 0.7; with wildly wrong regressors only the ground truth itself can meet that."""
    network = cascade()
    for head in network.heads:
        torch.nn.init.constant_(head.regress.bias, 4.0)
    seen = []
    original = network._assign
    network._assign = lambda *args: seen.append(original(*args)) or seen[-1]
    network.losses(features(), proposals(), targets(), IMAGE_HW)
    for labels, _ in seen[1:]:
        assert (labels[0] != network.num_classes).sum() == 2


def test_labels_rise_with_the_iou_of_the_stage() -> None:
    network, truth = cascade(), targets()
    boxes = torch.zeros(2, 3, 4)
    boxes[0] = torch.tensor([[4.0, 4, 30, 19], [4, 4, 30, 21], [4, 4, 30, 23.0]])  # IoU .58, .65, .73 with object 0
    labels = [network._assign(boxes, truth, iou, torch.ones(4))[0][0].tolist() for iou in CONFIG.ious]
    assert labels == [[0, 0, 0], [3, 0, 0], [3, 3, 0]]


def test_stages_weigh_1_a_half_and_a_quarter() -> None:
    """arXiv:1712.00726, and the reciprocals of the published box weights (10, 20, 30 and 5, 10, 15)."""
    network, maps, regions = cascade(), features(), proposals()
    found = []
    for weights in ((1.0, 1.0, 1.0), CONFIG.loss_weights):
        network.config = CONFIG.model_copy(update={"loss_weights": weights})
        torch.manual_seed(1)
        found.append(network.losses(maps, regions, targets(), IMAGE_HW))
    for stage, weight in enumerate((1, 0.5, 0.25)):
        for kind in ("class", "box"):
            name = f"stage{stage}_{kind}"
            assert found[1][name].item() == pytest.approx(weight * found[0][name].item(), rel=1e-5)
    assert (1 / network.delta_stds).tolist() == [pytest.approx([x, x, x / 2, x / 2]) for x in (10, 20, 30)]


def test_stage_losses_equal_the_obvious_form() -> None:
    logits, deltas, goal = torch.randn(2, 5, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    labels, valid = torch.randint(0, 4, (2, 5)), torch.rand(2, 5) > 0.3
    classification = box = 0.0
    for b in range(2):
        for r in range(5):
            if valid[b, r]:
                classification -= float(logits[b, r].log_softmax(0)[labels[b, r]])
                if labels[b, r] < 3:
                    for d in (deltas[b, r] - goal[b, r]).abs().tolist():
                        box += 0.5 * d * d if d < 1 else d - 0.5
    ours = stage_losses(logits, deltas, labels, goal, valid)
    total = int(valid.sum())
    assert [float(loss) for loss in ours] == pytest.approx([classification / total, box / total], rel=1e-5)


def test_stage_losses_ignore_padding_that_is_not_finite() -> None:
    goal = torch.full((1, 2, 4), torch.inf)
    goal[0, 0] = 0
    deltas = torch.zeros(1, 2, 4, requires_grad=True)
    valid, labels = torch.tensor([[True, False]]), torch.zeros(1, 2, dtype=torch.long)
    loss = sum(stage_losses(torch.zeros(1, 2, 4), deltas, labels, goal, valid))
    loss.backward()
    assert loss.isfinite()
    assert deltas.grad.isfinite().all()


def moved(box: torch.Tensor, deltas: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """One box (1, 1, 4) refined by deltas (4,), written out, and clipped to 64x64."""
    dx, dy, dw, dh = (deltas * std).tolist()
    x1, y1, x2, y2 = box[0, 0].tolist()
    w, h, cx, cy = x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2
    cx, cy, w, h = cx + dx * w, cy + dy * h, w * 2.718281828**dw, h * 2.718281828**dh
    corners = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
    return torch.tensor([[[min(max(c, 0.0), 64.0) for c in corners]]])


@pytest.mark.parametrize(
    ("mode", "places", "poolings"), [("input", (0, 1, 2), 3), ("shared", (2, 2, 2), 3), ("adaptive", (1, 2, 3), 4)]
)
def test_every_test_mode_averages_the_heads_at_its_own_boxes(mode: str, places: tuple, poolings: int) -> None:
    """Written out for every proposal: B0..B3 first, then each head at the box where the mode wants its score."""
    network, maps, regions = cascade().eval(), features(), proposals()
    for head in network.heads:
        torch.nn.init.normal_(head.regress.weight, std=0.3)
        torch.nn.init.normal_(head.classify.weight, std=1.0)
    pooled_at = []
    network.pool.register_forward_pre_hook(lambda _, inputs: pooled_at.append(inputs[1]))
    with torch.no_grad():
        last, scores = network.score(maps, regions, IMAGE_HW, mode)
        assert len(pooled_at) == poolings
        network.pool._forward_pre_hooks.clear()
        for image in range(2):
            of_image = [m[image : image + 1] for m in maps]
            for place in range(20):
                boxes = [regions.boxes[image : image + 1, place : place + 1]]
                for head, std in zip(network.heads, network.delta_stds, strict=True):
                    boxes.append(moved(boxes[-1], head(network.pool(of_image, boxes[-1], 3))[1][0], std))
                total = 0.0
                for head, at in zip(network.heads, places, strict=True):
                    total = total + head(network.pool(of_image, boxes[at], 3))[0].softmax(1)[0, :3] / 3
                torch.testing.assert_close(last.boxes[image, place], boxes[3][0, 0], rtol=1e-3, atol=1e-3)
                torch.testing.assert_close(scores[image, place], total, rtol=1e-3, atol=1e-4)
        for at, boxes in enumerate(pooled_at):
            assert boxes.shape == (2, 20, 4), at


def test_the_modes_differ_and_share_their_boxes() -> None:
    network, maps, regions = cascade().eval(), features(), proposals()
    for head in network.heads:
        torch.nn.init.normal_(head.regress.weight, std=0.3)
        torch.nn.init.normal_(head.classify.weight, std=1.0)
    with torch.no_grad():
        found = {mode: network.score(maps, regions, IMAGE_HW, mode) for mode in ("input", "shared", "adaptive")}
    for mode in ("shared", "adaptive"):
        torch.testing.assert_close(found[mode][0].boxes, found["input"][0].boxes)
        assert not torch.allclose(found[mode][1], found["input"][1], atol=1e-3)


@pytest.mark.parametrize("head", ["2fc", "4conv1fc", ("2fc", "4conv1fc", "2fc")])
@pytest.mark.parametrize("pool_size", [3, 6, (3, 5, 6)])
def test_stages_take_any_head_at_any_resolution(head, pool_size) -> None:
    config = CONFIG.model_copy(update={"head": head, "pool_size": pool_size})
    network = Cascade(config, RoiAlign(4, 1, 3.0), 8, num_classes=3)
    losses = network.losses(features(), proposals(), targets(), IMAGE_HW)
    sum(losses.values()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    for kind, size, stage in zip(config.head_kinds, config.pool_sizes, network.heads, strict=True):
        assert stage.reduce.in_features == 8 * size**2
        assert len(stage.convolve) == (4 if kind == "4conv1fc" else 0)
    with torch.no_grad():
        regions, scores = network.eval().score(features(), proposals(), IMAGE_HW, "adaptive")
    assert scores.shape == (2, 20, 3)
    assert regions.boxes.isfinite().all()


def test_heads_must_be_one_for_each_stage() -> None:
    with pytest.raises(ValueError, match="one entry a stage"):
        CascadeConfig(head=("2fc", "2fc"))
