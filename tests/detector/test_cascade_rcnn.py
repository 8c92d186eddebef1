import pytest
import torch
from torch import nn

from detector.architecture import PRIORS
from detector.backbone import Backbone
from detector.cascade_rcnn import CascadeRcnn
from detector.config import BackboneConfig, DetectorConfig, DetectorSections
from detector.config_files import load_config
from detector.errors import UserError
from detector.loader import Batch
from detector.targets import Targets

CONFIG = load_config("smoke", DetectorSections).detector
IMAGE_HW = torch.tensor([[64, 64], [50, 60]])


def batch() -> Batch:
    boxes = [torch.tensor([[4.0, 4, 30, 30], [40, 40, 60, 50]]), torch.zeros(0, 4)]
    labels = [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.long)]
    return Batch(torch.rand(2, 3, 64, 64), IMAGE_HW, Targets.pad(boxes, labels))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("prior", ["nas-fpn", None])
def test_trains_every_parameter_and_detects(prior: str | None, batched: bool) -> None:
    model = CascadeRcnn(CONFIG, prior and PRIORS[prior], 3, batched=batched)
    losses = model(*batch())
    assert len(losses) == 8
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    model.eval()
    found = model.detect(batch().images, IMAGE_HW)
    assert len(found) == 2
    for detections, (height, width) in zip(found, IMAGE_HW.tolist(), strict=True):
        assert detections.boxes.min() >= 0
        assert detections.boxes[:, 2].max() <= width
        assert detections.boxes[:, 3].max() <= height
        assert (detections.labels < 3).all()


def test_the_forms_of_one_network_detect_the_same() -> None:
    plain = CascadeRcnn(CONFIG, PRIORS["nas-fpn"], 3).eval()
    batched = CascadeRcnn(CONFIG, PRIORS["nas-fpn"], 3, batched=True).eval()
    batched.load_state_dict(plain.state_dict())
    images = batch().images
    for ours, theirs in zip(batched.detect(images, IMAGE_HW), plain.detect(images, IMAGE_HW), strict=True):
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-4)


def test_images_that_are_not_padded_are_refused() -> None:
    model = CascadeRcnn(CONFIG, None, 3)
    with pytest.raises(ValueError, match="must be padded to multiples of 16"):
        model.features(torch.rand(1, 3, 64, 70))


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_backbone_norms(norm: str) -> None:
    config = DetectorConfig(backbone=BackboneConfig(name="resnet10t", weights="none", norm=norm), base_stride=8)
    model = CascadeRcnn(config, None, 2)
    kinds = {type(module) for module in model.backbone.modules()}
    assert (nn.GroupNorm in kinds) == (norm == "gn")
    assert [f.shape[-1] for f in model.features(torch.rand(1, 3, 128, 128))] == [16, 8, 4, 2, 1]


def test_backbone_mistakes_are_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for backbone, message in (
        ({"name": "resnet999", "weights": "none", "norm": "bn"}, "resnet999 cannot be built"),
        ({"name": "resnet10t", "weights": str(tmp_path / "no.pt"), "norm": "bn"}, r"no\.pt cannot be loaded"),
        ({"name": "resnet10t", "weights": "pretrained", "norm": "bn"}, "set detector.backbone.weights to the file"),
    ):
        config = DetectorConfig(backbone=BackboneConfig(**backbone))
        with pytest.raises(UserError, match=message):
            CascadeRcnn(config, None, 2)


def test_frozen_norms_load_a_file_and_do_not_train(tmp_path) -> None:
    import timm

    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "r10.pt")
    backbone = BackboneConfig(name="resnet10t", weights=str(tmp_path / "r10.pt"), norm="frozen_bn")
    model = CascadeRcnn(DetectorConfig(backbone=backbone), None, 2)
    saved = torch.load(tmp_path / "r10.pt", weights_only=True)
    assert model.backbone.body.state_dict()["conv1.0.weight"].equal(saved["conv1.0.weight"])
    assert not any(p.requires_grad for name, p in model.backbone.named_parameters() if "bn" in name)


@pytest.mark.parametrize(
    ("name", "norm", "base_stride"),
    [
        ("mobilenetv2_100", "frozen_bn", 8),
        ("regnety_002", "gn", 4),
        ("mobilenetv3_small_050", "sync_bn", 8),
        ("convnext_atto", "own", 8),
        ("swin_tiny_patch4_window7_224", "own", 8),
    ],
)
def test_backbones_of_other_families(name: str, norm: str, base_stride: int) -> None:
    """They keep their activations whatever their norms become, and give maps of any image, channels first."""
    import timm

    config = BackboneConfig.model_construct(
        **{**BackboneConfig(weights="none", norm="own", name=name).__dict__, "norm": norm}
    )
    ours = Backbone(config, base_stride)
    plain = timm.create_model(name, features_only=True, out_indices=(-3, -2, -1) if base_stride == 8 else (-4, -3, -2))

    def activations(module: nn.Module) -> int:
        return sum(type(child).__name__ in ("ReLU", "ReLU6", "SiLU", "Hardswish", "GELU") for child in module.modules())

    assert activations(ours) == activations(plain) > 0
    maps = ours.eval()(torch.rand(1, 3, 128, 160))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, 128 // stride, 160 // stride)
        for channels, stride in zip(ours.channels, (base_stride, 2 * base_stride, 4 * base_stride), strict=True)
    ]


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"name": "convnext_atto", "norm": "bn"}, "has no batch norms for bn; set it to own"),
        ({"name": "vit_tiny_patch16_224", "norm": "own"}, r"has strides \[16"),
        ({"name": "resnett50", "norm": "bn", "weights": "pretrained"}, "resnett50 cannot be built"),
    ],
)
def test_backbones_that_cannot_serve_are_refused(backbone: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Backbone(BackboneConfig(**{"weights": "none", **backbone}), 8)


def test_images_are_normalised_as_the_backbone_was_trained() -> None:
    for name, mean in (("resnet10t", 0.485), ("tf_mobilenetv3_small_100", 0.5)):
        config = CONFIG.model_copy(update={"backbone": BackboneConfig(name=name, weights="none", norm="bn")})
        network = CascadeRcnn(config.model_copy(update={"base_stride": 8}), None, 2)
        assert network.mean.flatten().tolist()[0] == pytest.approx(mean)


def test_frozen_batch_norms_keep_statistics_and_weights_in_training() -> None:
    backbone = CONFIG.backbone.model_copy(update={"norm": "frozen_bn"})
    model = CascadeRcnn(CONFIG.model_copy(update={"backbone": backbone}), None, 3).train()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    sum(model(*batch()).values()).backward()
    assert all(value.equal(before[name]) for name, value in model.backbone.state_dict().items())
    assert {p.grad is None for name, p in model.backbone.named_parameters() if "bn" in name} == {True}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(feature.dtype == torch.bfloat16 for feature in model.backbone(batch().images))


def test_what_lies_below_a_frozen_stage_keeps_its_weights() -> None:
    changes = {"norm": "gn", "frozen_below": 4, "deformable": "v1", "deformable_stages": (4,)}
    model = CascadeRcnn(CONFIG.model_copy(update={"backbone": CONFIG.backbone.model_copy(update=changes)}), None, 3)
    sum(model(*batch()).values()).backward()
    trained = {name.split(".")[0] for name, p in model.backbone.body.named_parameters() if p.grad is not None}
    kept = {name.split(".")[0] for name, p in model.backbone.body.named_parameters() if p.grad is None}
    assert (trained, kept) == ({"layer2", "layer3"}, {"conv1", "bn1", "layer1"})
    changes = {"norm": "bn", "frozen_below": 4}
    model = CascadeRcnn(CONFIG.model_copy(update={"backbone": CONFIG.backbone.model_copy(update=changes)}), None, 3)
    means = {name: value.clone() for name, value in model.backbone.state_dict().items() if "running_mean" in name}
    model.train()(*batch())
    moved = {name.split(".")[1] for name, mean in means.items() if not model.backbone.state_dict()[name].equal(mean)}
    assert moved == {"layer2", "layer3"}
    with pytest.raises(ValueError, match="frozen_below needs weights"):
        BackboneConfig(weights="none", norm="gn", frozen_below=3)


@pytest.mark.parametrize("batched", [True, False])
def test_mixed_precision_keeps_boxes_in_float32(batched: bool) -> None:
    """bfloat16 has 8 bits of mantissa: coordinates would be off by whole pixels."""
    model = CascadeRcnn(CONFIG, PRIORS["nas-fpn"], 3, batched=batched)
    seen = []
    model.heads.cascade.pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(*batch())
    assert len(seen) == 3
    assert all(boxes.dtype == torch.float32 for _, boxes, _ in seen)
    assert all(feature.dtype == torch.bfloat16 for feature in seen[0][0])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


@pytest.mark.parametrize("batched", [True, False])
def test_images_whose_p6_and_p7_are_of_odd_size_train_and_detect(batched: bool) -> None:
    model = CascadeRcnn(CONFIG, PRIORS["nas-fpn"], 3, batched=batched)
    images, image_hw = torch.rand(2, 3, 48, 80), torch.tensor([[48, 80], [41, 70]])
    sizes = [tuple(feature.shape[2:]) for feature in model.features(images)]
    assert sizes == [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
    sum(model(images, image_hw, batch().targets).values()).backward()
    assert len(model.eval().detect(images, image_hw)) == 2


def test_weights_without_a_part_in_the_maps_are_not_trained() -> None:
    """Processes that train together would wait for their gradients."""
    backbone = Backbone(BackboneConfig(name="hrnet_w18_small", weights="none", norm="bn"), 8)
    sum(feature.sum() for feature in backbone(torch.rand(1, 3, 64, 64))).backward()
    trained = {name: weight.grad is not None for name, weight in backbone.named_parameters() if weight.requires_grad}
    assert all(trained.values())
    assert len(trained) < len(list(backbone.parameters()))
