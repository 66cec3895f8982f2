"""TicketPool: one random network in memory once, and timm models of many tickets that read their weights from it.

What the seed makes is held once, one bit a weight where it is a constant with a random sign. A model of the pool holds
its own packed mask, one bit a weight, and whatever else its ticket stores (batch-norm statistics). A weight is made
where the model reads it, and gone as soon as the layer is through: no member is held whole and nothing is switched,
so several threads may use several models of one pool.
"""

import copy
import json
import math
from collections import Counter
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from .errors import SettingsError
from .ticket import Ticket
from .weights import SeededTensor


class TicketPool:
    """The weights of one random network, shared by the models of all tickets over it (paper, sections 6.2 and 6.3).

    Tickets may be of several tasks: every tensor of the same name and shape is held once, whatever the number of
    classes. ``R2S(tickets, pool=pool)`` puts an R2S for each task over it; :meth:`model` gives a single network.
    """

    def __init__(self) -> None:
        self._first: tuple[str, dict[str, Any]] | None = None  # a name, and what all share; never the ticket itself
        self._tensors: dict[tuple[str, tuple[int, ...], float], _Seeded] = {}
        self._skeletons: dict[str, tuple[nn.Module, set[str]]] = {}

    def model(self, ticket: Ticket) -> nn.Module:
        """Return a timm model in eval mode: bit for bit what ``ticket.model().requires_grad_(False)`` computes.

        Its masked weights are no parameters but are made when they are read, so it can be used and attacked, not
        trained. ``.to(device)`` moves the shared weights too; it can be copied, not pickled. The weights of LSTMs and
        those that several layers share are held whole.

        Raises:
            SettingsError: the ticket is of another architecture, seed or distribution than the pool's first one.
            TicketError: as for :meth:`rst_hub.Ticket.model`.
        """
        kin = self._kin(ticket)
        packed = {name: _packed(mask) for name, mask in ticket.masks.items()}
        made: dict[str, _Seeded] = {}
        for name, spec in ticket.seeded.items():
            known = self._tensors.get((name, spec.shape, spec.scale))
            made[name] = _Seeded(spec, ticket.init.tensor(spec)) if known is None else known
        ticket.check_weights(lambda name: made[name].masked(packed[name]) if name in packed else made[name].table)
        skeleton, on_reading = self._skeleton(ticket)
        model = copy.deepcopy(skeleton)
        modules = dict(model.named_modules())
        held = {name: made[name].masked(packed[name]) for name in packed if name not in on_reading}
        model.load_state_dict({**ticket.state, **held}, strict=False)  # the names were compared when it was built
        model.requires_grad_(False)
        for name in ticket.seeded:
            owner, _, leaf = name.rpartition(".")
            if name not in packed:
                modules[owner].register_parameter(leaf, made[name].table)
            elif name not in held:
                reading = _Masked(made[name], packed[name])
                parametrize.register_parametrization(modules[owner], leaf, reading, unsafe=True)
        # only now, so that a false ticket leaves nothing behind
        self._first = kin
        self._tensors |= {(n, one.spec.shape, one.spec.scale): one for n, one in made.items() if n not in held}
        return model.eval()

    @property
    def nbytes(self) -> int:
        """Bytes of the shared weights; masks and batch-norm statistics are each model's own."""
        return sum(one.nbytes for tensor in self._tensors.values() for one in (*tensor.buffers(), *tensor.parameters()))

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
        """Return timm's model with empty tensors for the weights that are to be made on reading, and their names.

        To build it takes most of a load's time, so that it is built once for all tickets alike.
        """
        key = json.dumps([ticket.timm_kwargs, ticket.pretrained_cfg], sort_keys=True)
        if key not in self._skeletons:
            model = ticket.unloaded_model()
            modules = dict(model.named_modules())
            on_reading = {name for name in _read_as_attributes(model) if name in ticket.masks}
            for name in on_reading:
                owner, _, leaf = name.rpartition(".")
                modules[owner].register_parameter(leaf, nn.Parameter(torch.empty(0), requires_grad=False))
            self._skeletons[key] = model, on_reading
        return self._skeletons[key]


class _Seeded(nn.Module):
    """One tensor that the seed makes, in as few bits as hold it: signs of a constant, or float32; or a table."""

    table: nn.Parameter

    def __init__(self, spec: SeededTensor, values: torch.Tensor) -> None:
        super().__init__()
        self.spec = spec
        self._size = int(torch.tensor(spec.scale).view(torch.int32))  # the bits of a constant's size
        if not spec.masked:
            self.register_parameter("table", nn.Parameter(values, requires_grad=False))
        elif bool((values.abs() == spec.scale).all()):
            self.register_buffer("signs", _by_fours(_packed(values < 0)) << 4)
        else:  # as integers, which .half() leaves alone
            flat = values.reshape(-1)
            self.register_buffer("bits", nn.functional.pad(flat, (0, -len(flat) % 8)).view(torch.int32))

    def masked(self, mask: torch.Tensor) -> torch.Tensor:
        """Return float32 weight x mask of a packed mask; what it removes is +0.0, as in a ticket's state dict."""
        fours = _by_fours(mask)
        if "signs" in self._buffers:
            fours |= self.get_buffer("signs")
            bits = _constants(self._size, mask.device).index_select(0, fours.int()).view(torch.float32)
        else:
            kept = _constants(-1, mask.device).index_select(0, fours.int()).view(torch.int32)
            bits = kept.bitwise_and_(self.get_buffer("bits")).view(torch.float32)
        return bits[: math.prod(self.spec.shape)].view(self.spec.shape)


class _Masked(nn.Module):
    """What torch's parametrization calls when a layer reads its weight; it has a packed mask of its own."""

    mask: torch.Tensor

    def __init__(self, seeded: _Seeded, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self._shared = (seeded,)  # in a tuple, as no part of this module

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """Return the weight on the device and in the precision that ``original``, an empty tensor, was moved to."""
        return self._shared[0].masked(self.mask).to(original)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._shared[0]._apply(fn)  # for the second model that is moved, nothing new
        return super()._apply(fn, recurse)


def _packed(mask: torch.Tensor) -> torch.Tensor:
    """Return a bool tensor as uint8 of eight bits each: four of its first half, above them four of its second half."""
    flat = mask.reshape(-1).to(torch.uint8)
    fours = nn.functional.pad(flat, (0, -len(flat) % 8)).view(2, -1, 4)
    first, second = (fours << torch.arange(4, dtype=torch.uint8)).sum(2, dtype=torch.uint8)
    return first | (second << 4)


def _by_fours(packed: torch.Tensor) -> torch.Tensor:
    """Return the bits of a packed mask in their order, four a byte."""
    return torch.cat([packed & 15, packed >> 4])


@lru_cache(maxsize=256)
def _constants(size: int, device: torch.device) -> torch.Tensor:
    """Return by index the bits of four float32 weights: its lowest four bits say what is kept, the next four the signs.

    ``size`` is the bits of a weight's size. One look into so small a table for four weights at once is the fastest way
    found to make them; they are complex128 because an index then takes all sixteen bytes.
    """
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    kept, negative = -bits[:, :4].int(), -bits[:, 4:].int()
    weights = kept & (negative & -(2**31) | size)  # the sign is the highest bit
    return weights.contiguous().view(torch.complex128).view(-1).to(device)


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
