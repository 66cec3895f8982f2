"""Honesty flags: signs that a robust accuracy is the attacks' failure rather than the model's strength.

The checks are those of "On Evaluating Adversarial Robustness" (Carlini et al., 2019, sections 3 to 5) and of
AutoAttack's own flags (Croce and Hein, 2020). Passing them proves nothing; failing one means that the number is not to
be trusted before it is explained.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ..attacks.common import (
    Loss,
    Model,
    ThreatModel,
    Victim,
    check_batch,
    check_input,
    evaluating,
    in_parts,
    logits_of,
    members_of,
)
from ..attacks.gradient import cross_entropy, margin
from ..attacks.names import NamedAttack, named_attack
from ..attacks.randomised import warned_of_draws
from ..errors import DataError
from .accuracy import Batches, Outcomes, evaluate, join, percent, worst_case

TOLERANCE = 1.0
"""Points of accuracy that count as no difference; one sample where that is more."""
UNBOUNDED = 2.0
"""Percent that may be left under an unbounded attack: "about 0"."""
ENOUGH = 50
"""Samples below which nothing is said to have passed: one of them would be more than two points."""


@dataclass(frozen=True)
class Flag:
    """One check: what should hold, whether it did (None: too few samples to say), and what was found."""

    check: str
    passed: bool | None
    found: str


def probes(threat_model: ThreatModel, image_size: int) -> dict[str, NamedAttack]:
    """Return the attacks whose outcomes :func:`judge` compares, by name.

    "margin20 unbounded" may change every pixel to anything. It starts at the image itself, since a random start of that
    size would be no image any more, and fool a model whatever its gradients are. What they compare is outcomes, for
    which "enough" will do.
    """
    names = ("fgsm", "pgd20", "pgd40", "pgd20x2", "margin20", "square500")
    bounded = {name: named_attack(name, threat_model, image_size).keeping("enough") for name in names}
    cube = ThreatModel("Linf", 1.0)  # all of it, so any norm
    unbounded = named_attack("margin20", cube, image_size).keeping("enough")
    from_x = replace(unbounded, settings={**unbounded.settings, "random_start": False})
    return {**bounded, "margin20 unbounded": from_x}


def judge(outcomes: Mapping[str, Outcomes]) -> list[Flag]:
    """Return the flags that compare attacks with each other.

    Args:
        outcomes: of every attack of :func:`probes`, on the same samples.

    Raises:
        DataError: they are of different samples.
    """
    correct = {name: outcome.correct for name, outcome in outcomes.items()}
    if len({len(values) for values in correct.values()}) != 1:
        raise DataError("the probes are of different numbers of samples: measure them all on the same ones")
    accuracy = {name: percent(values) for name, values in correct.items()}
    samples = len(correct["pgd20"])
    tolerance = max(TOLERANCE, 100 / samples) + 1e-9
    white_box = percent(worst_case([correct["pgd20"], correct["margin20"]]))
    with_black_box = percent(worst_case([correct["pgd20"], correct["margin20"], correct["square500"]]))
    more_steps, more_restarts = (
        percent(worst_case([correct["pgd20"], correct[name]])) for name in ("pgd40", "pgd20x2")
    )
    left = accuracy["margin20 unbounded"]
    on = f"on {samples} samples"
    flags = [
        Flag(
            "doubling the steps changes nothing",
            accuracy["pgd20"] - more_steps <= tolerance,
            f"PGD-20 leaves {accuracy['pgd20']:.1f}%, with PGD-40 {more_steps:.1f}% {on}",
        ),
        Flag(
            "doubling the restarts changes nothing",
            accuracy["pgd20"] - more_restarts <= tolerance,
            f"PGD-20 leaves {accuracy['pgd20']:.1f}%, with two restarts {more_restarts:.1f}% {on}",
        ),
        Flag(
            "iterative attacks are no weaker than one step",
            accuracy["pgd20"] - accuracy["fgsm"] <= 100 / samples + 1e-9,
            f"PGD-20 leaves {accuracy['pgd20']:.1f}%, FGSM {accuracy['fgsm']:.1f}% {on}",
        ),
        Flag(
            "white-box attacks are no weaker than black-box ones",
            white_box - with_black_box <= tolerance,
            f"PGD-20 on both losses leaves {white_box:.1f}%, with Square of 500 queries {with_black_box:.1f}% {on}",
        ),
        Flag(
            "an unbounded attack leaves about 0",
            left <= max(UNBOUNDED, 100 / samples),
            f"PGD-20 on the margin at eps 255/255 leaves {left:.1f}% {on}",
        ),
    ]
    return [flag if samples >= ENOUGH or not flag.passed else replace(flag, passed=None) for flag in flags]


@torch.no_grad()
def inspect_model(model: Victim, x: torch.Tensor, y: torch.Tensor) -> list[Flag]:
    """Return the flags of the model itself: gradients not zero, a forward that draws nothing, outputs that are logits.

    Args:
        model: pixels in [0, 1] to logits, or a list of members.
        x: pixels in [0, 1], float32, (N, C, H, W); a batch is enough.
        y: labels, int64, (N,).
    """
    if not len(x):
        raise DataError("no samples to inspect a model with: give a batch that is not empty")
    with warned_of_draws(model), evaluating(model):
        check_batch(model, x, y)
        outputs, again = logits_of(model, x), logits_of(model, x)
        lost = {"cross-entropy": _without_gradient(model, x, y, cross_entropy)}
        lost["margin"] = _without_gradient(model, x, y, margin)
    difference = max(float((one - other).abs().max()) for one, other in zip(outputs, again, strict=True))
    size = max(float(logits.abs().max()) for logits in outputs)
    shares = any(bool((logits >= 0).all() & ((logits.sum(1) - 1).abs() < 1e-4).all()) for logits in outputs)
    return [
        Flag(
            "gradients are not zero",
            not any(lost.values()),
            f"{lost['cross-entropy']} of {len(x)} samples without a gradient of the cross-entropy, {lost['margin']} "
            "without one of the margin",
        ),
        Flag(
            "the forward is deterministic",
            difference <= 1e-4 * max(size, 1e-30),
            f"two forwards of {len(x)} samples differ by {difference:.1e}, the largest logit is {size:.1e}",
        ),
        Flag(
            "outputs are logits",
            not shares,
            "outputs are probabilities: they sum to 1" if shares else f"outputs of {len(x)} samples do not sum to 1",
        ),
    ]


def honesty_flags(
    model: Victim, batches: Batches, threat_model: ThreatModel, *, seed: int = 0, progress: bool = False
) -> list[Flag]:
    """Return all flags of a model, on batches of (pixels, labels): a few hundred samples say enough.

    A sample costs 140 gradients and 650 forwards at the most. The model itself is inspected on the first batch.

    Raises:
        DataError, RstHubError: as for :func:`rst_hub.evaluation.accuracy.evaluate`.
    """
    numbered = [(number, x, y) for number, (x, y) in enumerate(batches)]
    if not numbered:
        raise DataError("no samples to flag a model with: give a data set or a split that is not empty")
    _, x, y = numbered[0]
    check_input(x, y)  # before a size is read from its shape
    found = {}
    with warned_of_draws(model):
        for name, attack in probes(threat_model, min(x.shape[-2:])).items():
            found[name] = join(evaluate(model, numbered, attack, seed=seed, progress=name if progress else None))
        return [*judge(found), *inspect_model(model, x, y)]


def _without_gradient(model: Victim, x: torch.Tensor, y: torch.Tensor, loss: Loss) -> int:
    """Count the samples for which a member's loss has an input gradient of exactly zero, or one that is not finite."""
    lost = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for member in members_of(model):
        lost |= in_parts(member, functools.partial(_lost, member, loss), x, y)[0]
    return int(lost.sum())


def _lost(member: Model, loss: Loss, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        total = loss(logits_of(member, leaf)[0], y).sum()
        gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    flat = torch.zeros_like(x).flatten(1) if gradient is None else gradient.flatten(1)
    return [(flat == 0).all(1) | ~flat.isfinite().all(1)]
