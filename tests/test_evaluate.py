import functools

import pytest
import torch
from torch import nn

from rst_hub import ThreatModel, clean_accuracy, pgd, robust_accuracy
from rst_hub.errors import DataError, RstHubError
from rst_hub.evaluate import outcomes


class Brightest(nn.Module):
    """Says which channel is the brightest."""

    def forward(self, x):
        return x.mean((2, 3))


def batches(count=10):
    x = torch.zeros(count, 3, 4, 4)
    y = torch.arange(count) % 3
    x[torch.arange(count), y] = 0.5
    x[0] = x[0].flip(0)  # the first is wrong
    return [(x[:4], y[:4]), (x[4:], y[4:])]


def test_accuracies_are_percentages_of_per_sample_outcomes():
    model = Brightest()
    assert outcomes(model, batches()).tolist() == [False] + [True] * 9
    assert clean_accuracy(model, batches()) == 90.0
    assert robust_accuracy(model, batches(), functools.partial(pgd, threat_model=ThreatModel(eps=0.2))) == 90.0
    strong = functools.partial(pgd, threat_model=ThreatModel(eps=0.3), step_size=0.1)
    assert robust_accuracy(model, batches(), strong) == 0.0


def test_eps_zero_is_clean_accuracy():
    assert robust_accuracy(Brightest(), batches(), functools.partial(pgd, threat_model=ThreatModel(eps=0))) == 90.0


def test_a_model_is_measured_in_eval_mode_and_put_back_module_by_module():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9), Brightest())
    model.train()
    model[0].eval()
    statistics = model[0].running_mean.clone()
    assert clean_accuracy(model, batches()) == 90.0
    assert [module.training for module in model] == [False, True, True]
    assert torch.equal(model[0].running_mean, statistics)
    with pytest.raises(DataError):
        clean_accuracy(model, [(torch.full((1, 3, 4, 4), 2.0), torch.tensor([0]))])
    assert [module.training for module in model] == [False, True, True]


def test_bad_input_is_an_error_never_a_number():
    x, y = batches()[0]
    with pytest.raises(DataError, match="pixels reach"):
        clean_accuracy(Brightest(), [(x * 255, y)])
    with pytest.raises(DataError, match="pixels reach"):
        clean_accuracy(Brightest(), [(x * float("nan"), y)])
    for measure in (
        clean_accuracy,
        functools.partial(robust_accuracy, attack=functools.partial(pgd, threat_model=ThreatModel())),
    ):
        with pytest.raises(DataError, match="3 logits"):
            measure(Brightest(), [(x, y + 3)])
    with pytest.raises(DataError, match="no samples"):
        clean_accuracy(Brightest(), [])
    with pytest.raises(RstHubError, match="not finite"):
        clean_accuracy(nn.Sequential(Brightest(), nn.Threshold(9, float("nan"))), [(x, y)])
