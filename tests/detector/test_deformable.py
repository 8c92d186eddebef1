import pytest
import timm
import torch
from torch import nn

from detector.backbone import Backbone
from detector.cascade_rcnn import CascadeRcnn
from detector.config import BackboneConfig, DetectorConfig
from detector.deformable import DeformableConv
from detector.errors import UserError


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_at_the_start_it_equals_the_plain_convolution(version, stride: int, dilation: int) -> None:
    plain = nn.Conv2d(6, 5, 3, stride, padding=dilation, dilation=dilation)
    features = torch.randn(2, 6, 11, 14)
    torch.testing.assert_close(DeformableConv(plain, version)(features), plain(features), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_constant_offset_reads_the_shifted_map_and_the_mask_scales(version) -> None:
    """All taps one cell to the right: the plain convolution of the map moved left, away from the border."""
    plain = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    layer, features = DeformableConv(plain, version), torch.randn(1, 2, 9, 9)
    with torch.no_grad():
        layer.predict.bias[1 : layer.offset_channels : 2] = 1.0  # offsets are (dy, dx) for each tap
        expected = plain(features.roll(-1, 3))
        if version == "v2":
            layer.predict.bias[layer.offset_channels :] = 1.2
            expected = expected * 2 * torch.sigmoid(torch.tensor(1.2))
    torch.testing.assert_close(layer(features)[..., 2:-3], expected[..., 2:-3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_weights_and_offsets_get_gradients(version) -> None:
    layer = DeformableConv(nn.Conv2d(4, 4, 3, padding=1), version)
    layer(torch.randn(1, 4, 8, 8)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def config(**changes) -> BackboneConfig:
    return BackboneConfig(**({"name": "resnet10t", "weights": "none", "norm": "gn"} | changes))


def deformable_layers(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_modules() if isinstance(child, DeformableConv)]


def test_chosen_stages_become_deformable_and_features_stay_at_the_start(tmp_path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "w.pt")
    images, weights = torch.rand(1, 3, 64, 64), str(tmp_path / "w.pt")
    plain = Backbone(config(weights=weights, norm="bn"), 8).eval()
    changed = Backbone(config(weights=weights, norm="bn", deformable="v2", deformable_stages=(4, 5)), 8).eval()
    assert {name.split(".")[1] for name in deformable_layers(changed)} == {"layer3", "layer4"}
    for ours, theirs in zip(changed(images), plain(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_backbone_without_such_convolutions_is_refused() -> None:
    with pytest.raises(UserError, match="has no 3x3 convolutions in stage 5"):
        Backbone(config(name="convnext_atto", norm="own", deformable="v1", deformable_stages=(5,)), 8)


def test_deformable_standardised_detectors_train_every_parameter() -> None:
    from tests.detector.test_cascade_rcnn import CONFIG, batch

    backbone = CONFIG.backbone.model_copy(
        update={"norm": "gn", "weight_standardisation": True, "deformable": "v2", "deformable_stages": (3, 5)}
    )
    model = CascadeRcnn(CONFIG.model_copy(update={"backbone": backbone}), None, 3)
    sum(model(*batch()).values()).backward()
    assert deformable_layers(model)
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(loss.isfinite() for loss in model(*batch()).values())


def test_deformable_convolutions_count_in_the_configuration() -> None:
    assert DetectorConfig(backbone=config(deformable="v1")).backbone.deformable_stages == (3, 4, 5)
