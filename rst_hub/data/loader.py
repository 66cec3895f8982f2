"""Images to batches: shuffled and augmented for training, in order for evaluation."""

import math
from collections.abc import Iterable, Iterator

import torch

from ..errors import DataError, SettingsError, nearest, printable
from .augment import AUGMENTATIONS, draws_of, pixels_of
from .images import Images
from .order import permutation


def _check_sizes(batch_size: int, image_size: int, shard: tuple[int, int]) -> None:
    for name, size in (("batch_size", batch_size), ("image_size", image_size)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise SettingsError(f"{name}={printable(repr(size))}: give a whole number from 1")
    if len(shard) != 2 or not 0 <= shard[0] < shard[1]:
        raise SettingsError(f"shard={printable(repr(shard))}: give (rank, processes), the rank from 0 and below them")


def split_off(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """Return (the rest, ``count`` images held out), chosen by ``seed``, the same on every machine.

    Raises:
        DataError: there are not more than ``count`` images.
    """
    if not 0 < count < len(images):
        raise DataError(
            f"cannot hold out {count} of {len(images)} training images: set --holdout between 1 and their number"
        )
    order = permutation("holdout", seed, 0, len(images))
    return images.subset(order[count:]), images.subset(order[:count])


def training_batches(
    images: Images,
    batch_size: int,
    *,
    augment: str,
    image_size: int,
    seed: int,
    epoch: int,
    shard: tuple[int, int] = (0, 1),
    skip: int = 0,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield one epoch of shuffled, augmented batches; the last, incomplete one is left out.

    Args:
        images: the training images.
        batch_size: of all processes together.
        augment: "none"; "crop" (pad 4, crop at random); "cifar" (crop and flip; paper, section 4.1, after Madry et
            al.); "imagenet" (random resized crop to ``image_size``, scale 0.08 to 1, and flip).
        image_size: side of the squares that come out.
        seed: of order and augmentation.
        epoch: likewise.
        shard: (rank, processes); this process gets every processes-th sample of each batch.
        skip: batches to leave out at the start.

    Yields:
        (pixels float32 (batch_size / processes, 3, image_size, image_size) in [0, 1], labels int64), on the device
        that the images are on.

    Raises:
        SettingsError: the augmentation is not one of those above, batch_size or image_size is no whole number from 1,
            or shard not (rank, processes).
        DataError: there are fewer images than one batch holds, or one cannot be decoded.
    """
    _check_sizes(batch_size, image_size, shard)
    if augment not in AUGMENTATIONS:
        raise SettingsError(f"augmentation {augment!r} is not known. {nearest(augment, AUGMENTATIONS)}")
    if batch_size > len(images):
        raise DataError(
            f"a batch of {batch_size} cannot be filled from {len(images)} training images: set --batch-size"
        )
    rank, processes = shard
    device, steps = images.labels.device, range(skip, len(images) // batch_size)
    order = permutation("order", seed, epoch, len(images)).to(device)
    draws: Iterable[torch.Tensor] = (draws_of(seed, epoch, step, batch_size, shard) for step in steps)
    if isinstance(images.rows, torch.Tensor):  # all of an epoch's at once: a copy in every step would make a GPU wait
        draws = torch.stack(list(draws)).to(device) if steps else ()
    for step, drawn in zip(steps, draws, strict=True):
        indices = order[step * batch_size : (step + 1) * batch_size][rank::processes]
        yield pixels_of(images, indices, augment, image_size, drawn), images.labels[indices]


def evaluation_batches(
    images: Images, batch_size: int, *, image_size: int, shard: tuple[int, int] = (0, 1)
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield the images in their order, in batches of which the last may be smaller.

    Args:
        images: to evaluate on.
        batch_size: of each batch.
        image_size: side of the squares that come out; images of another size are resized by their shorter side and keep
            their middle.
        shard: (rank, processes); this process gets every processes-th batch.

    Yields:
        (number of the batch from 0, pixels float32 (N, 3, image_size, image_size) in [0, 1], labels int64 (N,)), on the
        device that the images are on.

    Raises:
        SettingsError: batch_size or image_size is no whole number from 1, or shard not (rank, processes).
        DataError: an image cannot be decoded.
    """
    _check_sizes(batch_size, image_size, shard)
    rank, processes = shard
    for number in range(rank, math.ceil(len(images) / batch_size), processes):
        last = min((number + 1) * batch_size, len(images))
        indices = torch.arange(number * batch_size, last, device=images.labels.device)
        yield number, pixels_of(images, indices, "none", image_size, None), images.labels[indices]


def channel_statistics(images: Images) -> tuple[list[float], list[float]]:
    """Return the channels' mean and standard deviation over up to 5,000 images, rounded to three decimals."""
    sample = [images.rows[i] for i in range(0, len(images), math.ceil(len(images) / 5000))]
    pixels = torch.cat([row.reshape(3, -1) for row in sample], dim=1).double() / 255
    return [round(v, 3) for v in pixels.mean(1).tolist()], [max(round(v, 3), 0.001) for v in pixels.std(1).tolist()]
