"""One run of a recipe: its settings, processes and images, its folder, and the provenance of its result."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from guard import LOCK, claim, make_accelerator
from settings import MeasureSettings, RunSettings, SearchSettings, ratios_of, repeatable
from tqdm import tqdm

import rst_hub
from rst_hub.data import Images, channel_statistics, load_images, permutation, split_off
from rst_hub.errors import DataError, SettingsError
from rst_hub.files import write_file, write_json
from rst_hub.models import TIMM_VERSION

EVAL_STEPS, EVAL_STEP_SIZE = 20, 2
"""PGD-20 of the paper, section 4.1; the step size is in pixels over 255."""
_FREE_ON_RESUME = ("resume", "output", "max_steps", "test_samples")
"""Settings that may change when a run is resumed, because the learned scores or weights do not depend on them."""


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

    Raises:
        RstHubError: a kind of it.
    """
    # A plugin, because the plain argument gives way to an environment variable of accelerate's.
    plugin = GradientAccumulationPlugin(num_steps=settings.accumulation_steps)
    accelerator = make_accelerator(gradient_accumulation_plugin=plugin)
    parts = accelerator.num_processes * settings.accumulation_steps
    if settings.batch_size % parts:
        raise SettingsError(f"--batch-size {settings.batch_size} is no multiple of {parts} (processes x steps)")
    output = Path(settings.output or _default_output(recipe, settings))
    check = functools.partial(check_output, output, recipe, settings, accelerator.mixed_precision, free=_FREE_ON_RESUME)
    claim(accelerator, output, check)
    with accelerator.main_process_first():  # the first reader fills the cache for the others
        columns = {"image_column": settings.image_column, "label_column": settings.label_column}
        bar = accelerator.is_main_process
        # Random resized crops are cut from the images as they are, everything else from resized ones.
        size = None if settings.augment == "imagenet" else settings.image_size
        everything = load_images(settings.dataset, "train", image_size=size, progress=bar, **columns)
        test = load_images(settings.dataset, "test", image_size=settings.image_size, progress=bar, **columns)
    image_size = settings.image_size or _common_size(everything, test)
    if everything.classes != test.classes:
        raise DataError(f"data set {settings.dataset}: its training and test splits have different classes")
    train, holdout = split_off(everything, settings.holdout, settings.seed)
    if settings.batch_size > len(train):
        raise DataError(f"--batch-size {settings.batch_size} is more than the {len(train)} training images")
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
    run = Run(recipe, settings, accelerator, output, train, holdout, test, image_size, mean, std)
    run.say(
        f"{len(train)} training, {len(holdout)} held-out and {len(test)} test images of {image_size} x {image_size}, "
        f"{len(train.classes)} classes; run folder {output}"
    )
    return run


def make_folder(accelerator: Accelerator, output: Path, recipe: str, settings: RunSettings | MeasureSettings) -> None:
    """Make a run's folder with its settings.json, on the main process.

    A search or training that is resumed keeps its first settings; a measurement gets those that it has now.

    Raises:
        SettingsError: it cannot be written.
    """
    accelerator.wait_for_everyone()
    known = (output / "settings.json").exists() and not isinstance(settings, MeasureSettings)
    if accelerator.is_main_process and not known:
        begun = {"recipe": recipe, "precision": accelerator.mixed_precision}
        try:
            output.mkdir(parents=True, exist_ok=True)
            write_json(output / "settings.json", {**begun, "settings": dataclasses.asdict(settings)})
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
    name = Path(settings.dataset).name if Path(settings.dataset).is_dir() else settings.dataset
    values = {**dataclasses.asdict(settings), "dataset": name}
    return {
        "recipe": run.recipe,
        "command": repeatable(run.recipe, sys.argv[1:], run.accelerator.mixed_precision, run.accelerator.num_processes),
        "settings": {key: value for key, value in values.items() if key not in ("output", "resume")},
        "dataset": {
            "name": name,
            "training_samples": len(run.train),
            "heldout_samples": len(run.holdout),
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


def _default_output(recipe: str, settings: RunSettings) -> str:
    parts = [recipe, settings.model, Path(settings.dataset).name, settings.attack, f"eps{settings.eps:g}"]
    ratios = [f"{ratio:g}" for ratio in ratios_of(settings)] if isinstance(settings, SearchSettings) else []
    if len("-".join([*parts, *ratios])) > 120:  # of a long list the first and the last
        ratios = [ratios[0], "to", ratios[-1], "of", str(len(ratios))]
    parts += ["r" + "-".join(ratios)] if ratios else []
    return str(Path("runs", "-".join([*parts, f"s{settings.seed}"])))


def check_output(
    output: Path, recipe: str, settings: RunSettings | MeasureSettings, precision: str, *, free: Sequence[str]
) -> None:
    """Raise SettingsError unless the folder is new, or holds the same run and is to be resumed.

    ``free`` names the settings that may differ then.
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
    now = {**json.loads(json.dumps(dataclasses.asdict(settings))), "mixed_precision": precision}
    changed = [key for key in now if now[key] != before.get(key) and key not in free]
    if changed:
        shown = ", ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in changed)
        raise SettingsError(f"{output} was begun with other settings ({shown}): give those, or another --output")


def _common_size(train: Images, test: Images) -> int:
    sizes = {tuple(images.rows[0].shape[-2:]) for images in (train, test)}
    in_one_size = all(isinstance(images.rows, torch.Tensor) for images in (train, test))
    if not in_one_size or len(sizes) > 1 or len(set(next(iter(sizes)))) > 1:
        raise DataError("the images are not squares of one size: choose one with --image-size")
    return next(iter(sizes))[0]


def device_name(device: torch.device) -> str:
    """Return what computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    threads = f"{count} thread{'' if count == 1 else 's'}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {threads}"
    return f"{platform.machine()}, {threads}"
