"""Train a dense network, naturally or adversarially: the baseline that a ticket is compared with.

Data, attack, evaluation, checkpoints and command line are those of search.py. The run's folder holds the network
(``model/``, which ``timm.create_model("local-dir:...", pretrained=True)`` loads) and ``results.json``.
"""

import functools

from .commands import leave, run_recipe

if __name__ == "__main__":
    leave("train")  # which imports this file under its own name, once the settings are right

import json
from pathlib import Path
from typing import Any, cast

import torch

from ..errors import SettingsError
from ..files import write_json
from ..networks.architectures import size_arguments
from ..networks.build import build_model
from ..networks.dense import save_dense
from ..networks.inputs import describe_input
from .chance import doubts
from .folder import is_shorter, length_of, put_aside
from .found import Found
from .guard import letting_go
from .loop import Learner, learn, measure
from .parsing import checked
from .provenance import provenance
from .settings import TrainSettings
from .start import start


@letting_go
def train(settings: TrainSettings) -> Found:
    """Train, measure and save one dense network; say how good it is, and return it.

    Args:
        settings: of the training. The defaults of the class are the paper's for CIFAR; ``preset`` has others.

    Returns:
        The run's folder, the network's folder, and the provenance that results.json holds; in every process.

    Raises:
        RstHubError: a kind of it. SettingsError for settings that are wrong, before anything is written.
    """
    run = start("train", checked(TrainSettings, settings))
    settings, folder = cast(TrainSettings, run.settings), run.output / "model"
    trained = length_of(trained_before(folder), settings) if folder.exists() else None
    has_ended = trained is not None and not is_shorter(trained, settings)
    if has_ended and (run.output / "results.json").exists():
        raise SettingsError(f"{folder} is there already, so this training has ended: choose another --output")

    # timm's own architecture and initialisation; every parameter is trained.
    kwargs = {"num_classes": len(run.train.classes), **size_arguments(settings.model, run.image_size)}
    model = build_model(settings.model, kwargs, seed=settings.seed)
    describe_input(model, run.image_size, run.mean, run.std, run.train.classes)
    model.to(run.accelerator.device).to(memory_format=torch.channels_last)

    learner = Learner(model, dict(model.named_parameters()), before_step=lambda: None, after_step=lambda: None)
    metrics, best = learn(run, learner)
    test = measure(run, model, run.test, "test")

    origin = provenance(run, metrics, best, test)
    if run.accelerator.is_main_process:
        if trained is not None and not has_ended:  # what a shorter training made is kept beside
            put_aside(folder, trained)
        if not has_ended:
            save_dense(model, folder, settings.model, kwargs, origin)
        write_json(run.output / "results.json", origin)
    training = "trained naturally" if settings.attack == "none" else f"trained against {settings.attack}"
    run.say(
        f"""
A dense {settings.model}, {training}, on {test["samples"]} test images:
  clean accuracy    {test["clean"]:.2f} %
  PGD-20 accuracy   {test["pgd20"]:.2f} %   (Linf, eps {settings.eps:g}/255, step 2/255, one random start)
It is in {run.output / "model"}."""
    )
    for doubt in doubts(run, {"": origin["results"]}):
        run.say(doubt)
    run.accelerator.wait_for_everyone()  # a process that leaves early can hang another one's leave-taking (torch 2.6)
    run.accelerator.end_training()
    return Found(run.output, folder, origin)


def trained_before(folder: Path) -> dict[str, Any]:
    """Return what a training recorded of the network in its folder; {} where that cannot be read."""
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))["provenance"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


main = functools.partial(run_recipe, "train")
"""Run the recipe by a command line, a list of words."""
