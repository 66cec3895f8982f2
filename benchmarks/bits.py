"""How long the codes of a ticket's masks take, and numpy's bit packing beside bitarray's; size.py has their sizes.

    pip install bitarray && python benchmarks/bits.py

Random element-wise masks of ResNet-101's 105 tensors, one thread; medians of 7.
"""

import importlib
import math

import numpy as np
import torch
from size import RATIOS
from timing import median

from rst_hub.masks.packed import encode_mask, packed_mask
from rst_hub.masks.patterns import kept_count
from rst_hub.networks.build import state_layout


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    layout = state_layout("resnet101", {})
    sizes = [math.prod(shape) for shape, _ in layout.values() if len(shape) > 1]
    print(f"{sum(sizes):,} mask bits in {len(sizes)} tensors")
    for ratio in RATIOS:
        masks = [random_mask(n, kept_count(n, ratio), seed) for seed, n in enumerate(sizes)]
        pairs = [(encode_mask(mask), mask.numel()) for mask in masks]
        decoding = median(lambda pairs=pairs: [packed_mask(code, n) for code, n in pairs])  # type: ignore[misc]
        print(f"  ratio {ratio:4}: decoded in {decoding:.0f} ms")
    bits = np.random.default_rng(0).random(sum(sizes)) < 0.05
    packed = np.packbits(bits)
    ours = median(lambda: np.packbits(bits)), median(lambda: np.unpackbits(packed))
    library = importlib.import_module("bitarray").bitarray(endian="big")
    theirs = median(lambda: library.copy().pack(bits.view(np.uint8).data))
    library.pack(bits.view(np.uint8).data)
    faster = theirs / ours[0], median(library.unpack) / ours[1]
    print(f"  numpy packs {faster[0]:.1f} and unpacks {faster[1]:.1f} times as fast as bitarray")


def random_mask(size: int, kept: int, seed: int) -> torch.Tensor:
    """Return a mask of ``size`` with ``kept`` ones anywhere."""
    mask = np.zeros(size, bool)
    mask[np.random.default_rng(seed).choice(size, kept, replace=False)] = True
    return torch.from_numpy(mask)


if __name__ == "__main__":
    main()
