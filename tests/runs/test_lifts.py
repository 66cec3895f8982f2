import functools
import importlib
import json

import pytest
import torch
from conftest import make_popup
from search_step import accelerator_of
from torch import nn
from torch.distributions import Categorical, kl_divergence

import rst_hub
from rst_hub.attacks.common import ThreatModel
from rst_hub.attacks.gradient import kl_pgd
from rst_hub.runs import loop as loop
from rst_hub.runs import objectives as lifts
from rst_hub.runs.settings import SearchSettings
from rst_hub.tickets.config import read_config

search = importlib.import_module("rst_hub.runs.search")
train = importlib.import_module("rst_hub.runs.train")

LINF = ThreatModel("Linf", 8 / 255)
ALL = ("--loss", "trades", "--trades-beta", "2", "--ema", "0.9", "--climb", "0.02", "--layer-ratios", "erk")
FEW = ("--model", "test_resnet", "--image-size", "16", "--holdout", "8", "--test-samples", "8", "--batch-size", "7")


@pytest.fixture
def tiny(image_folder):
    """Return settings with which something is learned for three epochs of four steps in a second or two."""
    return (*FEW, "--dataset", str(image_folder), "--epochs", "3", "--steps", "2")


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5))


def some_images(count=6):
    noise = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 2, 2, generator=noise), torch.randint(5, (count,), generator=noise)


def divergences(network, x, other):
    clean, attacked = (Categorical(logits=network(pixels)) for pixels in (x, other))
    return kl_divergence(clean, attacked)


def test_the_attack_of_trades_climbs_the_divergence_whatever_the_labels():
    network, (x, y) = small_network(), some_images()
    found = kl_pgd(network, x, y, LINF, steps=10, generator=torch.Generator().manual_seed(2))
    start = kl_pgd(network, x, y, LINF, steps=1, step_size=0.0, generator=torch.Generator().manual_seed(2))
    assert torch.equal(
        found, kl_pgd(network, x, (y + 1) % 5, LINF, steps=10, generator=torch.Generator().manual_seed(2))
    )
    assert float((found - x).abs().max()) <= 8 / 255 + 1e-7
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    with torch.no_grad():
        assert bool((divergences(network, x, found) > divergences(network, x, start)).all())
    # One step is along the sign of the divergence's gradient at the start.
    leaf = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(divergences(network, x, leaf).sum(), leaf)
    one = kl_pgd(network, x, y, LINF, steps=1, step_size=1 / 255, generator=torch.Generator().manual_seed(2))
    expected = torch.minimum(torch.maximum(start + gradient.sign() / 255, x - 8 / 255), x + 8 / 255).clamp(0, 1)
    assert torch.allclose(one, expected, atol=1e-7)


def test_the_loss_of_trades_is_its_formula():
    network, (x, y) = small_network(), some_images()
    attacked = (x + 0.1).clamp(0, 1)
    loss, logits = lifts.trades(network, x, attacked, y, beta=3.0)
    expected = nn.functional.cross_entropy(network(x), y) + 3 * divergences(network, x, attacked).mean()
    assert torch.allclose(loss, expected, atol=1e-6)
    assert torch.allclose(logits, network(attacked), atol=1e-6)
    plain, _ = lifts.adversarial(network, x, attacked, y)
    assert torch.equal(plain, nn.functional.cross_entropy(network(attacked), y))


def test_climbing_moves_matrices_by_a_share_of_their_norm_and_is_undone():
    matrix, vector, still = (nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (4,), (2, 2)))
    matrix.grad, vector.grad = torch.randn(3, 4), torch.randn(4)
    learned = {"matrix": matrix, "vector": vector, "still": still}
    origin = {name: tensor.detach().clone() for name, tensor in learned.items()}
    before = lifts.climb(learned, 0.1)
    moved = matrix.detach() - origin["matrix"]
    assert list(before) == ["matrix"]
    assert torch.allclose(moved.norm(), 0.1 * origin["matrix"].norm(), rtol=1e-4)
    assert torch.allclose(nn.functional.cosine_similarity(moved.flatten(), matrix.grad.flatten(), 0), torch.tensor(1.0))
    assert torch.equal(vector, origin["vector"])
    lifts.put_back(learned, before)
    assert all(torch.equal(tensor, origin[name]) for name, tensor in learned.items())


def test_what_has_no_gradient_or_an_infinite_one_does_not_move():
    expected = 30.0 * torch.ones(100, 100)
    for gradient, moves in ((0.0, False), (float("inf"), False), (float("nan"), False), (1e-30, True), (1e30, True)):
        matrix = nn.Parameter(expected.clone())
        matrix.grad = torch.full((100, 100), gradient)
        lifts.climb({"matrix": matrix}, 0.5)
        assert torch.allclose(matrix, expected * (1.5 if moves else 1)), gradient


@pytest.mark.usefixtures("_own_precision")
def test_a_step_takes_its_gradient_uphill_and_applies_it_where_it_was():
    found = {}
    for uphill in (0.0, 0.05):
        popup = make_popup(remaining_ratio=0.3)
        origin = {name: scores.detach().clone() for name, scores in popup.scores.items()}
        network = rst_hub.PixelModel(popup.model).eval()  # no batch statistics, which each forward would move
        optimizer = torch.optim.SGD(popup.scores.values(), lr=1.0)
        learner = loop.Learner(popup.model, popup.scores, popup.collect_gradients, popup.apply)
        noise = torch.Generator().manual_seed(0)
        x, y = torch.rand(8, 3, 32, 32, generator=noise), torch.randint(10, (8,), generator=noise)
        loop.step(accelerator_of("fp32", x.device), learner, network, optimizer, None, x, y, uphill=uphill)
        found[uphill] = {name: origin[name] - scores.detach() for name, scores in popup.scores.items()}
    # By hand: the gradient there, then at the scores that it moves to.
    popup = make_popup(remaining_ratio=0.3)
    network = rst_hub.PixelModel(popup.model).eval()
    for share in (0.05, None):
        nn.functional.cross_entropy(network(x), y).backward()
        popup.collect_gradients()
        if share is not None:
            before = lifts.climb(popup.scores, share)
            popup.apply()
    assert all(torch.allclose(popup.scores[name].grad, found[0.05][name], atol=1e-6) for name in before)
    assert any(not torch.allclose(found[0.0][name], found[0.05][name], atol=1e-4) for name in before)
    assert len(before) > 10


@pytest.mark.usefixtures("_own_precision")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_trades_reaches_every_score(precision):
    # torch 2.6 keeps, under autocast, weights that were cast without a gradient: the attack must not leave any.
    popup = make_popup(remaining_ratio=0.5)
    origin = {name: scores.detach().clone() for name, scores in popup.scores.items()}
    network = rst_hub.PixelModel(popup.model).train()
    settings = SearchSettings(loss="trades", attack="fgsm-rs")
    optimizer = loop.make_optimizer(settings, popup.scores)
    learner = loop.Learner(popup.model, popup.scores, popup.collect_gradients, popup.apply)
    attack, objective = loop.make_attack(settings, torch.Generator().manual_seed(0)), loop.make_objective(settings)
    noise = torch.Generator().manual_seed(0)
    x, y = torch.rand(8, 3, 64, 64, generator=noise), torch.randint(10, (8,), generator=noise)
    loop.step(accelerator_of(precision, x.device), learner, network, optimizer, attack, x, y, objective=objective)
    moved = {name for name, scores in popup.scores.items() if (scores - origin[name]).abs().max() > 1e-9}
    assert moved == set(popup.scores)
    assert len(moved) == 16


def test_an_average_follows_with_a_decay_that_grows():
    learned = {"a": nn.Parameter(torch.zeros(3))}
    average = {"a": torch.zeros(3)}
    expected = torch.zeros(3)
    for done in range(1, 30):
        with torch.no_grad():
            learned["a"].fill_(done)
        lifts.follow(average, learned, 0.7, done)
        decay = min(0.7, (1 + done) / (10 + done))
        expected = decay * expected + (1 - decay) * done
    assert torch.allclose(average["a"], expected)
    assert not average["a"].requires_grad


def test_statistics_are_the_means_over_the_first_batches():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    batches = [torch.rand(5, 3, 6, 6) + i for i in range(4)]
    lifts.retake_statistics(network, iter(batches), most=3)
    with torch.no_grad():
        maps = [network[0](x) for x in batches[:3]]
    assert torch.allclose(network[1].running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0), atol=1e-5)
    assert torch.allclose(network[1].running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0), atol=1e-5)
    assert network[1].momentum == 0.1
    assert not network[1].training


def test_a_search_with_all_of_them_keeps_the_average_and_resumes_to_the_same_bits(tiny, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    search.main([*tiny, *ALL, "--output", str(whole)])
    saved = torch.load(whole / "checkpoint.pt", weights_only=True)
    ticket = rst_hub.Ticket.load(whole / "ticket")
    assert ticket.layer_ratios == "erk"
    assert read_config(whole / "ticket")["rst"]["tickets"][0]["layer_ratios"] == "erk"
    assert ticket.provenance["settings"]["ema"] == 0.9
    # The ticket's masks are of the average, not of what was learned last.
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    best = {name.removeprefix("learned."): tensor for name, tensor in saved["best"].items()}
    assert (
        sum(not torch.equal(tensor, saved["state"][f"learned.{name}"]) for name, tensor in saved["average"].items())
        > 10
    )
    if last["epoch"] == ticket.provenance["epoch"]:
        assert all(torch.equal(tensor, best[name]) for name, tensor in saved["average"].items())
    for name, mask in ticket.masks.items():
        chosen = best[name].abs().flatten().topk(int(mask.sum())).indices
        assert bool(mask.flatten()[chosen].all()), name
    # Stopped after two epochs and resumed.
    stop = str(2 * saved["metrics"][0]["steps"])
    search.main([*tiny, *ALL, "--output", str(parts), "--max-steps", stop])
    (parts / "ticket").rename(tmp_path / "trial")
    search.main([*tiny, *ALL, "--output", str(parts), "--resume"])
    assert "resumed after epoch 2" in capsys.readouterr().out
    again = torch.load(parts / "checkpoint.pt", weights_only=True)
    compared = 0
    for part in ("state", "best", "average"):
        for name, tensor in saved[part].items():
            assert torch.equal(tensor, again[part][name]), (part, name)
            compared += 1
    assert compared > 60
    assert rst_hub.Ticket.load(parts / "ticket").weights_digest == ticket.weights_digest


def test_dense_training_takes_them_too(tiny, tmp_path):
    arguments = [word for word in ALL if word not in ("--layer-ratios", "erk")]
    output = tmp_path / "dense"
    train.main([*tiny, *arguments, "--output", str(output)])
    said = json.loads((output / "results.json").read_text())
    assert (said["settings"]["loss"], said["settings"]["climb"]) == ("trades", 0.02)
    first = json.loads((output / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] > 0


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"loss": "trades", "attack": "pgd"}, "kl_pgd"), ({"loss": "trades", "attack": "fgsm-rs"}, "kl_pgd")],
)
def test_trades_has_the_steps_of_the_attack_that_it_replaces(settings, name):
    attack = loop.make_attack(SearchSettings(**settings), None)
    assert isinstance(attack, functools.partial)
    assert attack.func.__name__ == name
    expected = (7, 2 / 255) if settings["attack"] == "pgd" else (1, 10 / 255)
    assert (attack.keywords["steps"], attack.keywords["step_size"]) == expected
