import copy
import pickle

import pytest
import torch
from conftest import make_popup
from timm.layers import ScaledStdConv2d, StdConv2d
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2dSame
from torch import nn

from rst_hub import Ticket
from rst_hub.networks.weight_standardisation import MaskedStdConv2d, standardise_over_kept

KINDS = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


def masked(kind, ratio, **kwargs):
    """Return (timm's module, ours) of one masked weight."""
    torch.manual_seed(0)
    same = {} if "Same" in kind.__name__ else {"padding": 1}
    plain = nn.Sequential(kind(8, 16, 3, **same, **kwargs))
    with torch.no_grad():
        plain[0].weight.copy_(torch.randn(16, 8, 3, 3) * (torch.rand(16, 8, 3, 3) < ratio))
        if plain[0].bias is not None:
            plain[0].bias.normal_()
    ours = copy.deepcopy(plain)
    standardise_over_kept(ours)
    assert type(ours[0]) is MaskedStdConv2d
    return plain[0], ours[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_weight_is_standardised_as_timm_does(kind):
    plain, ours = masked(kind, 1.1, stride=2)
    x = torch.randn(2, 8, 9, 9)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    # divided by the root mean square about 0 instead of about the mean: alike for a random weight
    expected = plain(x).detach()
    assert torch.allclose(ours(x).detach(), expected, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_mask_removes_stays_zero_and_each_channel_has_mean_zero(kind):
    _, ours = masked(kind, 0.3)
    weight, kept = ours.standardised(), ours.weight != 0
    assert 0.2 < float(kept.float().mean()) < 0.4
    assert torch.equal(weight != 0, kept)
    assert torch.allclose(weight.mean((1, 2, 3)), torch.zeros(16), atol=1e-6)
    for channel, own, used in zip(range(16), ours.weight, kept, strict=True):
        expected = (own[used] - own[used].mean()) / own.square().mean().sqrt()
        assert torch.allclose(weight[channel][used], expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_timms_own_module_computes_the_same_with_the_exported_weight(kind):
    plain, ours = masked(kind, 0.1)
    with torch.no_grad():
        plain.weight.copy_(ours.weight_for_timm())
    x = torch.randn(2, 8, 6, 6)
    assert torch.allclose(plain(x), ours(x), rtol=1e-4, atol=1e-5)


def test_channels_of_no_or_one_weight_or_equal_ones_keep_gradients_tame():
    _, ours = masked(StdConv2d, 0.3)
    with torch.no_grad():
        ours.weight[0] = 0
        ours.weight[1] = 0
        ours.weight[1, 0, 0, 0] = 0.5
        ours.weight[2] = 0
        ours.weight[2, 0] = 0.5
    x = torch.randn(2, 8, 6, 6)
    direction = torch.randn(2, 16, 6, 6)
    (ours(x) * direction).sum().backward()
    size = ours.weight.grad.abs().amax((1, 2, 3))
    assert bool(ours.weight.grad.isfinite().all())
    assert bool((size[:3] > 0).all())
    assert float(size[:3].max()) < 20 * float(size[3:].median())


def test_half_precision_uses_the_same_weight():
    _, ours = masked(StdConv2d, 0.05)
    with torch.no_grad():
        ours.weight *= 1e-3  # its mean squares are below what half precision can tell from 0
    whole = ours.standardised().detach()
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        half = copy.deepcopy(ours).to(dtype).standardised().detach().float()
        assert torch.allclose(half, whole, atol=tolerance * float(whole.max()))


def test_it_can_be_scripted_copied_and_pickled_as_timms_own():
    model = Ticket.draw(make_popup("test_nfnet")).model()
    x = torch.rand(2, 3, 32, 32)
    expected = model(x).detach()
    for other in (torch.jit.script(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x).detach(), expected)


def test_a_weight_of_nothing_but_zeros_is_used_as_such():
    _, ours = masked(StdConv2d, 0.0)
    ours(torch.ones(1, 8, 4, 4)).sum().backward()
    assert not ours.standardised().any()
    assert bool(ours.weight.grad.isfinite().all())


@pytest.mark.parametrize("architecture", ["test_nfnet", "resnetv2_50x1_bit"])
def test_a_ticket_is_masked_in_effect(architecture):
    model = Ticket.draw(make_popup(architecture)).model()
    layers = [module for module in model.modules() if isinstance(module, MaskedStdConv2d)]
    assert len(layers) > 10
    for layer in layers:
        removed = layer.weight == 0
        assert float(removed.float().mean()) == pytest.approx(0.9, abs=0.02)
        assert not layer.standardised()[removed].any()
    assert isinstance(copy.deepcopy(layers[0]), MaskedStdConv2d)
