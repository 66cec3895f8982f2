"""Black-box attacks: bandits and square, which see nothing of a model but its logits.

Pixels, labels, budget, lists of members and what comes back are as in :mod:`rst_hub.attacks`. A query is one look at
the logits of one sample, whatever the number of members. A sample is finished, and queried no more, once the model is
fooled, or every member of a list. Random numbers are drawn for the whole batch all the same, so that no sample's result
hangs on when the others are finished.
"""

import bisect
import math
import numbers

import torch
from torch.nn import functional

from .attacks import (
    ThreatModel,
    Victim,
    checked,
    cross_entropy,
    finite_logits_of,
    margin,
    per_sample,
    project,
    unit,
)
from .errors import DataError, SettingsError

Generator = torch.Generator | None

BANDITS = {
    "Linf": {"image_lr": 0.01, "fd_eta": 0.1, "online_lr": 100.0, "exploration": 1.0},
    "L2": {"image_lr": 0.5, "fd_eta": 0.01, "online_lr": 0.1, "exploration": 0.01},
}
"""The settings of the authors' code, tuned on ImageNet at eps 0.05 (Linf) and 5 (L2)."""

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After so many squares the share of pixels in one is halved: the schedule of Square's 10,000 queries."""


@checked
@torch.no_grad()
def bandits(
    model: Victim,
    x: torch.Tensor,
    y: torch.Tensor,
    threat_model: ThreatModel,
    *,
    max_queries: int = 10_000,
    tile: int | None = None,
    image_lr: float | None = None,
    fd_eta: float | None = None,
    online_lr: float | None = None,
    exploration: float | None = None,
    generator: torch.Generator | None = None,
    queries: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bandits with time and data priors (Ilyas, Engstrom and Madry, "Prior Convictions", ICLR 2019).

    A coarse guess of the gradient, the prior, is learnt online from differences of the cross-entropy between two
    probes, and the image follows it. The tile size dominates the result: state it with every number. As in the
    authors' code the probes, at an L2 distance of ``fd_eta`` from the image, leave [0, 1] and the budget (what is
    returned does not), and success means ever misclassified: the check for it after each step is no query. Let the
    model compute in float32: bfloat16 hardly resolves the difference between two probes.

    Args:
        model: pixels to logits of shape (N, classes), or a list of members, whose mean loss is climbed.
        x: pixels in [0, 1], float32, (N, C, H, W).
        y: labels, int64, (N,).
        threat_model: norm and budget; with a budget of 0 nothing is queried.
        max_queries: the most that a sample may use, two for each step.
        tile: side of the prior, which is enlarged to the image by nearest neighbours; None: :func:`default_tile`.
        image_lr: size of a step of the image, in pixels from 0 to 1: of each pixel for Linf, of the whole for L2.
        fd_eta: how far the probes are from the image (L2, pixels from 0 to 1).
        online_lr: learning rate of the prior.
        exploration: how far the probes' directions are from the prior. It and the three above: :data:`BANDITS` if None.
        generator: of the directions, on the device of ``x``.
        queries: int64, (N,), on the device of ``x``, filled in place with what each sample used.

    Returns:
        Each sample's first misclassified iterate, its last one where there is none, ``x`` where that is one already.
        Of members, the last of those iterates that the fewest get right.

    Raises:
        SettingsError: a setting is out of range, or ``queries`` is of another type or shape.
        DataError: pixels or labels that :func:`rst_hub.attacks.checking` refuses, or ``x`` is not of four dimensions.
        RstHubError: the model's logits are not finite.
    """
    given = {"image_lr": image_lr, "fd_eta": fd_eta, "online_lr": online_lr, "exploration": exploration}
    rates = BANDITS[threat_model.norm] | {name: value for name, value in given.items() if value is not None}
    used = _counter(x, y, queries)
    tile = default_tile(min(x.shape[2:])) if tile is None else tile
    _check_bandits(x, max_queries, tile, rates)
    adversarial = x.clone()
    prior = x.new_zeros(*x.shape[:2], tile, tile)
    found, right = x.clone(), _right_at_first(model, x, y, threat_model)
    left = right.nonzero().squeeze(1)
    for _ in range(max_queries // 2):
        if not len(left):
            break
        noise = torch.randn(prior.shape, dtype=x.dtype, device=x.device, generator=generator)[left]
        noise *= rates["exploration"] / math.sqrt(prior[0].numel())
        image, labels = adversarial[left], y[left]
        slope = _slope(model, image, labels, _bounded(prior[left], threat_model), noise, rates["fd_eta"])
        gradient = per_sample(slope / rates["exploration"], noise) * noise
        prior[left] = learnt = _learn(prior[left], gradient, rates["online_lr"], threat_model)
        step = _enlarge(_bounded(learnt, threat_model), x)
        step = step.sign() if threat_model.norm == "Linf" else unit(step)
        image = project(image + rates["image_lr"] * step, x[left], threat_model)
        adversarial[left] = image
        used[left] += 2
        right_now, _ = _standing(finite_logits_of(model, image), labels)
        kept = right_now <= right[left]
        found[left[kept]], right[left[kept]] = image[kept], right_now[kept]
        left = left[right_now > 0]
    return found


def default_tile(side: int) -> int:
    """Return the side of the prior for images of ``side`` pixels: 50 from 128 on, as published, 20 from 32 on."""
    return 50 if side >= 128 else 20 if side >= 32 else side


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
    used = _counter(x, y, queries)
    adversarial = x.clone()
    right = _right_at_first(model, x, y, threat_model)
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
        right_now, loss_now = _standing(finite_logits_of(model, candidate), y[left])
        better = (right_now < right[left]) | ((right_now == right[left]) & (loss_now > loss[left]))
        kept = left[better]
        adversarial[kept], right[kept], loss[kept] = candidate[better], right_now[better], loss_now[better]
        used[left] += 1
        left = left[right[left] > 0]
    return adversarial


# What both share


def _counter(x: torch.Tensor, y: torch.Tensor, queries: torch.Tensor | None) -> torch.Tensor:
    """Check that there are images, and return zeros to count each sample's queries in: ``queries`` itself if given."""
    if x.ndim != 4 or not x.shape[1:].numel():
        raise DataError(f"pixels of shape {tuple(x.shape)}: give (N, C, H, W)")
    if queries is None:
        return torch.zeros_like(y)
    if queries.dtype != torch.int64 or queries.shape != y.shape:
        raise SettingsError(f"queries of {queries.dtype}, {tuple(queries.shape)}: give int64 of shape ({len(y)},)")
    return queries.zero_()


def _right_at_first(model: Victim, x: torch.Tensor, y: torch.Tensor, threat_model: ThreatModel) -> torch.Tensor:
    """Return the share of members that are right, (N,): 0 where there is nothing to do, everywhere if eps is 0."""
    if not len(x) or threat_model.eps == 0:
        return x.new_zeros(len(x))
    return _standing(finite_logits_of(model, x), y)[0]


def _standing(outputs: list[torch.Tensor], y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the share of members that are right and the mean margin by which they are wrong, both (N,)."""
    right = torch.stack([logits.argmax(1) == y for logits in outputs]).float().mean(0)
    return right, torch.stack([margin(logits, y) for logits in outputs]).mean(0).float()


# Bandits


def _check_bandits(x: torch.Tensor, max_queries: int, tile: int, rates: dict[str, float]) -> None:
    if not isinstance(max_queries, numbers.Integral) or max_queries < 2 or not 1 <= tile <= min(x.shape[2:]):
        raise SettingsError(
            f"bandits with max_queries={max_queries}, tile={tile} on images of {x.shape[2]} x {x.shape[3]}: give at "
            "least 2, and from 1 to the shorter side"
        )
    for name, value in rates.items():
        if not 0 < value < math.inf:
            raise SettingsError(f"bandits with {name}={value}: give a number above 0")


def _slope(
    model: Victim, image: torch.Tensor, y: torch.Tensor, prior: torch.Tensor, noise: torch.Tensor, distance: float
) -> torch.Tensor:
    """Return, (N,), by how much more the loss climbs along prior + noise than along prior - noise, per distance."""
    losses = []
    for direction in (prior + noise, prior - noise):
        outputs = finite_logits_of(model, image + distance * unit(_enlarge(direction, image)))
        # in float64, where a confident model's loss is not yet 0
        losses.append(torch.stack([cross_entropy(logits.double(), y) for logits in outputs]).mean(0))
    return ((losses[0] - losses[1]) / distance).float()


def _learn(prior: torch.Tensor, gradient: torch.Tensor, rate: float, threat_model: ThreatModel) -> torch.Tensor:
    """Return the prior after a step: of exponentiated gradient for Linf, where it is in log odds, else of addition.

    The odds of (prior + 1) / 2 change by the factor exp(2 rate gradient). That overflows, and its logarithm does not.
    """
    return prior + (2 * rate if threat_model.norm == "Linf" else rate) * gradient


def _bounded(prior: torch.Tensor, threat_model: ThreatModel) -> torch.Tensor:
    """Return the prior itself: for Linf from -1 to 1, from its log odds."""
    return torch.tanh(prior / 2) if threat_model.norm == "Linf" else prior


def _enlarge(prior: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(prior, size=x.shape[2:], mode="nearest")


# Square


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
