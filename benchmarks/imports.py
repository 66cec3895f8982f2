"""What `import rst_hub` costs beside `import timm`, behind which it registers with timm.

    python benchmarks/imports.py

CPU seconds (user and system, all threads) of the import statement, each in a new interpreter, in rounds that import
both; medians, after one round that is not counted. Last stands the ratio, with its limit.
"""

import statistics
import subprocess
import sys

ROUNDS = 15
LIMIT = 1.10


def main() -> int:
    """Print the two medians and their ratio; return 1 if it is above the limit."""
    seconds: dict[str, list[float]] = {"timm": [], "rst_hub": []}
    for counted in range(ROUNDS + 1):
        for name, spent in seconds.items():
            taken = import_seconds(name)
            if counted:  # the first round fills the page cache
                spent.append(taken)
    print(f"python {sys.version.split()[0]}, medians of {ROUNDS}, CPU milliseconds")
    for name, spent in seconds.items():
        low, high = min(spent), max(spent)
        print(f"  import {name:8}{1000 * statistics.median(spent):8.0f}   ({1000 * low:.0f} to {1000 * high:.0f})")
    ratio = statistics.median(seconds["rst_hub"]) / statistics.median(seconds["timm"])
    print(f"import rst_hub takes {ratio:.3f} times what import timm takes; the limit is {LIMIT:.2f}")
    return int(ratio > LIMIT)


def import_seconds(name: str) -> float:
    """Return the CPU seconds that importing ``name`` takes in a new interpreter."""
    code = f"import time; begun = time.process_time(); import {name}, timm; print(time.process_time() - begun)"
    return float(subprocess.check_output([sys.executable, "-c", code]))


if __name__ == "__main__":
    sys.exit(main())
