"""R2S: several tickets of one random network, each input answered by a random one (paper, section 6.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .errors import SettingsError
from .ticket import Ticket


class R2S(nn.Module):
    """Random switch between tickets: a module that takes what the timm model takes, and draws who answers.

    Every sample of a batch gets a member of its own, so that batching does not change what an attacker sees. Measure it
    against ``list(r2s.members)`` or ``r2s.expected``: an attacker can know all members, and averages over them (EOT).

    Args:
        tickets: of one architecture, with the same arguments, input, labels and Init.
        generator: a CPU generator of the draws, for repeatable ones. By default they come from a generator that the
            operating system seeds, and cannot be foretold.
        probabilities: of the members; equal when None.

    Raises:
        SettingsError: there is no ticket, one is of another network than the first, or the probabilities are not one
            positive number a ticket that sum to 1.
        TicketError: a ticket does not make the weights it was drawn with.
    """

    probabilities: torch.Tensor

    def __init__(
        self,
        tickets: Sequence[Ticket],
        *,
        generator: torch.Generator | None = None,
        probabilities: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not tickets:
            raise SettingsError("an R2S needs tickets: give one or more of one random network")
        for other in tickets[1:]:
            for what in ("architecture", "timm_kwargs", "init", "pretrained_cfg"):
                first, here = getattr(tickets[0], what), getattr(other, what)
                if first != here:
                    raise SettingsError(
                        f"ticket {other.name} has the {what} {here}, ticket {tickets[0].name} {first}: the members of "
                        "an R2S come from one random network"
                    )
        equal = [1 / len(tickets)] * len(tickets)
        shares = torch.as_tensor(equal if probabilities is None else probabilities, dtype=torch.float64)
        if shares.shape != (len(tickets),) or not bool((shares > 0).all()) or abs(float(shares.sum()) - 1) > 1e-6:
            raise SettingsError(f"probabilities {probabilities}: give {len(tickets)} positive numbers that sum to 1")
        self.names = tuple(ticket.name for ticket in tickets)
        self.members = nn.ModuleList(ticket.model() for ticket in tickets)
        self.register_buffer("probabilities", shares, persistent=False)
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        self.generator = generator
        self.pretrained_cfg: dict[str, Any] = dict(tickets[0].pretrained_cfg)
        self.num_classes = self.members[0].num_classes
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes) of inputs (N, C, H, W), each by a member drawn for it alone."""
        if not len(x):
            return self.logits_of(x, 0)
        shares = self.probabilities.cpu()
        drawn = torch.multinomial(shares, len(x), replacement=True, generator=self.generator).to(x.device)
        present = drawn.unique().tolist()
        answers = {j: self.logits_of(x[drawn == j], j) for j in present}
        first = answers[present[0]]
        logits = first.new_empty(len(x), first.shape[1])
        for j in present:
            logits[drawn == j] = answers[j]
        return logits

    def logits_of(self, x: torch.Tensor, j: int) -> torch.Tensor:
        """Return the logits (N, classes) of member ``j``."""
        return self.members[j](x)

    def all_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return every member's logits, (members, N, classes)."""
        return torch.stack([member(x) for member in self.members])

    def expected(self, x: torch.Tensor) -> torch.Tensor:
        """Return the exact mean of the members' class probabilities, (N, classes): what an adaptive attacker climbs."""
        shares = self.probabilities.to(x.device)
        probabilities = self.all_logits(x).softmax(-1)
        return torch.einsum("m,mnc->nc", shares.to(probabilities.dtype), probabilities)
