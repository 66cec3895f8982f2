import functools

import pytest
import torch
from torch import nn

from rst_hub import ThreatModel, honesty_flags
from rst_hub.errors import DataError
from rst_hub.evaluation.accuracy import Outcomes
from rst_hub.evaluation.sanity import inspect_model, judge, probes

EPS4 = ThreatModel("Linf", 4 / 255)
COMPARED = [
    "doubling the steps changes nothing",
    "doubling the restarts changes nothing",
    "iterative attacks are no weaker than one step",
    "white-box attacks are no weaker than black-box ones",
    "an unbounded attack leaves about 0",
]
INSPECTED = ["gradients are not zero", "the forward is deterministic", "outputs are logits"]


class Net(nn.Module):
    def __init__(self, change=lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softplus(), nn.Flatten(), nn.Linear(8 * 36, 5))
        self.change = change

    def forward(self, x):
        return self.change(self.layers(x))


def batches(count=60):
    x = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = Net()(x).argmax(1)
    return [(x[:24], y[:24]), (x[24:], y[24:])]


def failed(flags):
    return [flag.check for flag in flags if flag.passed is False]


def test_an_ordinary_network_raises_no_flag():
    flags = honesty_flags(Net(), batches(), EPS4)
    assert [flag.check for flag in flags] == COMPARED + INSPECTED
    assert failed(flags) == []
    assert all("60 samples" in flag.found or "24 samples" in flag.found for flag in flags)


def test_masked_gradients_raise_flags():
    # Logits rounded to steps: nothing to climb, yet as easily fooled as before.
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(context, logits):
            return (logits * 200).round() / 200

        @staticmethod
        def backward(context, gradient):
            return torch.zeros_like(gradient)

    found = failed(honesty_flags(Net(Rounded.apply), batches(), ThreatModel("Linf", 16 / 255)))
    assert "gradients are not zero" in found
    assert "white-box attacks are no weaker than black-box ones" in found
    assert "an unbounded attack leaves about 0" in found


def test_saturated_probabilities_and_random_forwards_raise_flags():
    x, y = batches()[0]
    assert failed(inspect_model(Net(), x, y)) == []
    assert failed(inspect_model(Net(functools.partial(torch.softmax, dim=1)), x, y)) == ["outputs are logits"]
    assert failed(inspect_model(Net(lambda logits: logits * 1e5), x, y)) == ["gradients are not zero"]
    noisy = Net(lambda logits: logits + 0.01 * torch.randn_like(logits))
    assert failed(inspect_model(noisy, x, y)) == ["the forward is deterministic"]
    constant = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Threshold(1e9, 0.5))
    assert failed(inspect_model(constant, x, y)) == ["gradients are not zero"]
    assert failed(inspect_model([Net(), Net()], x, y)) == []
    assert failed(inspect_model([Net(), constant], x, y)) == ["gradients are not zero"]  # one masked member is enough
    assert failed(inspect_model(Net(torch.Tensor.detach), x, y)) == ["gradients are not zero"]
    dropping = nn.Sequential(nn.Dropout(0.5), Net()).train()
    assert failed(inspect_model(dropping, x, y)) == []  # it is inspected in eval mode
    assert dropping.training


def outcome(values):
    correct = torch.tensor(values, dtype=torch.float64)
    return Outcomes(correct, correct, correct, correct.long(), 0.0)


def test_each_comparison_has_its_flag():
    strong, weak = [1.0] * 50 + [0.0] * 50, [1.0] * 60 + [0.0] * 40
    fine = {name: outcome(strong) for name in probes(EPS4, 8)} | {"margin20 unbounded": outcome([0.0] * 100)}
    fine["fgsm"] = fine["square500"] = outcome(weak)
    assert failed(judge(fine)) == []
    other = [0.0] * 10 + [1.0] * 90
    cases = {
        COMPARED[0]: {"pgd40": outcome([0.0] * 2 + strong[2:])},
        COMPARED[1]: {"pgd20x2": outcome([0.0] * 2 + strong[2:])},
        COMPARED[2]: {"fgsm": outcome([1.0] * 40 + [0.0] * 60)},
        COMPARED[3]: {"square500": outcome(other)},  # weaker by its accuracy, but it breaks other samples
        COMPARED[4]: {"margin20 unbounded": outcome([1.0] * 3 + [0.0] * 97)},
    }
    for check, changed in cases.items():
        assert failed(judge(fine | changed)) == [check]
    assert failed(judge(fine | {"pgd40": outcome([0.0, *strong[1:]])})) == []  # a point is no difference
    with pytest.raises(DataError, match="different numbers of samples"):
        judge(fine | {"fgsm": outcome([1.0])})


def test_the_unbounded_probe_starts_at_the_image():
    assert probes(EPS4, 8)["margin20 unbounded"].described()["random_start"] is False
    x, y = batches()[0]
    masked = Net(lambda logits: logits.detach() + 0 * logits)  # its gradient is 0 everywhere
    adversarial = probes(EPS4, 8)["margin20 unbounded"](masked, x, y)
    assert torch.equal(adversarial, x)  # a random start of this size would have fooled it by chance


def test_too_few_samples_pass_nothing():
    x, y = batches()[0]
    flags = honesty_flags(Net(), [(x[:10], y[:10])], EPS4)
    assert [flag.passed for flag in flags[:5]] == [None] * 5


def test_nothing_to_flag_is_an_error():
    with pytest.raises(DataError, match="no samples"):
        honesty_flags(Net(), [], EPS4)
    with pytest.raises(DataError, match="no samples"):
        inspect_model(Net(), torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long))
