import pytest
import torch
from timm.layers import BatchNormAct2d, StdConv2d
from torch import distributed as dist
from torch import nn

from detector.backbone import Backbone
from detector.config import BackboneConfig
from detector.norm import (
    SyncBatchNormOnCpu,
    WeightStandardisation,
    batch_norms,
    group_norm,
    norm_layer,
    replace_batch_norms,
    standardise_weights,
    synchronise_on_cpu,
)


def test_standardised_weights_have_mean_0_and_variance_1_for_each_output() -> None:
    weight = WeightStandardisation()(torch.randn(5, 3, 3, 3) * 4 + 2)
    assert weight.mean((1, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(weight.var((1, 2, 3), correction=0), torch.ones(5), rtol=1e-3, atol=1e-3)


def test_a_standardised_convolution_equals_timm_s() -> None:
    reference = StdConv2d(4, 6, 3, padding=1, eps=1e-5)
    ours = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False))
    ours[0].load_state_dict(reference.state_dict())
    standardise_weights(ours)
    images = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(ours(images), reference(images), rtol=1e-4, atol=1e-5)


def test_scale_and_shift_of_trained_weights_do_not_matter_and_they_train() -> None:
    layer = nn.Sequential(nn.Conv2d(4, 6, 3))
    standardise_weights(layer)
    images = torch.randn(1, 4, 8, 8)
    before = layer(images)
    original = layer[0].parametrizations.weight.original
    with torch.no_grad():
        original.mul_(3).add_(0.5)
    torch.testing.assert_close(layer(images), before, rtol=1e-3, atol=1e-3)
    layer(images).square().sum().backward()
    assert original.grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [4, 16, 24, 32, 64, 256])
def test_group_norm_lets_maps_of_one_cell_through(channels: int) -> None:
    """A group of one channel and one cell would always be zero."""
    out = group_norm(channels)(torch.randn(2, channels, 1, 1) * 5)
    assert out.abs().mean() > 0.3
    assert group_norm(channels).num_groups == {4: 1, 16: 4, 24: 6, 32: 8, 64: 16, 256: 32}[channels]


def test_batch_norms_become_group_norms_with_their_scale_and_activation() -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 1), BatchNormAct2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    body[3].weight.data.zero_()
    replace_batch_norms(body, "gn")
    assert not batch_norms(body)
    out = body[:2](torch.randn(2, 3, 4, 4))
    assert (out >= 0).all()
    assert (out == 0).any()
    assert body[3].weight.abs().sum() == 0


def test_weight_standardisation_without_group_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="needs norm gn"):
        BackboneConfig(weights="none", norm="bn", weight_standardisation=True)


def test_sync_bn_is_bn_in_a_single_process() -> None:
    ours, plain = norm_layer("sync_bn")(4), norm_layer("bn")(4)
    maps = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(ours(maps), plain(maps))
    torch.testing.assert_close(ours.running_var, plain.running_var)


def test_synchronised_norms_on_the_cpu_stay_the_objects_that_were_frozen() -> None:
    config = BackboneConfig(name="resnet10t", weights="none", norm="sync_bn")
    body = Backbone(config, 8)
    body._freeze_below(config, 3)
    before = [norm.running_mean.clone() for norm in body.frozen_norms]
    synchronise_on_cpu(body)
    body.train()
    assert len(before) > 3
    assert {type(norm) for norm in batch_norms(body)} == {SyncBatchNormOnCpu}
    assert not any(norm.training for norm in body.frozen_norms)
    body(torch.rand(2, 3, 64, 64))
    assert all(norm.running_mean.equal(kept) for norm, kept in zip(body.frozen_norms, before, strict=True))


def test_synchronised_norms_work_in_a_distributed_run_of_one_process(tmp_path) -> None:
    norm = nn.Sequential(norm_layer("sync_bn")(4))
    plain = norm_layer("bn")(4)
    maps = torch.randn(3, 4, 5, 5)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        synchronise_on_cpu(norm)
        torch.testing.assert_close(norm(maps), plain(maps))
    finally:
        dist.destroy_process_group()
