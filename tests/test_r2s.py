import dataclasses

import pytest
import timm
import torch
from conftest import make_popup

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
    counts = near.sum(1)
    expected = 600 / 3
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 13.8  # 2 degrees of freedom: one in a thousand is above


def test_draws_are_repeated_by_a_generator_and_not_foretold_without(tickets, x):
    def drawn(generator=None):
        with torch.no_grad():
            return R2S(tickets, generator=generator)(x[:100])

    assert torch.equal(drawn(torch.Generator().manual_seed(5)), drawn(torch.Generator().manual_seed(5)))
    torch.manual_seed(0)
    one = drawn()
    torch.manual_seed(0)
    assert not torch.equal(one, drawn())


def test_the_expectation_is_the_mean_of_probabilities_and_has_a_gradient(tickets, x):
    r2s = R2S(tickets, probabilities=[0.5, 0.3, 0.2])
    inputs = x[:4].clone().requires_grad_()
    expected = r2s.expected(inputs)
    by_hand = sum(share * r2s.logits_of(x[:4], j).softmax(1) for j, share in enumerate((0.5, 0.3, 0.2)))
    assert torch.allclose(expected, by_hand, atol=1e-6)
    assert torch.allclose(expected.sum(1), torch.ones(4))
    expected[:, 0].sum().backward()
    assert bool(inputs.grad.any())


def test_the_draws_follow_the_probabilities(tickets, x):
    r2s = R2S(tickets, probabilities=[0.8, 0.1, 0.1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = torch.isclose(r2s(x), r2s.logits_of(x, 0), atol=1e-5).all(1).float().mean()
    assert 0.75 < float(first) < 0.85


def test_members_are_the_tickets_models_and_timm_knows_the_input(tickets, x):
    r2s = R2S(tickets)
    assert not r2s.training
    assert r2s.names == ("r0.05", "r0.1", "r0.3")
    same = 0
    for member, ticket in zip(r2s.members, tickets, strict=True):
        alone = ticket.model()
        assert type(member) is type(alone)
        same += all(torch.equal(v, alone.state_dict()[k]) for k, v in member.state_dict().items())
    assert same == 3
    assert tuple(timm.data.resolve_model_data_config(r2s)["input_size"]) == (3, 32, 32)
    assert r2s(x[:0]).shape == (0, 10)


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
    broken = dataclasses.replace(tickets[0], weights_digest="0" * 64)
    with pytest.raises(TicketError, match="was drawn with"):
        R2S([tickets[1], broken])
