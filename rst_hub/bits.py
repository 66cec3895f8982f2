"""A boolean mask to bytes and back: packed, or packed and entropy-coded, whichever is smallest; checked when read.

Layout: one byte codec, one byte Rice parameter, eight bytes little-endian count of ones, then the code.
Mask bits are in row-major order, the first of eight in the lowest bit of its byte.

codec 0   the packed bits as they are
codec 1   the packed bits, raw deflate with Huffman coding only (best where 10 to 50% are ones)
codec 2   Golomb-Rice code of the gaps between ones (best where fewer are): all quotients in unary (that many
          zeros, then a one), padded to a byte, then all remainders, each in as many bits as the Rice parameter says
"""

import struct
import zlib

import numpy as np
import torch

from .errors import TicketError

PACKED, HUFFMAN, RICE = 0, 1, 2
_RICE_PARAMETERS = range(1, 25)  # 0 would be the packed bits again
_HEADER = struct.Struct("<BBQ")


def encode_mask(mask: torch.Tensor) -> bytes:
    """Return the smallest of the three codes of a bool tensor of any shape (read in row-major order)."""
    flat = mask.detach().cpu().reshape(-1).numpy()
    kept = int(np.count_nonzero(flat))
    packed = np.packbits(flat, bitorder="little").tobytes()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    candidates = [
        (PACKED, 0, packed),
        (HUFFMAN, 0, deflate.compress(packed) + deflate.flush()),
        (RICE, *_rice_encode(flat)),
    ]
    codec, parameter, code = min(candidates, key=lambda candidate: len(candidate[2]))
    return _HEADER.pack(codec, parameter, kept) + code


def decode_mask(data: bytes, size: int) -> torch.Tensor:
    """Return the bool tensor of shape (size,) that :func:`encode_mask` wrote.

    Whatever ``data`` claims, it never allocates more than some tens of bytes for each of its own and of ``size`` / 8.

    Raises:
        TicketError: ``data`` is not a code of exactly ``size`` bits.
    """
    codec, parameter, kept = _read_header(data, size)
    code = data[_HEADER.size :]
    if parameter and codec != RICE:
        raise TicketError(f"mask of {size} bits: codec {codec} has no parameter, but its header has {parameter}")
    if codec == PACKED:
        flat = _unpack(code, size)
    elif codec == HUFFMAN:
        flat = _unpack(_inflate(code, (size + 7) // 8), size)
    elif codec == RICE:
        flat = _rice_decode(code, parameter, kept, size)
    else:
        raise TicketError(f"mask of {size} bits: codec {codec} is not known to this version of rst-hub; upgrade it")
    if int(np.count_nonzero(flat)) != kept:
        raise TicketError(f"mask of {size} bits: {np.count_nonzero(flat)} are set, but its header says {kept}")
    return torch.from_numpy(flat.view(np.bool_))


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


def _unpack(packed: bytes, size: int) -> np.ndarray:
    if len(packed) != (size + 7) // 8:
        raise TicketError(f"mask of {size} bits: {len(packed)} packed bytes where {(size + 7) // 8} are due")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    if bits[size:].any():
        raise TicketError(f"mask of {size} bits: the padding behind its last bit is not zero")
    return bits[:size]


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
    ends = np.flatnonzero(unary)
    due = (int(ends[-1]) // 8 + 1) * 8 if ends.size else 0
    if ends.size != kept or unary.size != due:
        raise TicketError(f"mask of {size} bits: its Rice code holds {ends.size} gaps where {kept} are due")
    bits = np.unpackbits(np.frombuffer(code, np.uint8, tail, len(code) - tail), bitorder="little")
    if bits[kept * parameter :].any():
        raise TicketError(f"mask of {size} bits: the padding behind its Rice code is not zero")
    gaps = (np.diff(ends, prepend=-1) - 1) << parameter
    for position in range(parameter):
        gaps |= bits[position : kept * parameter : parameter].astype(np.int64) << position
    indices = np.cumsum(gaps + 1) - 1
    if kept and indices[-1] >= size:
        raise TicketError(f"mask of {size} bits: its Rice code reaches bit {indices[-1]}")
    flat = np.zeros(size, np.uint8)
    flat[indices] = 1
    return flat
