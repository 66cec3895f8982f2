"""Every attack on the digits ticket and on a naturally trained dense network of its architecture, with the flags.

    python benchmarks/attacks.py

Searches and trains by the recipes' digits defaults, measures both networks with recipes/benchmark.py under Linf and L2,
and prints accuracy, interval and time of every attack, the worst case and the honesty flags; an hour on one core. What
is finished under ``--output`` is found and not repeated. Needs the extra ``rst-hub[attacks]``.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from digits import RECIPES, run_recipe

from rst_hub.console import print_anything

ATTACKS = {
    "Linf": ("8", "fgsm,fgsm_rs,pgd20,pgd100x5,cw_linf,cw_l2,bandits2000,square2000,autoattack"),
    "L2": ("128", "fgsm,fgsm_rs,pgd20,pgd100x5,margin100,bandits2000,square2000,autoattack"),
}
NETWORKS = {"ticket": "ticket, 10% of random weights", "natural": "dense, trained naturally"}


def main() -> None:
    """Search, train, measure, print."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--norms", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--output", type=Path, default=Path("runs/attacks-benchmark"))
    options = parser.parse_args()
    sources = networks(options.output)
    found = {}
    for norm in options.norms:
        eps, attacks = ATTACKS[norm]
        for name, source in sources.items():
            folder = options.output / f"{name}-{norm}-n{options.samples}"
            settings = ["--dataset", "digits", "--norm", norm, "--eps", eps, "--attacks", attacks]
            found[norm, name] = measured(source, folder, [*settings, "--samples", str(options.samples)])
    for norm in options.norms:
        table(norm, {name: found[norm, name] for name in sources})


def networks(output: Path) -> dict[str, Path]:
    """Return the folders of the ticket and of the naturally trained network, found or made by the recipes."""
    search, natural = output / "search", output / "natural"
    run_recipe("search.py", search, search / "ticket")
    run_recipe("train.py", natural, natural / "model", "--attack", "none")
    return {"ticket": search / "ticket", "natural": natural / "model"}


def measured(source: Path, folder: Path, settings: list[str]) -> dict[str, Any]:
    """Return the result of recipes/benchmark.py, found or made; its samples are attacked in batches of 50."""
    if not (folder / "results.json").exists():
        resume = ["--resume"] if folder.exists() else []
        command = [sys.executable, str(RECIPES / "benchmark.py"), "--ticket", str(source), "--output", str(folder)]
        subprocess.run([*command, "--batch-size", "50", *settings, *resume], check=True)
    result: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return result


def table(norm: str, results: dict[str, dict[str, Any]]) -> None:
    """Print one norm's attacks, networks side by side, and the flags that failed."""
    any_result = next(iter(results.values()))
    samples, (worst,) = any_result["dataset"]["samples"], any_result["worst_case"]
    title = f"Accuracy in percent [95% interval] and seconds on {samples} test digits, {norm}, eps "
    print(f"\n{title}{worst['eps_over_255']:g}/255, seed {any_result['seed']}, {any_result['device']}")
    print(f"{'':18}" + "".join(f"{NETWORKS[name]:>38}" for name in results))
    print(f"{'no attack':18}" + "".join(f"{_cell(result['clean']):>38}" for result in results.values()))
    for rows in zip(*(result["attacks"] for result in results.values()), strict=True):
        print(f"{rows[0]['attack']['name']:18}" + "".join(f"{_cell(row):>38}" for row in rows))
    print(f"{'worst case':18}" + "".join(f"{_cell(result['worst_case'][0]):>38}" for result in results.values()))
    for name, result in results.items():
        checks, warnings = result["flags"]["checks"], {w for row in result["attacks"] for w in row["warnings"]}
        failed = [f"{flag['check']} ({flag['found']})" for flag in checks if flag["passed"] is False]
        passed = sum(flag["passed"] is True for flag in checks)
        print(f"{NETWORKS[name]}: {passed} of {len(checks)} checks passed on {result['flags']['samples']} samples")
        for text in failed:
            print(f"  FAILED {text}")
        for text in sorted(warnings):
            print(f"  AutoAttack warns: {text}")
        for row in result["attacks"]:
            if row.get("median_l2_of_broken") is not None:
                print(f"  {row['attack']['name']}: median L2 distortion of what it broke {row['median_l2_of_broken']}")
            if row.get("median_queries_of_broken") is not None:
                print(f"  {row['attack']['name']}: median queries of what it broke {row['median_queries_of_broken']:g}")


def _cell(row: dict[str, Any]) -> str:
    low, high = row["interval_95"]
    seconds = f" {row['seconds']:7.0f} s" if "seconds" in row else " " * 10
    return f"{row['accuracy']:.1f} [{low:.1f}, {high:.1f}]{seconds}"


if __name__ == "__main__":
    main()
