"""An attack and an objective of somebody's own, in a file outside the package: docs/extend.md shows it."""

import torch
from torch.nn import functional


def sign_steps(model, x, y, threat_model, *, generator=None):
    """Take four steps of half a budget along the sign of the gradient, from a random start."""
    eps = threat_model.eps
    noise = torch.rand(x.shape, generator=generator, device=x.device)
    attacked = (x + eps * (2 * noise - 1)).clamp(0, 1)
    for _ in range(4):
        attacked.requires_grad_()
        functional.cross_entropy(model(attacked), y, reduction="sum").backward()
        attacked = attacked.detach() + eps / 2 * attacked.grad.sign()
        attacked = torch.minimum(torch.maximum(attacked, x - eps), x + eps).clamp(0, 1)
    return attacked


def half_clean(network, x, attacked, y):
    """Return half the loss of clean pixels and half of attacked ones, and the logits under attack."""
    clean, logits = network(torch.cat([x, attacked])).float().chunk(2)
    return (functional.cross_entropy(clean, y) + functional.cross_entropy(logits, y)) / 2, logits
