"""What checks cost at every load: SHA-256 of a ticket's file and the digest of its weights, as a share of the load.

    python benchmarks/integrity.py

The digest is timed again behind each load, of the bits that the load takes it of: CPU time of one thread, medians.
The exit status is 1 if the checks take a tenth of a load or more.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import undescribed

import rst_hub.tickets.ticket as ticket
from rst_hub import EdgePopup, Init, Ticket, create_model, from_pretrained

LOADS = 9


def main() -> int:
    """Print a line for each architecture; return 1 if the checks take a tenth of a load or more."""
    torch.set_num_threads(1)
    worst = 0.0
    print(f"{'':28}{'load':>9}{'file':>9}{'weights':>9}{'share':>9}   (milliseconds of CPU)")
    for architecture in ("resnet18", "resnet50", "resnet101", "vit_small_patch16_224"):
        for ratio in (0.05, 0.5):
            with tempfile.TemporaryDirectory() as scratch:
                model = create_model(architecture, Init(0))
                folder = undescribed.draw(EdgePopup(model, Init(0), ratio)).save(Path(scratch) / "ticket")
                load, file, weights = measured(folder)
            worst = max(worst, (file + weights) / load)
            cells = "".join(f"{1000 * seconds:9.1f}" for seconds in (load, file, weights))
            print(f"{architecture + f' at {ratio:g}':28}{cells}{(file + weights) / load:9.1%}")
    return int(worst >= 0.1)


def measured(folder: Path) -> tuple[float, float, float]:
    """Return the CPU seconds of a load, of reading with SHA-256 in it, and of the weights' digest after it."""
    loads: list[tuple[float, float, float]] = []
    read = ticket.read_checked
    try:
        for _ in range(LOADS):
            spent = {"read": 0.0}
            ticket.read_checked = timed(read, "read", spent)
            begun = time.process_time()
            from_pretrained(folder)
            load = time.process_time() - begun
            loaded = Ticket.load(folder)
            made = {name: loaded.made(name) for name in loaded.seeded}
            begun = time.process_time()
            loaded.check_weights(made.__getitem__)
            loads.append((load, spent["read"], time.process_time() - begun))
    finally:
        ticket.read_checked = read
    load, file, weights = (statistics.median(column) for column in zip(*loads, strict=True))
    return load, file, weights


def timed(check: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """Return ``check``, adding the CPU seconds of its calls to ``spent[name]``."""

    def call(*arguments: Any, **options: Any) -> Any:
        begun = time.process_time()
        try:
            return check(*arguments, **options)
        finally:
            spent[name] += time.process_time() - begun

    return call


if __name__ == "__main__":
    sys.exit(main())
