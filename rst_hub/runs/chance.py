"""Say of a result that it is no better than chance, and what may help."""

from collections.abc import Mapping
from typing import Any

import torch

from ..evaluation.accuracy import interval
from .run import Run
from .settings import SearchSettings


def doubts(run: Run, results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence on the results that are not above chance; none where all are.

    Chance is the share of the largest class among the test images, which a constant answer reaches. An accuracy is
    above it where all of its 95% interval (Wilson) is.

    Args:
        run: whose test images and settings they are.
        results: by what to call each, "" for a single one; "results" of a provenance.
    """
    chance = 100 * float(run.test.labels.bincount().max()) / len(run.test)
    low = {name: _lowest(one["clean_accuracy"], one["samples"]) for name, one in results.items()}
    learned_nothing = [name for name in results if low[name] <= chance]
    robust = [name for name in results if name not in learned_nothing and run.settings.attack != "none"]
    fooled = [name for name in robust if _lowest(results[name]["robust_accuracy"], results[name]["samples"]) <= chance]
    more = "more --epochs, a lower or a higher --lr"
    if isinstance(run.settings, SearchSettings):
        more = "a larger --remaining-ratio, " + more
    adamw = "--optimizer adamw (for ViTs, mixers and ConvNeXts), " if run.settings.optimizer != "adamw" else ""
    because = f"not above chance, which is {chance:.2f} % on these test images (the largest class)"
    said = []
    if learned_nothing:
        said.append(f"{_of(learned_nothing)}clean accuracy is {because}. Try {adamw}{more}.")
    if fooled:
        said.append(
            f"{_of(fooled)}PGD-20 accuracy is {because}, while clean accuracy is above it. Try {more}, a lower --eps."
        )
    return said


def _of(names: list[str]) -> str:
    shown = ", ".join(name for name in names if name)
    return f"{shown}: " if shown else ""


def _lowest(accuracy: float, samples: int) -> float:
    """Return the lower end of an accuracy's interval, in percent."""
    right = round(accuracy * samples / 100)
    return interval(torch.arange(samples) < right)[0]
