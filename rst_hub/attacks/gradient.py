"""FGSM, PGD and their relatives: attacks that climb a loss by the input's gradient."""

import functools
import math
import numbers
from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn import functional

from ..errors import RstHubError, SettingsError
from .common import (
    Loss,
    Model,
    Objective,
    ThreatModel,
    Victim,
    checked,
    fooled,
    in_parts,
    input_gradient,
    logits_of,
    per_sample,
    project,
    random_start,
    unchecked,
    unit,
)


@checked
@torch.no_grad()
def fgsm(model: Victim, x: torch.Tensor, y: torch.Tensor, threat_model: ThreatModel) -> torch.Tensor:
    """Fast gradient sign method: one step of size eps from ``x`` itself (Goodfellow et al., 2015)."""
    gradient, _ = _gradient(model, x, y, averaged)
    return project(x + threat_model.eps * _direction(gradient, threat_model.norm), x, threat_model)


@checked
@torch.no_grad()
def fgsm_rs(
    model: Victim,
    x: torch.Tensor,
    y: torch.Tensor,
    threat_model: ThreatModel,
    *,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """FGSM from a random start, one step of size 1.25 eps unless given (Wong et al., 2020; paper, section 4.1)."""
    step_size = 1.25 * threat_model.eps if step_size is None else step_size
    if not 0 <= step_size < math.inf:
        raise SettingsError(f"fgsm_rs with step_size={step_size}: give 0 or more")
    start = random_start(x, threat_model, generator)
    gradient, _ = _gradient(model, start, y, averaged)
    return project(start + step_size * _direction(gradient, threat_model.norm), x, threat_model)


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each sample, (N,)."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return by how much the best wrong logit exceeds the right one, (N,): above 0 where the model is fooled."""
    right = y.unsqueeze(1)
    return logits.scatter(1, right, -math.inf).amax(1) - logits.gather(1, right).squeeze(1)


def clipped_margin(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the margin where it is below 0, and else 0, (N,): a member that is fooled already asks for no more.

    Its gradient there is 0, but not at a tie, which still may fool nobody. An infinite margin gives NaN instead of 0.
    """
    exceeds = margin(logits, y)
    return torch.where(exceeds <= 0, exceeds, 0 * exceeds)


LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "clipped_margin": clipped_margin}
AVERAGES = ("loss", "logits", "probabilities")


def averaged(
    outputs: Sequence[torch.Tensor], y: torch.Tensor, loss: Loss = cross_entropy, average: str = "loss"
) -> torch.Tensor:
    """Return the loss of several members' logits, one of :data:`AVERAGES` being averaged over them, (N,).

    That is the mean of their losses, the loss of their mean logits, or that of the logarithms of their mean
    probabilities, which are logits too (here of the sum: a constant changes none of :data:`LOSSES`). Of one member, all
    three are its loss.
    """
    if average == "loss" or len(outputs) == 1:
        return torch.stack([loss(logits, y) for logits in outputs]).mean(0)
    together = torch.stack(list(outputs))
    if average == "logits":
        return loss(together.mean(0), y)
    return loss(together.log_softmax(2).logsumexp(0), y)


@checked
@torch.no_grad()
def pgd(
    model: Victim,
    x: torch.Tensor,
    y: torch.Tensor,
    threat_model: ThreatModel,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    keep: Literal["best", "enough", "last", "first"] = "best",
    loss: Literal["cross_entropy", "margin", "clipped_margin"] = "cross_entropy",
    average: Literal["loss", "logits", "probabilities"] = "loss",
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Projected gradient descent (Madry et al., 2018; paper, equation 2).

    On a list of members ``average="loss"`` is exact EOT, or the margin sum with ``loss="clipped_margin"``; "logits" and
    "probabilities" climb the loss of the deterministic ensemble, while ``keep="best"`` still keeps what fools most
    members: to attack the ensemble itself, give it as one model. For one model they are all the same.

    Args:
        model: pixels to logits of shape (N, classes), or a list of members.
        x: pixels in [0, 1], float32, (N, C, H, W).
        y: labels, int64, (N,).
        threat_model: norm and budget.
        steps: gradient steps: of the gradient's sign for Linf, of its direction for L2.
        step_size: in pixels from 0 to 1; a quarter of eps when None, which is the paper's 2/255 at 8/255.
        restarts: how often to start anew; with ``keep="best"`` or "enough" only.
        random_start: start uniformly in the eps-ball instead of at ``x``.
        keep: which iterate of a sample to return. "best": one that fools the model, or of members the most, and of
            several the one of the highest loss, the start and the last included (one forward more). "enough": as
            "best", but a sample stops where it first fools the model, or every member: on these, outcomes are the same
            for less work, while other models may be fooled by less of it. "last": as in training. "first": as "last",
            but each sample stops where it first fools the model, as in the paper's own evaluation code. What has
            stopped goes through the model no more, so that a model in train mode sees smaller batches.
        loss: what to climb, by its name: :func:`cross_entropy`, :func:`margin` or :func:`clipped_margin`.
        average: what is averaged over the members, see :func:`averaged`.
        generator: of the random starts, on the device of ``x``.

    Raises:
        SettingsError: steps or restarts below 1, a negative step size, an unknown ``keep``, ``loss`` or
            ``average``, or several restarts of the same start or with ``keep="last"`` or "first".
        DataError: pixels or labels that :func:`checking` refuses.
        RstHubError: logits that are not finite, no class logits, or cut off from the input's gradient. Where the
            gradient is not finite, what comes back is NaN, which no accuracy is measured on.
    """
    step_size = threat_model.eps / 4 if step_size is None else step_size
    _check_pgd(steps, restarts, step_size, random_start, keep, loss, average)
    climb = functools.partial(averaged, loss=LOSSES[loss], average=average)
    compares, stops = keep in ("best", "enough"), keep in ("first", "enough")
    kept = _Kept(x, y, climb if compares else None)
    for _ in range(restarts):
        point = kept.of_left(_start(x, threat_model, random_start, generator))  # drawn for all, whichever are left
        for _ in range(steps):
            gradient, outputs = _gradient(model, point, kept.y, climb)
            stepped = project(point + step_size * _direction(gradient, threat_model.norm), kept.x, threat_model)
            kept.offer(point, outputs)
            point = kept.stop_fooled(outputs, stepped) if stops else stepped
            if not len(point):
                return kept.found()
        outputs = logits_of(model, point) if compares else []
        kept.offer(point, outputs)
        if keep == "enough" and not len(kept.stop_fooled(outputs, point)):
            break
    return kept.found()


@checked
@torch.no_grad()
def kl_pgd(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    threat_model: ThreatModel,
    *,
    steps: int = 10,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return the last iterate of PGD that climbs KL(p(x) || p(x')): the attack within TRADES (Zhang et al., 2019).

    It starts uniformly in the eps-ball, like the other attacks here, and not from a little Gaussian noise: at ``x``
    itself the divergence has no slope.

    Args:
        model: pixels to logits of shape (N, classes).
        x: pixels in [0, 1], float32, (N, C, H, W).
        y: labels, int64, (N,): they play no part, but stand where every attack has them.
        threat_model: norm and budget.
        steps: gradient steps.
        step_size: in pixels from 0 to 1; a quarter of eps when None.
        generator: of the random starts, on the device of ``x``.

    Raises:
        SettingsError: steps below 1, or a negative step size.
        DataError, RstHubError: as for :func:`pgd`.
    """
    step_size = threat_model.eps / 4 if step_size is None else step_size
    if not isinstance(steps, numbers.Integral) or steps < 1 or not 0 <= step_size < math.inf:
        raise SettingsError(
            f"kl_pgd with steps={steps}, step_size={step_size}: give a whole number from 1 on, and 0 or more"
        )
    with torch.enable_grad():  # in autocast, torch 2.6 would keep weights cast without a gradient for the training step
        clean = logits_of(model, x)[0].detach().log_softmax(1)
    point = random_start(x, threat_model, generator)
    for _ in range(steps):
        gradient, _ = _gradient(model, point, clean, _divergence)
        point = project(point + step_size * _direction(gradient, threat_model.norm), x, threat_model)
    return point


@checked
@torch.no_grad()
def cw_linf(
    model: Victim,
    x: torch.Tensor,
    y: torch.Tensor,
    threat_model: ThreatModel,
    *,
    steps: int = 100,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    keep: Literal["best", "enough", "last", "first"] = "best",
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """PGD on the margin between the best wrong logit and the right one: "CW-Inf", as it is usually understood.

    Carlini and Wagner (2017) give a loss (f6) and an L-infinity attack of their own; the paper (appendix B) names only
    iterations and a constant. As many projected steps on that loss are an interpretation of it. Arguments and errors
    are those of :func:`pgd`, which climbs the margin in L2 too.
    """
    if threat_model.norm != "Linf":
        raise SettingsError(f"cw_linf with a budget in {threat_model.norm}: give one in Linf, or pgd(loss='margin')")
    return unchecked(pgd)(
        model,
        x,
        y,
        threat_model,
        steps=steps,
        step_size=step_size,
        restarts=restarts,
        random_start=random_start,
        keep=keep,
        loss="margin",
        generator=generator,
    )


class _Kept:
    """The iterate of each sample that is kept so far, and ``x`` and ``y`` of the samples that have not stopped."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, objective: Objective | None) -> None:
        self.x, self.y, self._objective = x, y, objective
        self._iterate, self._damage = x, torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
        self._stopped, self._places = x, torch.arange(len(x), device=x.device)

    def offer(self, point: torch.Tensor, outputs: Sequence[torch.Tensor]) -> None:
        """Keep ``point`` where it fools more members than what was kept, or as many at a higher objective.

        Without an objective, keep it everywhere.
        """
        if self._objective is None:
            self._iterate = point
            return
        outputs = [logits.detach().double() for logits in outputs]  # the loss is finite in float64
        damage = self._objective(outputs, self.y)
        for logits in outputs:
            damage += 1e6 * (logits.argmax(1) != self.y).double()
        if not bool(damage.isfinite().all()):
            raise RstHubError(
                "the model's logits are not finite under attack: its precision is too low, or it diverged"
            )
        more = damage > self._damage
        self._iterate = torch.where(per_sample(more, point), point, self._iterate)
        self._damage = torch.where(more, damage, self._damage)

    def stop_fooled(self, outputs: Sequence[torch.Tensor], stepped: torch.Tensor) -> torch.Tensor:
        """Stop the samples that every member is wrong on; return what ``stepped`` has of the others."""
        going = (~fooled(outputs, self.y)).nonzero().squeeze(1)
        if len(going) == len(self.y):
            return stepped
        self._stopped = self.found()
        self._iterate, self._damage = self._iterate[going], self._damage[going]
        self.x, self.y, self._places = self.x[going], self.y[going], self._places[going]
        return stepped[going]

    def of_left(self, values: torch.Tensor) -> torch.Tensor:
        """Return what ``values`` of the whole batch has of the samples that have not stopped."""
        return values if len(self._places) == len(values) else values[self._places]

    def found(self) -> torch.Tensor:
        """Return what is kept of every sample of the batch."""
        if len(self._places) == len(self._stopped):
            return self._iterate
        return self._stopped.index_put((self._places,), self._iterate)


def _gradient(
    model: Victim, at: torch.Tensor, y: torch.Tensor, objective: Objective
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the gradient, at ``at``, of the objective summed over samples; and each member's logits."""

    def climbed(at: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        with torch.enable_grad():
            leaf = at.detach().requires_grad_()
            outputs = logits_of(model, leaf)
            gradient = input_gradient(objective(outputs, y).sum(), leaf)
        return [gradient, *(logits.detach() for logits in outputs)]

    gradient, *outputs = in_parts(model, climbed, at, y)
    return gradient, outputs


def _divergence(outputs: Sequence[torch.Tensor], clean: torch.Tensor) -> torch.Tensor:
    """Return KL(clean || output) of each sample, (N,), of one model; ``clean`` are log-probabilities."""
    return functional.kl_div(outputs[0].log_softmax(1), clean, reduction="none", log_target=True).sum(1)


def _direction(gradient: torch.Tensor, norm: str) -> torch.Tensor:
    """Return the steepest step of size 1: signs for Linf, the unit vector for L2; 0 where there is no gradient.

    The sign of NaN is 0: a sample would stay where it is and look robust. Adding 0 times the gradient makes it NaN.
    """
    return gradient.sign() + 0 * gradient if norm == "Linf" else unit(gradient)


def _start(
    x: torch.Tensor, threat_model: ThreatModel, at_random: bool, generator: torch.Generator | None
) -> torch.Tensor:
    return random_start(x, threat_model, generator) if at_random else x


def _check_pgd(
    steps: int, restarts: int, step_size: float, random_start: bool, keep: str, loss: str, average: str
) -> None:
    whole = isinstance(steps, numbers.Integral) and isinstance(restarts, numbers.Integral)
    if not whole or steps < 1 or restarts < 1 or not 0 <= step_size < math.inf:
        raise SettingsError(
            f"pgd with steps={steps}, restarts={restarts}, step_size={step_size}: give whole numbers from 1 on, and 0 "
            "or more"
        )
    for name, value, known in (
        ("keep", keep, ("best", "enough", "last", "first")),
        ("loss", loss, tuple(LOSSES)),
        ("average", average, AVERAGES),
    ):
        if value not in known:
            raise SettingsError(f"pgd with {name}={value!r}: give one of {', '.join(map(repr, known))}")
    if restarts > 1 and (not random_start or keep not in ("best", "enough")):
        raise SettingsError(
            f"pgd with restarts={restarts}, random_start={random_start}, keep={keep!r}: several restarts need random "
            "starts and keep='best' or 'enough'"
        )
