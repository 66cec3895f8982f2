"""Found: what a recipe returns to Python."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Found:
    """What a recipe found, and where it lies.

    ``folder`` is the run's folder. ``model`` is what the run made: of a search the folder of its tickets, which
    :func:`rst_hub.from_pretrained` takes; of a training the folder of the dense network; None of a measurement.
    ``results`` are of a search each ticket's provenance by the ticket's name, of a training its provenance, and of a
    measurement what its JSON file holds.
    """

    folder: Path
    model: Path | None
    results: dict[str, Any]
