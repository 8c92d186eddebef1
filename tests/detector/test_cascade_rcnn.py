import pytest
import torch
from torch import nn

from detector.architecture import PRIORS
from detector.cascade_rcnn import CascadeRcnn
from detector.config import BackboneConfig, DetectorConfig, DetectorSections, load_config
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
    assert not any("bn" in name for name, _ in model.backbone.named_parameters())


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
