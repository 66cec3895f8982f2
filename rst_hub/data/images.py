"""A data set name or folder to batches of pixels in [0, 1]: decoded once where it fits, augmented per sample.

``digits`` is scikit-learn's (no download); any other name is a folder here or a data set on the Hugging Face Hub
(:mod:`rst_hub.data.splits`). The order of training samples depends on the seed and the epoch alone, so any number of
processes sees the same batches.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms

from ..errors import DataError
from .decoding import Decoder, broken_rows, decode_all, digest_of
from .folders import ALL, SPLITS
from .order import permutation
from .splits import Split, read_splits

DIGITS_SIZE = 32
_DIGITS_TEST = 500


@dataclass(frozen=True)
class Images:
    """Labelled images, as :func:`load_images` returns them; you can make them of tensors of your own too.

    Attributes:
        rows: pixels from 0 to 255, uint8 (N, 3, H, W), where the images are of one size and fit in memory; else what
            decodes them when asked: ``rows[i]`` is uint8 (3, H, W) either way.
        labels: the class of each, int64 (N,).
        classes: the classes' names, ``classes[labels[i]]`` that of image ``i``.
        split: the data set's own name of the split they are from.
        encoded: the same images as they are stored; None for tensors.
        notes: what was found and left out, as sentences.
        skipped: how many images could not be decoded.
    """

    rows: torch.Tensor | Decoder
    labels: torch.Tensor
    classes: tuple[str, ...]
    split: str = ""
    encoded: Decoder | None = None
    notes: tuple[str, ...] = ()
    skipped: int = 0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __repr__(self) -> str:
        held = "x".join(map(str, self.rows.shape[1:])) if isinstance(self.rows, torch.Tensor) else "decoded when asked"
        return f"Images({len(self):,} of {len(self.classes)} classes, split={self.split!r}, {held})"

    def subset(self, indices: torch.Tensor) -> "Images":
        """Return the images at these positions, in this order."""
        rows = self.rows[indices] if isinstance(self.rows, torch.Tensor) else self.rows.subset(indices)
        encoded = None if self.encoded is None else self.encoded.subset(indices)
        return replace(self, rows=rows, labels=self.labels[indices], encoded=encoded)

    def to(self, device: torch.device) -> "Images":
        """Return the images on ``device``, where batches are then made too; the pixels are the same on every device.

        What is no tensor, or takes more than a quarter of a GPU's free memory, stays where it is.
        """
        if not isinstance(self.rows, torch.Tensor):
            return self
        if device.type == "cuda" and self.rows.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
            return self
        return replace(self, rows=self.rows.to(device), labels=self.labels.to(device))


def load_images(
    name: str | Path,
    split: str,
    *,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    skip_broken: bool = False,
    progress: bool = False,
) -> Images:
    """Return one split of a data set.

    Where a data set has a split to train on and no other with labels, a fifth of each class is its test split, chosen
    by a seed of 0: the same fifth each time, for every recipe. ``Images.notes`` says so, and how many files of a folder
    were found and left out.

    Args:
        name: ``digits``, a folder (class folders of images, with or without train/ and test/ above them; parquet, csv
            or json files; images with a metadata file), or a name on the Hub.
        split: "train" or "test"; a validation split serves as test where there is no test split, or one without labels.
        image_size: resize to squares of this side (the shorter side first, then the centre); None keeps them.
        image_column: needed only where several columns hold images.
        label_column: needed only where several columns hold class labels.
        skip_broken: leave out what cannot be decoded, and say so in the notes; every image is decoded once for it.
        progress: show a bar while decoding.

    Raises:
        DataError: there is no such data set, split, image or label column, a label is missing, a file is in two splits,
            images cannot be decoded, or image_size is no whole number from 1.
    """
    name = str(name)
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1):
        raise DataError(f"image_size={image_size!r}: give the side of the square images in pixels, or None")
    if split not in SPLITS:
        raise DataError(f"split {split!r} is not known: give 'train' or 'test', which stand for names alike")
    if name == "digits":
        return _digits(split, image_size or DIGITS_SIZE)
    splits, classes = read_splits(name, image_column, label_column)
    found = _chosen(name, splits, split)
    unused = _unused(name, splits)
    if len(found.numbers) == 0:
        raise DataError(f"split {found.name} of data set {name} is empty")
    if found.numbers.min() < 0:
        raise DataError(f"data set {name}: a label of split {found.name} is missing: add it, or remove the image")
    images = Images(replace(found.rows, size=image_size), torch.from_numpy(found.numbers), classes, found.name)
    images = replace(images, notes=(*found.notes, *unused))
    images = _without_broken(images, progress) if skip_broken else images
    return resized(images, image_size, progress)


def resized(images: Images, image_size: int | None, progress: bool = False) -> Images:
    """Return images from a data set, decoded anew as squares of this side, or as they are for None.

    Raises:
        DataError: images cannot be decoded.
    """
    encoded = images.rows if isinstance(images.rows, Decoder) else images.encoded
    if encoded is None:
        raise DataError("these images are not from a data set: resize their rows")
    encoded = replace(encoded, size=image_size)
    return replace(images, rows=decode_all(encoded, progress), encoded=encoded)


def name_of(dataset: str) -> str:
    """Return what a data set is called beside a number: the name of its folder, or its name on the Hub.

    Raises:
        DataError: the folder has no name.
    """
    folder = Path(os.path.expanduser(dataset))
    name = folder.resolve().name if dataset != "digits" and folder.is_dir() else dataset
    if not name.strip():
        raise DataError(f"data set {dataset!r} has no name to stand beside its numbers: give one by --dataset-name")
    return name.encode(errors="replace").decode()  # JSON holds no half characters


def fingerprint(images: Images) -> str:
    """Return a SHA-256, in hex, that changes with the images, their order, their labels or the classes' names.

    Of a data set it is of the files as they are, see :func:`~.decoding.digest_of`, so that it depends neither on
    where they lie nor on what decodes them.
    """
    sha = hashlib.sha256(json.dumps([list(images.classes), len(images)]).encode())
    sha.update(images.labels.cpu().numpy().tobytes())
    encoded = images.rows if isinstance(images.rows, Decoder) else images.encoded
    if encoded is not None:
        sha.update(digest_of(encoded).encode())
    else:
        rows = cast(torch.Tensor, images.rows).cpu().contiguous()
        sha.update(f"{tuple(rows.shape)}".encode())
        sha.update(rows.numpy().data)
    return sha.hexdigest()


@lru_cache(maxsize=4)
def _digits(split: str, size: int) -> Images:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = permutation("digits", 0, 0, len(data.target))
    chosen = {"train": order[_DIGITS_TEST:], "test": order[:_DIGITS_TEST]}[split]
    grey = torch.from_numpy(data.images / 16 * 255).round().to(torch.uint8)[chosen, None]
    rows = transforms.resize(grey, [size, size], antialias=True).expand(-1, 3, -1, -1).contiguous()
    return Images(rows, torch.from_numpy(data.target).long()[chosen], tuple("0123456789"), split)


def _candidates(splits: Mapping[str, Split]) -> tuple[list[Split], list[Split], list[Split]]:
    """Return the splits to train on, those to test on, and of the latter those with labels; each best first."""
    named = {key: split for split in splits.values() for key in [split.name.lower()]}
    of_train = [named[alias] for alias in (*SPLITS["train"], ALL) if alias in named]
    of_test = [named[alias] for alias in SPLITS["test"] if alias in named and len(named[alias].numbers)]
    labelled = [split for split in of_test if split.numbers.max() >= 0]  # ImageNet's test labels are kept secret
    return of_train, of_test, labelled


def _chosen(name: str, splits: Mapping[str, Split], wanted: str) -> Split:
    """Return the split that a data set has for "train" or "test": one of its own, or a part of the only one."""
    of_train, of_test, labelled = _candidates(splits)
    if wanted == "train" and not of_train:
        raise DataError(f"data set {name} has the splits {', '.join(splits)}, and none for train: add one named train")
    if wanted == "test" and of_test and not of_train:
        return (labelled or of_test)[0]
    if not labelled and not of_train:
        raise DataError(f"data set {name} has the splits {', '.join(splits)}, and none for test: add one named test")
    if not labelled:
        return _part_of(name, of_train[0], wanted)
    return of_train[0] if wanted == "train" else labelled[0]


def _unused(name: str, splits: Mapping[str, Split]) -> tuple[str, ...]:
    """Return a note on the splits that neither training nor test images are from; none where all are used."""
    of_train, of_test, labelled = _candidates(splits)
    used = [split.name for split in (*of_train[:1], *(labelled or ([] if of_train else of_test))[:1])]
    left = [split.name for split in splits.values() if split.name not in used]
    return (f"{name}: left out the splits {', '.join(sorted(left))}",) if left else ()


def _part_of(name: str, split: Split, wanted: str) -> Split:
    """Return four fifths of each class to train on, or the other fifth to test, chosen by a seed of 0."""
    order = permutation("test split", 0, 0, len(split.numbers)).numpy()
    held = [row for number in np.unique(split.numbers) for row in _fifth(order[split.numbers[order] == number])]
    is_test = np.isin(np.arange(len(split.numbers)), held)
    chosen = np.flatnonzero(is_test if wanted == "test" else ~is_test)
    if not len(held) or len(held) == len(split.numbers):
        raise DataError(
            f"data set {name} has the splits {split.name}, and none for test: add one named test, or more images of "
            "each class, a fifth of which are then the test split"
        )
    whole = "the data set has one split" if split.name == ALL else f"no split with labels beside {split.name}"
    note = f"{whole}: {len(held):,} of its {len(split.numbers):,} images, a fifth of each class, are the test split"
    part = "train" if wanted == "train" else f"test (a fifth of {split.name})"
    rows = split.rows.subset(torch.from_numpy(chosen))
    return Split(part, rows, split.numbers[chosen], (*split.notes, f"{note}; seed 0 chooses them"))


def _fifth(rows: np.ndarray) -> np.ndarray:
    return rows[: round(len(rows) / 5) or (1 if len(rows) > 1 else 0)]


def _without_broken(images: Images, progress: bool) -> Images:
    """Return the images that can be decoded; the notes count and list the others."""
    broken = broken_rows(cast(Decoder, images.rows), progress)
    if not broken:
        return images
    if len(broken) == len(images):
        raise DataError(f"no image of split {images.split} can be decoded: {broken[0]}")
    left = images.subset(torch.tensor([index for index in range(len(images)) if index not in broken]))
    reasons = [line.removesuffix(": mend or remove it, or leave it out (--skip-broken)") for line in broken.values()]
    note = f"split {images.split}: left out {len(broken)} of {len(images)} images that cannot be decoded"
    gone = [images.classes[number] for number in images.labels.unique().tolist() if number not in left.labels]
    lost = (f"no image is left of {', '.join(gone)}",) if gone else ()
    return replace(left, skipped=len(broken), notes=(*images.notes, note, *lost, *(f"  {line}" for line in reasons)))
