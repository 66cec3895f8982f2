"""Try what a run will do before it writes anything; and say after its first epoch when it will end."""

import datetime

import torch

from ..attacks.common import Attack, evaluating
from ..data.loader import evaluation_batches
from ..errors import ArchitectureError, RstHubError, SettingsError, printable
from ..networks.pixels import PixelModel
from .objectives import Objective
from .run import Run
from .settings import SearchSettings, ratios_of


def try_forward(run: Run, network: PixelModel) -> None:
    """Raise ArchitectureError if the network cannot classify the run's images."""
    _, x, _ = next(evaluation_batches(run.holdout, 2, image_size=run.image_size))
    try:
        with evaluating(network), torch.no_grad():
            logits = network(x.to(run.accelerator.device, memory_format=torch.channels_last))
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        size = f"{run.image_size} x {run.image_size}"
        raise ArchitectureError(f"{run.settings.model} cannot take images of {size}: {error}") from error
    if logits.shape != (len(x), len(run.train.classes)):
        raise ArchitectureError(f"{run.settings.model} gives outputs of shape {tuple(logits.shape)}, not class logits")


def try_step(
    run: Run, network: PixelModel, attack: Attack | None, objective: Objective, x: torch.Tensor, y: torch.Tensor
) -> None:
    """Attack, forward and backward in train mode; then put back buffers, modes, gradients and random numbers.

    Args:
        run: what it is a trial of.
        network: as it will be trained, compiled or not; not yet prepared for several processes.
        attack: of a single step, which takes the memory of many.
        objective: what will be minimised.
        x: pixels on the device, as many as a process takes at once.
        y: their labels there.

    Raises:
        RstHubError: the network cannot take such a step.
    """
    device = run.accelerator.device
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        with evaluating(network), torch.random.fork_rng([device] if device.type == "cuda" else []):
            network.train()
            with run.accelerator.autocast():
                attacked = x if attack is None else attack(network, x, y)
                loss, _ = objective(network, x, attacked, y)
            loss.backward()
    except RstHubError:
        raise
    except Exception as error:  # a model's own code, a compiler and a device raise whatever they like
        raise _refused(run, network, len(x), error) from error
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter in network.parameters():
            parameter.grad = None


def _refused(run: Run, network: PixelModel, images: int, error: Exception) -> RstHubError:
    """Return what a step's failure is to the user."""
    settings, number = run.settings, "one image" if images == 1 else f"{images} images"
    taken = f"{number} of {run.image_size} x {run.image_size} at once (--batch-size / processes / --accumulation-steps)"
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
        return SettingsError(
            f"{run.accelerator.device} has too little memory for a training step of {settings.model} on {taken}: "
            f"raise --accumulation-steps (now {settings.accumulation_steps}), or lower --batch-size"
        )
    said = printable(str(error).strip().partition("\n\n")[0], 300)
    if network._compiled_call_impl is not None:  # without compilation it passed
        return SettingsError(
            f"torch.compile cannot compile a training step of {settings.model} here ({type(error).__name__}: {said}): "
            "leave --compile out, or install what is missing, such as a C++ compiler (g++)"
        )
    if images == 1:
        return SettingsError(
            f"{settings.model} cannot be trained on {taken} ({said}): raise --batch-size, or lower --accumulation-steps"
        )
    return ArchitectureError(f"{settings.model} cannot be trained on {taken}: {said}")


def expected_end(seconds: float, epochs: int, run: Run) -> str:
    """Return in words when a run will end that took ``seconds`` for an epoch and has so many before it.

    Of a set of tickets it is the end of the whole set, whose tickets take turns in the order of their ratios.
    """
    of, settings = "", run.part_of.settings if run.part_of else None
    if isinstance(settings, SearchSettings) and isinstance(run.settings, SearchSettings):
        ratios = ratios_of(settings)
        later = len(ratios) - 1 - ratios.index(run.settings.remaining_ratio)
        epochs, of = epochs + later * run.settings.epochs, " for the whole set"
    return _until(seconds * epochs, datetime.datetime.now(), of)


def _until(seconds: float, now: datetime.datetime, of: str = "") -> str:
    end = now + datetime.timedelta(seconds=seconds)
    day = "" if end.date() == now.date() else f"{end:%Y-%m-%d} "
    if seconds < 100:
        left = f"{seconds:.0f} s"
    else:
        left = f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
    return f"about {left} left{of}, until {day}{end:%H:%M}"
