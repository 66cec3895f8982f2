import functools
import inspect
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from rst_hub.attacks.arc import arc
from rst_hub.attacks.common import ThreatModel, fooled, logits_of, norm_of, random_start
from rst_hub.attacks.gradient import fgsm, fgsm_rs, pgd
from rst_hub.errors import DataError, RstHubError, SettingsError
from rst_hub.evaluation.accuracy import outcomes

MEANS = {
    "EOT": pgd,
    "logit ensemble": functools.partial(pgd, average="logits"),
    "probability ensemble": functools.partial(pgd, average="probabilities"),
    "margin sum": functools.partial(pgd, loss="clipped_margin"),
}
MIDDLE = torch.full((1, 1, 1, 2), 0.5)  # two pixels
ONE = torch.ones(1, dtype=torch.int64)
S1, S2 = 0.450166, 0.182426  # 1 - sigmoid(0.2) and 1 - sigmoid(1.5)


def line(weight, at_middle):
    """Return a member of two classes: the logits are 0 and ``at_middle`` + ``weight`` (v - 0.5)."""
    weight = torch.tensor(weight)
    return lambda v: torch.stack([0 * v.flatten(1).sum(1), (v.flatten(1) - 0.5) @ weight + at_middle], 1)


def right(members, at, y):
    return torch.stack([logits.argmax(1) == y for logits in logits_of(members, at)]).sum(0)


@pytest.mark.parametrize(
    ("name", "steepest"),
    [
        ("EOT", (-3 * S1 + S2, S1 - 2 * S2)),
        ("logit ensemble", (-2.0, -1.0)),
        ("probability ensemble", (-3 * (1 - S1) * S1 + (1 - S2) * S2, (1 - S1) * S1 - 2 * (1 - S2) * S2)),
        ("margin sum", (-2.0, -1.0)),
    ],
)
def test_the_first_step_goes_where_it_does_by_hand(name, steepest):
    members = [line((3.0, -1.0), 0.2), line((-1.0, 2.0), 1.5)]
    step = functools.partial(MEANS[name], steps=1, step_size=0.02, random_start=False, keep="last")
    length = math.hypot(*steepest)
    found = step(members, MIDDLE, ONE, ThreatModel("L2", 0.1)).flatten().tolist()
    assert found == pytest.approx([0.5 + 0.02 * part / length for part in steepest], abs=1e-6)
    found = step(members, MIDDLE, ONE, ThreatModel("Linf", 0.1)).flatten().tolist()
    assert found == pytest.approx([0.5 + math.copysign(0.02, part) for part in steepest], abs=1e-6)


def test_the_margin_sum_leaves_a_fooled_member_alone():
    step = functools.partial(MEANS["margin sum"], steps=1, step_size=0.02, random_start=False, keep="last")
    one_left = step([line((3.0, -1.0), -0.2), line((-1.0, 2.0), 1.5)], MIDDLE, ONE, ThreatModel("Linf", 0.1))
    assert one_left.flatten().tolist() == pytest.approx([0.52, 0.48])
    none_left = step([line((3.0, -1.0), -0.2), line((-1.0, 2.0), -1.5)], MIDDLE, ONE, ThreatModel("Linf", 0.1))
    assert torch.equal(none_left, MIDDLE)


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_falls_between_two_members_where_arc_takes_one(name):
    # Both margins are 0.3. With eps = 0.1, (-eps, eps) lowers the first by 4 eps, and by symmetry (eps, -eps) the
    # second, while (-eps, -eps), where every mean points, lowers both by 2 eps. Their sum, 0.6, falls by 4 eps at the
    # most, so that nothing fools both: the optimum is one half.
    members, budget = [line((3.0, -1.0), 0.3), line((-1.0, 3.0), 0.3)], ThreatModel("Linf", 0.1)
    between = MEANS[name](members, MIDDLE, ONE, budget, random_start=False)
    assert between.flatten().tolist() == pytest.approx([0.4, 0.4])
    assert int(right(members, between, ONE)) == 2
    many, labels = MIDDLE.expand(50, 1, 1, 2), ONE.expand(50)
    started = MEANS[name](members, many, labels, budget, keep="last", generator=torch.Generator().manual_seed(0))
    assert right(members, started, labels).tolist() == [2] * 50  # no random start gets it out of there
    found = arc(members, MIDDLE, ONE, budget, steps=1, step_size=0.1, random_start=False)
    assert found.flatten().tolist() == pytest.approx([0.4, 0.6], abs=1e-6)
    assert int(right(members, found, ONE)) == 1


def test_arc_moves_where_the_gradients_cancel():
    members, budget = [line((4.0, 0.0), 0.2), line((-4.0, 0.0), 0.2)], ThreatModel("Linf", 0.1)
    assert torch.equal(MEANS["EOT"](members, MIDDLE, ONE, budget, random_start=False), MIDDLE)
    many, labels = MIDDLE.expand(20, 1, 1, 2), ONE.expand(20)
    start = random_start(many, budget, torch.Generator().manual_seed(0))
    stuck = MEANS["logit ensemble"](members, many, labels, budget, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stuck, start)  # the mean logit is constant
    found = arc(members, MIDDLE, ONE, budget, steps=1, step_size=0.1, random_start=False)
    assert found.flatten().tolist() == pytest.approx([0.4, 0.5], abs=1e-6)
    assert int(right(members, found, ONE)) == 1


@pytest.mark.parametrize(("norm", "third"), [("Linf", 0.24), ("L2", 0.24 / 2**0.5)])
def test_one_step_goes_to_the_nearest_boundary_not_to_the_next_highest_logit(norm, third):
    # From class 0 it is 0.4 / 4 to class 1, and 0.3 / 2 (L2: 0.3 / 1.41) to class 2, whose logit is higher.
    weights, logits = torch.tensor([[0.0, 0.0], [4.0, 0.0], [-1.0, 1.0]]), torch.tensor([1.0, 0.6, 0.7])
    model = lambda v: (v.flatten(1) - 0.5) @ weights.T + logits  # noqa: E731
    attack = functools.partial(arc, model, MIDDLE, 0 * ONE, ThreatModel(norm, 0.25), step_size=0.12, random_start=False)
    assert attack(steps=1).flatten().tolist() == pytest.approx([0.62, 0.5], abs=1e-6)
    assert torch.equal(attack(steps=1, targets=1), MIDDLE)  # not there yet: nothing better than x was seen
    assert attack(steps=2, targets=1).flatten().tolist() == pytest.approx([0.5 - third, 0.5 + third], abs=1e-6)
    assert torch.equal(attack(steps=1, targets=2), attack(steps=1, targets=9))  # there are no more


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_second_member_turns_the_step_by_the_amount_of_the_paper(norm):
    # Boundaries at 0.03 and 0.02 along one pixel each, and a step of 0.05. The first member gives (-0.05, 0), the
    # second turns it by beta = 0.05 / (0.05 - 0.02) * 0.02 + 0.05 * 0.05 = 0.0358333, and the size is made 0.05 again.
    members = [line((10.0, 0.0), 0.3), line((0.0, 10.0), 0.2)]
    found = arc(members, MIDDLE, ONE, ThreatModel(norm, 0.05), steps=1, step_size=0.05, random_start=False)
    size = {"Linf": 0.05, "L2": math.hypot(0.05, 0.0358333)}[norm]
    expected = [0.5 - 0.05 * 0.05 / size, 0.5 - 0.05 * 0.0358333 / size]
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert bool(fooled(logits_of(members, found), ONE))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_step_crosses_every_linear_boundary_that_is_within_its_size(norm):
    # Whatever the first member, which cannot be fooled, has made of the step before.
    generator = torch.Generator().manual_seed(0)
    y, crossed, decided = torch.ones(64, dtype=torch.int64), 0, 0
    for _ in range(25):
        first, second = torch.randn(2, 8, generator=generator)
        reach = 0.1 * second.norm(p=1 if norm == "Linf" else 2)
        x = 0.35 + 0.3 * torch.rand(64, 8, generator=generator)
        wanted = 2 * reach * torch.rand(64, generator=generator) - (x - 0.5) @ second
        x = x + wanted[:, None] * second / second.square().sum()
        x = x.clamp(0.11, 0.89).view(64, 1, 1, 8)  # no step meets the end of the pixel range
        members = [line(first.tolist(), 100.0), line(second.tolist(), 0.0)]
        gap = members[1](x)[:, 1]
        found = arc(members, x, y, ThreatModel(norm, 0.1), steps=1, step_size=0.1, random_start=False)
        sure = ((gap - reach).abs() > 0.02 * reach) & (gap > 1e-5)  # elsewhere a rounding decides
        assert torch.equal((right(members, found, y) == 1)[sure], (gap < reach)[sure])
        crossed, decided = crossed + int((gap < reach)[sure].sum()), decided + int(sure.sum())
    assert decided > 1200
    assert 400 < crossed < decided - 400


def test_a_start_worse_than_the_sample_is_walked_away_from():
    # At x itself one member is fooled, but nowhere near it; further on both are. Measured by x, no step would count.
    def trap(v):
        pixel = v[:, 0, 0, 0]
        return torch.stack([0 * pixel, torch.where((pixel - 0.5).abs() < 1e-3, 0 * pixel - 1, 10 * (pixel - 0.3))], 1)

    x, y, generator = MIDDLE.repeat(20, 1, 1, 1), ONE.repeat(20), torch.Generator().manual_seed(0)
    members = [trap, line((10.0, 0.0), 2.0)]
    start = random_start(x, ThreatModel("Linf", 0.25), torch.Generator().manual_seed(0))
    assert right(members, x, y).tolist() == [1] * 20
    assert int((right(members, start, y) == 2).sum()) > 10
    found = arc(members, x, y, ThreatModel("Linf", 0.25), generator=generator)
    assert right(members, found, y).tolist() == [0] * 20
    stay = arc(members, x, y, ThreatModel("Linf", 0.01), generator=generator)
    assert torch.equal(stay, x)  # nothing better within reach


@pytest.fixture(scope="module")
def digits():
    """Return three small networks, trained on the digits each in its own way, and 100 test digits, at 8 x 8 pixels."""
    from rst_hub.data.images import load_images

    train, test = load_images("digits", "train"), load_images("digits", "test")
    small = lambda rows: functional.avg_pool2d(rows.float() / 255, 4).clamp(0, 1)  # noqa: E731
    members = []
    for seed, (eps, hidden) in enumerate([(4 / 255, 32), (16 / 255, 32), (8 / 255, 64)]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(192, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for step in range(80):
            chosen = torch.arange(step * 64, step * 64 + 64) % len(train)
            x, y = small(train.rows[chosen]), train.labels[chosen]
            loss = functional.cross_entropy(model(fgsm_rs(model, x, y, ThreatModel("Linf", eps))), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        members.append(model.eval())
    return members, small(test.rows[:100]), test.labels[:100]


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 16 / 255), ("L2", 0.7)])
def test_every_attack_of_one_who_knows_the_members_breaks_trained_ones(digits, norm, eps):
    members, x, y = digits
    budget = ThreatModel(norm, eps)
    clean = outcomes(members, [(x, y)])
    noise = outcomes(members, [(x, y)], lambda _, v, w: random_start(v, budget, torch.Generator().manual_seed(0)))
    one_step = outcomes(members, [(x, y)], functools.partial(fgsm, threat_model=budget))
    attacks = {**MEANS, "ARC": arc}
    left = {name: outcomes(members, [(x, y)], functools.partial(a, threat_model=budget)) for name, a in attacks.items()}
    assert float(clean.mean()) > 0.85
    for name, outcome in left.items():
        assert float(outcome.mean()) < float(noise.mean()) - 0.15, name
        assert float(outcome.mean()) < float(one_step.mean()) + 0.02, name
    assert len(left) == 5
    assert float(torch.stack(list(left.values())).amin(0).mean()) <= min(float(v.mean()) for v in left.values())
    assert float(left["ARC"].mean()) > 0.05  # there is something left to lose, or nothing was compared


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 8 / 255), ("L2", 0.25)])
def test_one_model_is_attacked_too(digits, norm, eps):
    (model, *_), x, y = digits
    budget = ThreatModel(norm, eps)
    clean = float(outcomes(model, [(x, y)]).mean())
    one_step = float(outcomes(model, [(x, y)], functools.partial(fgsm, threat_model=budget)).mean())
    found = float(outcomes(model, [(x, y)], functools.partial(arc, threat_model=budget)).mean())
    assert 0 < found <= one_step + 0.01 < clean


def test_more_steps_and_a_start_never_leave_more_members_right(digits):
    members, x, y = digits
    y = torch.where(torch.arange(len(y)) < 20, (y + 1) % 10, y)  # some are wrong from the start
    for norm, eps in (("Linf", 16 / 255), ("L2", 0.5)):
        budget = ThreatModel(norm, eps)
        start = random_start(x, budget, torch.Generator().manual_seed(0))
        counts = [torch.minimum(right(members, x, y), right(members, start, y))]
        for steps in (1, 3, 9):
            found = arc(members, x, y, budget, steps=steps, generator=torch.Generator().manual_seed(0))
            counts.append(right(members, found, y))
            assert bool((counts[-1] <= counts[-2]).all())
        assert int(counts[0].sum()) > int(counts[1].sum()) > int(counts[-1].sum()) > 0
        assert int((counts[0] == 0).sum()) > 10


def test_each_sample_is_attacked_on_its_own_and_the_start_comes_from_the_generator(digits):
    members, x, y = digits
    attack = functools.partial(arc, threat_model=ThreatModel("Linf", 16 / 255), steps=4)
    together = attack(members, x[:12], y[:12], random_start=False)
    alone = [attack(members, x[i : i + 1], y[i : i + 1], random_start=False) for i in range(12)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)
    one, same, other = (attack(members, x, y, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", [*MEANS, "ARC"])
def test_results_stay_in_the_ball_and_in_the_pixel_range_and_the_members_as_they_were(digits, name):
    members, x, y = digits
    attack = functools.partial({**MEANS, "ARC": arc}[name], steps=4)
    x, y = x[:10].clone(), y[:10]
    x[0], x[1] = 0.0, 1.0
    before = [value.clone() for member in members for value in member.state_dict().values()]
    seen = []
    watches = [m.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach())) for m in members]
    for norm, budgets in {"Linf": (0.0, 8 / 255, 1.0), "L2": (0.0, 0.5, 50.0)}.items():
        for eps in budgets:
            found = attack(members, x, y, ThreatModel(norm, eps))
            assert found.dtype == torch.float32
            assert found.shape == x.shape
            assert not found.requires_grad
            assert float(norm_of(found - x, norm).max()) <= eps + 1e-6
            assert 0 <= float(found.min()) <= float(found.max()) <= 1
            assert eps or torch.equal(found, x)
        assert not torch.equal(found, x)
    for watch in watches:
        watch.remove()
    assert len(seen) > 50
    assert all(0 <= float(v.min()) <= float(v.max()) <= 1 for v in seen)  # the members see pixels only
    assert attack(members, x[:0], y[:0], ThreatModel()).shape == (0, 3, 8, 8)
    after = [value for member in members for value in member.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert not any(member.training for member in members)
    assert all(p.grad is None for member in members for p in member.parameters())


def test_what_arc_cannot_attack_is_refused():
    x, y, budget = MIDDLE.repeat(4, 1, 1, 1), ONE.repeat(4), ThreatModel()
    good = line((3.0, -1.0), 0.2)
    settings = ({"steps": 0}, {"steps": 1.5}, {"targets": 0}, {"step_size": -1}, {"step_size": math.nan})
    for bad in settings:
        with pytest.raises(SettingsError, match="arc with steps"):
            arc(good, x, y, budget, **bad)
    with pytest.raises(SettingsError, match="empty list"):
        arc([], x, y, budget)
    victims = {
        "logits under attack: not finite": lambda v: torch.where((v == x).all(), good(v), math.inf),
        "gradient under attack: not finite": lambda v: good(v) * (1 + (v - v).square().sum((1, 2, 3)).sqrt()[:, None]),
        "cut off from its input": lambda v: good(v).detach(),
        r"gives \(4,\)": lambda v: good(v)[:, 0],
    }
    for message, victim in victims.items():
        with pytest.raises(RstHubError, match=message):
            arc([good, victim], x, y, budget)
    for pixels, labels in ((x.double(), y), (x, y[:2]), (x.tolist(), y)):
        with pytest.raises(DataError):
            arc(good, pixels, labels, budget)


def test_where_there_is_no_boundary_nothing_moves():
    constant = lambda v: 0 * v.flatten(1).sum(1)[:, None] + torch.tensor([0.0, 1.0])  # noqa: E731
    only_one_class = lambda v: v.flatten(1).sum(1)[:, None]  # noqa: E731
    for model, label in ((constant, ONE), (only_one_class, 0 * ONE)):
        for norm in ("Linf", "L2"):
            assert torch.equal(arc([model, model], MIDDLE, label, ThreatModel(norm, 0.1)), MIDDLE)


def test_where_every_member_is_fooled_no_step_is_made():
    asked = []
    fooled_one = lambda v: asked.append(len(v)) or line((3.0, -1.0), -0.2)(v)  # noqa: E731
    found = arc([fooled_one] * 2, MIDDLE, ONE, ThreatModel("Linf", 0.1), random_start=False)
    assert asked == [1, 1]
    assert torch.equal(found, MIDDLE)
    assert found is not MIDDLE  # whoever changes what came back does not change x


def test_a_sample_that_every_member_is_wrong_on_takes_no_further_round(digits):
    members, x, y = digits
    budget = ThreatModel("Linf", 16 / 255)
    attack = functools.partial(arc, members, x, y, budget, targets=1)
    after = [attack(steps=n, generator=torch.Generator().manual_seed(0)) for n in range(1, 5)]
    left = [int((right(members, found, y) > 0).sum()) for found in after]
    seen = []
    watch = members[0].register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    attack(steps=5, generator=torch.Generator().manual_seed(0))
    watch.remove()
    start = random_start(x, budget, torch.Generator().manual_seed(0))
    at_first = int((torch.minimum(right(members, x, y), right(members, start, y)) > 0).sum())
    rounds = [at_first, *left]
    assert seen == [100, 100, *(count for count in rounds for _ in range(4))]  # linearised once, asked three times
    assert rounds[0] > rounds[1] > rounds[-1] > 0


@pytest.mark.parametrize(("norm", "eps", "size", "other"), [("L2", 0.5, 0.125, 0.25), ("Linf", 0.05, 0.05, 0.0125)])
def test_the_authors_step_is_taken_unless_another_is_given(digits, norm, eps, size, other):
    members, x, y = digits
    attack = functools.partial(arc, members, x, y, ThreatModel(norm, eps), steps=2, random_start=False)
    assert torch.equal(attack(), attack(step_size=size))
    assert not torch.equal(attack(), attack(step_size=other))
    assert inspect.signature(arc).parameters["steps"].default == 20
