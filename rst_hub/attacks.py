"""Adversarial attacks as pure functions of (model, x, y, threat model).

``x`` is float32 pixels in [0, 1] of shape (N, C, H, W), ``y`` int64 labels of shape (N,); the model takes pixels, so
normalisation is its own affair. What comes back has the shape and dtype of ``x``, stays in [0, 1] and within ``eps``
of ``x``, and carries no gradient. Each sample is attacked on its own: the loss is a sum, never a mean. Only the input's
gradient is computed; the model's parameters, buffers and modes are left alone, apart from what a forward in train mode
does to batch norm.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from .errors import SettingsError

Model = Callable[[torch.Tensor], torch.Tensor]
Attack = Callable[[Model, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ThreatModel:
    """What the attacker may change: a norm and its budget ``eps``, in pixels from 0 to 1 (8/255, say)."""

    norm: str = "Linf"
    eps: float = 8 / 255

    def __post_init__(self) -> None:
        """Check both fields."""
        if self.norm != "Linf":
            raise SettingsError(f"threat model norm {self.norm!r} is not supported; give 'Linf'")
        if isinstance(self.eps, str | bool) or not 0 <= self.eps <= 1:
            raise SettingsError(f"threat model eps {self.eps!r}: give a budget from 0 to 1 in pixel units, as in 8/255")


def fgsm(model: Model, x: torch.Tensor, y: torch.Tensor, threat_model: ThreatModel) -> torch.Tensor:
    """Fast gradient sign method: one step of size eps from ``x`` itself (Goodfellow et al., 2015)."""
    return _step(model, x, x, y, threat_model.eps, threat_model.eps)


def fgsm_rs(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    threat_model: ThreatModel,
    *,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """FGSM from a random start, one step of size 1.25 eps unless given (Wong et al., 2020; paper, section 4.1)."""
    step_size = 1.25 * threat_model.eps if step_size is None else step_size
    return _step(model, _random_start(x, threat_model.eps, generator), x, y, threat_model.eps, step_size)


def pgd(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    threat_model: ThreatModel,
    *,
    steps: int = 20,
    step_size: float = 2 / 255,
    restarts: int = 1,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Projected gradient descent on the cross-entropy (Madry et al., 2018; paper, equation 2).

    Args:
        model: pixels to logits of shape (N, classes).
        x: pixels in [0, 1], float32, (N, C, H, W).
        y: labels, int64, (N,).
        threat_model: norm and budget.
        steps: gradient steps.
        step_size: in pixels from 0 to 1.
        restarts: how often to start anew; each sample keeps the restart that fools the model, or else the one of
            the highest loss.
        random_start: start uniformly in the eps-ball instead of at ``x``.
        generator: of the random starts, on the device of ``x``.

    Raises:
        SettingsError: steps or restarts below 1, a negative step size, or several restarts of the same start.
    """
    if steps < 1 or restarts < 1 or step_size < 0:
        raise SettingsError(
            f"pgd with steps={steps}, restarts={restarts}, step_size={step_size}: give at least 1, 1 and 0"
        )
    if restarts > 1 and not random_start:
        raise SettingsError(f"pgd with restarts={restarts} from the same start gives the same answer: set random_start")
    best, best_rank = x, None
    for _ in range(restarts):
        adversarial = _random_start(x, threat_model.eps, generator) if random_start else x
        for _ in range(steps):
            adversarial = _step(model, adversarial, x, y, threat_model.eps, step_size)
        if restarts == 1:
            return adversarial
        rank = _damage(model, adversarial, y)
        if best_rank is None:
            best, best_rank = adversarial, rank
        else:
            worse = rank > best_rank
            best = torch.where(worse.view(-1, *[1] * (x.ndim - 1)), adversarial, best)
            best_rank = torch.maximum(rank, best_rank)
    return best


def _step(
    model: Model, start: torch.Tensor, x: torch.Tensor, y: torch.Tensor, eps: float, step_size: float
) -> torch.Tensor:
    """Take one signed gradient step from ``start``, projected to the eps-ball of ``x`` and to [0, 1]."""
    with torch.enable_grad():
        start = start.detach().requires_grad_()
        loss = functional.cross_entropy(model(start).float(), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, start)
    stepped = start.detach() + step_size * gradient.sign()
    return _project(stepped, x, eps)


def _random_start(x: torch.Tensor, eps: float, generator: torch.Generator | None) -> torch.Tensor:
    noise = torch.empty(x.shape, dtype=x.dtype, device=x.device).uniform_(-eps, eps, generator=generator)
    return _project(x + noise, x, eps)


def _project(adversarial: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.minimum(torch.maximum(adversarial, x - eps), x + eps).clamp_(0, 1)


@torch.no_grad()
def _damage(model: Model, adversarial: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Rank an outcome: any success above any failure, then by the loss (which is finite in float64)."""
    logits = model(adversarial).double()
    loss = functional.cross_entropy(logits, y, reduction="none")
    return torch.where(logits.argmax(1) != y, loss + 1e6, loss)
