"""Clean and robust accuracy, from per-sample outcomes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .attacks import Attack
from .errors import DataError, RstHubError

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def clean_accuracy(model: nn.Module, batches: Batches) -> float:
    """Return the share of samples that ``model`` classifies correctly, in percent.

    Args:
        model: pixels in [0, 1] to logits; evaluated in eval mode and put back module by module.
        batches: (pixels float32 (N, C, H, W) in [0, 1], labels int64 (N,)), on the model's device.

    Raises:
        DataError: no samples, pixels outside [0, 1], or labels that the model has no logit for.
        RstHubError: a logit is not finite.
    """
    return percent(outcomes(model, batches))


def robust_accuracy(model: nn.Module, batches: Batches, attack: Attack) -> float:
    """Return the share of samples that ``model`` classifies correctly after ``attack``, in percent.

    ``attack`` is a function of (model, x, y), such as ``functools.partial(pgd, threat_model=ThreatModel(), steps=20)``.
    The other arguments and the errors are those of :func:`clean_accuracy`.
    """
    return percent(outcomes(model, batches, attack))


def outcomes(model: nn.Module, batches: Batches, attack: Attack | None = None) -> torch.Tensor:
    """Return a bool per sample, on the CPU: is it classified correctly, after ``attack`` if there is one."""
    results: list[torch.Tensor] = []
    with evaluating(model):
        for x, y in batches:
            _check_pixels(x)
            if not results:  # labels are compared with the logits before any attack looks one up
                classes = _logits(model, x[:1]).shape[1]
            if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < classes:
                raise DataError(f"labels reach from {int(y.min())} to {int(y.max())}; the model has {classes} logits")
            adversarial = x if attack is None else attack(model, x, y)
            results.append((_logits(model, adversarial).argmax(1) == y).cpu())
    return torch.cat(results) if results else torch.zeros(0, dtype=torch.bool)


def percent(correct: torch.Tensor) -> float:
    """Return the share of True in percent; raise DataError when there is no sample."""
    if correct.numel() == 0:
        raise DataError("no samples to measure an accuracy on: give a data set or a split that is not empty")
    return 100.0 * int(correct.sum()) / correct.numel()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode, and every one of its modules back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check_pixels(x: torch.Tensor) -> None:
    if x.numel() and not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise DataError(f"pixels reach from {float(x.min()):g} to {float(x.max()):g}: give pixels in [0, 1]")


@torch.no_grad()
def _logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    logits = model(x)
    if not bool(logits.isfinite().all()):
        raise RstHubError("the model's logits are not finite: it has diverged, or its precision is too low")
    return logits
