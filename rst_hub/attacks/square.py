"""Square attack (Andriushchenko, Croce, Flammarion and Hein, ECCV 2020): random search by squares, from logits only.

Pixels, labels, budget, lists of members and what comes back are as in :mod:`rst_hub.attacks`. A query is one look at
the logits of one sample, whatever the number of members. A sample is finished, and queried no more, once the model is
fooled, or every member of a list. Random numbers are drawn for the whole batch all the same, so that no sample's
result hangs on when the others are finished.
"""

import bisect
import math
import numbers

import torch
from torch.nn import functional

from ..errors import SettingsError
from .common import ThreatModel, Victim, checked, finite_logits_of, project, unit
from .queries import Generator, counter, right_at_first, standing_of

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After so many squares the share of pixels in one is halved: the schedule of Square's 10,000 queries."""


@checked
@torch.no_grad()
def square(
    model: Victim,
    x: torch.Tensor,
    y: torch.Tensor,
    threat_model: ThreatModel,
    *,
    max_queries: int = 5000,
    p_init: float = 0.8,
    generator: torch.Generator | None = None,
    queries: torch.Tensor | None = None,
) -> torch.Tensor:
    """Square attack on the margin (Andriushchenko, Croce, Flammarion and Hein, ECCV 2020): random search by squares.

    Squares shrink as they do in the paper at 10,000 queries, whatever ``max_queries`` is: AutoAttack's setting. Each
    sample's squares lie at places of its own, and reach the last row and column, as those of the authors' code do not:
    on small images that makes it stronger. A change is kept if fewer members are right, or as many at a higher margin,
    averaged over members: for one model the paper's rule.

    Args:
        model: pixels to logits of shape (N, classes), or a list of members.
        x: pixels in [0, 1], float32, (N, C, H, W).
        y: labels, int64, (N,).
        threat_model: norm and budget; with a budget of 0 nothing is queried.
        max_queries: the most that a sample may use, one for each candidate.
        p_init: share of the image's pixels in the first square.
        generator: of stripes, places and signs, on the device of ``x``.
        queries: int64, (N,), on the device of ``x``, filled in place with what each sample used.

    Returns:
        Each sample's best iterate: the one that the fewest members get right, then that of the highest margin; ``x``
        where that is misclassified already.

    Raises:
        SettingsError, DataError, RstHubError: as for :func:`bandits`.
    """
    if not isinstance(max_queries, numbers.Integral) or max_queries < 1 or not 0 < p_init <= 1:
        raise SettingsError(
            f"square with max_queries={max_queries}, p_init={p_init}: give at least 1, and above 0 to at most 1"
        )
    used = counter(x, y, queries)
    adversarial = x.clone()
    right = right_at_first(model, x, y, threat_model)
    loss = torch.full_like(right, -math.inf)  # the start replaces x at any margin, unless more members get it right
    left = right.nonzero().squeeze(1)
    for query in range(max_queries):
        if not len(left):
            break
        if query == 0:
            candidate = _START[threat_model.norm](x, threat_model.eps, generator)[left]
        else:
            pixels = p_init / 2 ** bisect.bisect_left(_HALVINGS, query - 1) * x[0, 0].numel()
            candidate = _MOVE[threat_model.norm](x, adversarial, left, pixels, threat_model.eps, generator)
        candidate = project(candidate, x[left], threat_model)
        right_now, loss_now = standing_of(finite_logits_of(model, candidate), y[left])
        better = (right_now < right[left]) | ((right_now == right[left]) & (loss_now > loss[left]))
        kept = left[better]
        adversarial[kept], right[kept], loss[kept] = candidate[better], right_now[better], loss_now[better]
        used[left] += 1
        left = left[right[left] > 0]
    return adversarial


def _stripes(x: torch.Tensor, eps: float, generator: Generator) -> torch.Tensor:
    """Return every column of every channel raised or lowered by eps."""
    return x + eps * _signs(x, (len(x), x.shape[1], 1, x.shape[3]), generator)


def _one_square(
    x: torch.Tensor, best: torch.Tensor, left: torch.Tensor, pixels: float, eps: float, generator: Generator
) -> torch.Tensor:
    """Return ``best[left]`` with each channel of one square at plus or minus eps from ``x``."""
    side = min(max(round(math.sqrt(pixels)), 1), *x.shape[2:])
    corners = _corners(x, side, generator)[left]
    signs = _signs(x, (*x.shape[:2], 1, 1), generator)[left]
    return torch.where(_window(x, corners, side), x[left] + eps * signs, best[left])


def _bump_grid(x: torch.Tensor, eps: float, generator: Generator) -> torch.Tensor:
    """Return the image under a grid of bumps, five along the shorter side, of L2 length eps together."""
    count, channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    turned = torch.randint(2, (count, 1, down, across), device=x.device, generator=generator)
    signs = _signs(x, (count, channels, down, across, 1, 1), generator)
    grid = (_bumps(side, x)[turned] * signs).transpose(3, 4).reshape(count, channels, down * side, across * side)
    top, near = (height - down * side) // 2, (width - across * side) // 2
    delta = functional.pad(grid, (near, width - across * side - near, top, height - down * side - top))
    return x + eps * unit(delta)


def _one_bump(
    x: torch.Tensor, best: torch.Tensor, left: torch.Tensor, pixels: float, eps: float, generator: Generator
) -> torch.Tensor:
    """Return ``best[left]`` with a bump added in one square, at the cost of what lay in that and in another square.

    Each channel of the first square gets the budget that its two squares held and its part of what was left over.
    """
    side = min(max(round(math.sqrt(pixels)), 3) | 1, *x.shape[2:])  # odd, so that a bump has a middle
    gaining, losing = (_corners(x, side, generator)[left] for _ in range(2))
    turned = torch.randint(2, (len(x),), device=x.device, generator=generator)[left]
    signs = _signs(x, (*x.shape[:2], 1, 1), generator)[left]
    delta = best[left] - x[left]
    gains, loses = _window(x, gaining, side), _window(x, losing, side)
    rows, columns = (places.clamp(0, side - 1) for places in _places(x, gaining))
    bump = _bumps(side, x)[turned[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)
    old = delta * gains
    new = (bump * signs + old / _length(old)) * gains
    spare = (eps**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp(min=0) / x.shape[1]
    budget = (spare + (delta * (gains | loses)).square().sum((2, 3), keepdim=True)).sqrt()
    moved = torch.where(gains, new / _length(new) * budget, delta.masked_fill(loses, 0))
    return x[left] + eps * unit(moved)


_START = {"Linf": _stripes, "L2": _bump_grid}
_MOVE = {"Linf": _one_square, "L2": _one_bump}


def _bumps(side: int, x: torch.Tensor) -> torch.Tensor:
    """Return one bump upright and one on its side, (2, side, side): half a hill and half a hollow, L2 length 1."""
    bump = torch.cat([_hill(side // 2, side, x), -_hill(side - side // 2, side, x)])
    bump /= bump.norm()
    return torch.stack([bump, bump.T])


def _hill(height: int, width: int, x: torch.Tensor) -> torch.Tensor:
    """Return a pile of nested squares, the k-th of height 1 / k^2 and reaching k - 1 pixels from the middle."""
    rows = (torch.arange(height, device=x.device) - height // 2).abs()
    columns = (torch.arange(width, device=x.device) - width // 2).abs()
    layers = torch.arange(1, max(height, width) // 2 + 2, dtype=x.dtype, device=x.device) ** -2
    piled = layers.flip(0).cumsum(0).flip(0)
    hill = piled[torch.maximum(rows[:, None], columns[None, :])]
    return hill / hill.norm()


def _length(delta: torch.Tensor) -> torch.Tensor:
    return delta.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-12)


def _signs(x: torch.Tensor, shape: tuple[int, ...], generator: Generator) -> torch.Tensor:
    return torch.randint(2, shape, device=x.device, generator=generator).to(x.dtype) * 2 - 1


def _corners(x: torch.Tensor, side: int, generator: Generator) -> torch.Tensor:
    """Return the top and left of a square for each sample, int64 (N, 2)."""
    ends = (length - side + 1 for length in x.shape[2:])
    return torch.stack([torch.randint(end, (len(x),), device=x.device, generator=generator) for end in ends], dim=1)


def _places(x: torch.Tensor, corners: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return every row's place (n, H) and every column's (n, W) in squares that start at ``corners``."""
    rows, columns = (torch.arange(length, device=x.device) for length in x.shape[2:])
    return rows - corners[:, :1], columns - corners[:, 1:]


def _window(x: torch.Tensor, corners: torch.Tensor, side: int) -> torch.Tensor:
    """Return a bool for each pixel, (n, 1, H, W): is it in the square?"""
    rows, columns = ((places >= 0) & (places < side) for places in _places(x, corners))
    return rows[:, None, :, None] & columns[:, None, None, :]
