"""What a value from a stranger's JSON may be: small checks that arguments and inputs share."""

from typing import Any

from . import cifar as cifar  # registers the paper's networks with timm


def is_int(value: Any, low: int, high: int) -> bool:
    """Say whether a value is a whole number in these bounds."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any) -> bool:
    """Say whether a value is a number of ordinary size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6  # so neither inf nor nan


def is_share(value: Any) -> bool:
    """Say whether a value is from 0 to below 1."""
    return is_number(value) and 0 <= value < 1


def is_pair(value: Any) -> bool:
    """Say whether a value is a list of two."""
    return isinstance(value, list | tuple) and len(value) == 2


def are_channel_values(value: Any) -> bool:
    """Say whether a value is a list of one number a channel."""
    return isinstance(value, list | tuple) and 1 <= len(value) <= 1024 and all(is_number(v) for v in value)


def are_names(value: Any) -> bool:
    """Say whether a value is a short text, or a list of them."""
    names = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(name, str) and len(name) < 256 for name in names)
