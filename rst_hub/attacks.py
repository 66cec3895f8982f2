"""Gradient attacks as pure functions of (model, x, y, threat model), in pixel space.

``x`` is float32 pixels in [0, 1] of shape (N, C, H, W), ``y`` int64 labels of shape (N,); the model takes pixels, so
normalisation is its own affair. What comes back has the shape and dtype of ``x``, stays in [0, 1] and within ``eps``
of ``x``, whatever precision the model computes in, and carries no gradient. Each sample is attacked on its own: losses
are summed, never averaged over samples. Only the input's gradient is computed; the model's parameters, buffers and
modes are left alone, apart from what a forward in train mode does to batch norm. Samples that do not fit into memory
together go through a model in eval mode in parts, see :func:`in_parts`. Every attack first looks at what it is given,
as the evaluator does, see :func:`checking`: other integers than int64 are refused as labels, never cast.

Where a model is asked for, a list of models stands for a randomised one that draws a member for each sample. The
attacker then knows them all: the loss is its exact expectation over the members, none of them drawn (EOT; Athalye et
al., 2018; paper, section 6.3), and a sample is fooled when every member is. :func:`pgd` can also climb the loss of the
members' mean logits or mean probabilities; :mod:`rst_hub.adaptive` goes for one member after another.
"""

import functools
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional

from .errors import DataError, RstHubError, SettingsError
from .randomised import warned_of_draws

Model = Callable[[torch.Tensor], torch.Tensor]
Victim = Model | Sequence[Model] | nn.ModuleList
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Objective = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]
Attack = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
NORMS = ("Linf", "L2")


@dataclass(frozen=True)
class ThreatModel:
    """What the attacker may change: a norm, "Linf" or "L2", and its budget ``eps`` in pixels from 0 to 1 (8/255)."""

    norm: str = "Linf"
    eps: float = 8 / 255

    def __post_init__(self) -> None:
        """Check both fields."""
        if self.norm not in NORMS:
            raise SettingsError(f"threat model norm {self.norm!r} is not supported; give 'Linf' or 'L2'")
        highest = 1 if self.norm == "Linf" else math.inf
        is_number = isinstance(self.eps, numbers.Real) and not isinstance(self.eps, bool)
        if not is_number or not 0 <= self.eps <= highest or math.isinf(self.eps):
            raise SettingsError(
                f"threat model eps {self.eps!r}: give a budget from 0 to 1 (L2: or more) in pixel units, as in 8/255"
            )


Function = TypeVar("Function", bound=Callable[..., torch.Tensor])


def checked(attack: Function) -> Function:
    """Return an attack of (model, x, y, threat model) that refuses what :func:`checking` does, and warns of an R2S.

    That asks the device for values. :func:`unchecked` gives the attack itself.
    """

    @functools.wraps(attack)
    def on_checked(model: Victim, x: torch.Tensor, y: torch.Tensor, *arguments: Any, **settings: Any) -> torch.Tensor:
        for budget in (*arguments[:1], *(value for name, value in settings.items() if name == "threat_model")):
            if not isinstance(budget, ThreatModel):
                raise SettingsError(f"threat model {budget!r}: give one such as ThreatModel('Linf', 8 / 255)")
        with checking(x, y), warned_of_draws(model):
            return attack(model, x, y, *arguments, **settings)

    return cast(Function, on_checked)


def unchecked(attack: Function) -> Function:
    """Return an attack without its checks, for a loop that has checked its data and must not wait for the device."""
    return cast(Any, attack).__wrapped__


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


# What these and the black-box attacks share


def check_batch(model: Victim, x: torch.Tensor, y: torch.Tensor) -> None:
    """Raise what :func:`checking` does, and DataError for labels without a logit: ``model`` is asked about a sample."""
    with torch.no_grad(), checking(x, y):
        if len(y):
            logits_of(model, x[:1])


@contextmanager
def checking(x: torch.Tensor, y: torch.Tensor) -> Iterator[None]:
    """Let an attack on these pixels and labels, or a measurement on them, happen inside.

    The first logits that a model gives inside, see :func:`logits_of`, say whether it has one for every label: black-box
    attacks count their queries, so that no model is asked only for that.

    Args:
        x: pixels in [0, 1], float32, (N, C, H, W), or (N, features) for a model of such.
        y: labels, int64, (N,), from 0 to below the number of logits, on the device of ``x``.

    Raises:
        DataError: they are not like that.
    """
    check_input(x, y)
    check_pixels(x)
    low, high = (int(value) for value in y.aminmax()) if len(y) else (0, -1)
    if low < 0:
        raise DataError(f"labels reach from {low} to {high}: give labels from 0 to below the number of logits")
    outer = _HIGHEST.set(high)
    try:
        yield
    finally:
        _HIGHEST.reset(outer)


_HIGHEST: ContextVar[int] = ContextVar("the highest label that is looked up in logits", default=-1)


def check_input(x: torch.Tensor, y: torch.Tensor) -> None:
    """Raise DataError unless ``x`` is float32 (N, C, H, W) or (N, features), and ``y`` one int64 label a sample.

    The budget is kept in float32: pixels and perturbation in bfloat16 would break it by half a pixel level. No value is
    looked at.
    """
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        raise DataError(
            f"pixels are a {type(x).__name__}, labels a {type(y).__name__}: give tensors, as in torch.from_numpy(x)"
        )
    if x.dtype != torch.float32:
        how = "x.float()" if x.is_floating_point() else "x.float() / 255"
        raise DataError(f"pixels of {x.dtype} and shape {tuple(x.shape)}: give float32 from 0 to 1, as in {how}")
    if (problem := _layout_problem(x, y)) is not None:
        raise DataError(f"pixels of shape {tuple(x.shape)} {problem}")
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise DataError(
            f"labels of {y.dtype} and shape {tuple(y.shape)} for {len(x)} samples: give int64 of shape "
            f"(N,){_as_labels(x, y)}"
        )
    if x.device != y.device:
        raise DataError(f"pixels are on {x.device}, labels on {y.device}: move both to the model's device")


def _as_labels(x: torch.Tensor, y: torch.Tensor) -> str:
    """Return how labels of this type and shape are made what they should be; nothing where no call does that."""
    if y.shape == x.shape[:1]:
        return ", as in y.long()"
    if y.shape == (len(x), 1):  # whose argmax would be 0 for every sample
        return ", as in y.flatten()" if y.dtype == torch.int64 else ", as in y.flatten().long()"
    return ", as in y.argmax(1)" if y.ndim == 2 and len(y) == len(x) else ""


def _layout_problem(x: torch.Tensor, y: torch.Tensor) -> str | None:
    """Return what is wrong with the order of pixels of this shape, and what to do; None where nothing is."""
    if x.ndim == 3 and y.shape == x.shape[:1]:
        return "have no channels: give (N, C, H, W), as in x.unsqueeze(1)"
    if x.ndim == 3:
        return "have no batch dimension: give (N, C, H, W), as in x.unsqueeze(0) with y of shape (1,)"
    if x.ndim not in (2, 4):
        return "are no images: give (N, C, H, W)"
    *sides, last = x.shape[1:]
    if x.ndim == 4 and min(sides) > 4 and (last in (3, 4) or (last == 1 and sides[0] == sides[1])):
        return "are channels-last: give (N, C, H, W), as in x.permute(0, 3, 1, 2)"
    return None


def check_pixels(x: torch.Tensor) -> None:
    """Raise DataError unless all pixels are numbers from 0 to 1."""
    low, high = (float(value) for value in x.detach().aminmax()) if x.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):
        how = ", as in x / 255" if low >= 0 and 1 < high <= 255 else ""
        raise DataError(f"pixels reach from {low:g} to {high:g}: give pixels in [0, 1]{how}")


def members_of(model: Victim) -> list[Any]:
    """Return the members of a list, or the one model in a list of its own."""
    members = list(model) if isinstance(model, list | tuple | nn.ModuleList) else [model]
    if not members:
        raise SettingsError("there is no model to attack in an empty list: give one or more")
    return members


def in_parts(model: Victim, work: Callable[..., Sequence[torch.Tensor]], *rows: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return what ``work`` makes of ``rows``, of as many samples at once as fit into memory.

    Where they do not fit, ``work`` is done in halves, or halves of these; how many fitted a model is known the next
    time. Each sample being on its own, that changes the result by a rounding at the most. In train mode batch norm
    mixes samples: a module in that mode gets the whole batch, and its error passes. Other callables are taken to be in
    eval mode.

    Args:
        model: what ``work`` asks, or a list of members.
        work: from tensors like ``rows`` to tensors, all with a sample in each row.
        rows: tensors of as many rows each.

    Raises:
        torch.OutOfMemoryError, RuntimeError: a single sample is too much for a GPU, or for the CPU's memory; or all of
            them, for a model in train mode.
    """
    first, most = members_of(model)[0], max(1, len(rows[0]))
    remembered = isinstance(first, nn.Module | FunctionType)  # other callables may not be hashable
    most = min(most, _FITTED.get(first, most)) if remembered else most
    while True:
        try:
            parts = [work(*part) for part in zip(*(values.split(most) for values in rows), strict=True)]
        except RuntimeError as error:
            if most == 1 or not _out_of_memory(error) or _trains(model):
                raise
        else:
            return parts[0] if len(parts) == 1 else [torch.cat(values) for values in zip(*parts, strict=True)]
        most = math.ceil(most / 2)  # out of the handler, which would hold on to what the attempt allocated
        if remembered:
            _FITTED[first] = most


_FITTED: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""How many samples fitted a model, where not all of a batch did; a list's first member stands for it."""


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""How those say it who raise a plain RuntimeError."""


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def _trains(model: Victim) -> bool:
    networks = [member for member in members_of(model) if isinstance(member, nn.Module)]
    return any(module.training for network in networks for module in network.modules())


def logits_of(model: Victim, x: torch.Tensor) -> list[torch.Tensor]:
    """Return each member's logits (N, classes), at least float32; without gradients as :func:`in_parts` does.

    Raises:
        RstHubError: a member gives something else, or other classes than the first.
        DataError: inside of :func:`checking`, a label has no logit.
    """
    if torch.is_grad_enabled():  # which hold on to every part
        return _logits_of(model, x)
    return list(in_parts(model, functools.partial(_logits_of, model), x))


def _logits_of(model: Victim, x: torch.Tensor) -> list[torch.Tensor]:
    outputs = [member(x) for member in members_of(model)]
    classes = outputs[0].shape[1:] if isinstance(outputs[0], torch.Tensor) else ()
    for logits in outputs:
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape != (len(x), *classes):
            what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise RstHubError(f"a model gives {what} for {len(x)} samples: it must give logits of shape (N, classes)")
        if logits.shape[1] <= _HIGHEST.get():
            raise DataError(f"labels reach to {_HIGHEST.get()}; the model has {logits.shape[1]} logits")
    return [_at_least_float32(logits) for logits in outputs]


def finite_logits_of(model: Victim, x: torch.Tensor) -> list[torch.Tensor]:
    """Return what :func:`logits_of` does; comparisons with NaN would go on in silence.

    Raises:
        RstHubError: a logit is not finite.
    """
    outputs = logits_of(model, x)
    for logits in outputs:
        check_finite(logits, "logits")
    return outputs


def input_gradient(total: torch.Tensor, leaf: torch.Tensor, *, again: bool = False) -> torch.Tensor:
    """Return the gradient of ``total`` at the pixels ``leaf``; ``again`` keeps the graph for another one.

    Raises:
        RstHubError: ``total`` does not depend on ``leaf`` by autograd.
    """
    if not total.requires_grad:
        raise RstHubError(
            "the model's logits are cut off from its input (detached, or in torch.inference_mode): only "
            "black-box attacks can be made"
        )
    return torch.autograd.grad(total, leaf, retain_graph=again)[0]


def check_finite(values: torch.Tensor, what: str) -> None:
    """Raise RstHubError unless all of the model's ``what``, such as its "logits", are finite."""
    if not bool(values.isfinite().all()):
        raise RstHubError(f"the model's {what} under attack: not finite; its precision is too low, or it has diverged")


def fooled(outputs: Sequence[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    """Return a bool for each sample: does every member say something else than ``y``."""
    return torch.stack([logits.argmax(1) != y for logits in outputs]).all(0)


def project(adversarial: torch.Tensor, x: torch.Tensor, threat_model: ThreatModel) -> torch.Tensor:
    """Return the nearest pixels in the eps-ball around ``x``, clipped to [0, 1]."""
    if threat_model.norm == "Linf":
        inside = torch.minimum(torch.maximum(adversarial, x - threat_model.eps), x + threat_model.eps)
    else:
        delta = adversarial - x
        shrink = (threat_model.eps / norm_of(delta, "L2").clamp(min=1e-300)).clamp(max=1)
        inside = x + (delta.double() * per_sample(shrink, x)).float()
    return inside.clamp_(0, 1)  # never farther from x, which is in [0, 1] itself


def random_start(x: torch.Tensor, threat_model: ThreatModel, generator: torch.Generator | None) -> torch.Tensor:
    """Return a point drawn uniformly from the eps-ball around ``x``, clipped to [0, 1]."""
    noise = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if threat_model.norm == "Linf":
        noise.uniform_(-threat_model.eps, threat_model.eps, generator=generator)
    else:
        noise.normal_(generator=generator)
        uniform = torch.rand(len(x), dtype=torch.float32, device=x.device, generator=generator)
        radius = uniform ** (1 / max(1, x[0].numel() if len(x) else 1))
        noise *= per_sample(threat_model.eps * radius / norm_of(noise, "L2").float(), x)
    return project(x + noise, x, threat_model)


def norm_of(delta: torch.Tensor, norm: str) -> torch.Tensor:
    """Return each sample's "Linf" or "L2" norm, float64 of shape (N,)."""
    flat = delta.double().flatten(1)
    return flat.abs().amax(1) if norm == "Linf" else flat.norm(dim=1)


def unit(delta: torch.Tensor) -> torch.Tensor:
    """Return ``delta`` at an L2 length of 1 for each sample; 0 stays 0."""
    length = norm_of(delta, "L2")  # in float64, where the square of a tiny gradient is not 0
    return (delta.double() / per_sample(length.clamp(min=1e-300), delta)).float()


def per_sample(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return ``values`` (N,) with as many dimensions as ``x``, to broadcast over its pixels."""
    return values.view(-1, *[1] * (x.ndim - 1))


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


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
