"""Digests of tensors: of masks and states byte by byte, of made weights by sums that cost little."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from ..networks.weights import SeededTensor, Ternary

_BLOCK_ROWS, _CACHED = 32, 2**20


def digest(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> str:
    """Return the SHA-256, in hex, of the named tensors' names, dtypes, shapes and bytes, in sorted order."""
    sha = hashlib.sha256()
    for name in sorted(names):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def weights_digest(tensors: Mapping[str, torch.Tensor], seeded: Mapping[str, SeededTensor]) -> str:
    """Return the SHA-256, in hex, of what the tensors are that ``seeded`` describes, in the order of their names.

    A masked weight that is +scale, -scale or +0.0 everywhere (:class:`Ternary`) counts as its name,
    shape, scale and two bits a weight, those of +scale and those of -scale: they say all of it in a sixteenth of its
    bytes. Any other tensor counts as its name, dtype, shape and bytes.

    Bits and bytes count by their sums: they are read as little-endian 64-bit integers in blocks of 32 rows of 64 for
    bits, of 512 for bytes. Each block gives the sums of its columns, each row its sum, modulo 2**64; what fills no
    block stands for itself. That takes a fifth of the time of hashing all, and no mistake in making weights escapes it
    but one that cancels out in rows and columns at once. Forgers could write any digest anyway: edited files are for
    SHA-256 to find.
    """
    return digest_of_weights(tensors.__getitem__, seeded)


def digest_of_weights(made: Callable[[str], torch.Tensor | Ternary], seeded: Mapping[str, SeededTensor]) -> str:
    """Return :func:`weights_digest` of weights that ``made`` gives one by one."""
    sha = hashlib.sha256()
    for name, spec in sorted(seeded.items()):
        values = made(name)
        bits = Ternary.of(values, spec.scale) if spec.masked and isinstance(values, torch.Tensor) else None
        for part in _counted(name, values if bits is None else bits):
            sha.update(part)
    return sha.hexdigest()


def _counted(name: str, values: torch.Tensor | Ternary) -> Iterator[Any]:
    """Give what :func:`weights_digest` takes of a tensor."""
    if isinstance(values, Ternary):
        yield f"{name}\0ternary\0{values.shape}\0{values.scale!r}\0".encode()
        for bits in (values.plus, values.minus):
            yield from _sums(bits, 64)
        return
    tensor = values.detach().cpu().contiguous()
    yield f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode()
    yield from _sums(tensor.reshape(-1).view(torch.uint8).numpy(), 512)


def _sums(part: np.ndarray, words: int) -> Iterator[np.ndarray]:
    """Give the sums of columns, those of rows, and the rest of bytes in blocks of 32 rows of so many words."""
    whole = part.size - part.size % (8 * _BLOCK_ROWS * words)
    blocks = part[:whole].view("<u8").reshape(-1, _BLOCK_ROWS, words)
    at_once = _CACHED // (8 * _BLOCK_ROWS * words)  # so that the second sum finds them cached
    pieces = [blocks[start : start + at_once] for start in range(0, len(blocks), at_once)]
    sums = [(piece.sum(1), piece.sum(2)) for piece in pieces]
    yield from (columns.astype("<u8", copy=False) for columns, _ in sums)
    yield from (rows.astype("<u8", copy=False) for _, rows in sums)
    yield part[whole:]
