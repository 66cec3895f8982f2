"""Search a random network for robust scratch tickets (paper, section 3): nothing but the scores is learned.

The run's folder holds the ticket (``ticket/``), ``metrics.jsonl``, ``settings.json`` and ``checkpoint.pt``. A set's
holds all of its tickets in ``ticket/``, and the other files once for each ticket, in ``r0.05/`` and so on.
"""

import functools

from .commands import leave, run_recipe

if __name__ == "__main__":
    leave("search")  # which imports this file under its own name, once the settings are right

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object

from ..errors import RstHubError, SettingsError
from ..files import called
from ..hub import from_pretrained
from ..masks import EdgePopup
from ..networks import Init, create_model
from ..networks.architectures import size_arguments
from ..networks.build import dense_bytes, state_layout
from ..networks.inputs import describe_input
from ..tickets import Ticket
from ..tickets.config import read_config, ticket_file
from ..tickets.digests import digest
from ..tickets.ticket import ticket_names
from .chance import doubts
from .folder import is_shorter, length_of, put_aside
from .found import Found
from .guard import letting_go
from .loop import Learner, learn, measure
from .parsing import checked
from .provenance import provenance
from .run import Run
from .settings import SearchSettings, ratios_of
from .start import start


@letting_go
def search(settings: SearchSettings) -> Found:
    """Search one ticket, or a set of them one after another; say what was found, and return it.

    Args:
        settings: of the search. The defaults of the class are the paper's for CIFAR; ``preset`` has others.

    Returns:
        The run's folder, the folder of its tickets, and each ticket's provenance by its name; in every process.

    Raises:
        RstHubError: a kind of it. SettingsError for settings that are wrong, before anything is written.
    """
    run = start("search", checked(SearchSettings, settings))
    settings = cast(SearchSettings, run.settings)  # with what fits the images
    folder = run.output / "ticket"
    ratios = {f"r{ratio:g}": ratio for ratio in ratios_of(settings)}
    # Every process looks before the main one writes: each search begins with a barrier, behind this line.
    finished = ended(folder, settings)
    if all(name in finished for name in ratios):
        raise SettingsError(f"{folder} is there already, so this search has ended: choose another --output")
    if settings.remaining_ratios is None:
        results = {name: search_ticket(run, settings, folder) for name in ratios}
        report(run, folder)
    else:
        results = search_set(run, settings, ratios, finished)
        report_set(run, folder)
    run.accelerator.wait_for_everyone()  # a process that leaves early can hang another one's leave-taking (torch 2.6)
    run.accelerator.end_training()
    return Found(run.output, folder, results)


def ended(folder: Path, settings: SearchSettings) -> dict[str, dict[str, Any]]:
    """Return the provenance, by name, of the tickets that are found already, none by a shorter search.

    A ticket's file is written after config.json lists it: without the file it is not there yet.
    """
    if not folder.exists():
        return {}
    tickets = [one for one in read_config(folder)["rst"]["tickets"] if (folder / ticket_file(one["name"])).exists()]
    found = {one["name"]: one["provenance"] for one in tickets}
    return {name: said for name, said in found.items() if not is_shorter(length_of(said, settings), settings)}


def search_set(
    run: Run, settings: SearchSettings, ratios: dict[str, float], finished: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Search the tickets that are not finished, each as if it were searched alone; return the provenance of all."""
    results = dict(finished)
    for number, (name, ratio) in enumerate(ratios.items(), 1):
        found = ": found already" if name in finished else ""
        run.say(f"ticket {number} of {len(ratios)}: {_percent(ratio)} of the weights{found}")
        if name not in finished:
            own = dataclasses.replace(settings, remaining_ratio=ratio, remaining_ratios=None)
            results[name] = search_ticket(run.part(name, own), own, run.output / "ticket")
    return {name: results[name] for name in ratios}


def search_ticket(run: Run, settings: SearchSettings, folder: Path) -> dict[str, Any]:
    """Search, measure and save one ticket; return its provenance."""
    # A random network: the seed makes its weights, everything else is neutral and frozen.
    init = Init(settings.seed, settings.distribution)
    kwargs = {"num_classes": len(run.train.classes), **size_arguments(settings.model, run.image_size)}
    model = create_model(settings.model, init, **kwargs)
    describe_input(model, run.image_size, run.mean, run.std, run.train.classes)
    model.to(run.accelerator.device).to(memory_format=torch.channels_last)

    # Scores beside the weights; each step's masks keep the largest of each layer (section 3.2).
    popup = EdgePopup(
        model,
        init,
        settings.remaining_ratio,
        pattern=settings.pattern,
        score_seed=settings.score_seed,
        layer_ratios=settings.layer_ratios,
    )

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
        check_loads_exactly(ticket, popup, run.output)
        put_shorter_aside(folder, settings)
        ticket.save(folder)
    run.accelerator.wait_for_everyone()
    return ticket.provenance


def check_ranks_agree(run: Run, ticket: Ticket) -> None:
    """Raise RstHubError unless every process holds the same masks."""
    digests = gather_object([digest(ticket.masks, ticket.masks)])
    if len(set(digests)) != 1:
        raise RstHubError(f"the processes hold different masks ({digests}): the search went wrong, nothing is saved")
    for rank, value in enumerate(digests):
        run.say(f"mask digest of process {rank}: {value}")


def put_shorter_aside(folder: Path, settings: SearchSettings) -> None:
    """Keep beside what a shorter search found, if that is what the folder holds."""
    if folder.exists():
        before = length_of(read_config(folder)["rst"]["tickets"][0]["provenance"], settings)
        if is_shorter(before, settings):
            put_aside(folder, before)


def check_loads_exactly(ticket: Ticket, popup: EdgePopup, folder: Path) -> None:
    """Raise RstHubError unless the ticket, saved in ``folder`` and loaded, is the searched state dict bit for bit."""
    found = Path("the ticket that was found")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".trial-") as trial, called(Path(trial) / "ticket", found):
        loaded = from_pretrained(ticket.save(Path(trial) / "ticket")).state_dict()
    searched = popup.model.state_dict()
    if digest(searched, searched) != digest(loaded, loaded):
        raise RstHubError("the ticket does not load to the network that was searched: nothing is saved")


def report(run: Run, folder: Path) -> None:
    """Print what was found: accuracies, sizes, and the lines that load it."""
    if not run.accelerator.is_main_process:
        return
    ticket = Ticket.load(folder)
    results, size, dense = ticket.provenance["results"], _bytes_in(folder), _dense_bytes(ticket)
    share, samples, eps = f"{ticket.remaining_ratio:.0%}", results["samples"], run.settings.eps
    run.say(
        f"""
A ticket of {ticket.architecture}, {share} of its weights, none trained, on {samples} test images:
  clean accuracy    {results["clean_accuracy"]:.2f} %
  PGD-20 accuracy   {results["robust_accuracy"]:.2f} %   (Linf, eps {eps:g}/255, step 2/255, one random start)
  size              {size:,} bytes in {folder}
  dense size        {dense:,} bytes, {dense / size:.0f} times as many
It loads bit for bit:
  import rst_hub
  model = rst_hub.from_pretrained("{folder}")"""
    )
    for doubt in doubts(run, {"": results}):
        run.say(doubt)


def report_set(run: Run, folder: Path) -> None:
    """Print what was found: a line for each ticket, and the lines that load one, or all of them as one model."""
    if not run.accelerator.is_main_process:
        return
    tickets = [Ticket.load(folder, name) for name in ticket_names(folder)]
    one, rows = tickets[0], []
    for ticket in sorted(tickets, key=lambda ticket: ticket.remaining_ratio):
        results, size = ticket.provenance["results"], (folder / ticket.file).stat().st_size
        accuracies = f"{results['clean_accuracy']:>7.2f} %{results['robust_accuracy']:>7.2f} %"
        rows.append(f"{_percent(ticket.remaining_ratio):>9}{accuracies}{results['samples']:>13,}{size:>10,}")
    lines, size = "\n".join(rows), _bytes_in(folder)
    run.say(
        f"""
{len(tickets)} tickets of one random {one.architecture}, none of its weights trained:
  weights    clean   PGD-20  test images     bytes
{lines}
PGD-20: Linf, eps {run.settings.eps:g}/255, step 2/255, one random start. All of them take {size:,} bytes in {folder},
and one dense network {_dense_bytes(one):,}. They load bit for bit, one of them, or all as one network that switches:
  import rst_hub
  model = rst_hub.from_pretrained("{folder}", ticket="{one.name}")
  model = rst_hub.r2s_from_pretrained("{folder}")"""
    )
    for doubt in doubts(run, {_percent(ticket.remaining_ratio): ticket.provenance["results"] for ticket in tickets}):
        run.say(doubt)


def _percent(ratio: float) -> str:
    return f"{100 * ratio:g}%"


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _dense_bytes(ticket: Ticket) -> int:
    return dense_bytes(state_layout(ticket.architecture, ticket.timm_kwargs))


main = functools.partial(run_recipe, "search")
"""Run the recipe by a command line, a list of words."""
