"""Train a dense network, naturally or adversarially: the baseline that a ticket is compared with.

    python recipes/train.py --attack none                                   natural training on the digits
    accelerate launch recipes/train.py --model preact_resnet18 --dataset cifar10-folder --attack pgd

Data, attack, evaluation, checkpoints and command line are those of search.py. The run's folder holds the network
(``model/``, which ``timm.create_model("local-dir:...", pretrained=True)`` loads) and ``results.json``.
"""

import sys

import torch
from chance import doubts
from guard import letting_go
from launch import main_of
from loop import Learner, learn, measure
from run import provenance, start
from settings import TrainSettings, parse

from rst_hub.files import write_json
from rst_hub.models import build_model, check_architecture, describe_input, save_dense, size_arguments


@letting_go
def main(arguments: list[str]) -> None:
    """Train, measure and save one dense network."""
    settings = parse(TrainSettings, arguments, __doc__ or "")
    check_architecture(settings.model, {})
    run = start("train", settings)

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
        save_dense(model, run.output / "model", settings.model, kwargs, origin)
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


if __name__ == "__main__":
    sys.exit(main_of(main))
