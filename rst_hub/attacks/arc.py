"""ARC, an attack made for randomised models: it goes for one member after another instead of for all on average.

What :func:`rst_hub.pgd` climbs is a mean over the members, and its steepest step may fool none of them where
another step of the same size fools one or several (Dbouk and Shanbhag, "Adversarial Vulnerability of Randomized
Ensembles", ICML 2022). Pixels, labels and what comes back are as in :mod:`rst_hub.attacks.common`.
"""

import functools
import math
import numbers

import torch

from ..errors import SettingsError
from .common import (
    Model,
    ThreatModel,
    Victim,
    check_finite,
    checked,
    finite_logits_of,
    in_parts,
    input_gradient,
    members_of,
    norm_of,
    per_sample,
    project,
)
from .common import random_start as draw_start


@checked
@torch.no_grad()
def arc(
    model: Victim,
    x: torch.Tensor,
    y: torch.Tensor,
    threat_model: ThreatModel,
    *,
    steps: int = 20,
    step_size: float | None = None,
    targets: int = 9,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Attacking Randomised ensembles of Classifiers, for members that are all equally likely (Dbouk et al., 2022).

    Each step looks for a move of size ``step_size``. It begins with none, and member by member turns it towards the
    member's nearest class boundary, as far as a linear member needs to be taken across while the size stays the same.
    A turn is taken where no more members are right than without it. One model is attacked as by DeepFool, in steps of
    one size. A sample that every member is wrong on takes no further round.

    Four things differ from the authors' code. A random start is held against its own accuracy, not that of ``x``. What
    comes back is the best point seen, ``x`` included. The distance to a boundary is measured from where the step
    begins, as the formula for the turn has it (:func:`_turned`), not from where the turns before have led. And members
    only ever see what lies in the budget and the pixel range, also to be linearised.

    Args:
        model: a list of members, or one model: pixels to logits of shape (N, classes).
        x: pixels in [0, 1], float32, (N, C, H, W).
        y: labels, int64, (N,).
        threat_model: norm and budget.
        steps: rounds through the members; of M members, each takes M (M + 1) forwards.
        step_size: in pixels from 0 to 1; the authors' when None, :func:`arc_step`.
        targets: the boundaries to how many of the next highest logits are looked at, a backward each; all of them where
            there are fewer.
        random_start: start uniformly in the eps-ball instead of at ``x``.
        generator: of the random start, on the device of ``x``.

    Raises:
        SettingsError: steps or targets below 1, a negative step size, or an empty list.
        DataError: pixels or labels that :func:`rst_hub.attacks.common.checking` refuses.
        RstHubError: logits or gradients that are not finite, no class logits, or cut off from the input's gradient.
    """
    step_size = arc_step(threat_model) if step_size is None else step_size
    _check_arc(steps, step_size, targets)
    members = members_of(model)
    found, fewest = x.clone(), _right(members, x, y)
    point, right = x.clone(), fewest.clone()
    if random_start:
        point = draw_start(x, threat_model, generator)
        right = _right(members, point, y)
        found, fewest = torch.where(per_sample(right < fewest, x), point, found), torch.minimum(right, fewest)
    for _ in range(steps):
        left = fewest.nonzero().squeeze(1)  # of the others nobody is right any more
        if not len(left):
            break
        start, origin, labels = point[left], x[left], y[left]
        best, least, now = found[left], fewest[left], right[left]
        move, moved = torch.zeros_like(start, dtype=torch.float64), start
        for member in members:
            gap, normal = _nearest_boundary(member, moved, targets, threat_model.norm)
            turned = _turned(move, moved - start, gap, normal, threat_model, step_size)
            candidate = project((start + turned).float(), origin, threat_model)
            count = _right(members, candidate, labels)
            taken, better = per_sample(count <= now, start), per_sample(count < least, start)
            move, moved = torch.where(taken, turned, move), torch.where(taken, candidate, moved)
            best = torch.where(better, candidate, best)
            now, least = torch.minimum(count, now), torch.minimum(count, least)
        point[left], right[left], found[left], fewest[left] = moved, now, best, least
    return found


def arc_step(threat_model: ThreatModel) -> float:
    """Return the authors' step size, of pixels from 0 to 1: eps in Linf, a quarter of it in L2.

    In Linf the members' directions can cancel each other wholly, and small steps then stand still.
    """
    return threat_model.eps if threat_model.norm == "Linf" else threat_model.eps / 4


def _nearest_boundary(member: Model, at: torch.Tensor, targets: int, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far ``at`` is from the nearest boundary of a linearised member, (N,), and what is steepest towards it.

    The latter is the gradient of (other logit - highest logit), divided by its dual norm, so that its product with a
    move says how much nearer that comes. Where no logit has a gradient the boundary is infinitely far, and this is 0.
    Both are float64.
    """
    nearest, normal = in_parts(member, functools.partial(_linearised, member, targets=targets, norm=norm), at)
    return nearest, normal


def _linearised(member: Model, at: torch.Tensor, targets: int, norm: str) -> list[torch.Tensor]:
    nearest = torch.full((len(at),), math.inf, dtype=torch.float64, device=at.device)
    normal = torch.zeros_like(at, dtype=torch.float64)
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        (logits,) = finite_logits_of(member, leaf)
        highest = logits.topk(min(1 + targets, logits.shape[1])).values
        gaps = highest[:, :1] - highest[:, 1:]
        totals = gaps.sum(0).unbind()
    for number, (gap, total) in enumerate(zip(gaps.detach().unbind(1), totals, strict=True), 1):
        gradient = input_gradient(total, leaf, again=number < len(totals)).double()
        check_finite(gradient, "gradient")
        length = gradient.abs().flatten(1).sum(1) if norm == "Linf" else norm_of(gradient, "L2")
        distance = gap / length
        nearer = distance < nearest  # never where there is no gradient: x / 0 is infinite, 0 / 0 no number
        nearest = torch.where(nearer, distance, nearest)
        normal = torch.where(per_sample(nearer, at), -gradient / per_sample(length.clamp(min=1e-300), at), normal)
    return [nearest, normal]


def _turned(
    move: torch.Tensor,
    made: torch.Tensor,
    gap: torch.Tensor,
    normal: torch.Tensor,
    threat_model: ThreatModel,
    step_size: float,
) -> torch.Tensor:
    """Return ``move`` turned towards a boundary, at the norm ``step_size``; float64.

    A boundary at the distance zeta from where the move begins is met by step_size (move + beta towards) / (step_size +
    beta) if beta is step_size / (step_size - zeta) times what the move itself leaves of zeta. The sum is seldom as long
    as step_size + beta, so what is brought to the norm ``step_size`` goes beyond; a twentieth of eps does so surely.

    Args:
        move: what the members before have made of it, of the norm 0 or ``step_size``. Where it is 0, as for the first
            member, whatever beta is, what comes back is a step straight to the boundary.
        made: the same after projection, from which ``gap`` was measured.
        gap: the distance that is left to the boundary, (N,).
        normal: what :func:`_nearest_boundary` returns with it.
        threat_model: its norm, and eps.
        step_size: the norm of what comes back, but where there is no direction at all.
    """
    zeta = gap + (normal * made).flatten(1).sum(1)
    left = (zeta - (normal * move).flatten(1).sum(1)).abs()
    room = (step_size - zeta).clamp(min=1e-12)
    beta = torch.where(zeta < step_size, step_size / room * left + 0.05 * threat_model.eps, step_size)
    towards = normal.sign() if threat_model.norm == "Linf" else normal
    turned = move + per_sample(beta, move) * towards
    return turned * per_sample(step_size / norm_of(turned, threat_model.norm).clamp(min=1e-300), move)


def _right(members: list[Model], at: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return how many members are right, (N,): the expected accuracy times their number."""
    return torch.stack([logits.argmax(1) == y for logits in finite_logits_of(members, at)]).sum(0)


def _check_arc(steps: int, step_size: float, targets: int) -> None:
    whole = isinstance(steps, numbers.Integral) and isinstance(targets, numbers.Integral)
    if not whole or min(steps, targets) < 1 or not 0 <= step_size < math.inf:
        raise SettingsError(
            f"arc with steps={steps}, step_size={step_size}, targets={targets}: give a whole number from 1 on, 0 or "
            "more, and a whole number from 1 on"
        )
