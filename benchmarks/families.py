"""Tickets of a transformer, two mixers and a ConvNeXt on the digits, beside the same network trained naturally.

    python benchmarks/families.py --seeds 0 1 2

Searches and trains by recipes/search.py and recipes/train.py with AdamW, and prints what they measured on the 500 test
digits. Finished runs under ``--output`` are found and not repeated; runs that were cut off are resumed.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from digits import run_recipe

from rst_hub import Ticket
from rst_hub.console import print_anything
from rst_hub.files import write_json

COMMON = ("--optimizer", "adamw", "--batch-size", "64", "--epochs", "12")
MODELS = {
    "vit_tiny_patch16_224": ("--image-size", "32"),
    "gmlp_ti16_224": ("--image-size", "32"),
    "mixer_s16_224": ("--image-size", "32"),
    "convnext_atto": ("--image-size", "64"),
}
RATIO = ("--remaining-ratio", "0.3")


def main() -> None:
    """Run, print, write."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--output", type=Path, default=Path("runs/families"))
    options = parser.parse_args()
    rows = {
        model: [pair(model, seed, options.output / f"{model}-s{seed}") for seed in options.seeds]
        for model in options.models
    }
    print(f"\nAccuracy in percent on 500 test digits, mean over seeds {options.seeds}; eps 8/255:")
    print(f"{'':24}{'ticket clean':>14}{'PGD-20':>9}{'natural clean':>16}{'PGD-20':>9}")
    for model, pairs in rows.items():
        means = [statistics.mean(run[key] for run in pairs) for key in pairs[0]]
        print(f"{model:24}{means[0]:14.1f}{means[1]:9.1f}{means[2]:16.1f}{means[3]:9.1f}")
    write_json(options.output / "families.json", {"seeds": options.seeds, "samples": 500, "accuracy": rows})
    print(f"wrote {options.output / 'families.json'}")


def pair(model: str, seed: int, folder: Path) -> dict[str, float]:
    """Return clean and PGD-20 accuracy of the ticket and of the naturally trained network of one seed."""
    search, natural = folder / "ticket", folder / "natural"
    arguments = ("--model", model, *MODELS[model], *COMMON, "--seed", str(seed))
    run_recipe("search.py", search, search / "ticket", *arguments, *RATIO)
    run_recipe("train.py", natural, natural / "results.json", *arguments, "--attack", "none")
    ticket: Any = Ticket.load(search / "ticket").provenance["results"]
    dense: Any = json.loads((natural / "results.json").read_text(encoding="utf-8"))["results"]
    return {
        "ticket_clean": ticket["clean_accuracy"],
        "ticket_pgd20": ticket["robust_accuracy"],
        "natural_clean": dense["clean_accuracy"],
        "natural_pgd20": dense["robust_accuracy"],
    }


if __name__ == "__main__":
    main()
