"""The stopwatch of the benchmarks."""

import statistics
import time
from collections.abc import Callable


def median(work: Callable[[], object], runs: int = 7) -> float:
    """Return the median time of ``work`` in milliseconds, after one run that is not counted."""
    work()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)
