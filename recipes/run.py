"""One run of a recipe: its settings, processes and images, its folder, and the provenance of its result."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import itertools
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from fitting import at_one_size, fitted
from guard import LOCK, claim, make_accelerator
from settings import MeasureSettings, RunSettings, default_name, learning_rate, repeatable, report_all
from tqdm import tqdm

import rst_hub
from rst_hub.data.images import Images, fingerprint, load_images, name_of
from rst_hub.data.loader import channel_statistics, split_off
from rst_hub.data.order import permutation
from rst_hub.errors import DataError, RstHubError, SettingsError
from rst_hub.files import write_file, write_json
from rst_hub.networks.architectures import TIMM_VERSION, check_architecture
from rst_hub.networks.inputs import checked_names

EVAL_STEPS, EVAL_STEP_SIZE = 20, 2
"""PGD-20 of the paper, section 4.1; the step size is in pixels over 255."""
WHERE_DATA_LIE = ("dataset", "dataset_name")
_FREE_ON_RESUME = ("resume", "output", "max_steps", "test_samples", *WHERE_DATA_LIE)
"""Settings that may change when a run is resumed, because the learned scores or weights do not depend on them.

Where the images lie is one of them: that they are the same ones is compared by their fingerprints.
"""
_FITTED = ("holdout", "batch_size", "image_size")
"""Settings that are known only once the images are."""


@dataclass(frozen=True)
class Run:
    """One run of a recipe: its settings, its processes, its images and its folder."""

    recipe: str
    settings: RunSettings
    accelerator: Accelerator
    output: Path
    train: Images
    holdout: Images
    test: Images
    image_size: int
    mean: list[float]
    std: list[float]
    part_of: "Run | None" = None
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def say(self, text: str) -> None:
        """Print on the main process."""
        if self.accelerator.is_main_process:
            tqdm.write(text)

    @property
    def shard(self) -> tuple[int, int]:
        """(rank, processes)."""
        return self.accelerator.process_index, self.accelerator.num_processes

    def part(self, name: str, settings: RunSettings) -> "Run":
        """Return a run with settings of its own in a sub-folder of this one's, on the same processes and images.

        The accelerator forgets what another part has left in it: the models and optimizers that it was given, and the
        factor by which it scales losses in fp16.
        """
        self.accelerator.free_memory()
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**16, "_growth_tracker": 0})  # torch's defaults
        return dataclasses.replace(self, settings=settings, output=self.output / name, part_of=self)


def start(recipe: str, settings: RunSettings) -> Run:
    """Check everything that can be checked before there is a model, and load the images; write nothing.

    Defaults that do not fit the images give way to them (fitting.py), and the run has the settings that do.

    Raises:
        RstHubError: a kind of it; all that is found wrong at once is in one message.
    """
    # A plugin, because the plain argument gives way to an environment variable of accelerate's.
    plugin = GradientAccumulationPlugin(num_steps=settings.accumulation_steps)
    accelerator = make_accelerator(gradient_accumulation_plugin=plugin)
    parts = accelerator.num_processes * settings.accumulation_steps
    precision = accelerator.mixed_precision
    output = Path(settings.output or _default_output(recipe, settings, precision))
    check = functools.partial(check_output, output, recipe, settings, precision, free=(*_FREE_ON_RESUME, *_FITTED))
    report_all(
        [
            *_wrong(check_architecture, settings.model, {}),
            *_wrong(_check_multiple, settings.batch_size, parts),
            *_wrong(check),
            *_wrong(name_of, settings.dataset if settings.dataset_name is None else "named"),
        ]
    )
    claim(accelerator, output, check)
    with accelerator.main_process_first():  # the first reader fills the cache for the others
        bar = accelerator.is_main_process
        columns: dict[str, Any] = {name: getattr(settings, name) for name in ("image_column", "label_column")}
        columns |= {"skip_broken": settings.skip_broken, "progress": bar}
        # Random resized crops are cut from the images as they are, everything else from resized ones.
        size = None if settings.augment == "imagenet" else settings.image_size
        everything = load_images(settings.dataset, "train", image_size=size, **columns)
        test = load_images(settings.dataset, "test", image_size=settings.image_size, **columns)
        data = {"train": fingerprint(everything), "test": fingerprint(test)}
        image_size, everything, test, notes = at_one_size(settings, everything, test)
    check_output(output, recipe, settings, precision, free=(*_FREE_ON_RESUME, *_FITTED), data=data)
    _check_classes(everything, test)
    settings, changed = fitted(settings, len(everything), parts)
    check_output(output, recipe, settings, precision, free=_FREE_ON_RESUME)
    train, holdout = split_off(everything, settings.holdout, settings.seed)
    wanted = len(test) if settings.test_samples is None else settings.test_samples
    if settings.test_samples is None and settings.max_steps is not None:
        wanted = settings.max_steps * settings.batch_size  # a trial is measured on no more images than it saw
        if settings.max_steps < len(train) // settings.batch_size:  # whole epochs may be resumed, and are compared then
            holdout = holdout.subset(torch.arange(min(wanted, len(holdout))))
    if wanted < len(test):  # at random: in many data sets the first images are all of one class
        test = test.subset(permutation("test", 0, 0, len(test))[:wanted])
    mean, std = channel_statistics(train)
    if settings.augment != "imagenet":  # whose crops are cut and resized one by one, on the CPU
        train, holdout = train.to(accelerator.device), holdout.to(accelerator.device)
    test = test.to(accelerator.device)
    run = Run(recipe, settings, accelerator, output, train, holdout, test, image_size, mean, std, data=data)
    for note in dict.fromkeys((*_about_digits(settings.dataset), *everything.notes, *test.notes, *notes, *changed)):
        run.say(note)
    run.say(
        f"{len(train)} training, {len(holdout)} held-out and {len(test)} test images of {image_size} x {image_size}, "
        f"{len(train.classes)} classes; run folder {output}"
    )
    return run


def _wrong(check: Callable[..., Any], *arguments: Any, **options: Any) -> list[str]:
    """Return what a check finds wrong, if anything."""
    try:
        check(*arguments, **options)
    except RstHubError as error:
        return [str(error)]
    return []


def _check_multiple(batch_size: int, parts: int) -> None:
    if batch_size % parts and batch_size != RunSettings.batch_size:
        raise SettingsError(f"--batch-size {batch_size} is no multiple of {parts} (processes x steps)")


def _check_classes(train: Images, test: Images) -> None:
    """Raise DataError unless there are two classes, with names that a ticket carries, and training images of each."""
    if len(train.classes) < 2:
        raise DataError(f"all images are of one class, {train.classes[0]}: a network tells two or more apart")
    try:
        checked_names("the data set's classes", train.classes)
    except SettingsError as error:
        raise DataError(f"{error}; rename it in the data set") from error
    unseen = [test.classes[number] for number in test.labels.unique().tolist() if number not in train.labels]
    if unseen:
        more = "" if len(unseen) <= 5 else f" and {len(unseen) - 5} more"
        raise DataError(
            f"the test images have the classes {', '.join(unseen[:5])}{more}, of which there is no training image: add "
            "some, or remove the classes"
        )


def _about_digits(dataset: str) -> list[str]:
    if dataset != "digits":
        return []
    beside = "; the folder here is ./digits" if Path("digits").is_dir() else ""
    return [f"data set: scikit-learn's digits, the default; --dataset FOLDER takes your own images{beside}"]


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


def provenance(run: Run, metrics: list[dict[str, Any]], best: int, test: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result must carry: data, attack, settings, accuracies with sample counts, versions, command.

    ``metrics`` has a record for each epoch, ``best`` is the position of the chosen one, and ``test`` what was measured.
    """
    settings = run.settings
    name = settings.dataset_name or name_of(settings.dataset)
    skipped = run.train.skipped + run.test.skipped
    values = {**dataclasses.asdict(settings), "dataset": name}
    return {
        "recipe": run.recipe,
        "command": repeatable(run.recipe, sys.argv[1:], run.accelerator.mixed_precision, run.accelerator.num_processes),
        "settings": {key: value for key, value in values.items() if key not in ("output", "resume")},
        "dataset": {
            "name": name,
            "training_samples": len(run.train),
            "heldout_samples": len(run.holdout),
            **({"left_out": skipped} if skipped else {}),
        },
        "epoch": metrics[best]["epoch"],
        "optimizer_steps": metrics[best]["steps"],
        "results": {
            "split": run.test.split,
            "samples": test["samples"],
            "clean_accuracy": test["clean"],
            "robust_accuracy": test["pgd20"],
            "attack": {
                "name": "pgd",
                "norm": "Linf",
                "eps_over_255": settings.eps,
                "steps": EVAL_STEPS,
                "step_size_over_255": EVAL_STEP_SIZE,
                "restarts": 1,
                "keep": "enough",
                "seed": settings.seed,
            },
        },
        "heldout": {key: metrics[best][key] for key in ("clean", "pgd20", "samples")},
        "precision": run.accelerator.mixed_precision,
        "processes": sorted({record["processes"] for record in metrics}),
        "device": device_name(run.accelerator.device),
        "seconds": round(sum(record["seconds"] for record in metrics), 1),
        "versions": versions(),
    }


def share(images: Images, batch_size: int, accelerator: Accelerator) -> int:
    """Return how many of the images this process gets, of which every processes-th batch is its own."""
    step = batch_size * accelerator.num_processes
    starts = range(batch_size * accelerator.process_index, len(images), step)
    return sum(min(batch_size, len(images) - start) for start in starts)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {
        "rst_hub": rst_hub.__version__,
        "torch": torch.__version__,
        "timm": TIMM_VERSION,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
    }
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["pyautoattack"] = importlib.metadata.version("pyautoattack")
    return found


def _default_output(recipe: str, settings: RunSettings, precision: str = "no") -> str:
    """Return the folder of a run that names none; to be resumed, that of the one run whose settings allow it."""
    named = Path("runs", default_name(recipe, settings))
    return str(to_resume(named, recipe, settings, precision, free=(*_FREE_ON_RESUME, *_FITTED)) or named)


def to_resume(
    named: Path, recipe: str, settings: RunSettings | MeasureSettings, precision: str, *, free: Sequence[str]
) -> Path | None:
    """Return the one run beside ``named`` that these settings continue, if they are to and ``named`` is not there."""
    if not settings.resume or named.exists():
        return None
    found = []
    for path in sorted(named.parent.glob(f"{recipe}-*/settings.json")):
        if not _wrong(check_output, path.parent, recipe, settings, precision, free=free):
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
    different = [name for name in data or {} if begun is not None and begun.get(name) != (data or {})[name]]
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


def device_name(device: torch.device) -> str:
    """Return what computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    threads = f"{count} thread{'' if count == 1 else 's'}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {threads}"
    return f"{platform.machine()}, {threads}"
