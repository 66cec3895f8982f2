"""The README's digits: a ticket beside dense networks of the same architecture, under PGD-20 while eps grows.

    python benchmarks/digits.py --seeds 0 1 2 --picture benchmarks/digits.png

Searches a ticket and trains the dense network naturally and adversarially, by the recipes' digits defaults, for every
seed; measures them and the random dense network on the 500 test digits; prints a table, writes a picture and a JSON.
Finished runs under ``--output`` are found and not repeated.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

import rst_hub
from rst_hub import Init, PixelModel, ThreatModel, clean_accuracy, robust_accuracy
from rst_hub.attacks.names import named_attack
from rst_hub.console import print_anything
from rst_hub.data.images import load_images
from rst_hub.data.loader import evaluation_batches
from rst_hub.networks.build import create_model
from rst_hub.networks.dense import load_dense
from rst_hub.networks.inputs import set_input

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
EPS = (0, 2, 4, 6, 8, 10, 12, 16, 20, 24)
NETWORKS = {
    "ticket": "ticket, 10% of random weights",
    "adversarial": "dense, trained against FGSM-RS",
    "natural": "dense, trained naturally",
    "random": "dense, random",
}


def main() -> None:
    """Run, measure, print, draw."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path("runs/digits-benchmark"))
    parser.add_argument("--picture", type=Path, default=Path("runs/digits-benchmark/digits.png"))
    options = parser.parse_args()
    curves: dict[str, list[list[float]]] = {name: [] for name in NETWORKS}
    for seed in options.seeds:
        for name, model in networks(options.output, seed).items():
            model.to(memory_format=torch.channels_last)
            curves[name].append([accuracy(model, eps, seed) for eps in tqdm(EPS, f"{name}, seed {seed}")])
    samples = len(load_images("digits", "test"))
    table(curves, options.seeds, samples)
    result = {"seeds": options.seeds, "samples": samples, "eps_over_255": EPS, "accuracy": curves}
    result["attack"] = "pgd20: PGD-20, Linf, step eps/4, one random start, best iterate; eps 0 is clean accuracy"
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    picture(curves, options.picture, samples)
    print(f"wrote {options.picture} and {options.picture.with_suffix('.json')}")


def networks(output: Path, seed: int) -> dict[str, nn.Module]:
    """Return the four networks of one seed, found or made by the recipes."""
    search, natural, adversarial = (output / f"{name}-s{seed}" for name in ("search", "natural", "adversarial"))
    run_recipe("search.py", search, search / "ticket", "--seed", str(seed))
    run_recipe("train.py", natural, natural / "model", "--seed", str(seed), "--attack", "none")
    run_recipe("train.py", adversarial, adversarial / "model", "--seed", str(seed))
    ticket = rst_hub.Ticket.load(search / "ticket")
    random = create_model(ticket.architecture, Init(seed), **ticket.timm_kwargs)
    set_input(random, ticket.pretrained_cfg)
    dense = {"natural": load_dense(natural / "model"), "adversarial": load_dense(adversarial / "model")}
    return {"ticket": ticket.model(), "random": random, **dense}


def run_recipe(recipe: str, folder: Path, product: Path, *arguments: str) -> None:
    """Run or resume a recipe unless its product is there."""
    if not product.exists():
        resume = ["--resume"] if folder.exists() else []
        command = [sys.executable, str(RECIPES / recipe), "--output", str(folder), *arguments, *resume]
        subprocess.run(command, check=True)


def accuracy(model: nn.Module, eps: int, seed: int) -> float:
    """Return the accuracy, in percent, on the test digits under PGD-20, or without attack at eps 0."""
    batches = [(x, y) for _, x, y in evaluation_batches(load_images("digits", "test"), 100, image_size=32)]
    if eps == 0:
        return clean_accuracy(PixelModel(model), batches)
    attack = named_attack("pgd20", ThreatModel("Linf", eps / 255), 32)  # as the cards have it
    return robust_accuracy(PixelModel(model), batches, attack, seed=seed)


def table(curves: dict[str, list[list[float]]], seeds: list[int], samples: int) -> None:
    """Print the means over seeds, and how much the ticket gains over natural training at eps 8/255."""
    print(f"\nAccuracy in percent on {samples} test digits, mean over seeds {seeds}:")
    print(f"{'eps over 255':34}" + "".join(f"{eps:7d}" for eps in EPS))
    for name, rows in curves.items():
        print(f"{NETWORKS[name]:34}" + "".join(f"{statistics.mean(v):7.1f}" for v in zip(*rows, strict=True)))
    at = EPS.index(8)
    gains = [ticket[at] - natural[at] for ticket, natural in zip(curves["ticket"], curves["natural"], strict=True)]
    print(f"PGD-20 at eps 8/255, ticket minus naturally trained: {', '.join(f'{gain:+.1f}' for gain in gains)} points")


def picture(curves: dict[str, list[list[float]]], path: Path, samples: int) -> None:
    """Draw the means, with a band from the lowest to the highest seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    colours = {"ticket": "#d1495b", "adversarial": "#2e6f95", "natural": "#7a7a7a", "random": "#c9b458"}
    for name, rows in curves.items():
        columns = list(zip(*rows, strict=True))
        means = [statistics.mean(column) for column in columns]
        axes.plot(EPS, means, label=NETWORKS[name], color=colours[name], linewidth=2.2)
        low, high = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(EPS, low, high, color=colours[name], alpha=0.2, linewidth=0)
    axes.axvline(8, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="eps of PGD-20, in pixels over 255 (Linf)", ylabel=f"accuracy on {samples} test digits, %")
    axes.set(xlim=(0, EPS[-1]), ylim=(0, 101), title="resnet10t at 32 x 32")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 0.1))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
