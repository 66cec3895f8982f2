"""What a run takes its settings to mean once it sees the images: their size, the hold-out, the batch.

The defaults, 1000 and 256, give way to what there is, and say so; any other number is never changed.
"""

import dataclasses

import torch

from ..data.decoding import Decoder, common_size
from ..data.images import Images, resized
from ..networks.architectures import own_side
from .settings import RunSettings, report_all

_LOOKED_AT = 500
_USUAL_SIDE = 224
_FEWEST_STEPS = 4


def at_one_size(settings: RunSettings, train: Images, test: Images) -> tuple[int, Images, Images, list[str]]:
    """Return (side, training images, test images, what to say), resized to one size where they are of several.

    The size is the architecture's own or, where that is not fixed and fewer than three quarters of the images reach it
    with their shorter side, the largest multiple of 32 that three quarters reach. With the augmentation "imagenet"
    training images stay as they are, since crops are cut from them.
    """
    keeps = settings.augment == "imagenet"
    if settings.image_size is not None:
        return settings.image_size, train, test, []
    sizes = [*_sizes(train), *_sizes(test)]
    side = common_size(sizes) if all(isinstance(images.rows, torch.Tensor) for images in (train, test)) else None
    if side is not None:
        return side, train, test, []
    shorter = sorted(min(size) for size in sizes)
    own, is_fixed = own_side(settings.model)
    side = own or _USUAL_SIDE
    if not is_fixed:
        side = min(side, max(32, shorter[len(shorter) // 4] // 32 * 32))
    low, high = min(sizes, key=lambda size: size[0] * size[1]), max(sizes, key=lambda size: size[0] * size[1])
    note = (
        f"the images are of {low[1]} x {low[0]} to {high[1]} x {high[0]} pixels: each is resized to {side} x {side} "
        "and keeps the middle of its longer side; --image-size chooses another size"
    )
    return side, train if keeps else resized(train, side), resized(test, side), [note]


def fitted(settings: RunSettings, images: int, parts: int) -> tuple[RunSettings, list[str]]:
    """Return (settings whose hold-out and batch fit so many training images, what to say of the change).

    Args:
        settings: as they were given.
        images: how many images there are to train on, those to be held out among them.
        parts: processes times accumulation steps, of which a batch is a multiple.

    Raises:
        SettingsError: a hold-out or a batch that was chosen is too large.
    """
    defaults, notes, wrong = RunSettings(), [], []
    holdout, batch = settings.holdout, settings.batch_size
    if holdout == defaults.holdout and 5 * holdout > images:
        holdout = max(1, images // 5)
        notes.append(f"--holdout is {holdout}, a fifth of {images} training images, and not {settings.holdout}")
    if not 0 < holdout < images:
        wrong.append(f"cannot hold out {holdout} of {images} training images: set --holdout between 1 and their number")
    left = images - holdout
    if batch == defaults.batch_size and batch * _FEWEST_STEPS > left > 1:
        fits = 2 ** max(1, (left // _FEWEST_STEPS).bit_length() - 1)
        batch = max(parts, fits // parts * parts)
        notes.append(
            f"--batch-size is {batch}, so that {left} images make {left // batch} steps an epoch, and not "
            f"{settings.batch_size}"
        )
    elif batch == defaults.batch_size and batch % parts:
        batch = max(parts, batch // parts * parts)
        notes.append(
            f"--batch-size is {batch}, a multiple of {parts} (processes x steps), and not {settings.batch_size}"
        )
    if batch > (images if wrong else left):
        wrong.append(f"--batch-size {batch} is more than the {images if wrong else left} training images")
    report_all(wrong)
    return dataclasses.replace(settings, holdout=holdout, batch_size=batch), notes


def _sizes(images: Images) -> list[tuple[int, int]]:
    """Return (height, width) of some hundred images; of a tensor the one that all have."""
    if isinstance(images.rows, torch.Tensor):
        height, width = images.rows.shape[-2:]
        return [(height, width)] * min(len(images), _LOOKED_AT)
    rows: Decoder = images.rows
    return [rows.extent(index) for index in range(0, len(rows), max(1, len(rows) // _LOOKED_AT))]
