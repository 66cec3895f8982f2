import pytest
import timm
import torch
from torch import nn

from rst_hub import Init
from rst_hub.networks.roles import make_neutral, maskable_weights, turn_off_dropout


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


def roles(parameters):
    """Return the role that the table gives to each named parameter, set to 3 + its position before."""

    class Holder(nn.Module):
        pass

    holder = Holder()
    for name, random in parameters.items():
        value = torch.full((4,), 3.0) + (torch.arange(4) if random else 0)
        holder.register_parameter(name, nn.Parameter(value.clone()))
    seeded = {spec.name for spec in make_neutral(holder)}
    found = {}
    for name, parameter in holder.named_parameters():
        constant = {0.0: "zero", 1.0: "one"}.get(float(parameter[0].detach()), "kept")
        found[name] = "seeded" if name in seeded else constant
    return found


def test_every_row_of_the_table():
    rows = {
        "zero": "bias q_bias v_bias mlp_bias beta bias_ih_l0 bias_hh_l0_reverse",
        "one": "gain skipinit_gain gamma gamma_1 gamma1 gamma_xca ls1 layer_scale_2 res_scale1",
        "seeded": "cls_token cls_token_0 reg_token pos_embed pos_embed_win patch_pos pos_emb rel_pos_h height_rel "
        "latent relative_position_bias_table position_embedding_table lambda_q1",
        "kept": "temperature logit_scale gating_param alpha A D tau v scale freqs weights",
    }
    expected = {name: role for role, names in rows.items() for name in names.split()}
    assert len(expected) == 40
    assert roles(dict.fromkeys(expected, True)) == expected
    tables_that_timm_leaves_constant = dict.fromkeys(rows["seeded"].split(), False)
    assert set(roles(tables_that_timm_leaves_constant).values()) == {"kept"}


def test_a_metaformers_scales_are_neutral_and_its_activations_keep_theirs():
    for name, layer in (("poolformer_s12", "layer_scale1.scale"), ("caformer_s18", "res_scale1.scale")):
        with torch.no_grad():
            model = timm.create_model(name)
            for module in model.modules():
                if type(module).__name__ == "StarReLU":
                    module.scale.fill_(0.5)
            make_neutral(model)
        scales = {key: value for key, value in model.named_parameters() if key.endswith(layer)}
        assert len(scales) >= 6
        assert all(bool((value == 1).all()) for value in scales.values())
        stars = [value for key, value in model.named_parameters() if key.endswith("act.scale")]
        assert all(float(value.detach()) == 0.5 for value in stars)
        assert bool(stars) == (name == "caformer_s18")


def test_global_response_norm_keeps_timms_value():
    model = timm.create_model("convnextv2_atto")
    make_neutral(model)
    grn = [module for module in model.modules() if type(module).__name__ == "GlobalResponseNorm"]
    assert len(grn) == 12
    assert not any(module.weight.any() for module in grn)
    assert bool((model.head.norm.weight == 1).all())


def test_dropout_of_every_kind_is_turned_off():
    rates = {"drop_rate": 0.5, "drop_path_rate": 0.5}
    covered = 0
    for name, kwargs in (
        ("test_vit", {**rates, "attn_drop_rate": 0.5, "proj_drop_rate": 0.5, "patch_drop_rate": 0.5}),
        ("test_resnet", {**rates, "drop_block_rate": 0.5}),
        ("test_efficientnet", rates),
        ("test_convnext", rates),
        ("hgnetv2_b0", {"drop_rate": 0.5}),
    ):
        model = timm.create_model(name, **kwargs).train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.0
        x = torch.rand(4, 3, 160, 160)
        assert not torch.equal(model(x), model(x)), name
        turn_off_dropout(model)
        assert torch.equal(model(x), model(x)), name
        covered += 1
    assert covered == 5
