"""The recipes by their names: the settings that each takes, what ``--help`` says of it, and how it is started.

A recipe's own file is imported once its settings are known to be right, because that takes seconds.
"""

import importlib
import sys
from dataclasses import dataclass
from typing import Any

from .launch import main_of
from .parsing import parse
from .settings import BenchmarkSettings, SearchSettings, TrainSettings, TransferSettings


@dataclass(frozen=True)
class Recipe:
    """What the command line has to know of a recipe before the recipe is imported."""

    settings: type[Any]
    does: str
    examples: str

    @property
    def description(self) -> str:
        """What --help says first."""
        return f"{self.does}\n\n{self.examples}"


RECIPES = {
    "search": Recipe(
        SearchSettings,
        "Search a random network for robust scratch tickets (paper, section 3): nothing but the scores is learned.",
        """\
    rst-hub search                                                   the digits, in minutes on two cores
    rst-hub search --dataset my_photos                               your own images, a folder for each class
    rst-hub search --remaining-ratios 0.05,0.07,0.1,0.15,0.2,0.3     a set of tickets of one random network
    accelerate launch -m rst_hub.runs.search --model preact_resnet18 --dataset cifar10-folder --remaining-ratio 0.05
    accelerate launch --mixed_precision bf16 -m rst_hub.runs.search --preset imagenet --dataset org/name

The run's folder holds the ticket (ticket/), metrics.jsonl, settings.json and checkpoint.pt. A set's holds all of its
tickets in ticket/, and the other files once for each ticket, in r0.05/ and so on.""",
    ),
    "train": Recipe(
        TrainSettings,
        "Train a dense network, naturally or adversarially: the baseline that a ticket is compared with.",
        """\
    rst-hub train --attack none                                      natural training on the digits
    accelerate launch -m rst_hub.runs.train --model preact_resnet18 --dataset cifar10-folder --attack pgd

The run's folder holds the network (model/, which timm.create_model("local-dir:...", pretrained=True) loads) and
results.json.""",
    ),
    "benchmark": Recipe(
        BenchmarkSettings,
        "Measure a ticket, an R2S or a dense model under attack: one JSON, with all that its numbers must carry.",
        """\
    rst-hub benchmark --ticket FOLDER                                PGD-20 on two losses, Square, honesty flags
    rst-hub benchmark --ticket FOLDER --name r0.05 --norm L2 --eps 128 --samples 500      one of its tickets
    rst-hub benchmark --ticket FOLDER --name r0.05,r0.1              two of its tickets as an R2S
    rst-hub benchmark --ticket resnet18.a1_in1k --dataset org/imagenet      a dense model of timm
    accelerate launch -m rst_hub.runs.benchmark --ticket org/name --attacks pgd20,cw_l2,autoattack --eps 8,12

The run's folder holds results.json, settings.json and journal/, which --resume continues from.""",
    ),
    "transfer": Recipe(
        TransferSettings,
        "Measure how attacks transfer between tickets (paper, sections 6.1 and E): a matrix as JSON and as a heat map.",
        """\
    rst-hub transfer --tickets FOLDER                                all tickets of a folder
    rst-hub transfer --tickets FOLDER --paper-protocol               and again as the paper's own code does it
    accelerate launch -m rst_hub.runs.transfer --tickets FOLDER,FOLDER,DENSE --attack pgd20 --eps 8

The run's folder holds transfer.json, transfer.png and a journal for --resume.""",
    ),
}
"""What ``rst-hub NAME``, ``python -m rst_hub.runs.NAME`` and ``recipes/NAME.py`` run, which is one and the same."""


def run_recipe(name: str, arguments: list[str]) -> None:
    """Run a recipe by its command line.

    Raises:
        RstHubError: a kind of it; SettingsError before anything that takes seconds.
    """
    recipe = RECIPES[name]
    settings = parse(recipe.settings, arguments, recipe.description, f"rst-hub {name}")
    getattr(importlib.import_module(f"{__package__}.{name}"), name)(settings)


def start(name: str, arguments: list[str] | None = None) -> int:
    """Run a recipe by its command line (this process's, when None); return its exit status, errors printed."""
    return main_of(lambda given: run_recipe(name, given), arguments)


def leave(name: str) -> None:
    """End this process with a recipe run by its command line: what ``python -m`` and ``recipes/*.py`` do."""
    sys.exit(start(name))
