"""A run's folder: its settings, its checkpoints, and whether it can be continued or made longer."""

import dataclasses
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..data.images import name_of
from ..errors import RstHubError, SettingsError
from ..files import write_file, write_json
from .guard import LOCK
from .run import Run
from .settings import MeasureSettings, RunSettings, learning_rate

WHERE_DATA_LIE = ("dataset", "dataset_name")


def complaints(check: Callable[..., Any], *arguments: Any, **options: Any) -> list[str]:
    """Return what a check finds wrong, if anything."""
    try:
        check(*arguments, **options)
    except RstHubError as error:
        return [str(error)]
    return []


def make_folder(
    accelerator: Accelerator,
    output: Path,
    recipe: str,
    settings: RunSettings | MeasureSettings,
    data: Mapping[str, str] | None = None,
) -> None:
    """Make a run's folder with its settings.json, on the main process.

    A search or training that is resumed keeps its first settings, but for the epochs that it is prolonged to; a
    measurement gets those that it has now. ``data`` are the fingerprints of its images.

    Raises:
        SettingsError: it cannot be written.
    """
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    path = output / "settings.json"
    content = {"recipe": recipe, "precision": accelerator.mixed_precision, "settings": dataclasses.asdict(settings)}
    content |= {"data": dict(data)} if data else {}
    try:
        if path.exists() and isinstance(settings, RunSettings):
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["settings"]["epochs"] == settings.epochs:
                return
            content["settings"]["epochs"] = settings.epochs
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        raise SettingsError(f"{output} cannot be written ({error}): choose another --output") from error


def read_checkpoint(run: Run) -> dict[str, Any] | None:
    """Return what :func:`write_checkpoint` wrote, with tensors on the CPU, or None for a new run.

    Raises:
        SettingsError: the checkpoint cannot be read.
    """
    path = run.output / "checkpoint.pt"
    if not run.settings.resume or not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found = {key: saved[key] for key in ("state", "optimizer", "metrics", "best")}
        return {**found, "average": saved.get("average", {})}
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        raise SettingsError(f"{path} cannot be read ({error}): delete {run.output} and start again") from error


def write_checkpoint(run: Run, state: Mapping[str, Any]) -> None:
    """Replace the run's checkpoint, on the main process."""
    if run.accelerator.is_main_process:
        content = io.BytesIO()
        torch.save(dict(state), content)
        write_file(run.output / "checkpoint.pt", content.getvalue())


def write_metrics(run: Run, metrics: list[dict[str, Any]]) -> None:
    """Replace metrics.jsonl, one line an epoch, on the main process."""
    if run.accelerator.is_main_process:
        lines = "".join(json.dumps(record) + "\n" for record in metrics)
        write_file(run.output / "metrics.jsonl", lines.encode())


def to_resume(
    named: Path, recipe: str, settings: RunSettings | MeasureSettings, precision: str, *, free: Sequence[str]
) -> Path | None:
    """Return the one run beside ``named`` that these settings continue, if they are to and ``named`` is not there."""
    if not settings.resume or named.exists():
        return None
    found = []
    for path in sorted(named.parent.glob(f"{recipe}-*/settings.json")):
        if not complaints(check_output, path.parent, recipe, settings, precision, free=free):
            found.append(path.parent)
    return found[0] if len(found) == 1 else None


def check_output(
    output: Path,
    recipe: str,
    settings: RunSettings | MeasureSettings,
    precision: str,
    *,
    free: Sequence[str],
    data: Mapping[str, str] | None = None,
) -> None:
    """Raise SettingsError unless the folder is new, or holds the same run and is to be resumed.

    ``free`` names the settings that may differ then, and ``data`` are the images' fingerprints, which may not.
    """
    above = next(parent for parent in (output, *output.resolve().parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise SettingsError(
            f"{output} cannot be written, because {above} is no folder to write to: choose another --output"
        )
    if not output.exists() or all(path.name == LOCK for path in output.iterdir()):
        return
    path = output / "settings.json"
    try:
        previous = json.loads(path.read_text(encoding="utf-8"))
        defaults = {f.name: f.default for f in dataclasses.fields(settings)}  # of settings that are newer than the run
        before, same_recipe = {**defaults, **previous["settings"]}, previous["recipe"] == recipe
        before["mixed_precision"] = previous["precision"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingsError(f"{output} holds something else than a run: choose another --output") from None
    if not same_recipe:
        raise SettingsError(f"{output} holds a run of {previous['recipe']}.py: choose another --output")
    if not settings.resume:
        raise SettingsError(f"{output} already holds a run: add --resume to continue it, or choose another --output")
    begun = previous.get("data")
    if data and begun is None and name_of(str(before["dataset"])) != name_of(str(settings.dataset)):
        free = [name for name in free if name != "dataset"]  # of an older run the images cannot be compared
    now = {**json.loads(json.dumps(dataclasses.asdict(settings))), "mixed_precision": precision}
    changed = [key for key in now if now[key] != before.get(key) and key not in free]
    why = ""
    if "epochs" in changed and isinstance(settings, RunSettings):
        why = _not_prolonged(settings, int(before["epochs"]), epochs_done(output))
        changed = [key for key in changed if key != "epochs" or why]
    if changed:
        shown = ", ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in changed)
        raise SettingsError(f"{output} was begun with other settings ({shown}{why}): give those, or another --output")
    _check_data(output, begun, data or {})


def _check_data(output: Path, begun: Mapping[str, str] | None, data: Mapping[str, str]) -> None:
    """Raise SettingsError where images, or the code of the user's own functions, are not those that a run began with.

    Of an older run nothing is known: ``begun`` is None.
    """
    different = [name for name in data if begun is not None and begun.get(name) != data[name]]
    if any(name.startswith("--") for name in different):
        which = " and ".join(name for name in different if name.startswith("--"))
        raise SettingsError(
            f"{output} was begun with another {which}: its source file has changed since. Give the file as it was, or "
            "another --output"
        )
    if different:
        which = " and ".join({"train": "training", "test": "test"}.get(name, name) for name in different)
        raise SettingsError(
            f"{output} was begun with other data: the {which} images, their labels or their classes have changed "
            "since. Give the data that it was begun with, or another --output"
        )


def has_data(output: Path, data: Mapping[str, str]) -> bool:
    """Say whether a run was begun with images of these fingerprints."""
    try:
        return json.loads((output / "settings.json").read_text(encoding="utf-8"))["data"] == data
    except (OSError, ValueError, KeyError, TypeError):
        return False


def epochs_done(output: Path) -> int:
    """Return how many epochs a run has finished, or of a set the part that has finished most."""
    files = [output / "metrics.jsonl", *output.glob("*/metrics.jsonl")]
    return max((len(path.read_text(encoding="utf-8").splitlines()) for path in files if path.exists()), default=0)


def length_of(provenance: Mapping[str, Any], unknown: RunSettings) -> tuple[int, float]:
    """Return how long the run of a result was: its epochs, and the steps that a trial was stopped at.

    What is not recorded is that of ``unknown``.
    """
    settings = provenance.get("settings")
    said = settings if isinstance(settings, dict) else {}
    epochs, steps = said.get("epochs", unknown.epochs), said.get("max_steps")
    return (epochs if isinstance(epochs, int) else unknown.epochs), steps if isinstance(steps, int) else math.inf


def is_shorter(length: tuple[int, float], settings: RunSettings) -> bool:
    """Say whether a run of this length has not ended by these settings, so that it goes on."""
    epochs, steps = length
    return epochs < settings.epochs or steps < (math.inf if settings.max_steps is None else settings.max_steps)


def put_aside(folder: Path, length: tuple[int, float]) -> None:
    """Rename the result of a run that has been made longer after its length: "ticket-6-epochs", "ticket-3-steps"."""
    epochs, steps = length
    name = f"{folder.name}-{epochs}-epochs" if steps == math.inf else f"{folder.name}-{steps}-steps"
    names = (name if again == 1 else f"{name}-{again}" for again in itertools.count(1))
    os.rename(folder, next(path for path in map(folder.with_name, names) if not path.exists()))


def _not_prolonged(settings: RunSettings, before: int, done: int) -> str:
    """Return why a run of ``before`` epochs cannot be prolonged to those of ``settings``; "" if it can."""
    if settings.epochs < before:
        return "; a run can be made longer, not shorter"
    was = dataclasses.replace(settings, epochs=before)
    rates = [(learning_rate(was, epoch), learning_rate(settings, epoch)) for epoch in range(done)]
    for epoch, (old, new) in enumerate(rates, 1):
        if old != new:
            return (
                f"; the {settings.schedule} schedule's rates depend on the number of epochs: epoch {epoch} had {old:g}"
                f", and of {settings.epochs} epochs it has {new:g}. A run of --schedule constant can be made longer"
            )
    return ""
