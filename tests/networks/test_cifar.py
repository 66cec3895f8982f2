import pytest
import timm
import torch

import rst_hub  # noqa: F401  (registers the networks)

PARAMETERS = {"preact_resnet18": 11_172_170, "cifar_resnet18": 11_173_962, "wide_resnet34_10": 46_160_474}
OURS = {"preact_resnet10": 4_901_450, "preact_resnet10_small": 2_759_098}


def test_parameter_counts_are_the_papers():
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in timm.create_model(name).parameters()) for name in PARAMETERS | OURS}
    assert counts == PARAMETERS | OURS


@pytest.mark.parametrize("name", ["preact_resnet10", "preact_resnet18", "cifar_resnet18"])
def test_they_behave_as_timm_models(name):
    model = timm.create_model(name, num_classes=7, in_chans=1).eval()
    x = torch.rand(2, 1, 32, 32)
    assert model(x).shape == (2, 7)
    features = model.forward_features(x)
    assert features.shape == (2, 512, 4, 4)  # strides 1, 2, 2, 2: the stem keeps 32 x 32
    assert model.forward_head(features, pre_logits=True).shape == (2, 512)
    assert model.get_classifier().weight.shape == (7, 512)
    model.reset_classifier(0)
    assert model(x).shape == (2, 512)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 32, 32)


def test_the_small_ones_stem_halves_the_image():
    model = timm.create_model("preact_resnet10_small", num_classes=7).eval()
    assert model.stem.stride == (2, 2)
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16]
    assert model.forward_features(torch.rand(2, 3, 32, 32)).shape == (2, 384, 2, 2)


def test_features_only_gives_the_stages():
    maps = timm.create_model("cifar_resnet18", features_only=True)(torch.rand(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps][-4:] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    maps = timm.create_model("preact_resnet18", features_only=True)(torch.rand(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    maps = timm.create_model("preact_resnet10_small", features_only=True)(torch.rand(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(48, 16, 16), (96, 8, 8), (192, 4, 4), (384, 2, 2)]
    with torch.device("meta"):
        assert timm.create_model("wide_resnet34_10", features_only=True).feature_info.channels() == [160, 320, 640]


def test_a_preactivation_block_computes_what_its_docstring_says():
    from rst_hub.networks.cifar import PreActBlock

    torch.manual_seed(0)
    block = PreActBlock(4, 8, 2).eval()
    x = torch.randn(2, 4, 8, 8)
    a = torch.relu(block.norm1(x))
    expected = block.conv2(torch.relu(block.norm2(block.conv1(a)))) + block.shortcut(a)
    assert torch.equal(block(x), expected)
    same = PreActBlock(4, 4, 1).eval()
    inner = same.conv2(torch.relu(same.norm2(same.conv1(torch.relu(same.norm1(x))))))
    assert same.shortcut is None
    assert torch.equal(same(x), inner + x)
