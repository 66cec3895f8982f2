import dataclasses
import weakref

import numpy as np
import pytest
import timm
import torch
from conftest import make_popup

import rst_hub
import rst_hub.tickets.r2s as r2s_module
from rst_hub import R2S, Init, Ticket
from rst_hub.errors import SettingsError, TicketError

RATIOS = (0.05, 0.1, 0.3)


@pytest.fixture(scope="module")
def tickets():
    return [Ticket.draw(make_popup(remaining_ratio=ratio)) for ratio in RATIOS]


@pytest.fixture(scope="module")
def x():
    return torch.rand(600, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_every_sample_gets_one_members_logits_and_keeps_its_place(tickets, x):
    r2s = R2S(tickets, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        answers, everyone = r2s(x), r2s.all_logits(x)
    assert everyone.shape == (3, 600, 10)
    near = torch.stack([torch.isclose(answers, own, atol=1e-5).all(1) for own in everyone])
    assert bool((near.sum(0) == 1).all())  # each answer is that of one member, and of no other
    assert chi_square(near.sum(1), [1 / 3] * 3) < 13.8  # 2 degrees of freedom: one in a thousand is above


def chi_square(counts, probabilities):
    expected = torch.tensor(probabilities, dtype=torch.float64) * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("generator", [torch.Generator().manual_seed(3), None])
def test_many_draws_have_the_distribution_of_the_expectation(tickets, x, generator):
    shares = [0.5, 0.3, 0.2]
    r2s = R2S(tickets, generator=generator, probabilities=shares)
    count = 4000
    with torch.no_grad():
        answers = r2s(x[:1].expand(count, -1, -1, -1))
        own = torch.cat([r2s.logits_of(x[:1], j) for j in range(3)])
        expected = r2s.expected(x[:1])[0]
    member = torch.stack([torch.isclose(answers, one, atol=1e-5).all(1) for one in own]).int()
    assert bool((member.sum(0) == 1).all())
    counts = member.sum(1)
    assert chi_square(counts, shares) < (13.8 if generator else 27.6)  # chance 1e-3 with a seed, 1e-6 without
    mean = answers.softmax(1).double().mean(0)
    spread = answers.softmax(1).double().std(0) / count**0.5
    assert bool(((mean - expected).abs() <= 5 * spread + 1e-6).all())


def test_grouping_gives_what_one_by_one_gives(tickets, x):
    together, alone = (R2S(tickets, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    drawn = R2S(tickets, generator=torch.Generator().manual_seed(4)).draw(40).tolist()
    assert set(drawn) == {0, 1, 2}
    with torch.no_grad():
        answers = together(x[:40])
        singles = torch.cat([alone.logits_of(x[i : i + 1], j) for i, j in enumerate(drawn)])
    assert torch.allclose(answers, singles, atol=1e-5)
    assert torch.equal(answers.argmax(1), singles.argmax(1))


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_a_member_is_chosen_for_each_row(tickets, x, per):
    generator = torch.Generator().manual_seed(4)
    r2s, before = R2S(tickets, generator=generator, per=per), generator.get_state()
    positions = [2, 0, 0, 1, 2, 0]
    names = [r2s.names[j] for j in positions]
    mixed = [2, "r0.05", np.int64(0), "r0.1", torch.tensor(2), 0]
    given = [positions, tuple(positions), names, mixed, torch.tensor(positions), torch.tensor(positions).short()]
    with torch.no_grad():
        expected = torch.cat([r2s.logits_of(x[i : i + 1], j) for i, j in enumerate(positions)])
        for members in [*given, np.array(positions)]:
            assert torch.allclose(r2s(x[:6], members=members), expected, atol=1e-5)
        for j in range(3):
            assert torch.equal(r2s(x[:5], members=[j] * 5), r2s.members[j](x[:5]))
            assert torch.equal(r2s(x[:1], members=[r2s.names[j]]), r2s.members[j](x[:1]))
        assert r2s(x[:0], members=[]).shape == (0, 10)
        assert torch.equal(generator.get_state(), before)  # nothing is drawn
        assert r2s(x[:0]).shape == (0, 10)
    assert len(given) == 6


def test_chosen_members_have_gradients_and_are_compiled(tickets, x):
    r2s = R2S(tickets, materialised=True)
    pixels = x[:4].clone().requires_grad_()
    r2s(pixels, members=[0, 1, 1, 2]).logsumexp(1).sum().backward()
    for i, j in enumerate([0, 1, 1, 2]):
        own = x[i : i + 1].clone().requires_grad_()
        r2s.members[j](own).logsumexp(1).sum().backward()
        assert torch.allclose(pixels.grad[i : i + 1], own.grad, atol=1e-5)
    compiled = torch.compile(r2s, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(x[:4], members=[0, 1, 1, 2]), r2s(x[:4], members=[0, 1, 1, 2]), atol=1e-5)
    torch.compiler.reset()


def test_members_that_are_not_there_are_refused(tickets, x):
    r2s, refused = R2S(tickets), 0
    for members, message in (
        ([0, 1], "members are 2 for a batch of 3: give one name or position a row"),
        ([0] * 4, "members are 4 for a batch of 3"),
        (torch.tensor(1), "members are one for a batch of 3"),
        ([0, 1, 3], "among members is 3: give names, or positions from 0 to 2"),
        ([0, 1, -1], "among members is -1"),
        ([0, 1, True], "among members is True"),
        ([0, 1, 1.0], r"among members is 1\.0"),
        ([0, 1, None], "among members is None"),
        (torch.zeros(3), r"among members is 0\.0"),
        (torch.zeros(3, dtype=torch.bool), "among members is False"),
        (torch.zeros(3, 1, dtype=torch.int64), r"among members is \[0\]"),
        (["r0.05", "r0.1", "r0.2"], r"among members is 'r0\.2'\. Did you mean"),
        ("012", "members='012': give a list"),
        (1, "members=1: give a list"),
        ({0: 1, 1: 1, 2: 1}, "give a list"),
    ):
        with pytest.raises(SettingsError, match=message):
            r2s(x[:3], members=members)
        refused += 1
    assert refused == 15


def test_a_draw_a_batch_is_one_members_answer_to_the_bit(tickets, x):
    r2s = R2S(tickets, generator=torch.Generator().manual_seed(5), per="batch")
    drawn = R2S(tickets, generator=torch.Generator().manual_seed(5), per="batch")
    seen = []
    with torch.no_grad():
        for _ in range(30):
            j = int(drawn.draw(1))
            seen.append(j)
            assert torch.equal(r2s(x[:5]), r2s.members[j](x[:5]))
    assert set(seen) == {0, 1, 2}


def test_draws_are_repeated_by_a_generator_and_come_from_the_system_without(tickets, x, monkeypatch):
    def drawn(generator=None):
        with torch.no_grad():
            return R2S(tickets, generator=generator)(x[:100])

    assert torch.equal(drawn(torch.Generator().manual_seed(5)), drawn(torch.Generator().manual_seed(5)))
    torch.manual_seed(0)
    one = drawn()
    torch.manual_seed(0)
    assert not torch.equal(one, drawn())
    asked = []

    def urandom(count):
        asked.append(count)
        return b"\x00" * 8 + b"\xff" * 8 + b"\x80" * (count - 16)

    monkeypatch.setattr(r2s_module.os, "urandom", urandom)
    assert R2S(tickets).draw(4).tolist() == [0, 2, 1, 1]  # 0, just below 1, and 0.502 twice
    assert asked == [32]


def test_an_iterator_of_tickets_never_has_two_at_once(tickets):
    held = []

    def one_by_one():
        for ticket in tickets:
            copied = dataclasses.replace(ticket)
            held.append(weakref.ref(copied))
            alive = sum(ref() is not None for ref in held)
            yield copied
            assert alive == 1
            del copied

    r2s = R2S(one_by_one())
    assert r2s.names == ("r0.05", "r0.1", "r0.3")
    assert [ref() for ref in held] == [None] * 3


def test_the_expectation_is_the_mean_of_probabilities_and_has_a_gradient(tickets, x):
    r2s = R2S(tickets, probabilities=[0.5, 0.3, 0.2])
    inputs = x[:4].clone().requires_grad_()
    expected = r2s.expected(inputs)
    by_hand = sum(share * r2s.logits_of(x[:4], j).softmax(1) for j, share in enumerate((0.5, 0.3, 0.2)))
    assert torch.allclose(expected, by_hand, atol=1e-6)
    assert torch.allclose(expected.sum(1), torch.ones(4))
    expected[:, 0].sum().backward()
    assert bool(inputs.grad.any())
    with torch.autocast("cpu", torch.bfloat16):
        cast = r2s.expected(x[:4])
    assert cast.dtype == torch.float32
    assert torch.allclose(cast.sum(1), torch.ones(4), atol=1e-6)
    assert sum(R2S(tickets, probabilities=[0.5, 0.3, 0.2000005]).probabilities) == pytest.approx(1, abs=1e-15)


def test_the_draws_follow_the_probabilities(tickets, x):
    r2s = R2S(tickets, probabilities=[0.8, 0.1, 0.1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = torch.isclose(r2s(x), r2s.logits_of(x, 0), atol=1e-5).all(1).float().mean()
    assert 0.75 < float(first) < 0.85


def test_members_compute_what_the_tickets_models_do_and_timm_knows_the_input(tickets, x):
    r2s, whole = R2S(tickets), R2S(tickets, materialised=True)
    assert not r2s.training
    assert r2s.names == whole.names == ("r0.05", "r0.1", "r0.3")
    same = 0
    for member, materialised, ticket in zip(r2s.members, whole.members, tickets, strict=True):
        alone = ticket.model()
        assert type(member) is type(materialised) is type(alone)
        same += all(torch.equal(v, alone.state_dict()[k]) for k, v in materialised.state_dict().items())
        with torch.no_grad():
            assert torch.equal(member(x[:8]), alone(x[:8]))
    assert same == 3
    assert tuple(timm.data.resolve_model_data_config(r2s)["input_size"]) == (3, 32, 32)
    assert (r2s.num_classes, r2s.num_features) == (10, r2s.members[0].num_features)
    assert r2s(x[:0]).shape == (0, 10)
    assert rst_hub.PixelModel(r2s)(x[:3]).shape == (3, 10)


def test_probabilities_of_no_member_are_refused_too():
    with pytest.raises(SettingsError, match="give 0 positive numbers"):
        r2s_module.shares_of([1.0], 0)


def test_strangers_and_bad_probabilities_are_refused(tickets):
    stranger = Ticket.draw(make_popup(init=Init(1)), name="stranger")
    other_input = dataclasses.replace(tickets[0], pretrained_cfg={**tickets[0].pretrained_cfg, "crop_pct": 0.5})
    for members, message in (
        ([*tickets, stranger], "ticket stranger has the init"),
        ([*tickets, other_input], "pretrained_cfg"),
        ([], "needs tickets"),
    ):
        with pytest.raises(SettingsError, match=message):
            R2S(members)
    for shares in ([1.0], [0.5, 0.5, 0.5], [1.2, -0.1, -0.1], [float("nan")] * 3, []):
        with pytest.raises(SettingsError, match="probabilities"):
            R2S(tickets, probabilities=shares)
    for shares in ("a", {0: 1.0}, [None] * 3):
        with pytest.raises(SettingsError, match="probabilities"):
            R2S(tickets, probabilities=shares)
    for given, message in (
        (tickets[0], "tickets are a Ticket"),
        ("r0.1", "tickets are a str"),
        (["folder"], "among the tickets is a str"),
        ([tickets[0], tickets[0]], "ticket r0.05 is there twice"),
    ):
        with pytest.raises(SettingsError, match=message):
            R2S(given)
    with pytest.raises(SettingsError, match="generator=3"):
        R2S(tickets, generator=3)
    with pytest.raises(SettingsError, match="'sample'"):
        R2S(tickets, per="image")
    with pytest.raises(SettingsError, match="leave out pool"):
        R2S(tickets, materialised=True, pool=rst_hub.TicketPool())
    broken = dataclasses.replace(tickets[0], weights_digest="0" * 64)
    with pytest.raises(TicketError, match="was drawn with"):
        R2S([tickets[1], broken])
