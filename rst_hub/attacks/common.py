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
members' mean logits or mean probabilities; :mod:`rst_hub.attacks.arc` goes for one member after another.
"""

import functools
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..choices import NORMS
from ..errors import DataError, RstHubError, SettingsError
from ..spelling import spelled
from .randomised import warned_of_draws

Model = Callable[[torch.Tensor], torch.Tensor]
Victim = Model | Sequence[Model] | nn.ModuleList
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Objective = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]
Attack = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ThreatModel:
    """What the attacker may change: a norm, "Linf" or "L2", and its budget ``eps`` in pixels from 0 to 1 (8/255)."""

    norm: str = "Linf"
    eps: float = 8 / 255

    def __post_init__(self) -> None:
        """Check both fields; the norm may be spelled "linf"."""
        if isinstance(self.norm, str):
            object.__setattr__(self, "norm", spelled(self.norm, NORMS))
        if self.norm not in NORMS:
            raise SettingsError(f"threat model norm {self.norm!r} is not supported; give 'Linf' or 'L2'")
        highest = 1 if self.norm == "Linf" else math.inf
        is_number = isinstance(self.eps, numbers.Real) and not isinstance(self.eps, bool)
        if not is_number or not 0 <= self.eps <= highest or math.isinf(self.eps):
            meant = f"{self.eps:g}/255" if is_number and 1 < self.eps <= 255 else "8/255"
            raise SettingsError(
                f"threat model eps {self.eps!r}: give a budget from 0 to 1 (L2: or more) in pixel units, as in {meant}"
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
            if most == 1 or not out_of_memory(error) or _trains(model):
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


def out_of_memory(error: RuntimeError) -> bool:
    """Say whether an error is that of a device, or of the CPU, without enough memory."""
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


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@contextmanager
def evaluating(model: Victim) -> Iterator[None]:
    """Put ``model``, or each of a list, in eval mode, and every one of its modules back in its own mode afterwards."""
    networks = [member for member in members_of(model) if isinstance(member, nn.Module)]  # others have no mode
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
