"""Clean and robust accuracy, from what an attack makes of each sample.

A model is evaluated in eval mode and every one of its modules put back as it was. A list of models stands for a
randomised one, as in :mod:`rst_hub.attacks`: its accuracy is the exact expectation over the members, never a draw. An
R2S as one model would be measured by its draws, and look better than it is: a UserWarning points to its members.
Batches are numbered, and each has random numbers of its own that it gives to an attack with a ``generator``, so that
neither the number of processes nor an interruption changes an answer, and every call gives the same one.
"""

import dataclasses
import inspect
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from tqdm import tqdm

from ..attacks.common import (
    Attack,
    Victim,
    check_batch,
    check_pixels,
    evaluating,
    logits_of,
    members_of,
    norm_of,
)
from ..attacks.randomised import warned_of_draws
from ..errors import DataError, RstHubError, SettingsError
from ..files import append_line

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
NumberedBatches = Iterable[tuple[int, torch.Tensor, torch.Tensor]]
SeededAttack = Callable[[Victim, torch.Tensor, torch.Tensor, torch.Generator, torch.Tensor], torch.Tensor]
"""(model, x, y, generator, queries) to adversarial pixels; a black-box attack fills ``queries``, int64 (N,)."""


@dataclass(frozen=True)
class BatchOutcome:
    """What one attack made of one batch, a value a sample: the line of a journal.

    ``correct`` is 1 where the model is right after the attack and 0 where it is fooled; of a randomised model, or of
    several judges, the share of them that are right. ``each`` has a list of 0 and 1 for each of them. ``linf`` and
    ``l2`` are the sizes of the perturbation on pixels from 0 to 1, ``queries`` what a black-box attack asked.
    """

    batch: int
    correct: list[float]
    each: list[list[int]]
    linf: list[float]
    l2: list[float]
    queries: list[int]
    seconds: float


@dataclass(frozen=True)
class Outcomes:
    """The same of all N samples, in the data's order: float64 tensors (N,) on the CPU, and int64 for ``queries``.

    ``each`` is float64 (judges, N); of one model a single row. ``seconds`` are summed over batches and processes.
    """

    correct: torch.Tensor
    linf: torch.Tensor
    l2: torch.Tensor
    queries: torch.Tensor
    seconds: float
    each: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    @property
    def images_per_second(self) -> float:
        """How many images one process attacked and judged in a second."""
        return len(self.correct) / max(self.seconds, 1e-4)  # to which a journal rounds


def clean_accuracy(model: Victim, batches: Batches) -> float:
    """Return the share of samples that ``model`` classifies correctly, in percent.

    Args:
        model: pixels in [0, 1] to logits; evaluated in eval mode and put back module by module. Or a list of members.
        batches: (pixels float32 (N, C, H, W) in [0, 1], labels int64 (N,)), on the model's device.

    Raises:
        DataError: no samples, or pixels or labels that :func:`rst_hub.attacks.common.checking` refuses.
        RstHubError: a logit is not finite.
    """
    return percent(outcomes(model, batches))


def robust_accuracy(model: Victim, batches: Batches, attack: Attack, *, seed: int = 0) -> float:
    """Return the share of samples that ``model`` classifies correctly after ``attack``, in percent.

    ``attack`` is a function of (model, x, y), such as ``functools.partial(pgd, threat_model=ThreatModel(), steps=20)``.
    If it has a ``generator`` that is not given, it gets one of ``seed`` and the batch's position. The other arguments
    and the errors are those of :func:`clean_accuracy`.
    """
    return percent(outcomes(model, batches, attack, seed=seed))


def outcomes(model: Victim, batches: Batches, attack: Attack | None = None, *, seed: int = 0) -> torch.Tensor:
    """Return for each sample, on the CPU, 1 if it is classified correctly (after ``attack``), else 0; float64 (N,).

    Of a list of members it is the share of them that are right. Arguments and errors are those of
    :func:`robust_accuracy`.
    """
    seeded = None if attack is None else as_seeded(attack)
    numbered = ((number, x, y) for number, (x, y) in enumerate(batches))
    found = [torch.tensor(part.correct, dtype=torch.float64) for part in evaluate(model, numbered, seeded, seed=seed)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def evaluate(
    model: Victim,
    batches: NumberedBatches,
    attack: SeededAttack | None = None,
    *,
    judges: Victim | None = None,
    seed: int = 0,
    done: Iterable[BatchOutcome] = (),
    journal: Path | None = None,
    progress: str | None = None,
    total: int | None = None,
) -> list[BatchOutcome]:
    """Attack numbered batches, as :func:`rst_hub.data.evaluation_batches` yields them, and return what came of each.

    Args:
        model: pixels in [0, 1] to logits, or a list of members.
        batches: (number, pixels, labels); in several processes, each process has its own. :func:`join` puts together
            what they found.
        attack: a :class:`NamedAttack`, or any other of that form; None measures the clean accuracy.
        judges: whose answers on the examples are recorded; those of ``model`` when None. The attack does not know them.
        seed: of the attack; each batch's random numbers depend on it and on the batch's number alone.
        done: what an interrupted evaluation left (:func:`read_journal`); those batches are not attacked again.
        journal: a file that a line is added to after each batch.
        progress: words to show beside a progress bar, which counts images; no bar when None.
        total: the number of images in ``batches``, for the bar.

    Raises:
        DataError: pixels outside [0, 1], before or after the attack, labels that the model has no logit for, two
            batches of one number, an attack that returns another shape, or an outcome in ``done`` of another size.
        RstHubError: a logit or an attack's pixel is not finite.
    """
    finished = {outcome.batch: outcome for outcome in done}
    seen: set[int] = set()
    results = []
    judges = model if judges is None else judges
    asked = [*members_of(model), *members_of(judges)]
    bar = tqdm(desc=progress, total=total, unit="img", leave=False, disable=progress is None)
    with bar, warned_of_draws(asked, attacked=attack is not None), evaluating(asked):
        for number, x, y in batches:
            if number in seen:
                raise DataError(f"two batches have the number {number}: number them all differently")
            seen.add(number)
            if number not in finished:
                finished[number] = _attack_batch(model, judges, number, x, y, attack, seed)
                if journal is not None:
                    _append(journal, finished[number])
            if [len(row) for row in finished[number].each] != [len(y)] * len(members_of(judges)):
                raise DataError(f"batch {number} was journaled with other samples: start again in another folder")
            results.append(finished[number])
            bar.update(len(y))
    return results


def join(parts: Iterable[BatchOutcome]) -> Outcomes:
    """Return the outcomes of all batches in their order, whichever process they come from.

    Raises:
        DataError: there is no sample.
    """
    ordered = [part for _, part in sorted({part.batch: part for part in parts}.items())]
    columns = {
        name: torch.tensor([value for part in ordered for value in getattr(part, name)], dtype=dtype)
        for name, dtype in (
            ("correct", torch.float64),
            ("linf", torch.float64),
            ("l2", torch.float64),
            ("queries", torch.int64),
        )
    }
    percent(columns["correct"])  # which refuses an empty data set
    each = torch.cat([torch.tensor(part.each, dtype=torch.float64) for part in ordered], dim=1)
    return Outcomes(**columns, seconds=sum(part.seconds for part in ordered), each=each)


def read_journal(path: Path) -> list[BatchOutcome]:
    """Return the whole lines of a journal; one that an interruption tore, or that lacks something, is left out."""
    parts = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            parts.append(BatchOutcome(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return parts


def percent(correct: torch.Tensor) -> float:
    """Return the mean of ``correct`` (N,), bool or shares, in percent; raise DataError when there is no sample."""
    if correct.numel() == 0:
        raise DataError("no samples to measure an accuracy on: give a data set or a split that is not empty")
    return 100.0 * float(correct.double().sum()) / correct.numel()


def interval(correct: torch.Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval (1927) of the accuracy, in percent: the sampling error of so many samples.

    It is binomial; for the shares of a randomised model, which vary less than zeros and ones, it is too wide.

    Raises:
        SettingsError: ``confidence`` is not above 0 and below 1.
        DataError: there is no sample.
    """
    if not 0 < confidence < 1:
        raise SettingsError(f"interval of confidence {confidence}: give a share above 0 and below 1, such as 0.95")
    share, count = percent(correct) / 100, correct.numel()
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre, scale = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return 100 * max(0.0, (centre - half) / scale), 100 * min(1.0, (centre + half) / scale)


def worst_case(correct: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return each sample's worst outcome under several attacks, each of shape (N,): it must withstand them all.

    Raises:
        DataError: there are none, or they are of different numbers of samples.
    """
    if len({outcome.shape for outcome in correct}) != 1:
        raise DataError("outcomes of one attack or more, all on the same samples, are needed for a worst case")
    return torch.stack([outcome.double() for outcome in correct]).amin(0)


def batch_generator(seed: int, number: int, device: torch.device) -> torch.Generator:
    """Return the random numbers of one batch."""
    return torch.Generator(device).manual_seed(seed % 2**32 * 1_000_003 + number)


def _attack_batch(
    model: Victim, judges: Victim, number: int, x: torch.Tensor, y: torch.Tensor, attack: SeededAttack | None, seed: int
) -> BatchOutcome:
    check_batch(model, x, y)  # before any attack looks a label up
    if judges is not model:
        check_batch(judges, x, y)
    started = time.monotonic()
    queries = torch.zeros_like(y)
    adversarial = x if attack is None else attack(model, x, y, batch_generator(seed, number, x.device), queries)
    right = right_answers(judges, checked_pixels(adversarial, x), y)
    return BatchOutcome(
        batch=number,
        correct=right.double().mean(0).tolist(),
        each=right.int().tolist(),
        linf=norm_of(adversarial - x, "Linf").tolist(),
        l2=norm_of(adversarial - x, "L2").tolist(),
        queries=queries.tolist(),
        seconds=round(time.monotonic() - started, 4),
    )


def as_seeded(attack: Attack) -> SeededAttack:
    """Return an attack of (model, x, y) as one that takes the batch's random numbers, if it has use for them."""
    parameter = inspect.signature(attack).parameters.get("generator")
    with_generator: Any = attack

    def seeded(
        model: Victim, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator, queries: torch.Tensor
    ) -> torch.Tensor:
        if parameter is not None and parameter.default is None:
            return with_generator(model, x, y, generator=generator)
        return attack(model, x, y)

    return seeded


def checked_pixels(adversarial: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return an attack's pixels, if they can be measured on."""
    if adversarial.shape != x.shape:
        raise DataError(f"the attack made {tuple(adversarial.shape)} of {tuple(x.shape)} pixels: it must keep them")
    if not bool(adversarial.isfinite().all()):
        raise RstHubError(
            "the attack's pixels are not finite, because the gradient of the model is not: find where it divides by 0"
        )
    return adversarial


@torch.no_grad()
def right_answers(model: Victim, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return a bool for each member and sample, (members, N): is it classified correctly."""
    check_pixels(x)
    outputs = logits_of(model, x)
    if not all(bool(logits.isfinite().all()) for logits in outputs):
        raise RstHubError("the model's logits are not finite: it has diverged, or its precision is too low")
    return torch.stack([logits.argmax(1) == y for logits in outputs])


def _append(journal: Path, outcome: BatchOutcome) -> None:
    append_line(journal, json.dumps(dataclasses.asdict(outcome)).encode())
