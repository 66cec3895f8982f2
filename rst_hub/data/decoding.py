"""Encoded images to pixels: one by one or all at once, with the name of every file that cannot be decoded."""

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from ..errors import DataError, printable
from ..files import is_pointer

IN_MEMORY_BYTES = 8 * 2**30
_HASHED_BYTES, _SAMPLED = 2**30, 1000
_MOST_ELONGATED = 64
"""Longer than so many times its height, an image takes gigabytes once its shorter side is that of a network."""


@dataclass(frozen=True)
class Decoder:
    """Images that stay encoded: rows of ``dataset``, decoded one by one, as squares of ``size`` if that is given.

    ``dataset`` is of the datasets library, its ``column`` holds {"bytes", "path"}, and ``feature`` decodes that.
    """

    dataset: Any
    column: str
    feature: Any
    size: int | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return one image as uint8 of shape (3, H, W).

        Raises:
            DataError: it cannot be decoded; the message begins with its file's path.
        """
        content = self.encoded(index)
        try:  # from bytes: Pillow would keep the files of some formats open
            return to_pixels(self.feature.decode_example({"bytes": content, "path": None}), self.size)
        except Exception as error:  # Pillow and its plug-ins raise a dozen unrelated kinds
            said = re.sub(r" ?<_io\.BytesIO object at \w+>", "", printable(error, 300))
            reason = f"{type(error).__name__}: {said}"
            if is_pointer(content):
                reason = "it is a pointer to where git-lfs keeps the image: git lfs pull fetches it"
            raise DataError(
                f"{self.name(index)} cannot be decoded ({reason}): mend or remove it, or leave it out (--skip-broken)"
            ) from error

    def name(self, index: int) -> str:
        """Return the path of an image's file, or its row in the data set where it has none."""
        encoded = self.dataset[int(index)][self.column]
        path = encoded.get("path") if isinstance(encoded, dict) else None
        where = f"row {int(index)} of column {self.column!r}"
        if not path:
            return where
        return path if encoded.get("bytes") is None else f"{where} ({printable(path)})"

    def encoded(self, index: int) -> bytes:
        """Return the bytes of an image's file.

        Raises:
            DataError: there are none, or the file cannot be read.
        """
        found = self.dataset[int(index)][self.column] or {}
        if found.get("bytes") is not None:
            return found["bytes"]
        if not found.get("path"):
            raise DataError(f"{self.name(index)} holds no image: remove it, or leave it out (--skip-broken)")
        try:
            return Path(found["path"]).read_bytes()
        except OSError as error:
            raise DataError(
                f"{found['path']} cannot be read ({error.strerror or error}): mend or remove it, or leave it out "
                "(--skip-broken)"
            ) from error

    def nbytes(self, index: int) -> int:
        """Return how many bytes an image's file has."""
        found = self.dataset[int(index)][self.column] or {}
        if found.get("bytes") is None and found.get("path"):
            try:
                return os.stat(found["path"]).st_size
            except OSError:
                return 0
        return len(found.get("bytes") or b"")

    def extent(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image as it is, before it is resized."""
        height, width = replace(self, size=None)[index].shape[-2:]
        return height, width

    def subset(self, indices: torch.Tensor) -> "Decoder":
        """Return the rows at these positions, in this order."""
        return replace(self, dataset=self.dataset.select(indices.tolist()))


def decode_all(rows: Decoder, progress: bool) -> "torch.Tensor | Decoder":
    """Return all images as one tensor where they are of one size and fit in memory, else the decoder itself.

    Raises:
        DataError: images cannot be decoded; the first ones are named, the others counted.
    """
    first = next((row for row in map(_decoded, [rows] * len(rows), range(len(rows))) if not isinstance(row, str)), None)
    if first is not None and first.numel() * len(rows) > IN_MEMORY_BYTES:
        return rows
    decoded = None if first is None else torch.empty((len(rows), *first.shape), dtype=torch.uint8)
    broken: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoding = pool.map(_decoded, [rows] * len(rows), range(len(rows)))
        for index, row in enumerate(tqdm(decoding, "decoding", len(rows), disable=not progress)):
            if isinstance(row, str):
                broken.append(row)
            elif decoded is not None and row.shape == decoded.shape[1:]:
                decoded[index] = row
            else:  # of another size: go on for the sake of those that cannot be decoded
                decoded = None
    if broken:
        more = "" if len(broken) == 1 else f". In all {len(broken)} of {len(rows)} images cannot be decoded: "
        others = "; ".join(line.partition(" cannot be decoded")[0] for line in broken[1:6])
        raise DataError(f"{broken[0]}{more}{others}{'; ...' if len(broken) > 6 else ''}")
    return rows if decoded is None else decoded


def broken_rows(rows: Decoder, progress: bool) -> dict[int, str]:
    """Return why each row that cannot be decoded cannot, by its position; every image is decoded once for it."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoding = pool.map(_decoded, [rows] * len(rows), range(len(rows)))
        checked = tqdm(decoding, "looking for broken images", len(rows), disable=not progress)
        return {index: row for index, row in enumerate(checked) if isinstance(row, str)}


def digest_of(rows: Decoder) -> str:
    """Return a SHA-256, in hex, that changes when an image is edited, added, removed, moved or exchanged.

    It is of the files' bytes and not of their paths, so that a copy of the data elsewhere has the same. Of a set larger
    than a GiB it takes every file's size, and all bytes of 1,000 files that stand at regular distances.
    """
    sizes = np.array([rows.nbytes(index) for index in range(len(rows))], "<i8")
    sha = hashlib.sha256(sizes.tobytes())
    step = 1 if sizes.sum() <= _HASHED_BYTES else max(1, len(rows) // _SAMPLED)
    for index in range(0, len(rows), step):
        sha.update(hashlib.sha256(rows.encoded(index) if sizes[index] else b"").digest())
    return sha.hexdigest()


def resize(row: torch.Tensor, size: int) -> torch.Tensor:
    """Return the middle square of an image (3, H, W), its shorter side resized to ``size``."""
    if row.shape[-2:] == (size, size):
        return row
    return transforms.center_crop(transforms.resize(row, [size], antialias=True), [size, size])


def to_pixels(image: Image.Image, size: int | None) -> torch.Tensor:
    """Return uint8 (3, H, W) of an image of any mode of 8 bits, or of 16-bit grey, scaled to 8.

    Raises:
        DataError: it has other pixels, or is far longer than high.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image, np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError("it has values beyond 16 bits: convert it to 8 or 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise DataError("it has floating-point pixels: convert it to 8 or 16 bits")
    if size is not None and max(image.size) > _MOST_ELONGATED * min(image.size):
        raise DataError(f"it is {image.width} x {image.height} pixels, which has no middle square: cut it")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # the colours are the same, and Pillow does not warn of transparency
    row = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return row if size is None else resize(row, size)


def common_size(sizes: Sequence[tuple[int, int]]) -> int | None:
    """Return the side that all images have, or None where they are not squares of one size."""
    sides = {side for size in sizes for side in size}
    return sides.pop() if len(sides) == 1 else None


def _decoded(rows: Decoder, index: int) -> torch.Tensor | str:
    """Return one image, or why it cannot be decoded."""
    try:
        return rows[index]
    except DataError as error:
        return str(error)
