"""What a mask keeps: how many weights of each layer, and which, by the size of their scores."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..choices import LAYER_RATIOS as LAYER_RATIOS
from ..choices import PATTERNS as PATTERNS
from ..choices import check_remaining_ratio as check_remaining_ratio
from ..errors import SettingsError


def kept_count(size: int, remaining_ratio: float) -> int:
    """Return how many of ``size`` weights are kept: n - int((1 - ratio) n), as the paper's code rounds; at least 1."""
    return max(1, size - int((1 - remaining_ratio) * size))


def kept_counts(shapes: Mapping[str, Sequence[int]], remaining_ratio: float, layer_ratios: str) -> dict[str, int]:
    """Return how many weights of each layer are kept, by the layers' names.

    "uniform" keeps ``remaining_ratio`` of every layer, as the paper does. "erk", the Erdos-Renyi kernel (Evci et al.,
    2020, "Rigging the Lottery"), keeps as many in all, but for rounding up, and of a layer a share in proportion to the
    sum of its sides over their product: small layers keep more. A share that would be above 1 is 1, and the others are
    raised.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if layer_ratios == "uniform":
        return {name: kept_count(size, remaining_ratio) for name, size in sizes.items()}
    weight = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    whole: set[str] = set()
    while True:
        left = {name for name in sizes if name not in whole}
        due = remaining_ratio * sum(sizes.values()) - sum(sizes[name] for name in whole)
        factor = due / math.fsum(weight[name] * sizes[name] for name in sorted(left)) if left else 0.0
        over = {name for name in left if factor * weight[name] > 1}
        if not over:
            break
        whole |= over
    return {name: kept_count(size, 1.0 if name in whole else factor * weight[name]) for name, size in sizes.items()}


@torch.no_grad()
def top_k_mask(scores: torch.Tensor, kept: int) -> torch.Tensor:
    """Return the bool mask, of the shape of the float32 ``scores``, of the ``kept`` ones that are largest in size.

    Exact without a sort, and on CUDA without waiting for the device. Of equal scores at the threshold the last ones in
    row-major order stay, as in a stable ascending sort that keeps its end.

    Raises:
        SettingsError: the scores are not float32, whose bits are compared.
    """
    if scores.dtype != torch.float32:
        raise SettingsError(f"scores of {scores.dtype}: give float32 ones")
    size = scores.detach().view(torch.int32) & 0x7FFFFFFF  # without their signs, floats are in the order of their bits
    in_memory_order = size.as_strided((size.numel(),), (1,))  # a new tensor has no gaps
    if size.device.type == "cpu":
        values = in_memory_order.numpy()
        threshold = np.partition(values, len(values) - kept)[len(values) - kept]
        flags = values >= threshold  # torch takes thrice the time
        mask = torch.from_numpy(flags).as_strided(size.shape, size.stride())
        return mask if np.count_nonzero(flags) == kept else _resolve_ties(size, int(threshold), mask, kept)
    threshold = _kth_largest(in_memory_order, kept)
    return _resolve_ties(size, threshold, size >= threshold, kept)  # to ask whether there are any is to wait


def _kth_largest(values: torch.Tensor, kept: int) -> torch.Tensor:
    """Return the ``kept``-th largest of ``values`` (N,), of shape (), on their device.

    On CUDA, ``torch.topk`` shares a long row among many blocks and sorts only if asked to, where ``torch.kthvalue``
    has one block for a row. It is asked for the fewer: the largest, or the smallest.
    """
    below = len(values) - kept
    if kept <= below:
        return values.topk(kept, sorted=False).values.amin()
    return values.topk(below + 1, largest=False, sorted=False).values.amax()


def _resolve_ties(size: torch.Tensor, threshold: torch.Tensor | int, at_least: torch.Tensor, kept: int) -> torch.Tensor:
    """Return ``at_least`` without as many of those at the threshold as there are too many, the first ones."""
    tie = size == threshold
    number = tie.reshape(-1).cumsum(0).view(size.shape)
    return torch.where(tie, number > at_least.count_nonzero() - kept, at_least)
