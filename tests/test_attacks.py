import functools

import pytest
import torch
from torch import nn
from torch.nn import functional

from rst_hub import ThreatModel, fgsm, fgsm_rs, pgd
from rst_hub.errors import SettingsError
from rst_hub.evaluate import robust_accuracy

EPS = 8 / 255
LINF = ThreatModel("Linf", EPS)
ATTACKS = {
    "fgsm": fgsm,
    "fgsm_rs": fgsm_rs,
    "pgd": functools.partial(pgd, steps=5),
    "pgd, restarts": functools.partial(pgd, steps=3, restarts=2),
}


def network(seed=0, classes=5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, classes)).eval()


def samples(count=16, seed=0, classes=5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, 8, 8, generator=generator)
    return x, torch.randint(0, classes, (count,), generator=generator)


@pytest.mark.parametrize("name", ATTACKS)
def test_results_stay_in_the_ball_and_in_the_pixel_range(name):
    x, y = samples()
    x[0], x[1] = 0.0, 1.0
    for eps in (0.0, 1 / 255, EPS, 1.0):
        adversarial = ATTACKS[name](network(), x, y, ThreatModel(eps=eps))
        assert adversarial.dtype == x.dtype
        assert adversarial.shape == x.shape
        assert not adversarial.requires_grad
        assert float((adversarial - x).abs().max()) <= eps + 1e-7
        assert 0 <= float(adversarial.min()) <= float(adversarial.max()) <= 1
        assert eps or torch.equal(adversarial, x)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_raise_the_loss_and_leave_the_model_alone(name):
    model, (x, y) = network(), samples()
    before = [p.detach().clone() for p in model.parameters()]
    adversarial = ATTACKS[name](model, x, y, LINF)
    clean, attacked = (float(functional.cross_entropy(model(v), y).detach()) for v in (x, adversarial))
    assert attacked > clean
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_fgsm_is_one_signed_step():
    model, (x, y) = network(), samples()
    leaf = x.clone().requires_grad_()
    functional.cross_entropy(model(leaf), y).backward()
    assert torch.allclose(fgsm(model, x, y, LINF), (x + EPS * leaf.grad.sign()).clamp(0, 1))


def test_one_step_of_pgd_from_the_sample_is_fgsm():
    model, (x, y) = network(), samples()
    stepped = pgd(model, x, y, LINF, steps=1, step_size=EPS, random_start=False)
    assert torch.equal(stepped, fgsm(model, x, y, LINF))


def test_fgsm_rs_starts_at_random_and_steps_by_one_and_a_quarter_eps():
    model, (x, y) = network(), samples()
    x = x * 0.8 + 0.1  # no clipping at 0 and 1
    one, same, other = (fgsm_rs(model, x, y, LINF, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    noise = torch.empty_like(x).uniform_(-EPS, EPS, generator=torch.Generator().manual_seed(0))
    leaf = (x + noise).requires_grad_()
    functional.cross_entropy(model(leaf), y).backward()
    expected = x + (noise + 1.25 * EPS * leaf.grad.sign()).clamp(-EPS, EPS)
    assert torch.allclose(one, expected, atol=1e-6)


def test_each_sample_is_attacked_on_its_own():
    model, (x, y) = network(), samples()
    attack = functools.partial(pgd, threat_model=LINF, steps=5, random_start=False)
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    assert torch.allclose(attack(model, x, y), alone, atol=1e-6)


def test_on_a_linear_model_pgd_finds_the_exact_robust_accuracy():
    # Two classes: a sample is robust exactly when its margin exceeds eps times the L1 norm of the weight difference.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    x = torch.rand(400, 3, 8, 8) * 0.8 + 0.1
    with torch.no_grad():
        y = model(x).argmax(1)
        difference = model[1].weight[0] - model[1].weight[1]
        margin = (model(x)[:, 0] - model(x)[:, 1]) * (1 - 2 * y)
        exact = 100 * float((margin > EPS * difference.abs().sum()).float().mean())
    attack = functools.partial(pgd, threat_model=LINF, steps=20)
    found = robust_accuracy(model, [(x, y)], attack)
    assert 10 < exact < 90
    assert found == pytest.approx(exact, abs=100 / 400)


def test_more_restarts_never_leave_more_samples_right():
    model = network()
    x = samples(64)[0]
    y = model(x).argmax(1)
    right = []
    for restarts in (1, 2, 8):
        generator = torch.Generator().manual_seed(0)
        attack = functools.partial(pgd, threat_model=ThreatModel(eps=2 / 255), steps=2, step_size=1 / 255)
        adversarial = attack(model, x, y, restarts=restarts, generator=generator)
        right.append(model(adversarial).argmax(1) == y)
    assert bool((right[1] <= right[0]).all())
    assert bool((right[2] <= right[1]).all())
    assert int(right[2].sum()) < 64


def test_bad_settings_are_refused():
    for eps in (-1 / 255, 2, float("nan"), "8/255", True):
        with pytest.raises(SettingsError, match="eps"):
            ThreatModel("Linf", eps)
    with pytest.raises(SettingsError, match="norm"):
        ThreatModel("L7")
    x, y = samples()
    for bad in ({"steps": 0}, {"restarts": 0}, {"step_size": -1}, {"restarts": 2, "random_start": False}):
        with pytest.raises(SettingsError, match="pgd"):
            pgd(network(), x, y, LINF, **bad)
