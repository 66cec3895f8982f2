"""Orders that depend on a purpose, a seed and an epoch alone, the same on every machine."""

import numpy as np
import torch

from ..networks.weights import random_bytes


def permutation(purpose: str, seed: int, epoch: int, size: int) -> torch.Tensor:
    """Return a random order of ``size`` things, int64, the same on every machine."""
    words = random_bytes(purpose, seed, str(epoch), 8 * size).view("<u8")
    return torch.from_numpy(np.argsort(words, kind="stable"))


def fold_seed(purpose: str, seed: int, epoch: int, step: int) -> int:
    """Return a seed for torch that depends on the purpose, the seed, the epoch and the step."""
    return int(random_bytes(purpose, seed, f"{epoch}/{step}", 8).view("<u8")[0] >> np.uint64(1))
