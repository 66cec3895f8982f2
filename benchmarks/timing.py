"""The stopwatch of the benchmarks."""

import statistics
import time
from collections.abc import Callable, Mapping


def median(work: Callable[[], object], runs: int = 7) -> float:
    """Return the median time of ``work`` in milliseconds, after one run that is not counted."""
    return 1000 * statistics.median(interleaved({"work": work}, runs)["work"])


def interleaved(
    works: Mapping[str, Callable[[], object]], rounds: int, finish: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Return the seconds of every work in every round; each round does all of them, so that noise hits all alike.

    One round more, the first, is not counted. ``finish`` waits for a device, and is timed too.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            finish()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds
