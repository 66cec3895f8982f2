"""R2S: several tickets of one random network, each input answered by a random one (paper, section 6.2)."""

import inspect
import operator
import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..attacks.randomised import tell_of_draws
from ..errors import SettingsError, nearest, printable
from .pool import TicketPool
from .ticket import Ticket

_SHARED = ("architecture", "timm_kwargs", "init", "pretrained_cfg")
"""What the members have in common."""


def _uncompiled(recursive: bool = True) -> Any:
    """Return a decorator that keeps torch.compile out of a function and, if ``recursive``, of what that calls."""
    disable: Any = torch.compiler.disable
    options: dict[str, Any] = {"recursive": recursive}
    if "reason" in inspect.signature(disable).parameters:  # from torch 2.7 on; shown where fullgraph=True is asked for
        options["reason"] = "an R2S draws members at random, which no graph holds: leave out fullgraph=True"
    return lambda function: disable(function, **options)


_is_exporting: Any = getattr(torch.compiler, "is_exporting", lambda: False)  # from torch 2.7 on


class R2S(nn.Module):
    """Random switch between tickets: a module that takes what the timm model takes, and draws who answers.

    The members share one set of random weights in memory (:class:`TicketPool`); each has a packed mask and its own
    batch-norm statistics. Judge an R2S by an attacker who knows them: ``list(r2s.members)`` averages losses over the
    members (EOT), ``r2s.expected`` is their exact mean. One who crafts on ``r2s`` itself or on one member flatters it.

    ``r2s(x, members=["r0.05", "r0.1", ...])`` draws nothing and lets the caller say who answers each row.

    It stays in eval mode: ``train()`` changes nothing, because batch norm would mix the few samples that a member is
    drawn for, and move the ticket's statistics. ``torch.compile`` compiles the members and leaves the draw alone.

    Args:
        tickets: of one architecture, with the same arguments, input, labels and Init. They are taken one at a time, so
            that an iterator of them need never hold two.
        generator: of the draws, for repeatable ones. When None, each draw is made of random numbers of the operating
            system, which nobody can foretell from the draws before (a generator's 32-bit seed could be searched for).
        probabilities: of the members; equal when None.
        per: "sample" draws a member for every sample of a batch, so that batching changes nothing about what an
            attacker sees; "batch" draws one for a whole batch.
        materialised: hold every member whole, as ``ticket.model()``: as many times the memory of a dense network as
            there are members, and no time spent on making weights.
        pool: the weights to share with other R2S, of other tasks; one of its own when None.

    Attributes:
        members: ModuleList of timm models in eval mode, in the tickets' order.
        names: of the tickets.
        probabilities: floats that sum to 1.

    Raises:
        SettingsError: there is no ticket, one is of another network than the first, the probabilities are not one
            positive number a ticket that sum to 1, ``per`` is something else, or a pool is given for whole members.
        TicketError: a ticket does not make the weights it was drawn with.
    """

    draws_members = True
    """What :mod:`rst_hub.attacks.randomised` knows such a module by."""

    def __init__(
        self,
        tickets: Iterable[Ticket],
        *,
        generator: torch.Generator | None = None,
        probabilities: Sequence[float] | None = None,
        per: Literal["sample", "batch"] = "sample",
        materialised: bool = False,
        pool: TicketPool | None = None,
    ) -> None:
        super().__init__()
        if per not in ("sample", "batch"):
            raise SettingsError(f"per={per!r}: give 'sample' to draw a member for each sample, or 'batch'")
        if not isinstance(generator, torch.Generator | None):
            raise SettingsError(f"generator={generator!r}: give a torch.Generator, or none")
        if not isinstance(tickets, Iterable) or isinstance(tickets, str):
            raise SettingsError(f"tickets are a {type(tickets).__name__}: give a list of Ticket")
        if materialised and pool is not None:
            raise SettingsError("materialised members are held whole and share nothing: leave out pool")
        pool = pool or TicketPool()
        self.members, self.names = nn.ModuleList(), tuple[str, ...]()
        shared: dict[str, Any] = {}
        for ticket in tickets:
            if not isinstance(ticket, Ticket):
                raise SettingsError(f"among the tickets is a {type(ticket).__name__}: give Ticket objects")
            own = {what: getattr(ticket, what) for what in _SHARED}
            shared = shared or own
            self._check_kin(ticket.name, own, shared)
            if ticket.name in self.names:
                raise SettingsError(f"ticket {ticket.name} is there twice: give it once, and probabilities")
            self.members.append(ticket.model() if materialised else pool.model(ticket))
            self.names += (ticket.name,)
            del ticket  # before the next one is unpacked
        if not self.names:
            raise SettingsError("an R2S needs tickets: give one or more of one random network")
        self.probabilities = shares_of(probabilities, len(self.names))
        self.generator, self.per = generator, per
        self.pretrained_cfg: dict[str, Any] = dict(shared["pretrained_cfg"])
        self.default_cfg = self.pretrained_cfg
        self.num_classes: Any = self.members[0].num_classes
        self.num_features: Any = self.members[0].num_features
        self.eval()

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:6]) + (f" and {len(self.names) - 6} more" if len(self.names) > 6 else "")
        return f"R2S({type(self.members[0]).__name__}, names={shown}, per={self.per!r})"

    def _check_kin(self, name: str, own: dict[str, Any], shared: dict[str, Any]) -> None:
        for what in _SHARED:
            if own[what] != shared[what]:
                raise SettingsError(
                    f"ticket {name} has the {what} {own[what]}, ticket {self.names[0]} {shared[what]}: the members of "
                    "an R2S come from one random network"
                )

    def train(self, mode: bool = True) -> "R2S":
        """Stay in eval mode, whatever ``mode`` is; a member of its own can be trained if it is materialised."""
        return super().train(False)

    def forward(self, x: torch.Tensor, members: Sequence[int | str] | torch.Tensor | None = None) -> torch.Tensor:
        """Return logits (N, classes) of inputs (N, C, H, W), each by a member drawn or chosen for it, or one for all.

        Args:
            x: the inputs.
            members: who answers each of them, N names or positions from 0, mixed or an integer tensor (N,); nothing is
                drawn then, whatever ``per`` is. Whoever can see or foretell them attacks these members alone.

        Raises:
            SettingsError: the members are not one a row, or of other names or positions; or the forward is being traced
                or exported, which would draw once and for all.
        """
        if torch.jit.is_tracing() or _is_exporting():
            raise SettingsError(
                "an R2S cannot be traced or exported, because its draw would be the same in every run: trace or export "
                "the members one by one, made with materialised=True"
            )
        return self._switched(x, members)

    @_uncompiled(recursive=False)  # the members' forward is compiled, once for all: nothing there says which one it is
    def _switched(self, x: torch.Tensor, members: Sequence[int | str] | torch.Tensor | None) -> torch.Tensor:
        if members is not None:
            drawn = self._chosen(members, len(x))
        elif self.per == "batch" or len(x) < 2:
            return self.members[int(self.draw(1))](x)
        else:
            drawn = self.draw(len(x))
        if not len(x):
            return self.members[0](x)
        places = [(j, torch.nonzero(drawn == j)[:, 0].to(x.device)) for j in drawn.unique().tolist()]
        answers = torch.cat([self.members[j](x[place]) for j, place in places])
        order = torch.cat([place for _, place in places])
        return answers[order.argsort()]

    @_uncompiled()
    def _chosen(self, members: Sequence[int | str] | torch.Tensor, count: int) -> torch.Tensor:
        """Return the positions of the members chosen for ``count`` rows, int64 (count,) on the CPU."""
        given: Any = members.tolist() if isinstance(members, torch.Tensor | np.ndarray) else members
        if given is members and (isinstance(members, str) or not isinstance(members, Sequence)):
            raise SettingsError(f"members={printable(repr(members))}: give a list of one name or position a row")
        given = list(given) if isinstance(given, Sequence) else given
        if not isinstance(given, list) or len(given) != count:
            said = len(given) if isinstance(given, list) else "one"
            raise SettingsError(f"members are {said} for a batch of {count}: give one name or position a row")
        return torch.tensor([self._position(one) for one in given], dtype=torch.int64, device="cpu")

    def _position(self, member: Any) -> int:
        if isinstance(member, str):
            if member not in self.names:
                raise SettingsError(f"among members is {printable(repr(member))}. {nearest(member, self.names)}")
            return self.names.index(member)
        try:
            position = -1 if isinstance(member, bool | np.bool_) else operator.index(member)
        except TypeError:
            position = -1
        if not 0 <= position < len(self.names):
            raise SettingsError(
                f"among members is {printable(repr(member))}: give names, or positions from 0 to {len(self.names) - 1}"
            )
        return position

    @_uncompiled()
    def draw(self, count: int) -> torch.Tensor:
        """Return the positions of ``count`` members drawn at random, int64 (count,) on the CPU."""
        tell_of_draws([self])
        if self.generator is None:
            words = np.frombuffer(os.urandom(8 * count), np.uint64)
            uniform = torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)
        else:
            device = self.generator.device
            uniform = torch.rand(count, dtype=torch.float64, device=device, generator=self.generator).cpu()
        borders = torch.tensor(self.probabilities, dtype=torch.float64, device="cpu").cumsum(0)[:-1]
        return torch.searchsorted(borders, uniform, right=True)

    def logits_of(self, x: torch.Tensor, j: int) -> torch.Tensor:
        """Return the logits (N, classes) of member ``j``."""
        return self.members[j](x)

    def all_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return every member's logits, (members, N, classes)."""
        return torch.stack([member(x) for member in self.members])

    def expected(self, x: torch.Tensor) -> torch.Tensor:
        """Return the exact mean of the members' class probabilities, (N, classes): what an adaptive attacker climbs."""
        probabilities = self.all_logits(x).float().softmax(-1)  # an autocast's precision would not be exact
        shares = torch.tensor(self.probabilities, dtype=torch.float32, device=x.device)
        return (shares.view(-1, 1, 1) * probabilities).sum(0)


def shares_of(probabilities: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Return the probabilities of ``count`` members, which sum to 1; equal ones for None.

    Raises:
        SettingsError: they are not one positive number a member that sum to 1.
    """
    try:
        given = [1 / count] * count if probabilities is None else probabilities
        shares = torch.tensor(given, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError):
        shares = torch.zeros(0, device="cpu")
    if shares.shape != (count,) or not bool((shares > 0).all()) or abs(float(shares.sum()) - 1) > 1e-6:
        raise SettingsError(f"probabilities {probabilities}: give {count} positive numbers that sum to 1")
    return tuple((shares / shares.sum()).tolist())
