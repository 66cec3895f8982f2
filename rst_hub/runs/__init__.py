"""Runs: what the recipes do, from settings to a folder. The only room that imports accelerate.

May import: every other room. ``recipes/*.py`` call into it; ``accelerate launch -m rst_hub.runs.search`` is the same,
and so is, from Python, ``rst_hub.runs.search(SearchSettings(...))``.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .found import Found as Found
from .settings import BenchmarkSettings as BenchmarkSettings
from .settings import SearchSettings as SearchSettings
from .settings import TrainSettings as TrainSettings
from .settings import TransferSettings as TransferSettings
from .settings import preset as preset

if TYPE_CHECKING:
    from .benchmark import benchmark as benchmark
    from .search import search as search
    from .train import train as train
    from .transfer import transfer as transfer

_FUNCTIONS = ("benchmark", "search", "train", "transfer")
"""Functions that have their file's name. Their files import torch and accelerate, which takes seconds, so they wait."""


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_FUNCTIONS})


class _Room(ModuleType):
    """This room, in which a function's name stays the function's when Python imports the file of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _FUNCTIONS or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Room
