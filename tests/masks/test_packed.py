import math
import struct
import zlib

import numpy as np
import pytest
import torch

from rst_hub.errors import TicketError
from rst_hub.masks.packed import HUFFMAN, PACKED, RICE, PackedMasks, encode_mask

RATIOS = (0.0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 1.0)


def decode_mask(data, size):
    return PackedMasks.decoded({"mask": data}, {"mask": (size,)})["mask"]


def random_mask(size, ratio, seed=0):
    mask = torch.zeros(size, dtype=torch.bool)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(size))
    mask[order[: round(ratio * size)]] = True
    return mask


def test_every_size_and_ratio_comes_back():
    cases = [(size, ratio) for size in (0, 1, 7, 8, 9, 63, 1000, 65537) for ratio in RATIOS]
    codecs = set()
    for size, ratio in cases:
        mask = random_mask(size, ratio)
        code = encode_mask(mask)
        codecs.add(code[0])
        assert torch.equal(decode_mask(code, size), mask), (size, ratio)
    assert len(cases) == 88
    assert codecs == {PACKED, HUFFMAN, RICE}


def test_the_shape_is_read_in_row_major_order():
    mask = random_mask(4 * 3 * 5 * 5, 0.3).view(4, 3, 5, 5)
    assert encode_mask(mask) == encode_mask(mask.contiguous(memory_format=torch.channels_last))
    assert torch.equal(decode_mask(encode_mask(mask), mask.numel()).view(mask.shape), mask)


def test_random_masks_come_near_the_shannon_bound():
    size, checked = 2_000_000, 0
    for ratio, limit in ((0.01, 1.03), (0.05, 1.02), (0.1, 1.02), (0.2, 1.02), (0.3, 1.02), (0.4, 1.02), (0.5, 1.01)):
        kept = round(ratio * size)
        bound = (math.lgamma(size + 1) - math.lgamma(kept + 1) - math.lgamma(size - kept + 1)) / math.log(2) / 8
        assert len(encode_mask(random_mask(size, ratio))) < limit * bound, ratio
        checked += 1
    assert checked == 7


def test_the_format_is_what_the_module_says():
    mask = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 1, 1], dtype=torch.bool)
    packed = struct.pack("<BBQ", PACKED, 0, 3) + bytes([0b00000001, 0b11])
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    huffman = struct.pack("<BBQ", HUFFMAN, 0, 3) + deflate.compress(bytes([1, 3])) + deflate.flush()
    # gaps 0, 7, 0 with parameter 2: quotients 0, 1, 0 -> 1 01 1, remainders 00, 11, 00 (low bit first)
    rice = struct.pack("<BBQ", RICE, 2, 3) + bytes([0b1101, 0b001100])
    for code in (packed, huffman, rice):
        assert torch.equal(decode_mask(code, 10), mask)


@pytest.mark.parametrize("ratio", [0.02, 0.3, 0.5])
def test_any_damage_is_an_error_or_another_mask_never_a_crash(ratio):
    mask = random_mask(4096, ratio)
    code, outcomes = encode_mask(mask), []
    for position in range(len(code)):
        for bit in range(8):
            damaged = bytearray(code)
            damaged[position] ^= 1 << bit
            try:
                outcomes.append(not torch.equal(decode_mask(bytes(damaged), 4096), mask))
            except TicketError:
                outcomes.append(True)
    assert len(outcomes) == 8 * len(code)
    assert all(outcomes)


def test_truncated_and_lengthened_codes_are_refused():
    for ratio in (0.02, 0.3, 0.5):
        code = encode_mask(random_mask(4096, ratio))
        for wrong in (b"", code[:5], code[:-1], code[: len(code) // 2], code + b"\0", code + b"\1" * 99):
            with pytest.raises(TicketError):
                decode_mask(wrong, 4096)


def test_a_bomb_is_refused_before_it_is_unpacked():
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflate.compress(bytes(50_000_000)) + deflate.flush()
    with pytest.raises(TicketError, match="does not end"):
        decode_mask(struct.pack("<BBQ", HUFFMAN, 0, 0) + bomb, 64)
    with pytest.raises(TicketError, match="claims to keep"):
        decode_mask(struct.pack("<BBQ", RICE, 1, 2**60), 64)
    with pytest.raises(TicketError, match="cannot be its Rice code"):
        decode_mask(struct.pack("<BBQ", RICE, 1, 64) + bytes(10**6), 64)
    with pytest.raises(TicketError, match="cannot be its Rice code"):  # a code that is longer than the packed bits
        decode_mask(struct.pack("<BBQ", RICE, 24, 900_000) + bytes(2_700_000), 1_000_000)
    with pytest.raises(TicketError, match="codec 9"):
        decode_mask(struct.pack("<BBQ", 9, 0, 0), 64)
