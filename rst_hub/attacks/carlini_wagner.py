"""Carlini and Wagner's L2 attack (2017): the least distortion that fools."""

import functools
import math
import numbers

import torch

from ..errors import SettingsError
from .common import Victim, check_finite, checked, finite_logits_of, in_parts, norm_of, per_sample
from .gradient import margin


@checked
@torch.no_grad()
def cw_l2(
    model: Victim,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    search_steps: int = 1,
    steps: int = 100,
    initial_const: float = 0.1,
    learning_rate: float = 0.01,
    confidence: float = 0.0,
) -> torch.Tensor:
    """Carlini and Wagner's L2 attack (2017), with the paper's settings (appendix B): the least distortion that fools.

    Adam, in the space of arctanh, lowers the squared L2 distance plus c times the margin that is left. There is no
    budget: what the attack cannot fool comes back as ``x`` itself, and ``adversarial - x`` is the distortion to report.
    Of members, iterates that fool most of them are kept, and of these the nearest. With one search step the result
    hangs on c: at 0.1 it says little about a model that one at 1 breaks entirely.

    Args:
        model: pixels to logits of shape (N, classes), or a list of members.
        x: pixels in [0, 1], float32, (N, C, H, W).
        y: labels, int64, (N,).
        search_steps: values of c tried for each sample, from ``initial_const`` on by tenfold increase or bisection.
        steps: of Adam, for each c; none is left out early, because that would depend on the other samples.
        initial_const: the first c.
        learning_rate: of Adam.
        confidence: by how much the margin must be exceeded.

    Raises:
        SettingsError: a setting is out of range.
        DataError, RstHubError: as for :func:`pgd`.
    """
    whole = isinstance(steps, numbers.Integral) and isinstance(search_steps, numbers.Integral)
    if not whole or min(search_steps, steps) < 1 or min(initial_const, learning_rate) <= 0 or confidence < 0:
        raise SettingsError(
            f"cw_l2 with search_steps={search_steps}, steps={steps}, initial_const={initial_const}, "
            f"learning_rate={learning_rate}, confidence={confidence}: give at least 1, 1, above 0, above 0, at least 0"
        )
    inside = torch.atanh((2 * x - 1) * 0.999999)  # black and white would be infinitely far away
    origin = _from_tanh_space(inside)
    found, shortest, most = x.clone(), x.new_full((len(x),), math.inf), torch.zeros_like(y)
    slope = functools.partial(_slope_of_cw_l2, model, confidence=confidence)
    const, low, high = (x.new_full((len(x),), value) for value in (initial_const, 0.0, math.inf))
    for _ in range(search_steps):
        shift = torch.zeros_like(x, requires_grad=True)
        optimizer = torch.optim.Adam([shift], lr=learning_rate)
        succeeded = torch.zeros_like(y, dtype=torch.bool)
        for _ in range(steps):
            shift.grad, adversarial, *margins = in_parts(model, slope, inside + shift, origin, y, const)
            check_finite(shift.grad, "gradient")
            count = torch.stack([exceeds > confidence for exceeds in margins]).sum(0)
            length = norm_of(adversarial - x, "L2").float()
            better = (count > most) | ((count == most) & (count > 0) & (length < shortest))
            found = torch.where(per_sample(better, x), adversarial, found)
            shortest, most = torch.where(better, length, shortest), torch.where(better, count, most)
            succeeded |= count == len(margins)
            optimizer.step()
        high = torch.where(succeeded, const, high)
        low = torch.where(succeeded, low, const)
        const = torch.where(high.isinf(), const * 10, (low + high) / 2)
    return found


def _slope_of_cw_l2(
    model: Victim, inside: torch.Tensor, origin: torch.Tensor, y: torch.Tensor, const: torch.Tensor, confidence: float
) -> list[torch.Tensor]:
    """Return the gradient, at ``inside``, of what :func:`cw_l2` lowers; the pixels there, and each member's margin."""
    with torch.enable_grad():
        leaf = inside.detach().requires_grad_()
        adversarial = _from_tanh_space(leaf)
        margins = [margin(logits, y) for logits in finite_logits_of(model, adversarial)]
        left = torch.stack([(confidence - exceeds).clamp(min=0) for exceeds in margins]).mean(0)
        distance = (adversarial - origin).square().flatten(1).sum(1)
        (gradient,) = torch.autograd.grad((const * left + distance).sum(), leaf)
    return [gradient, adversarial.detach(), *(exceeds.detach() for exceeds in margins)]


def _from_tanh_space(inside: torch.Tensor) -> torch.Tensor:
    return (torch.tanh(inside) + 1) / 2
