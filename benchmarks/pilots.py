"""The options of a search that the paper has not, one at a time, beside the search as it is, on the held-out images.

    python benchmarks/pilots.py                                     on the digits, a quarter of an hour on two CPU cores
    python benchmarks/pilots.py --seeds 0 1 -- --config recipes/zoo/NAME.toml --dataset FOLDER --epochs 3
    ACCELERATE_MIXED_PRECISION=bf16 python benchmarks/pilots.py --only "ema 0.995" erk -- --config ...

What follows ``--`` is recipes/search.py's. Every search is a run of its own under ``--output``: finished ones are not
repeated, and one that was interrupted goes on. The table has what the best epoch of each left of the held-out training
images, in percent, and how that differs from the search as it is with the same seed; its last column has the time of
an epoch as a multiple of that search's, in this run. The test images choose nothing: one is looked at, which the recipe
insists on, and not shown. Beside the options stand what they have to beat: another optimizer, half the rate, and twice
the epochs.

With --jobs several searches run side by side, on one GPU, or with OMP_NUM_THREADS=1 on a core each; their times are
then those beside whatever ran at once.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from digits import run_recipe

from rst_hub.console import print_anything
from rst_hub.errors import RstHubError
from rst_hub.runs.parsing import parse
from rst_hub.runs.settings import SearchSettings
from rst_hub.tickets.config import read_config

AS_IT_IS = "as it is"


def main() -> None:
    """Search, and print the table."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/pilots"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="searches side by side")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the variants, by their names in the table")
    parser.add_argument("search", nargs="*", metavar="-- ARGUMENTS", help="of recipes/search.py")
    options = parser.parse_args()
    try:
        settings = parse(SearchSettings, options.search, "")
    except RstHubError as error:
        parser.error(str(error))
    every = variants(settings)
    if settings.remaining_ratios is not None or set(options.only or ()) - set(every) or options.jobs < 1:
        parser.error(f"give one --remaining-ratio, --jobs of 1 or more, and --only of {', '.join(every)}")
    chosen = {name: every[name] for name in (AS_IT_IS, *(options.only or every))}
    planned = {
        (name, seed): [*options.search, *arguments, "--seed", str(seed)]
        for seed in options.seeds
        for name, arguments in chosen.items()
    }
    folders = {key: options.output / folder_of(*key, arguments) for key, arguments in planned.items()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    with ThreadPoolExecutor(options.jobs) as pool:
        ends = {key: pool.submit(searched, folders[key], arguments) for key, arguments in planned.items()}
        try:
            for (name, _), end in ends.items():
                found[name].append(end.result())
        except (KeyboardInterrupt, subprocess.CalledProcessError):
            pool.shutdown(cancel_futures=True)  # the searches under way got an interrupt themselves, or end
            sys.exit(f"stopped, no table: the same command goes on with what is under {options.output}")
    table(found, options.seeds)


def variants(settings: SearchSettings) -> dict[str, tuple[str, ...]]:
    """Return the arguments that each variant adds to a search by these settings."""
    return {
        AS_IT_IS: (),
        "ema 0.995": ("--ema", "0.995"),
        "climb 0.005": ("--climb", "0.005"),
        "trades 6": ("--loss", "trades"),
        "erk": ("--layer-ratios", "erk"),
        "adamw 0.002": ("--optimizer", "adamw", "--lr", "0.002"),
        "half the rate": ("--lr", str(settings.lr / 2)),
        "twice the epochs": ("--epochs", str(2 * settings.epochs)),
    }


def folder_of(name: str, seed: int, arguments: list[str]) -> str:
    """Return the folder's name of a search, which no search by other settings has: it would be taken for this one."""
    settings = (parse(SearchSettings, arguments, ""), os.environ.get("ACCELERATE_MIXED_PRECISION"))
    return f"{name.replace(' ', '-')}-s{seed}-{hashlib.sha256(repr(settings).encode()).hexdigest()[:8]}"


def searched(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Return the line of the best epoch of a search, which is made or taken up again unless it is there."""
    run_recipe("search.py", folder, folder / "ticket" / "config.json", *arguments, "--test-samples", "1")
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (ticket,) = read_config(folder / "ticket")["rst"]["tickets"]
    seconds = statistics.median(epoch["seconds"] for epoch in epochs)
    return {**epochs[ticket["provenance"]["epoch"] - 1], "seconds": seconds}


def table(found: dict[str, list[dict[str, Any]]], seeds: list[int]) -> None:
    """Print a row for each variant: means over the seeds, and every seed's difference from the search as it is."""
    samples = found[AS_IT_IS][0]["samples"]
    print(f"\nThe best epoch's accuracy in percent on {samples} held-out training images, seeds {seeds}:\n")
    print("| | clean | PGD-20 | beside the search as it is, seed by seed | epoch kept | loss | time of an epoch |")
    print("|---|---|---|---|---|---|---|")
    for name, rows in found.items():
        pairs = list(zip(rows, found[AS_IT_IS], strict=True))
        gains = "" if name == AS_IT_IS else ", ".join(f"{row['pgd20'] - base['pgd20']:+.1f}" for row, base in pairs)
        means = " | ".join(f"{statistics.mean(row[key] for row in rows):.1f}" for key in ("clean", "pgd20"))
        kept = ", ".join(str(row["epoch"]) for row in rows)
        times = statistics.mean(row["seconds"] / base["seconds"] for row, base in pairs)
        loss = statistics.mean(row["loss"] for row in rows)
        print(f"| {name} | {means} | {gains} | {kept} | {loss:.3f} | {times:.2f} |")


if __name__ == "__main__":
    main()
