"""What the black-box attacks share: counted queries, and who is still to be fooled."""

import torch

from ..errors import DataError, SettingsError
from .common import ThreatModel, Victim, finite_logits_of
from .gradient import margin

Generator = torch.Generator | None


def counter(x: torch.Tensor, y: torch.Tensor, queries: torch.Tensor | None) -> torch.Tensor:
    """Check that there are images, and return zeros to count each sample's queries in: ``queries`` itself if given."""
    if x.ndim != 4 or not x.shape[1:].numel():
        raise DataError(f"pixels of shape {tuple(x.shape)}: give (N, C, H, W)")
    if queries is None:
        return torch.zeros_like(y)
    if queries.dtype != torch.int64 or queries.shape != y.shape:
        raise SettingsError(f"queries of {queries.dtype}, {tuple(queries.shape)}: give int64 of shape ({len(y)},)")
    return queries.zero_()


def right_at_first(model: Victim, x: torch.Tensor, y: torch.Tensor, threat_model: ThreatModel) -> torch.Tensor:
    """Return the share of members that are right, (N,): 0 where there is nothing to do, everywhere if eps is 0."""
    if not len(x) or threat_model.eps == 0:
        return x.new_zeros(len(x))
    return standing_of(finite_logits_of(model, x), y)[0]


def standing_of(outputs: list[torch.Tensor], y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the share of members that are right and the mean margin by which they are wrong, both (N,)."""
    right = torch.stack([logits.argmax(1) == y for logits in outputs]).float().mean(0)
    return right, torch.stack([margin(logits, y) for logits in outputs]).mean(0).float()
