"""Bandits with time and data priors (Ilyas, Engstrom and Madry, ICLR 2019), which see logits only."""

import math
import numbers

import torch
from torch.nn import functional

from ..errors import SettingsError
from .common import ThreatModel, Victim, checked, finite_logits_of, per_sample, project, unit
from .gradient import cross_entropy
from .queries import counter, right_at_first, standing_of

BANDITS = {
    "Linf": {"image_lr": 0.01, "fd_eta": 0.1, "online_lr": 100.0, "exploration": 1.0},
    "L2": {"image_lr": 0.5, "fd_eta": 0.01, "online_lr": 0.1, "exploration": 0.01},
}
"""The settings of the authors' code, tuned on ImageNet at eps 0.05 (Linf) and 5 (L2)."""


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
        DataError: pixels or labels that :func:`~.common.checking` refuses, or ``x`` is not of four dimensions.
        RstHubError: the model's logits are not finite.
    """
    given = {"image_lr": image_lr, "fd_eta": fd_eta, "online_lr": online_lr, "exploration": exploration}
    rates = BANDITS[threat_model.norm] | {name: value for name, value in given.items() if value is not None}
    used = counter(x, y, queries)
    tile = default_tile(min(x.shape[2:])) if tile is None else tile
    _check_bandits(x, max_queries, tile, rates)
    adversarial = x.clone()
    prior = x.new_zeros(*x.shape[:2], tile, tile)
    found, right = x.clone(), right_at_first(model, x, y, threat_model)
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
        right_now, _ = standing_of(finite_logits_of(model, image), labels)
        kept = right_now <= right[left]
        found[left[kept]], right[left[kept]] = image[kept], right_now[kept]
        left = left[right_now > 0]
    return found


def default_tile(side: int) -> int:
    """Return the side of the prior for images of ``side`` pixels: 50 from 128 on, as published, 20 from 32 on."""
    return 50 if side >= 128 else 20 if side >= 32 else side


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
