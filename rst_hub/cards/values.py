"""Checks of single values in result files, which anyone may have written."""

import re
from typing import Any

import torch

from ..attacks.common import NORMS
from ..evaluation.accuracy import interval
from .wording import plain

REPOSITORY = re.compile(r"(?=.{3,96}$)(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", re.ASCII)
"""The Hub's rule for org/name: no part begins or ends with "-" or ".", and neither stands twice in a row."""


MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, OSError)


def wilson(accuracy: float, count: int) -> tuple[float, float]:
    """Return the 95% interval of an accuracy in percent on so many samples."""
    low, high = interval((torch.arange(count) < round(accuracy * count / 100)).double())
    return round(low, 2), round(high, 2)


def is_repository(value: Any) -> bool:
    """Say whether a value is a name on the Hub, org/name."""
    return isinstance(value, str) and REPOSITORY.fullmatch(value) is not None


def is_text(value: Any) -> bool:
    """Say whether a value is a text that shows something."""
    return isinstance(value, str) and bool(plain(value))


def as_text(value: Any) -> str:
    """Return a text; raise ValueError for anything else."""
    if not is_text(value):
        raise ValueError(f"{str(value)[:50]!r} is no text")
    return value


def as_norm(value: Any) -> str:
    """Return a norm's name; raise ValueError for anything else."""
    if value not in NORMS:
        raise ValueError(f"{str(value)[:50]!r} is no norm")
    return str(value)


def as_percent(value: Any) -> float:
    """Return an accuracy in percent; raise ValueError for anything else."""
    if as_size(value) > 100:
        raise ValueError(f"{value!r} is no accuracy in percent")
    return float(value)


def as_size(value: Any) -> Any:
    """Return a number from 0 on, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12):
        raise ValueError(f"{str(value)[:50]!r} is no size")
    return value


def as_count(value: Any) -> int:
    """Return a number of samples; raise ValueError for anything else."""
    if type(value) is not int or not 0 < value <= 10**7:
        raise ValueError(f"{str(value)[:50]!r} is no count")
    return value
