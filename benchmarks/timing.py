"""The stopwatch of the benchmarks."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def median(work: Callable[[], object], runs: int = 7) -> float:
    """Return the median time of ``work`` in milliseconds, after one run that is not counted."""
    return 1000 * statistics.median(interleaved({"work": work}, runs)["work"])


def interleaved(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    finish: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of every work in every round; each round does all of them, so that noise hits all alike.

    One round more, the first, is not counted. ``finish`` waits for a device, and is timed too, all of it by ``clock``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = clock()
            work()
            finish()
            if number:
                seconds[name].append(clock() - started)
    return seconds


def ratio(some: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(some, others, strict=True))
