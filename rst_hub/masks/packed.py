"""A boolean mask to bytes and back: packed, or packed and entropy-coded, whichever is smaller; checked when read.

Layout: one byte codec, one byte Rice parameter, eight bytes little-endian count of ones, then the code.
Mask bits are in row-major order, the first of eight in the lowest bit of its byte.

codec 0   the packed bits as they are
codec 1   the packed bits, raw deflate with Huffman coding only (best where 10 to 50% are ones)
codec 2   Golomb-Rice code of the gaps between ones (best where fewer are): all quotients in unary (that many
          zeros, then a one), padded to a byte, then all remainders, each in as many bits as the Rice parameter says
"""

import math
import struct
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from ..errors import TicketError

PACKED, HUFFMAN, RICE = 0, 1, 2
_RICE_PARAMETERS = range(1, 25)  # 0 would be the packed bits again
_HEADER = struct.Struct("<BBQ")


def encode_mask(mask: torch.Tensor) -> bytes:
    """Return the smallest of the codes of a bool tensor of any shape (read in row-major order); Rice's if by 0.3%."""
    flat = mask.detach().cpu().reshape(-1).numpy()
    kept = int(np.count_nonzero(flat))
    packed = np.packbits(flat, bitorder="little").tobytes()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    candidates = [
        (PACKED, 0, packed),
        (HUFFMAN, 0, deflate.compress(packed) + deflate.flush()),
        (RICE, *_rice_encode(flat)),
    ]
    # A Rice code takes three times as long to read where many are ones, and is then no smaller to speak of.
    codec, parameter, code = min(
        candidates, key=lambda candidate: len(candidate[2]) * (1.003 if candidate[0] == RICE else 1)
    )
    return _HEADER.pack(codec, parameter, kept) + code


def packed_mask(data: bytes, size: int) -> np.ndarray:
    """Return the packed bits of what :func:`encode_mask` wrote: uint8 (size / 8, rounded up), the padding 0.

    Whatever ``data`` claims, it never allocates more than some tens of bytes for each of its own and of ``size`` / 8.

    Raises:
        TicketError: ``data`` is not a code of exactly ``size`` bits.
    """
    codec, parameter, kept = _read_header(data, size)
    code = data[_HEADER.size :]
    if parameter and codec != RICE:
        raise TicketError(f"mask of {size} bits: codec {codec} has no parameter, but its header has {parameter}")
    if codec == PACKED:
        packed = _checked_bits(code, size)
    elif codec == HUFFMAN:
        packed = _checked_bits(_inflate(code, (size + 7) // 8), size)
    elif codec == RICE:
        return _rice_decode(code, parameter, kept, size)  # which has as many ones as it has gaps
    else:
        raise TicketError(f"mask of {size} bits: codec {codec} is not known to this version of rst-hub; upgrade it")
    ones = int(np.count_nonzero(_unpacked(packed, size)))
    if ones != kept:
        raise TicketError(f"mask of {size} bits: {ones} are set, but its header says {kept}")
    return packed


class PackedMasks(Mapping[str, torch.Tensor]):
    """Masks by weight name, held in one bit a weight: each is made a bool tensor of its shape when it is asked for."""

    def __init__(self, masks: Mapping[str, torch.Tensor]) -> None:
        self._held = {name: (_pack(mask), tuple(mask.shape)) for name, mask in masks.items()}

    @classmethod
    def decoded(cls, codes: Mapping[str, bytes], shapes: Mapping[str, tuple[int, ...]]) -> "PackedMasks":
        """Return the masks of these codes; errors are those of :func:`packed_mask`."""
        masks = cls({})
        masks._held = {name: (packed_mask(code, math.prod(shapes[name])), shapes[name]) for name, code in codes.items()}
        return masks

    def packed(self, name: str) -> np.ndarray:
        """Return one mask's packed bits, as :func:`packed_mask` does."""
        return self._held[name][0]

    def __getitem__(self, name: str) -> torch.Tensor:
        packed, shape = self._held[name]
        return _unpacked(packed, math.prod(shape)).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __repr__(self) -> str:
        weights = sum(math.prod(shape) for _, shape in self._held.values())
        return f"PackedMasks({len(self)} masks of {weights:,} weights)"


def kept_in(data: bytes, size: int) -> int:
    """Return how many of ``size`` bits a code claims to set, from its header alone.

    Raises:
        TicketError: it is too short for a header, or claims more than there are.
    """
    return _read_header(data, size)[2]


def _read_header(data: bytes, size: int) -> tuple[int, int, int]:
    if len(data) < _HEADER.size:
        raise TicketError(f"mask of {size} bits: {len(data)} bytes are too short for its header")
    codec, parameter, kept = _HEADER.unpack_from(data)
    if kept > size:
        raise TicketError(f"mask of {size} bits claims to keep {kept} of them")
    return codec, parameter, kept


def _pack(mask: torch.Tensor) -> np.ndarray:
    return np.packbits(mask.detach().cpu().reshape(-1).numpy(), bitorder="little")


def _unpacked(packed: np.ndarray, size: int) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(packed, count=size, bitorder="little").view(np.bool_))


def _checked_bits(packed: bytes, size: int) -> np.ndarray:
    if len(packed) != (size + 7) // 8:
        raise TicketError(f"mask of {size} bits: {len(packed)} packed bytes where {(size + 7) // 8} are due")
    if size % 8 and packed[-1] >> size % 8:
        raise TicketError(f"mask of {size} bits: the padding behind its last bit is not zero")
    return np.frombuffer(packed, np.uint8)


def _inflate(code: bytes, size: int) -> bytes:
    inflate = zlib.decompressobj(-15)
    try:
        packed = inflate.decompress(code, size + 1)
    except zlib.error as error:
        raise TicketError(f"mask: its deflate stream is damaged ({error})") from error
    if len(packed) != size or not inflate.eof or inflate.unused_data:
        raise TicketError(f"mask: its deflate stream does not end after exactly {size} bytes")
    return packed


def _rice_encode(flat: np.ndarray) -> tuple[int, bytes]:
    gaps = np.diff(np.flatnonzero(flat), prepend=-1) - 1
    lengths = [gaps.size * (1 + r) + int((gaps >> r).sum()) for r in _RICE_PARAMETERS]
    parameter = _RICE_PARAMETERS[int(np.argmin(lengths))]
    quotients = gaps >> parameter
    unary = np.zeros(int(quotients.sum()) + gaps.size, np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 1
    remainders = (gaps[:, None] >> np.arange(parameter)) & 1
    code = np.packbits(unary, bitorder="little").tobytes()
    return parameter, code + np.packbits(remainders.astype(np.uint8), bitorder="little").tobytes()


def _rice_decode(code: bytes, parameter: int, kept: int, size: int) -> np.ndarray:
    tail = (kept * parameter + 7) // 8
    # No honest code is longer than the packed bits: those would have been taken instead.
    if parameter not in _RICE_PARAMETERS or not tail <= len(code) <= (size + 7) // 8:
        raise TicketError(f"mask of {size} bits: {len(code)} bytes cannot be its Rice code")
    unary = np.unpackbits(np.frombuffer(code, np.uint8, len(code) - tail), bitorder="little")
    ends = np.flatnonzero(unary.view(np.bool_))  # four times as fast as on bytes
    due = (int(ends[-1]) // 8 + 1) * 8 if ends.size else 0
    if ends.size != kept or unary.size != due:
        raise TicketError(f"mask of {size} bits: its Rice code holds {ends.size} gaps where {kept} are due")
    if kept * parameter % 8 and code[-1] >> kept * parameter % 8:
        raise TicketError(f"mask of {size} bits: the padding behind its Rice code is not zero")
    # Before the i-th one (from 0) are i ones and i + 1 gaps, in whose unary code that one is bit ends[i]; so it is at
    # (ends[i] - i) * 2**parameter + the remainders up to its own + i. In place, as new memory costs more than sums.
    indices = np.left_shift(ends, parameter, out=ends)
    indices += _rice_sums(code[len(code) - tail :], parameter, kept)
    if kept and indices[-1] >= size:
        raise TicketError(f"mask of {size} bits: its Rice code reaches bit {indices[-1]}")
    flat = np.zeros(size, np.bool_)
    flat[indices] = True
    return np.packbits(flat, bitorder="little")


def _rice_sums(code: bytes, parameter: int, kept: int) -> np.ndarray:
    """Return the sum of the remainders up to each, less 2**parameter - 1 for each before it, int64 (kept,).

    Eight remainders take as many bytes as each has bits. Sums are taken within all eights at once, then over them: to
    add one after the other takes twice the time.
    """
    rows = np.zeros((math.ceil(kept / 8), parameter), np.uint8)
    rows.reshape(-1)[: len(code)] = np.frombuffer(code, np.uint8)
    columns, largest = np.ascontiguousarray(rows.T), (1 << parameter) - 1
    sums = np.empty((8, len(rows)), np.int64)
    for position in range(8):
        first, shift = divmod(position * parameter, 8)
        last = (position * parameter + parameter - 1) // 8
        word: np.ndarray = columns[first]
        for column in range(first + 1, last + 1):
            word = word | columns[column].astype(np.uint32) << 8 * (column - first)
        sums[position] = word >> shift & largest
    sums -= largest
    for position in range(1, 8):
        sums[position] += sums[position - 1]
    sums[:, 1:] += np.cumsum(sums[7, :-1])
    found = sums.T.reshape(-1)[:kept]
    found += largest
    return found
