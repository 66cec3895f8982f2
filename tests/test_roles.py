import pytest
import timm
import torch
from torch import nn

from rst_hub import Init
from rst_hub.roles import make_neutral, maskable_weights


def fans(module):
    return {weight.name: (weight.fan_in, weight.fan_out) for weight in maskable_weights(module)}


def test_linear_maps_are_masked_with_their_fans():
    assert fans(nn.Linear(6, 4)) == {"weight": (6, 4)}
    assert fans(nn.Conv2d(6, 4, 3)) == {"weight": (54, 36)}
    assert fans(nn.Conv2d(6, 4, 3, groups=2)) == {"weight": (27, 36)}
    assert fans(nn.Conv1d(6, 4, 5)) == {"weight": (30, 20)}
    assert fans(nn.Conv3d(2, 4, 3)) == {"weight": (54, 108)}
    assert fans(nn.ConvTranspose2d(6, 4, 2)) == {"weight": (24, 16)}
    assert fans(nn.LSTM(5, 3)) == {"weight_ih_l0": (5, 12), "weight_hh_l0": (3, 12)}
    assert fans(nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm(3), nn.PReLU())) == {}


def test_cond_conv_experts_have_the_fans_of_one_expert():
    from timm.layers import CondConv2d

    assert fans(CondConv2d(6, 4, 3, num_experts=2)) == {"weight": (54, 36)}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet"])
def test_the_rest_of_a_model_is_neutral_and_frozen(name):
    model = timm.create_model(name)
    masked = {weight.name for weight in maskable_weights(model)}
    seeded = {spec.name for spec in make_neutral(model)}
    checked = 0
    for parameter_name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter_name in masked)
        if parameter_name.endswith(".bias"):
            assert not parameter.any()
            checked += 1
        elif parameter_name not in masked | seeded:
            assert torch.equal(parameter, torch.ones_like(parameter)), parameter_name
            checked += 1
    assert checked > 5
    assert seeded == ({"cls_token", "pos_embed"} if name == "test_vit" else set())
    share = sum(p.numel() for p in model.parameters() if p.requires_grad) / sum(p.numel() for p in model.parameters())
    assert share > 0.95


def test_what_init_needs_to_know_of_a_weight():
    spec = maskable_weights(nn.Conv2d(6, 4, 3))[0].seeded(Init(0))
    assert (spec.name, spec.shape, spec.masked) == ("weight", (4, 6, 3, 3), True)
    assert spec.scale == pytest.approx((2 / 54) ** 0.5)
