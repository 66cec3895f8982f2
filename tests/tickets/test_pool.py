import copy
import dataclasses
import threading

import pytest
import torch
from conftest import described, make_popup

from rst_hub import R2S, EdgePopup, Init, PixelModel, Ticket, TicketPool, create_model, pgd
from rst_hub.attacks.common import ThreatModel
from rst_hub.errors import SettingsError, TicketError
from rst_hub.networks.weights import DISTRIBUTIONS
from rst_hub.tickets.digests import weights_digest
from rst_hub.tickets.pool import _Masked, _read_as_attributes

SIX = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3)


def drawn(architecture="test_resnet", init=None, remaining_ratio=0.1, score_seed=0, **kwargs):
    """Return a ticket with batch-norm statistics of its own."""
    init = init or Init(0)
    popup = make_popup(architecture, init, remaining_ratio, **kwargs)
    popup = EdgePopup(popup.model, init, remaining_ratio, score_seed=score_seed)
    with torch.no_grad():
        popup.model.train()
        popup.model(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(score_seed)))
    return Ticket.draw(popup)


def images(count=4):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def own_bytes(model):
    """Return the bytes of a pool's model beside the shared weights."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def weight_of(model, name):
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf)


def same_bits(a, b):
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_pools_model_reads_the_tickets_weights_bit_for_bit(distribution):
    pool = TicketPool()
    tickets = [drawn(init=Init(3, distribution), remaining_ratio=ratio) for ratio in (0.1, 0.5)]
    compared = 0
    for ticket in tickets:
        shared, whole = pool.model(ticket), ticket.model()
        assert not shared.training
        for name in ticket.masks:
            compared += same_bits(weight_of(shared, name), weight_of(whole, name))  # +0.0 is not -0.0 here
        with torch.inference_mode():
            assert torch.equal(shared(images()), whole(images()))
    assert compared == 2 * len(tickets[0].masks) > 10


@pytest.mark.parametrize(
    "architecture", ["test_vit", "test_efficientnet", "test_convnext", "test_byobnet", "test_nfnet"]
)
def test_layers_of_many_kinds_compute_the_same(architecture):
    kwargs = {"img_size": 32} if architecture == "test_vit" else {}
    ticket = drawn(architecture, remaining_ratio=0.4, **kwargs)
    shared, whole = TicketPool().model(ticket), ticket.model()
    with torch.inference_mode():
        assert torch.equal(shared(images()), whole(images()))
    assert sum(isinstance(module, _Masked) for module in shared.modules()) == len(ticket.seeded)


def test_weights_that_are_not_read_as_attributes_are_told_apart():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = torch.nn.LSTM(3, 4)
            self.one, self.alone = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
            self.again, self.tied = self.one, torch.nn.Linear(2, 2)
            self.tied.weight = self.alone.weight

    assert _read_as_attributes(Odd()) == ["alone.bias", "tied.bias"]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sequencer2d_s", "coat_tiny"])
def test_lstms_and_layers_of_several_names_compute_the_same(architecture):
    init = Init(0)
    ticket = Ticket.draw(EdgePopup(described(create_model(architecture, init)), init, 0.3))
    shared, whole = TicketPool().model(ticket), ticket.model()
    x = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(shared(x), whole(x))


@pytest.mark.parametrize(
    ("architecture", "distribution", "most"),
    [
        ("test_resnet", "signed_kaiming_constant", 0.33),  # 0.25, and the batch norms of a small network
        pytest.param("resnet10t", "signed_kaiming_constant", 0.28, marks=pytest.mark.slow),
        pytest.param("resnet10t", "kaiming_normal", 1.22, marks=pytest.mark.slow),
    ],
)
def test_six_tickets_take_a_quarter_more_than_one_dense_network_at_the_most(architecture, distribution, most):
    init = Init(0, distribution)
    model = described(create_model(architecture, init, num_classes=10))
    pool = TicketPool()
    r2s = R2S((Ticket.draw(EdgePopup(model, init, ratio)) for ratio in SIX), pool=pool)
    dense = sum(tensor.nbytes for tensor in model.state_dict().values())
    masks = [module.mask.nbytes for module in r2s.modules() if isinstance(module, _Masked)]
    assert len(r2s.members) == 6
    assert sum(masks) < 6 / 32 * dense * 1.01  # a bit a weight and ticket
    assert pool.nbytes + sum(own_bytes(member) for member in r2s.members) < most * dense


def test_a_pool_of_two_tasks_grows_by_masks_only():
    pool = TicketPool()
    ten = [drawn(remaining_ratio=ratio) for ratio in (0.1, 0.3)]
    digits = R2S(ten, pool=pool)
    before = pool.nbytes
    relabelled = R2S([drawn(remaining_ratio=ratio, score_seed=9) for ratio in (0.1, 0.3)], pool=pool)
    assert pool.nbytes == before  # not a byte
    masks = sum(module.mask.nbytes for module in relabelled.modules() if isinstance(module, _Masked))
    rest = sum(tensor.nbytes for tensor in ten[0].state.values())
    assert sum(own_bytes(member) for member in relabelled.members) == masks + 2 * rest
    # a task of other classes shares all but the classifier
    init = Init(0)
    three = Ticket.draw(EdgePopup(described(create_model("test_resnet", init, num_classes=3)), init, 0.3))
    other = pool.model(three)
    (classifier,) = [name for name in three.masks if three.seeded[name].shape != ten[0].seeded[name].shape]
    weights = three.masks[classifier].numel()
    assert 0 < pool.nbytes - before <= weights // 4 + 8
    with torch.inference_mode():
        assert torch.equal(other(images()), three.model()(images()))
        assert torch.equal(digits.members[0](images()), ten[0].model()(images()))


def test_strangers_are_refused_by_name_and_false_tickets_leave_nothing():
    pool = TicketPool()
    false = dataclasses.replace(drawn(), weights_digest="0" * 64)
    with pytest.raises(TicketError, match="was drawn with"):
        pool.model(false)
    assert pool.nbytes == 0
    pool.model(drawn(init=Init(1)))  # so the false one has not become the first, either
    before = pool.nbytes
    for stranger, message in (
        (dataclasses.replace(drawn(), name="foreign"), "ticket foreign has the seed 0, ticket r0.1 1"),
        (drawn(init=Init(1, "kaiming_normal")), "has the distribution kaiming_normal"),
        (drawn("test_vit", Init(1), img_size=32), "has the architecture test_vit"),
    ):
        with pytest.raises(SettingsError, match=message):
            pool.model(stranger)
    assert pool.nbytes == before


def test_the_input_gradient_and_an_attack_are_the_same():
    ticket = drawn(remaining_ratio=0.5)
    shared, whole = PixelModel(TicketPool().model(ticket)), PixelModel(ticket.model())
    y = torch.arange(4)
    attacked = [pgd(m, images(), y, ThreatModel(), steps=3, random_start=False) for m in (shared, whole)]
    assert torch.equal(*attacked)
    assert not torch.equal(attacked[0], images())


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])  # a ViT has tokens and positions of the seed
def test_models_are_copied_moved_and_cast_and_others_stay_as_they_are(architecture):
    kwargs = {"img_size": 32} if architecture == "test_vit" else {}
    ticket = drawn(architecture, remaining_ratio=0.5, **kwargs)
    pool = TicketPool()
    one, two = pool.model(ticket), pool.model(ticket)
    copied = copy.deepcopy(one)
    with torch.inference_mode():
        expected = one(images())
        assert torch.equal(copied(images()), expected)
        wide = one.double()(images().double())
        assert wide.dtype == torch.float64
        assert torch.allclose(wide, expected.double(), atol=1e-4)
        assert one.bfloat16()(images().bfloat16()).dtype == torch.bfloat16
        assert torch.equal(two(images()), expected)
        assert torch.equal(pool.model(ticket)(images()), expected)  # the shared bits are the same as before
    names = list(two.state_dict())
    assert not set(ticket.seeded) & set(names)  # so nothing that is shared can be loaded into one model
    one.to("meta")
    assert weight_of(one, next(iter(ticket.masks))).device.type == "meta"


def test_an_export_leaves_nothing_of_its_own_behind():
    ticket = drawn(remaining_ratio=0.5)
    member = TicketPool().model(ticket)
    torch.export.export(member, (images(),), strict=False)
    assert type(member(images())) is torch.Tensor


def test_a_weight_that_one_ticket_masks_and_others_do_not_is_told_apart():
    ticket = drawn(remaining_ratio=0.5)
    name = next(iter(ticket.masks))
    masks = {key: mask for key, mask in ticket.masks.items() if key != name}
    seeded = {**ticket.seeded, name: dataclasses.replace(ticket.seeded[name], masked=False)}
    odd = dataclasses.replace(ticket, name="odd", masks=masks, seeded=seeded)
    tensors = {key: odd.init.tensor(spec) for key, spec in odd.seeded.items()}
    tensors |= {key: tensors[key].where(mask, torch.zeros(())) for key, mask in masks.items()}
    odd = dataclasses.replace(odd, weights_digest=weights_digest(tensors, odd.seeded))
    seeded = {key: spec for key, spec in ticket.seeded.items() if key != name}
    digest = weights_digest(tensors, seeded)
    state = {**ticket.state, name: tensors[name]}
    stored = dataclasses.replace(ticket, masks=masks, seeded=seeded, state=state, weights_digest=digest)
    pool, compared = TicketPool(), 0
    for one in (ticket, odd, stored, ticket):
        with torch.inference_mode():
            compared += torch.equal(pool.model(one)(images()), one.model().requires_grad_(False)(images()))
    assert compared == 4


def test_threads_share_a_pool():
    pool = TicketPool()
    tickets = [drawn(remaining_ratio=ratio) for ratio in (0.1, 0.5)]
    members = [pool.model(ticket) for ticket in tickets]
    expected = [ticket.model()(images()).detach() for ticket in tickets]
    found = {}

    def use(j):
        with torch.inference_mode():
            found[j] = [torch.equal(members[j](images()), expected[j]) for _ in range(20)]

    threads = [threading.Thread(target=use, args=(j,)) for j in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [True] * 20, 1: [True] * 20}
