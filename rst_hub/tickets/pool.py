"""TicketPool: one random network in memory once, and timm models of many tickets that read their weights from it.

What the seed makes is held once, two bits a weight where it is a constant with a random sign. A model of the pool
holds its own packed mask, one bit a weight, and whatever else its ticket stores (batch-norm statistics). A weight is
made where the model reads it, and gone as soon as the layer is through: no member is held whole (but for an LSTM's
weights) and nothing is switched, so several threads may use several models of one pool.
"""

import copy
import json
import math
from collections import Counter
from functools import cache
from typing import Any

import torch
from torch import nn

from ..errors import SettingsError
from ..networks.unfilled import fill
from ..networks.weights import SeededTensor
from .ticket import Ticket


class TicketPool:
    """The weights of one random network, shared by the models of all tickets over it (paper, sections 6.2 and 6.3).

    Tickets may be of several tasks: every tensor of the same name and shape is held once, whatever the number of
    classes. ``R2S(tickets, pool=pool)`` puts an R2S for each task over it; :meth:`model` gives a single network.
    """

    def __init__(self) -> None:
        self._first: tuple[str, dict[str, Any]] | None = None  # a name, and what all share; never the ticket itself
        self._tensors: dict[tuple[Any, ...], _Seeded] = {}
        self._last: tuple[str, nn.Module, set[str]] | None = None  # a network to copy for the next ticket alike

    def model(self, ticket: Ticket) -> nn.Module:
        """Return a timm model in eval mode: bit for bit what ``ticket.model().requires_grad_(False)`` computes.

        What the seed makes is no parameter of it, but made when it is read: the model can be used and attacked, not
        trained, and its state dict has other names. It can be copied, pickled (with what it shares),
        compiled and exported, but not traced by torch.jit. ``.to(device)`` moves the shared weights too, so move all
        models of a pool. The weights of LSTMs and those that several layers
        share are held whole.

        Raises:
            SettingsError: the ticket is of another architecture, seed or distribution than the pool's first one.
            TicketError: as for :meth:`rst_hub.Ticket.model`.
        """
        kin = self._kin(ticket)
        made: dict[str, _Seeded] = {}
        for name, spec in ticket.seeded.items():
            known = self._tensors.get(_key(spec))
            made[name] = _Seeded(spec, ticket.init.tensor(spec)) if known is None else known
        masks = {name: _packed(mask).to(made[name].bits.device) for name, mask in ticket.masks.items()}
        ticket.check_weights(lambda name: made[name].masked(masks.get(name)))
        skeleton, on_reading = self._skeleton(ticket)
        model = copy.deepcopy(skeleton)
        held = {name: made[name].masked(masks.get(name)).clone() for name in made if name not in on_reading}
        fill(model, {**{name: tensor.clone() for name, tensor in ticket.state.items()}, **held})
        model.requires_grad_(False)
        modules = dict(model.named_modules())
        for name in on_reading:
            owner, _, leaf = name.rpartition(".")
            _read_from(modules[owner], leaf, _Masked(made[name], masks.get(name)))
        # only now, so that a false ticket leaves nothing behind
        self._first = kin
        self._tensors |= {_key(made[name].spec): made[name] for name in on_reading}
        devices = {tensor.bits.device for tensor in self._tensors.values()}
        return model.eval().to(next(iter(devices - {torch.device("cpu")}), "cpu"))  # where the pool was moved to

    def __repr__(self) -> str:
        if self._first is None:
            return "TicketPool(no tickets yet)"
        shared, size = self._first[1], f"{len(self._tensors)} shared tensors of {self.nbytes:,} bytes"
        return f"TicketPool({shared['architecture']}, seed {shared['seed']}, {shared['distribution']}: {size})"

    @property
    def nbytes(self) -> int:
        """Bytes of the shared weights; masks and batch-norm statistics are each model's own."""
        return sum(tensor.bits.nbytes for tensor in self._tensors.values())

    @property
    def device(self) -> torch.device | None:
        """Where the shared weights are; None while there are none."""
        return next((tensor.bits.device for tensor in self._tensors.values()), None)

    def _kin(self, ticket: Ticket) -> tuple[str, dict[str, Any]]:
        """Return what the pool's tickets share, with the name of the first; raise SettingsError for a stranger."""
        init = ticket.init
        own = {"architecture": ticket.architecture, "seed": init.seed, "distribution": init.distribution}
        name, shared = self._first or (ticket.name, own)
        for what in own:
            if own[what] != shared[what]:
                raise SettingsError(
                    f"ticket {ticket.name} has the {what} {own[what]}, ticket {name} {shared[what]}: the tickets of a "
                    "pool come from one random network"
                )
        return name, shared

    def _skeleton(self, ticket: Ticket) -> tuple[nn.Module, set[str]]:
        """Return timm's model, not filled and without what is to be made on reading, and the names of that.

        To build it takes much of a load's time, so that it is built once for several tickets alike.
        """
        key = json.dumps([ticket.timm_kwargs, ticket.pretrained_cfg, sorted(ticket.seeded)], sort_keys=True)
        if self._last is None or self._last[0] != key:
            model = ticket.unfilled_model()
            modules = dict(model.named_modules())
            on_reading = {name for name in _read_as_attributes(model) if name in ticket.seeded}
            for name in on_reading:
                owner, _, leaf = name.rpartition(".")
                modules[owner].register_parameter(leaf, None)
            self._last = key, model, on_reading
        return self._last[1:]


def _key(spec: SeededTensor) -> tuple[Any, ...]:
    return spec.name, spec.shape, spec.scale, spec.masked


class _Seeded(nn.Module):
    """One tensor that the seed makes, in as few bits as hold it: signs of a constant, or float32 as integers.

    A weight is looked up by fours in a small table, which is the fastest way found to make it.
    """

    bits: torch.Tensor

    def __init__(self, spec: SeededTensor, values: torch.Tensor) -> None:
        super().__init__()
        self.spec, self._count = spec, math.prod(spec.shape)
        self._is_constant = spec.masked and bool((values.abs() == spec.scale).all())
        if self._is_constant:  # above four bits of a first half's mask, and below those of a second half's
            signs = _packed(values < 0)
            self.register_buffer("bits", torch.stack([signs << 4, signs >> 4]))
        else:  # as integers, which .half() leaves alone
            flat = values.reshape(-1)
            self.register_buffer("bits", nn.functional.pad(flat, (0, -len(flat) % 8)).view(torch.int32))
        self._make_table()

    def masked(self, mask: torch.Tensor | None) -> torch.Tensor:
        """Return float32 weight x packed mask, where what is removed is +0.0 as in a ticket; without a mask, all."""
        bits, fours, halves = self._at_hand  # read at every layer of every forward, so the shortest way counts
        if mask is not None:
            seen = mask & halves
            if self._is_constant:
                seen |= bits
            found = torch.gather(fours, 2, seen.long())
            bits = found if self._is_constant else found.view(torch.int32).view(-1).bitwise_and_(bits)
        weights = bits.view(torch.float32)
        if weights.numel() > self._count:
            weights = weights.reshape(-1)[: self._count]
        return weights.view(self.spec.shape)

    def _make_table(self) -> None:
        """Make what :meth:`masked` looks weights up in, where the bits are."""
        size = (
            int(torch.tensor(self.spec.scale, dtype=torch.float32, device="cpu").view(torch.int32))
            if self._is_constant
            else -1
        )
        rows = math.gcd(math.ceil(self._count / 8), 64)
        halves = torch.tensor([0x0F, 0xF0], dtype=torch.uint8, device=self.bits.device).view(2, 1, 1)
        self._at_hand = self.bits, _fours(size).to(self.bits.device).expand(2, rows, 256), halves

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = self.bits
        super()._apply(fn, recurse)
        if self.bits is not before:
            self._make_table()
        return self


class _Masked(nn.Module):
    """What makes a weight, or a table without a mask, whenever it is read: of a mask of its own, and what is shared."""

    mask: torch.Tensor | None
    like: torch.Tensor

    def __init__(self, seeded: _Seeded, mask: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("like", torch.empty(0, dtype=torch.float32, device="cpu"), persistent=False)
        self._shared = (seeded,)  # in a tuple, as no part of this module

    def weight(self) -> torch.Tensor:
        """Return the weight, in the precision that this module was moved to."""
        if torch.jit.is_tracing():
            raise SettingsError(
                "torch.jit cannot trace the weights that models of a pool share: give ticket.model(), or "
                "materialised=True for whole members"
            )
        own = self._buffers
        return self._shared[0].masked(own["mask"]).to(own["like"])

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._shared[0]._apply(fn)  # for the second model that is moved, nothing new
        return super()._apply(fn, recurse)


def _read_from(layer: nn.Module, leaf: str, masked: _Masked) -> None:
    """Let ``layer`` take the weight that it knows as ``leaf`` from ``masked``, each time that it reads it."""
    delattr(layer, leaf)
    layer.add_module(f"masked_{leaf}", masked)
    kind: Any = type(layer)
    own, leaves = getattr(kind, "read", (kind, ()))
    layer.__class__ = _reading(own, *leaves, leaf)


@cache
def _reading(kind: Any, *leaves: str) -> Any:
    """Return a subclass of a layer's class that does so, as torch's parametrizations, which take 30 us more a layer.

    A pickle cannot find it by its name, so it says how to make it.
    """
    reduced = {"__reduce_ex__": lambda layer, _: (_blank, (kind, *leaves), layer.__dict__)}
    return type(kind.__name__, (kind,), {**{leaf: _made(leaf) for leaf in leaves}, **reduced, "read": (kind, leaves)})


def _made(leaf: str) -> property:
    return property(lambda layer: layer._modules[f"masked_{leaf}"].weight())


def _blank(kind: Any, *leaves: str) -> nn.Module:
    """Return a layer of :func:`_reading` without any state, for a pickle or a copy to fill."""
    made = _reading(kind, *leaves)
    return made.__new__(made)


def _packed(mask: torch.Tensor) -> torch.Tensor:
    """Return a bool tensor as uint8 of eight bits each: four of its first half, above them four of its second half.

    They are in rows, (a power of two, bytes), because several rows are looked up by several threads.
    """
    flat = mask.reshape(-1).to(torch.uint8)
    halves = nn.functional.pad(flat, (0, -len(flat) % 8)).view(2, -1, 4)
    first, second = (halves << torch.arange(4, dtype=torch.uint8, device="cpu")).sum(2, dtype=torch.uint8)
    return (first | (second << 4)).view(math.gcd(len(first), 64), -1)


def _fours(size: int) -> torch.Tensor:
    """Return the bits of four float32 weights by what is kept of them and their signs, complex128 (2, 1, 256).

    Of a first half, the lowest four bits of an index say what is kept and the others the signs; of a second half, it is
    the other way round. ``size`` is the bits of a weight's size, or -1, all set. They are complex128, so that a look
    takes all sixteen bytes.
    """
    numbers = torch.arange(256, device="cpu")
    bits = -((numbers[:, None] >> torch.arange(8, device="cpu")) & 1).int()  # 0, or all bits set
    tables = []
    for kept, negative in ((bits[:, :4], bits[:, 4:]), (bits[:, 4:], bits[:, :4])):
        weights = kept & (negative & -(2**31) | size)  # the sign is the highest bit
        tables.append(weights.contiguous().view(torch.complex128).view(1, 256))
    return torch.stack(tables)


def _read_as_attributes(model: nn.Module) -> list[str]:
    """Return the parameters that layers read as their attributes: not an LSTM's, nor those of several names."""
    modules = dict(model.named_modules())
    named = list(model.named_parameters(remove_duplicate=False))
    count = Counter(id(parameter) for _, parameter in named)
    return [
        name
        for name, parameter in named
        if count[id(parameter)] == 1 and not isinstance(modules[name.rpartition(".")[0]], nn.RNNBase)
    ]
