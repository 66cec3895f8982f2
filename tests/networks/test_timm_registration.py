"""What timm's own tests/test_models.py asks of every registered name, asked of ours."""

import math
import subprocess
import sys

import pytest
import timm
import torch
from conftest import ENVIRONMENT, ROOT
from timm.models import FeatureInfo, get_pretrained_cfg_value
from torchvision.models.feature_extraction import create_feature_extractor

import rst_hub  # noqa: F401  (registers the networks)

OURS = ["cifar_resnet18", "preact_resnet10", "preact_resnet10_small", "preact_resnet18", "wide_resnet34_10"]
ours = pytest.mark.parametrize("name", OURS)


def images(count=1):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_timms_listing_has_our_networks_and_not_the_entrypoint_of_tickets():
    with_tags = [f"{name}.untrained" for name in OURS]
    assert timm.list_models(module="cifar") == OURS
    assert timm.list_models(module="cifar", include_tags=True) == with_tags
    listings = (
        timm.list_models(),
        timm.list_models(include_tags=True),
        timm.list_models("rst*"),
        timm.list_models(["rst", "resnet18"]),
        timm.list_models(name_matches_cfg=True),
        timm.list_models(pretrained=True),
        timm.list_pretrained(),
        timm.list_modules(),
    )
    assert [("rst" in listing, "entrypoint" in listing) for listing in listings] == [(False, False)] * 8
    assert set(OURS) < set(timm.list_models())
    assert set(with_tags) < set(timm.list_models(include_tags=True))
    assert timm.is_model("rst")  # which timm.create_model("hf-hub:...") asks
    assert timm.models.model_entrypoint("rst").__name__ == "rst"


def test_all_that_rst_hub_adds_to_timms_listing_is_five_networks():
    program = (
        "import timm; before = set(timm.list_models()), set(timm.list_modules()); import rst_hub;"
        "print(sorted(set(timm.list_models()) - before[0]), sorted(set(timm.list_modules()) - before[1]))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert found.stdout.strip() == f"{OURS} ['cifar']", found.stderr


@ours
def test_a_configuration_says_what_the_network_is(name):
    model = timm.create_model(name).eval()
    cfg = model.default_cfg
    assert (cfg["input_size"], cfg["num_classes"], model.num_classes) == ((3, 32, 32), 10, 10)
    assert get_pretrained_cfg_value(name, "input_size") == (3, 32, 32)
    features = model.forward_features(images())
    assert tuple(features.shape[1:]) == (model.num_features, *cfg["pool_size"])
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
    for key in ("classifier", "first_conv"):
        assert f"{cfg[key]}.weight" in model.state_dict()
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()


@ours
def test_classifier_and_pooling_can_be_left_out_and_changed(name):
    model = timm.create_model(name).eval()
    pool_size, x = model.default_cfg["pool_size"], images()
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(x), pooled)
    model.reset_classifier(0, "")
    assert tuple(model(x).shape) == (1, model.num_features, *pool_size)
    model.reset_classifier(7, "max")
    assert (model.num_classes, model(x).shape) == (7, (1, 7))
    bare = timm.create_model(name, num_classes=0, global_pool="").eval()
    assert tuple(bare(x).shape) == (1, bare.num_features, *pool_size)


@ours
def test_every_parameter_gets_a_gradient(name):
    model = timm.create_model(name, num_classes=42).train()
    outputs = model(images(2))
    assert outputs.shape == (2, 42)
    assert not outputs.isnan().any()
    outputs.mean().backward()
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    assert sum(parameter.numel() for parameter in model.parameters()) > 2_000_000


@ours
def test_feature_levels_are_as_they_are_said_to_be(name):
    model = timm.create_model(name, features_only=True).eval()
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    maps = model(images())
    assert len(channels) == len(maps) >= 3
    for width, reduction, found in zip(channels, reductions, maps, strict=True):
        assert tuple(found.shape) == (1, width, 32 // reduction, 32 // reduction)


@ours
def test_checkpointing_changes_no_output_where_a_network_has_it(name):
    model = timm.create_model(name).eval()
    x = images()
    expected = model(x)
    if hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing()
        assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    assert hasattr(model, "set_grad_checkpointing") == (name == "cifar_resnet18")  # which is timm's ResNet


def test_intermediates_of_timms_resnet_are_right_behind_our_stem():
    model = timm.create_model("cifar_resnet18").eval()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    output, maps = model.forward_intermediates(images(), output_fmt="NCHW")
    assert torch.equal(output, model.forward_features(images()))
    assert len(maps) == 5
    for width, reduction, found in zip(info.channels(), info.reduction(), maps, strict=True):
        assert tuple(found.shape) == (1, width, math.ceil(32 / reduction), math.ceil(32 / reduction))


@ours
def test_traced_networks_compute_the_same(name):
    model = timm.create_model(name).eval()
    with torch.inference_mode():
        traced = create_feature_extractor(model, [model.default_cfg["classifier"]])
        (found,) = traced(images()).values()
        assert torch.equal(found, model(images()))
