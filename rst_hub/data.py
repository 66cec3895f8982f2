"""A data set name or folder to batches of pixels in [0, 1]: decoded once where it fits, augmented per sample.

``digits`` is scikit-learn's (no download); any other name is a folder here or a data set on the Hugging Face Hub, as
``datasets.load_dataset`` reads it. Image and label columns are found by their feature type. The order of training
samples depends on the seed and the epoch alone, so any number of processes sees the same batches.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from .errors import DataError, SettingsError, nearest
from .weights import random_bytes

AUGMENTATIONS = ("none", "crop", "cifar", "imagenet")
DIGITS_SIZE = 32
_DIGITS_TEST = 500
_IN_MEMORY_BYTES = 8 * 2**30
_MAX_CLASSES = 100_000
_SPLITS = {"train": ("train", "training"), "test": ("test", "validation", "valid", "val", "dev")}


@dataclass(frozen=True)
class Images:
    """Labelled images: ``rows[i]`` is uint8 of shape (3, H, W), ``labels`` int64 of shape (N,), one name a class.

    ``rows`` is one tensor (N, 3, H, W) where the images are of one size and fit in memory, else it decodes when asked.
    ``split`` is the data set's own name of the split they are from.
    """

    rows: "torch.Tensor | Decoder"
    labels: torch.Tensor
    classes: tuple[str, ...]
    split: str = ""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def subset(self, indices: torch.Tensor) -> "Images":
        """Return the images at these positions, in this order."""
        rows = self.rows[indices] if isinstance(self.rows, torch.Tensor) else self.rows.subset(indices)
        return replace(self, rows=rows, labels=self.labels[indices])

    def to(self, device: torch.device) -> "Images":
        """Return the images on ``device``, where batches are then made too; the pixels are the same on every device.

        What is no tensor, or takes more than a quarter of a GPU's free memory, stays where it is.
        """
        if not isinstance(self.rows, torch.Tensor):
            return self
        if device.type == "cuda" and self.rows.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
            return self
        return replace(self, rows=self.rows.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Decoder:
    """Images that stay encoded: ``dataset`` rows decoded one by one, resized to squares of ``size`` if given."""

    dataset: Any
    column: str
    size: int | None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return one image as uint8 of shape (3, H, W)."""
        try:
            image = self.dataset[int(index)][self.column]
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"row {index} of column {self.column!r} cannot be decoded ({error}): remove it") from error
        if not isinstance(image, Image.Image):
            raise DataError(f"row {index} of column {self.column!r} holds no image: remove the row")
        return _to_pixels(image, self.size)

    def subset(self, indices: torch.Tensor) -> "Decoder":
        """Return the rows at these positions, in this order."""
        return replace(self, dataset=self.dataset.select(indices.tolist()))


def load_images(
    name: str,
    split: str,
    *,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: bool = False,
) -> Images:
    """Return one split of a data set.

    Args:
        name: ``digits``, a folder (parquet files or class folders of images), or a name on the Hub.
        split: "train" or "test"; a validation split serves as test where there is no test split, or one without labels.
        image_size: resize to squares of this side (the shorter side first, then the centre); None keeps them.
        image_column: needed only where several columns hold images.
        label_column: needed only where several columns hold class labels.
        progress: show a bar while decoding.

    Raises:
        DataError: there is no such data set, split, image or label column, or a label is missing.
    """
    if name == "digits":
        return _digits(split, image_size or DIGITS_SIZE)
    images = _from_datasets(name, split, image_column, label_column)
    return replace(images, rows=_decode_once(replace(cast(Decoder, images.rows), size=image_size), progress))


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
        SettingsError: the augmentation is not one of those above.
        DataError: there are fewer images than one batch holds.
    """
    if augment not in AUGMENTATIONS:
        raise SettingsError(f"augmentation {augment!r} is not known. {nearest(augment, AUGMENTATIONS)}")
    if batch_size > len(images):
        raise DataError(
            f"a batch of {batch_size} cannot be filled from {len(images)} training images: set --batch-size"
        )
    rank, processes = shard
    device, steps = images.labels.device, range(skip, len(images) // batch_size)
    order = permutation("order", seed, epoch, len(images)).to(device)
    draws: Iterable[torch.Tensor] = (_draws(seed, epoch, step, batch_size, shard) for step in steps)
    if isinstance(images.rows, torch.Tensor):  # all of an epoch's at once: a copy in every step would make a GPU wait
        draws = torch.stack(list(draws)).to(device) if steps else ()
    for step, drawn in zip(steps, draws, strict=True):
        indices = order[step * batch_size : (step + 1) * batch_size][rank::processes]
        yield _pixels(images, indices, augment, image_size, drawn), images.labels[indices]


def evaluation_batches(
    images: Images, batch_size: int, *, image_size: int, shard: tuple[int, int] = (0, 1)
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield (batch number, pixels, labels) in the images' order; this process gets every processes-th batch."""
    rank, processes = shard
    for number in range(rank, math.ceil(len(images) / batch_size), processes):
        last = min((number + 1) * batch_size, len(images))
        indices = torch.arange(number * batch_size, last, device=images.labels.device)
        yield number, _pixels(images, indices, "none", image_size, None), images.labels[indices]


def channel_statistics(images: Images) -> tuple[list[float], list[float]]:
    """Return the channels' mean and standard deviation over up to 5,000 images, rounded to three decimals."""
    sample = [images.rows[i] for i in range(0, len(images), math.ceil(len(images) / 5000))]
    pixels = torch.cat([row.reshape(3, -1) for row in sample], dim=1).double() / 255
    return [round(v, 3) for v in pixels.mean(1).tolist()], [max(round(v, 3), 0.001) for v in pixels.std(1).tolist()]


def permutation(purpose: str, seed: int, epoch: int, size: int) -> torch.Tensor:
    """Return a random order of ``size`` things, int64, the same on every machine."""
    words = random_bytes(purpose, seed, str(epoch), 8 * size).view("<u8")
    return torch.from_numpy(np.argsort(words, kind="stable"))


def _fold(purpose: str, seed: int, epoch: int, step: int) -> int:
    return int(random_bytes(purpose, seed, f"{epoch}/{step}", 8).view("<u8")[0] >> np.uint64(1))


def _draws(seed: int, epoch: int, step: int, batch_size: int, shard: tuple[int, int]) -> torch.Tensor:
    """Return the random numbers of this process's samples of one batch, float32 (samples, 24) in [0, 1), on the CPU.

    Those of the whole batch are drawn on every process, so that they do not depend on how it is shared.
    """
    rank, processes = shard
    noise = torch.Generator().manual_seed(_fold("augment", seed, epoch, step))
    return torch.rand(batch_size, 24, dtype=torch.float32, generator=noise)[rank::processes]


def _pixels(images: Images, indices: torch.Tensor, augment: str, size: int, draws: torch.Tensor | None) -> torch.Tensor:
    if isinstance(images.rows, torch.Tensor) and augment != "imagenet" and images.rows.shape[-2:] == (size, size):
        batch = images.rows[indices]
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = pool.map(lambda i: images.rows[int(i)], indices)
            if augment == "imagenet" and draws is not None:
                batch = torch.stack(list(pool.map(lambda row, draw: _resized_crop(row, draw, size), rows, draws)))
            else:
                batch = torch.stack([_resize(row, size) for row in rows])
    # By a tensor on the device: a plain number's reciprocal would be multiplied by on CUDA, which rounds otherwise.
    pixels = batch.float() / torch.full((), 255.0, device=batch.device)
    if draws is not None and augment in ("crop", "cifar"):
        pixels = _random_crop(pixels, draws[:, 0], draws[:, 1])
    if draws is not None and augment in ("cifar", "imagenet"):
        pixels = torch.where((draws[:, 2] < 0.5).view(-1, 1, 1, 1), pixels.flip(3), pixels)
    return pixels


def _random_crop(pixels: torch.Tensor, down: torch.Tensor, right: torch.Tensor, padding: int = 4) -> torch.Tensor:
    """Pad with black and cut each sample at its own offset, all in one gather."""
    _, channels, height, width = pixels.shape
    padded = functional.pad(pixels, [padding] * 4)
    top = (down * (2 * padding + 1)).long().view(-1, 1) + torch.arange(height, device=down.device)
    left = (right * (2 * padding + 1)).long().view(-1, 1) + torch.arange(width, device=right.device)
    rows = padded.gather(2, top.view(-1, 1, height, 1).expand(-1, channels, -1, padded.shape[3]))
    return rows.gather(3, left.view(-1, 1, 1, width).expand(-1, channels, height, -1))


def _resized_crop(row: torch.Tensor, draws: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a random area of 8 to 100% and aspect 3/4 to 4/3, the first of ten tries that fits, and resize it."""
    height, width = row.shape[-2:]
    for area, aspect in zip(draws[3:13].tolist(), draws[13:23].tolist(), strict=True):
        pixels, ratio = height * width * (0.08 + 0.92 * area), (4 / 3) ** (2 * aspect - 1)
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(draws[0] * (height - h + 1)), int(draws[1] * (width - w + 1))
            return transforms.resized_crop(row, top, left, h, w, [size, size], antialias=True)
    return _resize(row, size)


def _resize(row: torch.Tensor, size: int) -> torch.Tensor:
    if row.shape[-2:] == (size, size):
        return row
    return transforms.center_crop(transforms.resize(row, [size], antialias=True), [size, size])


def _to_pixels(image: Image.Image, size: int | None) -> torch.Tensor:
    """Return uint8 (3, H, W) of an image of any mode of 8 bits, or of 16-bit grey, scaled to 8."""
    if image.mode.startswith("I"):
        values = np.asarray(image, np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError("an image has values beyond 16 bits: convert the images to 8 or 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise DataError("an image holds floating-point pixels: convert the images to 8 or 16 bits")
    row = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return row if size is None else _resize(row, size)


def _decode_once(rows: Decoder, progress: bool) -> "torch.Tensor | Decoder":
    """Return all images as one tensor where they are of one size and fit in memory, else the decoder itself."""
    first = rows[0]
    if first.numel() * len(rows) > _IN_MEMORY_BYTES:
        return rows
    decoded = torch.empty((len(rows), *first.shape), dtype=torch.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoding = tqdm(pool.map(rows.__getitem__, range(len(rows))), "decoding", len(rows), disable=not progress)
        for index, row in enumerate(decoding):
            if row.shape != first.shape:
                pool.shutdown(cancel_futures=True)
                return rows
            decoded[index] = row
    return decoded


@lru_cache(maxsize=4)
def _digits(split: str, size: int) -> Images:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = permutation("digits", 0, 0, len(data.target))
    chosen = {"train": order[_DIGITS_TEST:], "test": order[:_DIGITS_TEST]}[split]
    grey = torch.from_numpy(data.images / 16 * 255).round().to(torch.uint8)[chosen, None]
    rows = transforms.resize(grey, [size, size], antialias=True).expand(-1, 3, -1, -1).contiguous()
    return Images(rows, torch.from_numpy(data.target).long()[chosen], tuple("0123456789"), split)


def _from_datasets(
    name: str, split: str, image_column: str | None, label_column: str | None, without: str | None = None
) -> Images:
    import datasets

    splits = _load_dataset(name)
    candidates = [candidate for candidate in _SPLITS[split] if candidate in splits and candidate != without]
    found = next(iter(candidates), None)
    if found is None:
        raise DataError(
            f"data set {name} has the splits {', '.join(splits)}, and none for {split}: add one named {split}"
        )
    dataset = splits[found]
    if len(dataset) == 0:
        raise DataError(f"split {found} of data set {name} is empty")
    features = dataset.features
    images = [c for c, f in features.items() if isinstance(f, datasets.Image)]
    image = _column(name, "image", images, image_column, list(features))
    labels = [c for c, f in features.items() if isinstance(f, datasets.ClassLabel)]
    labels = labels or [c for c, f in features.items() if _is_whole(f)]
    label = _column(name, "label", labels, label_column, list(features))
    if not isinstance(features[label], datasets.ClassLabel) and not _is_whole(features[label]):
        raise DataError(
            f"column {label!r} of data set {name} holds no class labels: they are names of classes or numbers"
        )
    values = dataset.with_format(None).select_columns([label])[label]
    numbers = np.array([-1 if value is None else value for value in values], np.int64)
    if numbers.max() < 0 and len(candidates) > 1:  # as in ImageNet's test split, whose labels are kept secret
        return _from_datasets(name, split, image_column, label_column, without=found)
    if numbers.max() >= _MAX_CLASSES:
        raise DataError(
            f"column {label!r} of data set {name} reaches {numbers.max()}: choose the labels by --label-column"
        )
    names = getattr(features[label], "names", None) or [str(n) for n in range(int(numbers.max()) + 1)]
    if numbers.min() < 0 or numbers.max() >= len(names):
        raise DataError(f"data set {name}: a {label} of split {found} is missing or beyond its {len(names)} classes")
    rows = Decoder(dataset.select_columns([image]), image, None)
    return Images(rows, torch.from_numpy(numbers), tuple(names), found)


def _is_whole(feature: Any) -> bool:
    dtype = getattr(feature, "dtype", None)
    return type(feature).__name__ == "Value" and (str(dtype) == "bool" or "int" in str(dtype))


def _load_dataset(name: str) -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    if Path(name).is_dir():
        name = str(Path(name).resolve())
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DataError(
            f"data set {name!r} is neither a folder here, nor 'digits', nor a name on the Hub such as org/name"
        )
    try:
        return dict(datasets.load_dataset(name))
    except Exception as error:  # the library raises a dozen unrelated kinds
        raise DataError(f"data set {name} cannot be read as images with labels: {error}") from error


def _column(name: str, kind: str, candidates: Sequence[str], chosen: str | None, columns: Sequence[str]) -> str:
    if chosen is not None and chosen not in columns:
        raise DataError(f"data set {name} has no column {chosen!r}. {nearest(chosen, columns)}")
    if chosen is not None:
        return chosen
    if not candidates:
        raise DataError(
            f"data set {name} has no {kind} column among {', '.join(columns)}: give a labelled image data set"
        )
    if len(candidates) > 1:
        raise DataError(
            f"data set {name} has several {kind} columns: choose one of {', '.join(candidates)} by --{kind}-column"
        )
    return candidates[0]
