"""How attacks transfer: examples crafted on one network, put to all others (paper, sections 6.1 and E)."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ..attacks.common import (
    Attack,
    Model,
    check_batch,
    evaluating,
)
from ..attacks.randomised import warned_of_draws
from ..errors import SettingsError
from .accuracy import Batches, NumberedBatches, as_seeded, batch_generator, checked_pixels, percent, right_answers


def transfer_matrix(
    models: Sequence[Model], batches: Batches, attack: Attack, *, paper_protocol: bool = False, seed: int = 0
) -> list[list[float]]:
    """Return accuracies in percent: row i, column j is model j on the examples crafted on model i (paper, Fig. 7).

    Args:
        models: pixels in [0, 1] to logits, of the same classes.
        batches: as for :func:`clean_accuracy`.
        attack: as for :func:`robust_accuracy`.
        paper_protocol: stop each sample as soon as it fools the network that it is crafted on, as the paper's own code
            does. Such examples lie just behind one network's border and transfer worse than an attacker's need to.
        seed: as for :func:`robust_accuracy`; the same start is used on every network.

    Raises:
        SettingsError: paper_protocol with an attack that has no ``keep``.
        DataError, RstHubError: as for :func:`clean_accuracy`.
    """
    numbered = ((number, x, y) for number, (x, y) in enumerate(batches))
    crossed = transfer_outcomes(models, numbered, attack, paper_protocol=paper_protocol, seed=seed)
    return [[percent(crossed[i, j]) for j in range(len(models))] for i in range(len(models))]


def transfer_outcomes(
    models: Sequence[Model], batches: NumberedBatches, attack: Attack, *, paper_protocol: bool = False, seed: int = 0
) -> torch.Tensor:
    """Return per-sample outcomes, 1 or 0, float64 (M, M, N), of what :func:`transfer_matrix` averages.

    The batches are numbered, as for :func:`evaluate`.
    """
    if paper_protocol:
        attack = _stopped_early(attack)
    seeded = as_seeded(attack)
    parts = [torch.zeros(len(models), len(models), 0, dtype=torch.float64)]
    with warned_of_draws(list(models)), evaluating(list(models)):
        for number, x, y in batches:
            check_batch(list(models), x, y)
            rows = []
            for source in models:
                generator = batch_generator(seed, number, x.device)
                adversarial = seeded(source, x, y, generator, torch.zeros_like(y))
                rows.append(right_answers(list(models), checked_pixels(adversarial, x), y))
            parts.append(torch.stack(rows).double().cpu())
    return torch.cat(parts, dim=2)


def _stopped_early(attack: Attack) -> Attack:
    parameters = inspect.signature(attack).parameters.values()
    if not any(p.name == "keep" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        raise SettingsError(
            "the paper's protocol stops an attack early: give one that has keep=, as pgd and cw_linf do"
        )
    with_keep: Any = attack
    return functools.partial(with_keep, keep="first")
