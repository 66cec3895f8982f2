"""What every attack and every measurement refuses of pixels and labels, and that the loop is not checked."""

import functools
import importlib.util
import inspect

import numpy as np
import pytest
import torch
from conftest import make_popup
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rst_hub
from rst_hub import PixelModel, ThreatModel
from rst_hub.attacks.common import unchecked
from rst_hub.attacks.gradient import kl_pgd
from rst_hub.attacks.names import NAMES, named_attack
from rst_hub.errors import DataError, SettingsError
from rst_hub.evaluation.accuracy import evaluate, outcomes
from rst_hub.evaluation.sanity import inspect_model, probes
from rst_hub.runs import loop as loop
from rst_hub.runs.settings import SearchSettings

BUDGET = ThreatModel("Linf", 8 / 255)


def crafted(name):
    attack = getattr(rst_hub, name, kl_pgd)
    return attack if name == "cw_l2" else functools.partial(attack, threat_model=BUDGET)


def named(name):
    return named_attack(name, BUDGET, 8)


EXTRA = () if importlib.util.find_spec("pyautoattack") else ("autoattack", "autoattack_rand")  # that is not installed
PUBLIC = ("fgsm", "fgsm_rs", "pgd", "kl_pgd", "cw_linf", "cw_l2", "bandits", "square", "arc", "autoattack")
ATTACKS = {
    **{name: crafted(name) for name in PUBLIC if name not in EXTRA},
    **{f"named {name}": named(name) for name in NAMES if name not in EXTRA},
    **{f"probe {name}": attack for name, attack in probes(BUDGET, 8).items()},
}
MEASURES = {
    "clean accuracy": lambda m, x, y: rst_hub.clean_accuracy(m, [(x, y)]),
    "robust accuracy": lambda m, x, y: rst_hub.robust_accuracy(m, [(x, y)], crafted("pgd")),
    "robust accuracy of another's attack": lambda m, x, y: rst_hub.robust_accuracy(m, [(x, y)], lambda m, x, y: x),
    "outcomes": lambda m, x, y: outcomes(m, [(x, y)]),
    "evaluate": lambda m, x, y: evaluate(m, [(0, x, y)], named("fgsm")),
    "transfer matrix": lambda m, x, y: rst_hub.transfer_matrix([m, m], [(x, y)], crafted("pgd")),
    "honesty flags": lambda m, x, y: rst_hub.honesty_flags(m, [(x, y)], BUDGET),
    "inspect model": lambda m, x, y: inspect_model(m, x, y),
}
ALL = {**ATTACKS, **MEASURES}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(192, 5)

    def forward(self, x):
        return self.layer(x.flatten(1))


def samples():
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(6) % 5


def bad_inputs():
    x, y = samples()
    nan = x.clone()
    nan[0, 0, 0, 0] = float("nan")
    below, above = x.clone(), y.clone()
    below[0, 0, 0, 0], above[-1] = -0.01, 5
    return {
        r"pixels reach from .* to 2\d\d.*: give pixels in \[0, 1\], as in x / 255": (255 * x, y),
        r"pixels reach from -0.01 to .*\[0, 1\]": (below, y),
        "pixels reach from nan": (nan, y),
        "pixels of torch.float64.*x.float()": (x.double(), y),
        "pixels of torch.bfloat16.*x.float()": (x.bfloat16(), y),
        r"pixels of torch.uint8.*x.float\(\) / 255": ((255 * x).byte(), y),
        "ndarray.*give tensors": (np.zeros((6, 3, 8, 8), np.float32), y),
        "are channels-last.*permute": (x.permute(0, 2, 3, 1), y),
        r"\(6, 8, 9, 3\) are channels-last": (torch.rand(6, 8, 9, 3), y),
        r"\(6, 8, 8, 1\) are channels-last": (torch.rand(6, 8, 8, 1), y),
        "have no batch dimension.*unsqueeze": (x[0], y[:1]),
        r"\(3, 8, 8\) have no batch dimension": (x[0], y[0]),
        "have no channels.*unsqueeze": (x[:, 0], y),
        "are no images": (x[:, :, None], y),
        r"labels reach from -1 to 4": (x, y.where(y > 0, -1)),
        r"labels reach from -100 to 4": (x, y.where(y > 0, -100)),  # torch's cross-entropy would leave these out
        "labels reach to 5; the model has 5 logits": (x, above),
        r"labels of torch.int32 .*y.long\(\)": (x, y.int()),
        r"labels of torch.uint8 .*y.long\(\)": (x, y.byte()),
        r"labels of torch.float32 .*give int64": (x, y.float()),
        r"labels of .* \(6, 5\) .*y.argmax\(1\)": (x, nn.functional.one_hot(y, 5)),
        r"labels of .* \(6, 1\) .*y.flatten\(\)$": (x, y[:, None]),  # argmax(1) would make them all 0
        r"labels of .* \(6, 1\) .*y.flatten\(\).long\(\)$": (x, y[:, None].int()),
        r"labels of .* \(3,\) for 6 samples: give int64 of shape \(N,\)$": (x, y[:3]),
        r"labels of .* \(3, 5\) for 6 samples: give int64 of shape \(N,\)$": (x, nn.functional.one_hot(y, 5)[:3]),
        "pixels are on cpu, labels on meta": (x, y.to("meta")),
    }


@pytest.mark.parametrize("name", ALL)
def test_every_attack_and_measurement_refuses_the_same(name):
    refused = 0
    for message, (x, y) in bad_inputs().items():
        with pytest.raises(DataError, match=message):
            ALL[name](Net(), x, y)
        refused += 1
    assert refused == 26


def test_nothing_public_is_forgotten():
    functions = {name: getattr(rst_hub, name) for name in rst_hub.__all__ if inspect.isfunction(getattr(rst_hub, name))}
    taken = {name for name, function in functions.items() if _attacks(function)}
    measures = {"clean_accuracy", "robust_accuracy", "transfer_matrix", "honesty_flags"}
    assert taken - measures <= set(PUBLIC)
    assert measures <= taken
    assert len(ALL) == 10 + 14 + 7 + 8 - (3 if EXTRA else 0)


def _attacks(function):
    first = list(inspect.signature(function).parameters)[:2]
    return first[:1] in (["model"], ["models"]) and first[1:] in (["x"], ["batches"])


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in ("cw_l2", *EXTRA)])
def test_a_budget_that_is_no_threat_model_is_refused(name):
    attack = getattr(rst_hub, name, kl_pgd)
    for given, named in (((8 / 255,), {}), ((), {"threat_model": 8 / 255}), (("Linf",), {}), ((None,), {})):
        with pytest.raises(SettingsError, match=r"threat model .*: give one such as ThreatModel\('Linf', 8 / 255\)"):
            attack(Net(), *samples(), *given, **named)


@pytest.mark.parametrize("name", ATTACKS)
def test_channels_are_checked_against_what_the_model_says(name):
    network = PixelModel(Net(), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    y = samples()[1]
    with pytest.raises(DataError, match=r", 1, 8, 8\): mean and std are of 3 channels"):
        ATTACKS[name](network, torch.rand(6, 1, 8, 8), y)


def test_pixels_that_are_right_pass_whatever_their_size():
    y = torch.tensor([0, 1])
    shapes = [(2, 12), (2, 3, 2, 2), (2, 1, 12, 1), (2, 3, 1, 4), (2, 12, 1, 1), (2, 4, 1, 3), (2, 1, 3, 4)]
    shapes += [(2, 6, 2, 1)]
    for shape in shapes:
        adversarial = rst_hub.pgd(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.rand(shape), y, BUDGET, steps=1)
        assert adversarial.shape == shape
    edges = torch.tensor([[0.0] * 6 + [1.0] * 6] * 2)
    assert rst_hub.fgsm(nn.Linear(12, 2), edges, y, BUDGET).shape == (2, 12)
    assert len(shapes) == 8


def test_a_judge_without_a_logit_for_a_label_is_refused_too():
    x, y = samples()
    with pytest.raises(DataError, match="labels reach to 4; the model has 3 logits"):
        evaluate(Net(), [(0, x, y)], named("fgsm"), judges=[nn.Sequential(nn.Flatten(), nn.Linear(192, 3))])


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: values that are asked for, and shapes that hang on values."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"attack": "pgd"}, "pgd"),
        ({"attack": "fgsm"}, "fgsm"),
        ({"attack": "fgsm-rs"}, "fgsm_rs"),
        ({"attack": "pgd", "loss": "trades"}, "kl_pgd"),
    ],
)
def test_the_loops_attacks_ask_the_device_for_no_value(settings, name):
    network, x, y = PixelModel(make_popup().model), torch.rand(4, 3, 32, 32), torch.arange(4)
    attack = loop.make_attack(SearchSettings(**settings), torch.Generator().manual_seed(0))
    public = getattr(rst_hub, name, kl_pgd)
    assert attack.func is unchecked(public)
    with Waits() as waits:
        found = attack(network, x, y)
    assert waits.count == 0
    state = {key: torch.Generator().manual_seed(0) for key in attack.keywords if key == "generator"}
    with Waits() as waits:
        checked = public(network, x, y, **{**attack.keywords, **state})
    assert waits.count >= 4
    assert torch.equal(found, checked)  # the same attack
