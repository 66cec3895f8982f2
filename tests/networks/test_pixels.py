"""PixelModel: its mode, its precision, its normalisation, and what it refuses."""

import copy

import pytest
import timm
import torch
import torchvision
from conftest import make_popup
from torch import nn

from rst_hub import R2S, PixelModel, ThreatModel, Ticket, TicketPool, clean_accuracy, pgd, robustbench_model
from rst_hub.attacks.common import norm_of
from rst_hub.errors import ArchitectureError, DataError, SettingsError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels(count=4, channels=3):
    return torch.rand(count, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def attacked_by_a_stranger(network, x, y):
    """Attack as torchattacks does, which puts back the mode of what it was given."""
    training = network.training
    network.eval()
    adversarial = pgd(network, x, y, ThreatModel(), steps=2)
    if training:
        network.train()
    return adversarial


def test_a_library_that_puts_the_mode_back_leaves_a_model_in_eval_mode(ticket):
    x, y = pixels(), torch.arange(4)
    r2s = R2S([ticket])
    networks = {
        "timm": PixelModel(ticket.model()),
        "of a pool": PixelModel(TicketPool().model(ticket)),
        "R2S": PixelModel(r2s),
        "their own wrapper": nn.Sequential(nn.Identity(), r2s),  # in train mode, since whoever made it forgot
    }
    compared = 0
    for name, network in networks.items():
        before = {key: value.clone() for key, value in network.state_dict().items()}
        expected = network.eval()(x).detach() if name != "their own wrapper" else network(x).detach()
        if "R2S" in name or "own" in name:
            with pytest.warns(UserWarning, match="an R2S"):
                attacked_by_a_stranger(network, x, y)
        else:
            attacked_by_a_stranger(network, x, y)
        assert torch.equal(network(x), expected), name
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        compared += len(before)
    assert compared > 100


def test_the_mode_is_the_models_whoever_changes_it():
    model = make_popup().model
    for mode in (False, True):
        assert PixelModel(model.train(mode)).training is mode
    network = PixelModel(model)
    assert not model.eval().training
    assert not network.training
    assert network.train() is network
    assert all(module.training for module in network.modules())
    assert not any(module.training for module in network.eval().modules())
    network.training = True  # as one writes who puts back each module's own mode
    assert model.training
    model.eval()
    next(model.children()).train()
    clean_accuracy(network, [(pixels(), torch.arange(4))])
    assert [network.training, model.training, next(model.children()).training] == [False, False, True]
    assert copy.deepcopy(network).training is False


def test_an_r2s_stays_in_eval_mode_as_batch_norm_would_mix(ticket):
    r2s = R2S([ticket], materialised=True, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in r2s.state_dict().items()}
    assert r2s.train() is r2s
    assert not any(module.training for module in PixelModel(r2s).train().modules())
    assert PixelModel(r2s).train()(pixels(1)).shape == (1, 10)  # batch norm refuses one value a channel in train mode
    assert all(torch.equal(value, before[name]) for name, value in r2s.state_dict().items())
    assert r2s.members[0].train().training  # a member can be trained by who means it


CASTS = {
    "the model first": lambda model, dtype: PixelModel(model.to(dtype), mean=MEAN, std=STD),
    "the wrapper": lambda model, dtype: PixelModel(model, mean=MEAN, std=STD).to(dtype),
    "the model later": lambda model, dtype: (PixelModel(model, mean=MEAN, std=STD), model.to(dtype))[0],
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("pooled", [False, True])
def test_a_model_of_another_precision_takes_float32_pixels_and_keeps_the_budget(ticket, pooled, cast, dtype):
    x, y, eps = pixels(), torch.arange(4), 8 / 255
    make = TicketPool().model if pooled else Ticket.model
    expected = PixelModel(make(ticket), mean=MEAN, std=STD).eval()(x).detach()
    network = CASTS[cast](make(ticket).eval(), dtype)
    leaf = x.clone().requires_grad_()
    logits = network(leaf)
    assert logits.dtype == dtype
    assert float((logits.detach() - expected).abs().max()) < {torch.bfloat16: 0.05, torch.float16: 0.01}.get(
        dtype, 1e-5
    )
    assert torch.equal(network.mean.flatten(), torch.tensor(MEAN))  # neither rounded nor moved
    assert torch.equal(network.std.flatten(), torch.tensor(STD))
    logits.float().square().sum().backward()
    assert leaf.grad.dtype == torch.float32
    assert bool(leaf.grad.any())
    adversarial = pgd(network, x, y, ThreatModel(eps=eps), steps=3)
    assert adversarial.dtype == torch.float32
    assert 0.9 * eps < float(norm_of(adversarial - x, "Linf").max()) <= eps + 1e-6


def test_half_precision_normalises_in_float32():
    seen = []
    model = nn.Conv2d(3, 2, 1).half()
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = pixels()
    PixelModel(model, mean=MEAN, std=STD)(x)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    assert torch.equal(seen[0], ((x - mean) / std).half())


def test_any_module_is_wrapped_with_a_mean_and_std():
    torch.manual_seed(0)
    x = pixels()
    normal = torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)], 1)
    models = {
        "torchvision": torchvision.models.resnet18(num_classes=3),
        "plain torch": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 900, 3)),
        "DataParallel": nn.DataParallel(timm.create_model("test_resnet", num_classes=3)),
        "no parameters": nn.Flatten(),
        "its own pretrained_cfg": timm.create_model("test_resnet", num_classes=3),
    }
    tensors = (torch.tensor(MEAN), torch.tensor(STD).view(1, 3, 1, 1))
    for name, model in models.items():
        for mean, std in ((MEAN, STD), tensors, (list(MEAN), list(STD))):
            network = PixelModel(model.eval(), mean=mean, std=std)
            assert torch.allclose(network(x), model(normal), atol=1e-5), name
            assert not network.training
    assert len(models) == 5
    own = PixelModel(models["its own pretrained_cfg"], std=(1.0, 2.0, 3.0))  # one of them given
    assert own.mean.flatten().tolist() == pytest.approx(models["its own pretrained_cfg"].pretrained_cfg["mean"])
    assert own.std.flatten().tolist() == [1.0, 2.0, 3.0]
    assert PixelModel(nn.Flatten(), mean=[0.5], std=[0.5])(pixels(channels=1)).shape == (4, 1024)


def test_what_is_wrong_with_a_model_or_its_normalisation_is_named():
    model, parallel = nn.Conv2d(3, 2, 3), nn.DataParallel(timm.create_model("test_resnet"))
    cases = [
        (model, {}, ArchitectureError, r"Conv2d has no pretrained_cfg.*to take mean from.*PixelModel\(model, mean="),
        (model, {"mean": MEAN}, ArchitectureError, "to take std from"),
        (parallel, {}, ArchitectureError, "DataParallel has no pretrained_cfg"),
        (model, {"mean": MEAN, "std": (0.2, 0.2)}, SettingsError, "mean has 3 and std 2 numbers"),
        (lambda x: x, {"mean": MEAN, "std": STD}, SettingsError, "PixelModel of a function"),
        ([model], {"mean": MEAN, "std": STD}, SettingsError, "PixelModel of a list"),
    ]
    for bad in (*((0.2, number, 0.2) for number in (0.0, -0.2, float("nan"), float("inf"))), (), 0.2, "abc", {}):
        cases.append((model, {"mean": MEAN, "std": bad}, SettingsError, "std=.*above 0, one for each channel"))
    for bad in ((float("nan"),) * 3, (), 0.5, ("a", "b", "c"), ((1, 2), (3,)), (123.7, 116.3, 103.5)):
        cases.append((model, {"mean": bad, "std": STD}, SettingsError, "mean=.*one for each channel"))
    for given, settings, error, message in cases:
        with pytest.raises(error, match=message):
            PixelModel(given, **settings)
    assert len(cases) == 20


def test_pixels_are_not_normalised_twice(folder):
    model = make_popup().model
    wrapped = (PixelModel(model), nn.DataParallel(PixelModel(model)), nn.Sequential(PixelModel(model)))
    for network in (*wrapped, torch.compile(PixelModel(model), backend="eager"), robustbench_model(folder)):
        with pytest.raises(SettingsError, match="is or has a PixelModel already"):
            PixelModel(network, mean=MEAN, std=STD)


def test_pixels_of_another_layout_channels_or_type_are_named():
    network = PixelModel(nn.Flatten(), mean=MEAN, std=STD)
    cases = {
        "1 channel|of 3 channels": pixels(channels=1),
        "of 3 channels, so give": pixels(channels=4),
        "channels-last": pixels().permute(0, 2, 3, 1),
        "no batch dimension": pixels()[0],
        r"uint8: give floats.*/ 255": (pixels() * 255).byte(),
        "of shape": torch.rand(2, 3, 1, 32, 32),
    }
    for message, x in cases.items():
        with pytest.raises(DataError, match=message):
            network(x)
    assert len(cases) == 6
    grey = PixelModel(nn.Flatten(), mean=(0.5,), std=(0.5,))  # one number would be stretched over three channels
    with pytest.raises(DataError, match="of 1 channels"):
        grey(pixels())


def test_a_wrapped_model_compiles_whole_in_either_mode(ticket):
    x = pixels()
    network = PixelModel(TicketPool().model(ticket))
    torch._dynamo.reset()
    assert torch.allclose(torch.compile(network, backend="eager", fullgraph=True)(x), network(x), atol=1e-6)
    torch.manual_seed(0)
    whole = PixelModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()), mean=MEAN, std=STD)
    compiled = torch.compile(copy.deepcopy(whole), backend="aot_eager", fullgraph=True)
    for mode in (False, True, False):
        assert torch.allclose(compiled.train(mode)(x), whole.train(mode)(x), atol=1e-5)
