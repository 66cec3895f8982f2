"""Search a random network for a robust scratch ticket (paper, section 3): nothing but the scores is learned.

    python recipes/search.py                                                the digits, in minutes on two cores
    accelerate launch recipes/search.py --model preact_resnet18 --dataset cifar10-folder --remaining-ratio 0.05
    accelerate launch --mixed_precision bf16 recipes/search.py --preset imagenet --dataset org/name
    python recipes/search.py --help                                         every setting

The run's folder holds the ticket (``ticket/``), ``metrics.jsonl``, ``settings.json`` and ``checkpoint.pt``.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import torch
from accelerate.utils import gather_object
from launch import main_of
from loop import Learner, learn, measure
from run import Run, provenance, start
from settings import SearchSettings, parse

from rst_hub import EdgePopup, Init, Ticket, create_model, from_pretrained
from rst_hub.errors import RstHubError, SettingsError
from rst_hub.models import check_architecture, describe_input, size_arguments
from rst_hub.ticket import digest


def main(arguments: list[str]) -> None:
    """Search, save, load and measure one ticket."""
    settings = parse(SearchSettings, arguments, __doc__ or "")
    check_architecture(settings.model, {})
    run = start("search", settings)
    folder = run.output / "ticket"
    if folder.exists():
        raise SettingsError(f"{folder} is there already, so this search has ended: choose another --output")

    # A random network: the seed makes its weights, everything else is neutral and frozen.
    init = Init(settings.seed, settings.distribution)
    kwargs = {"num_classes": len(run.train.classes), **size_arguments(settings.model, run.image_size)}
    model = create_model(settings.model, init, **kwargs)
    describe_input(model, run.image_size, run.mean, run.std, run.train.classes)
    model.to(run.accelerator.device).to(memory_format=torch.channels_last)

    # Scores beside the weights; each step's masks keep the largest of each layer (section 3.2).
    popup = EdgePopup(model, init, settings.remaining_ratio, pattern=settings.pattern, score_seed=settings.score_seed)

    # min over masks of max over perturbations (equation 1), by the straight-through estimator.
    learner = Learner(model, popup.scores, before_step=popup.collect_gradients, after_step=popup.apply)
    metrics, best = learn(run, learner)

    # The best epoch's masks, and what the seed cannot make, are the ticket.
    ticket = Ticket.draw(popup)
    check_ranks_agree(run, ticket)
    measured = ticket.model().to(run.accelerator.device).to(memory_format=torch.channels_last)
    test = measure(run, measured, run.test, "test")
    ticket = dataclasses.replace(ticket, provenance=provenance(run, metrics, best, test))
    if run.accelerator.is_main_process:
        check_loads_exactly(ticket, popup)
        ticket.save(folder)
        report(run, ticket, test, folder)
    run.accelerator.wait_for_everyone()  # a process that leaves early can hang another one's leave-taking (torch 2.6)
    run.accelerator.end_training()


def check_ranks_agree(run: Run, ticket: Ticket) -> None:
    """Raise RstHubError unless every process holds the same masks."""
    digests = gather_object([digest(ticket.masks, ticket.masks)])
    if len(set(digests)) != 1:
        raise RstHubError(f"the processes hold different masks ({digests}): the search went wrong, nothing is saved")
    for rank, value in enumerate(digests):
        run.say(f"mask digest of process {rank}: {value}")


def check_loads_exactly(ticket: Ticket, popup: EdgePopup) -> None:
    """Raise RstHubError unless the ticket, saved and loaded, is the searched model's state dict bit for bit."""
    with tempfile.TemporaryDirectory() as trial:
        loaded = from_pretrained(ticket.save(Path(trial) / "ticket")).state_dict()
    searched = popup.model.state_dict()
    if digest(searched, searched) != digest(loaded, loaded):
        raise RstHubError("the ticket does not load to the network that was searched: nothing is saved")


def report(run: Run, ticket: Ticket, test: dict, folder: Path) -> None:
    """Print what was found: accuracies, sizes, and the lines that load it."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    dense = sum(tensor.numel() * tensor.element_size() for tensor in ticket.state_dict().values())
    samples, eps = test["samples"], run.settings.eps
    run.say(
        f"""
A ticket of {ticket.architecture}, {ticket.remaining_ratio:.0%} of its weights, none trained, on {samples} test images:
  clean accuracy    {test["clean"]:.2f} %
  PGD-20 accuracy   {test["pgd20"]:.2f} %   (Linf, eps {eps:g}/255, step 2/255, one random start)
  size              {size:,} bytes in {folder}
  dense size        {dense:,} bytes, {dense / size:.0f} times as many
It loads bit for bit:
  import rst_hub
  model = rst_hub.from_pretrained("{folder}")"""
    )


if __name__ == "__main__":
    sys.exit(main_of(main))
