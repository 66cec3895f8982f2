import builtins
import functools
import sys

import pytest
import torch
from torch import nn

import rst_hub.attacks.autoattack as autoattack
from rst_hub import ThreatModel, pgd
from rst_hub.attacks.common import norm_of
from rst_hub.errors import SettingsError
from rst_hub.evaluation.accuracy import outcomes

EPS = 4 / 255


def network(classes=5, seed=0):
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, classes))
    return nn.Sequential(*layers).eval()


def samples(model, count=24):
    x = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return x, model(x).argmax(1)


@pytest.fixture(scope="module")
def attacked():
    pytest.importorskip("pyautoattack")
    model = network()
    x, y = samples(model)
    return model, x, y, autoattack(model, x, y, ThreatModel(eps=EPS))


def test_it_leaves_no_more_than_pgd20(attacked):
    model, x, y, adversarial = attacked
    left = outcomes(model, [(adversarial, y)])
    by_pgd = outcomes(model, [(x, y)], functools.partial(pgd, threat_model=ThreatModel(eps=EPS)))
    assert 0 < int(left.sum()) < len(x)
    assert bool((left <= by_pgd).all())
    assert float(norm_of(adversarial - x, "Linf").max()) <= EPS + 1e-6
    assert 0 <= float(adversarial.min()) <= float(adversarial.max()) <= 1
    assert torch.equal(adversarial[left == 1], x[left == 1])


def test_the_model_and_its_surroundings_are_left_as_they_were(attacked):
    model = network().train()
    x, y = samples(network())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, tracer = torch.get_rng_state(), sys.gettrace()
    adversarial = autoattack(model, x, y, ThreatModel(eps=EPS))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert int(model[1].num_batches_tracked) == 0
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert sys.gettrace() is tracer
    assert torch.equal(adversarial, attacked[3])  # and train mode made no difference


def test_channels_last_models_and_pixels_make_no_difference(attacked):
    model, x, y, adversarial = attacked
    other = network().to(memory_format=torch.channels_last)
    again = autoattack(other, x.to(memory_format=torch.channels_last), y, ThreatModel(eps=EPS))
    assert torch.equal(outcomes(model, [(again, y)]), outcomes(model, [(adversarial, y)]))


def test_its_seed_comes_from_the_generator(attacked):
    model, x, y, _ = attacked
    run = functools.partial(autoattack, model, x[:6], y[:6], ThreatModel("L2", 0.2))
    one, same = (run(generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, run(generator=torch.Generator().manual_seed(2)))
    assert float(norm_of(one - x[:6], "L2").max()) <= 0.2 + 1e-6


def test_rand_takes_members_by_their_mean_probability(attacked):
    members = [network(), network(seed=1)]
    x = attacked[1]
    y = sum(member(x).detach().softmax(1) for member in members).argmax(1)
    adversarial = autoattack(members, x, y, ThreatModel(eps=EPS), version="rand")
    mean = sum(member(adversarial).detach().softmax(1) for member in members)
    left = functools.partial(pgd, threat_model=ThreatModel(eps=EPS))(members, x, y)
    of_pgd = sum(member(left).detach().softmax(1) for member in members)
    assert int((mean.argmax(1) == y).sum()) <= int((of_pgd.argmax(1) == y).sum()) < len(x)


def test_what_it_cannot_do_is_an_error_or_the_right_answer(attacked, monkeypatch):
    model, x, y, _ = attacked
    assert torch.equal(autoattack(model, x, y, ThreatModel(eps=0)), x)
    assert autoattack(model, x[:0], y[:0], ThreatModel()).shape == (0, 3, 8, 8)
    with pytest.raises(SettingsError, match="needs 4 classes, the model has 3"):
        autoattack(network(3), x, y % 3, ThreatModel())
    with pytest.raises(SettingsError, match="version 'fast'"):
        autoattack(model, x, y, ThreatModel(), version="fast")
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name == "pyautoattack":
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=r'pip install "rst-hub\[attacks\]"'):
        autoattack(model, x, y, ThreatModel())
