"""What has lifted robust accuracy since the paper, as options of the loop: one function each, with its source.

Objectives map (network, clean pixels, attacked pixels, labels) to (loss, logits under attack). Layer-wise ratios, the
fourth option, are in :mod:`rst_hub.masks.edge_popup`; longer schedules are ``--epochs``.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torch.nn import functional

OBJECTIVES = {
    "cross_entropy": "of what is attacked (Madry et al., 2018): what the paper minimises",
    "trades": "clean cross-entropy plus --trades-beta times the divergence (Zhang et al., 2019)",
}
"""What search.py and train.py take as --loss."""
Objective = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def adversarial(
    network: nn.Module, x: torch.Tensor, attacked: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of what is attacked (Madry et al., 2018; paper, equation 1): what the paper minimises."""
    logits = network(attacked).float()
    return functional.cross_entropy(logits, y), logits


def trades(
    network: nn.Module, x: torch.Tensor, attacked: torch.Tensor, y: torch.Tensor, *, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the clean pixels plus beta KL(p(x) || p(x')) (Zhang et al., 2019, equation 5).

    Both go through the network in one batch, which one set of batch-norm statistics is taken of.
    """
    clean, logits = network(torch.cat([x, attacked])).float().chunk(2)
    divergence = functional.kl_div(logits.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)
    return functional.cross_entropy(clean, y) + beta * divergence, logits


@torch.no_grad()
def climb(learned: Mapping[str, nn.Parameter], share: float) -> dict[str, torch.Tensor]:
    """Move each matrix of what is learned along its gradient, by ``share`` of its own norm; return what it was.

    The gradient taken there, and applied to what it was, looks for a flat minimum: AWP of weights (Wu et al., 2020);
    of scores, whose masks follow, S2AP (Piras et al., 2025, arXiv:2510.18381). Vectors (biases, norms) stay.
    """
    before = {}
    for name, tensor in learned.items():
        if tensor.ndim > 1 and tensor.grad is not None:
            before[name] = tensor.detach().clone()
            direction = tensor.grad / tensor.grad.abs().amax()  # squares of tiny gradients would be 0
            step = direction * (share * tensor.norm() / direction.norm())
            tensor.add_(step.nan_to_num(0, 0, 0))  # a gradient of 0, or one that overflowed in fp16, moves nothing
    return before


@torch.no_grad()
def put_back(learned: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Give tensors the values of their namesakes, as those that :func:`climb` moved had before."""
    for name, tensor in values.items():
        learned[name].copy_(tensor)


@torch.no_grad()
def follow(average: Mapping[str, torch.Tensor], learned: Mapping[str, nn.Parameter], decay: float, done: int) -> None:
    """Move an exponential moving average one step towards what is learned, after ``done`` steps (from 1 on).

    As for weights in adversarial training (Gowal et al., 2020, arXiv:2010.03593). The decay begins lower, at
    (1 + done) / (10 + done), so that the average forgets where it began.
    """
    decay = min(decay, (1 + done) / (10 + done))
    torch._foreach_lerp_([average[name] for name in learned], list(learned.values()), 1 - decay)


@torch.no_grad()
def retake_statistics(network: nn.Module, batches: Iterable[torch.Tensor], most: int = 50) -> None:
    """Take batch-norm statistics anew, as plain means over the first ``most`` batches: an average has none of its own.

    As stochastic weight averaging does (Izmailov et al., 2018).
    """
    torch.optim.swa_utils.update_bn(itertools.islice(batches, most), network)
