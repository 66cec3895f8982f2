"""What bf16 autocast costs a search on a network with batch norm: digits tickets of fp32 and of bf16, seed by seed.

    python benchmarks/precision.py --seeds 0 1 2                 a quarter of an hour on one core

Every search is recipes/search.py by its digits preset; what it finds is measured in fp32 on the 500 test digits. Beside
that stands how far the two precisions are apart at the start: the relative difference of the scores' first gradients,
each after its own attack, and the mask bits that differ after the first epoch. Finished searches under ``--output`` are
found and not repeated.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from search_step import accelerator_of

from rst_hub import EdgePopup, Init, PixelModel, Ticket, create_model
from rst_hub.data.images import load_images
from rst_hub.data.loader import channel_statistics, split_off, training_batches
from rst_hub.networks.inputs import describe_input
from rst_hub.runs.loop import Learner, learning_rate, make_attack, make_optimizer, step
from rst_hub.runs.parsing import parse
from rst_hub.runs.settings import SearchSettings

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
PRECISIONS = {"no": "fp32", "bf16": "bf16"}
"""Accelerate's names and ours."""
KEYS = ("clean_accuracy", "robust_accuracy")


def main() -> None:
    """Search, measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path("runs/precision"))
    arguments = parser.parse_args()
    found = {name: [searched(arguments.output, seed, name) for seed in arguments.seeds] for name in PRECISIONS}
    print("accuracy in percent on the 500 test digits, measured in fp32: clean, PGD-20 (Linf, eps 8/255)")
    for number, seed in enumerate(arguments.seeds):
        print(f"  seed {seed}  " + "   ".join(cell(PRECISIONS[name], rows[number]) for name, rows in found.items()))
    means = {name: {key: statistics.mean(row[key] for row in rows) for key in KEYS} for name, rows in found.items()}
    print("  mean    " + "   ".join(cell(PRECISIONS[name], row) for name, row in means.items()))
    for key in KEYS:
        apart = [half[key] - full[key] for full, half in zip(found["no"], found["bf16"], strict=True)]
        print(f"  bf16 - fp32, {key}: {statistics.mean(apart):+.2f}, by seed {', '.join(f'{d:+.1f}' for d in apart)}")
    for seed in arguments.seeds:
        print(f"  seed {seed}: " + apart_at_the_start(seed))


def searched(output: Path, seed: int, precision: str) -> dict[str, float]:
    """Return the accuracies of a search's ticket, found or made by the recipe."""
    folder = output / f"{PRECISIONS[precision]}-s{seed}"
    if not (folder / "ticket").exists():
        resume = ["--resume"] if folder.exists() else []
        command = [sys.executable, str(RECIPES / "search.py"), "--output", str(folder), "--seed", str(seed), *resume]
        environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": precision}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    provenance = Ticket.load(folder / "ticket").provenance
    assert provenance["precision"] == precision
    return provenance["results"]


def cell(name: str, row: dict[str, float]) -> str:
    """Return one precision's accuracies in words."""
    return f"{name} {row['clean_accuracy']:6.2f} {row['robust_accuracy']:6.2f}"


def apart_at_the_start(seed: int) -> str:
    """Return in words how far bf16 leads from fp32 in the first step and the first epoch."""
    (gradients, masks), (half, half_masks) = (first_epoch(seed, name) for name in PRECISIONS.values())
    reference = torch.cat([gradients[name].flatten() for name in gradients])
    other = torch.cat([half[name].flatten() for name in gradients])
    met = reference != 0
    relative = ((other - reference).abs() / reference.abs())[met].median()
    differ = sum(int((masks[name] != half_masks[name]).sum()) for name in masks)
    kept = sum(int(mask.sum()) for mask in masks.values())
    return (
        f"first gradients differ by {relative:.0%} in the median; after an epoch {differ / 2 / kept:.1%} of the kept "
        "weights are others"
    )


def first_epoch(seed: int, precision: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Take the first epoch of a search, and return the scores' gradients of its first step, and its last masks."""
    settings = parse(SearchSettings, ["--seed", str(seed)], "")
    images, _ = split_off(load_images("digits", "train"), settings.holdout, seed)
    model = create_model(settings.model, Init(seed), num_classes=len(images.classes))
    describe_input(model, 32, *channel_statistics(images), images.classes)
    popup = EdgePopup(model.to(memory_format=torch.channels_last), Init(seed), settings.remaining_ratio)
    first: dict[str, torch.Tensor] = {}

    def before_step() -> None:
        popup.collect_gradients()
        for name, scores in popup.scores.items():
            assert scores.grad is not None
            first.setdefault(name, scores.grad.clone())

    accelerator = accelerator_of(precision, torch.device("cpu"))
    network = accelerator.prepare_model(PixelModel(model)).train()
    optimizer = accelerator.prepare_optimizer(make_optimizer(settings, popup.scores))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, 0)
    attack = make_attack(settings, torch.Generator().manual_seed(seed))
    learner = Learner(model, popup.scores, before_step, popup.apply)
    batches = training_batches(images, settings.batch_size, augment="none", image_size=32, seed=seed, epoch=0)
    for x, y in batches:
        step(accelerator, learner, network, optimizer, attack, x.to(memory_format=torch.channels_last), y)
    return first, popup.masks()


if __name__ == "__main__":
    main()
