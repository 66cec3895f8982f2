"""One run of a recipe: its settings, processes and images, its folder, and the provenance of its result."""

import functools
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import GradientAccumulationPlugin

from ..data.images import Images, fingerprint, load_images, name_of
from ..data.loader import channel_statistics, split_off
from ..data.order import permutation
from ..errors import DataError, SettingsError
from ..networks.architectures import check_architecture
from ..networks.inputs import checked_names
from .fitting import at_one_size, fitted
from .folder import WHERE_DATA_LIE, check_output, complaints, to_resume
from .guard import claim, make_accelerator
from .naming import default_name
from .own import own_code
from .run import Run
from .settings import RunSettings, report_all

_FREE_ON_RESUME = ("resume", "output", "max_steps", "test_samples", *WHERE_DATA_LIE)
"""Settings that may change when a run is resumed, because the learned scores or weights do not depend on them.

Where the images lie is one of them: that they are the same ones is compared by their fingerprints.
"""
_FITTED = ("holdout", "batch_size", "image_size")
"""Settings that are known only once the images are."""


def start(recipe: str, settings: RunSettings) -> Run:
    """Check everything that can be checked before there is a model, and load the images; write nothing.

    Defaults that do not fit the images give way to them (fitting.py), and the run has the settings that do.

    Raises:
        RstHubError: a kind of it; all that is found wrong at once is in one message.
    """
    own = own_code(settings)
    # A plugin, because the plain argument gives way to an environment variable of accelerate's.
    plugin = GradientAccumulationPlugin(num_steps=settings.accumulation_steps)
    accelerator = make_accelerator(gradient_accumulation_plugin=plugin)
    parts = accelerator.num_processes * settings.accumulation_steps
    precision = accelerator.mixed_precision
    output = Path(settings.output or _default_output(recipe, settings, precision))
    check = functools.partial(check_output, output, recipe, settings, precision, free=(*_FREE_ON_RESUME, *_FITTED))
    report_all(
        [
            *complaints(check_architecture, settings.model, {}),
            *complaints(_check_multiple, settings.batch_size, parts),
            *complaints(check),
            *complaints(name_of, settings.dataset if settings.dataset_name is None else "named"),
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
        data |= {f"--{name}": code.sha256 for name, code in own.items()}
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
    run = Run(recipe, settings, accelerator, output, train, holdout, test, image_size, mean, std, data=data, own=own)
    for note in dict.fromkeys((*_about_digits(settings.dataset), *everything.notes, *test.notes, *notes, *changed)):
        run.say(note)
    run.say(
        f"{len(train)} training, {len(holdout)} held-out and {len(test)} test images of {image_size} x {image_size}, "
        f"{len(train.classes)} classes; run folder {output}"
    )
    return run


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


def _default_output(recipe: str, settings: RunSettings, precision: str = "no") -> str:
    """Return the folder of a run that names none; to be resumed, that of the one run whose settings allow it."""
    named = Path("runs", default_name(recipe, settings))
    return str(to_resume(named, recipe, settings, precision, free=(*_FREE_ON_RESUME, *_FITTED)) or named)
