"""The published formulation of a search step, plainly: what the package does faster, to the same masks bit for bit.

Edge-popup (Ramanujan et al., 2020) under attack (Fu et al., 2021) as it was published: every forward sorts the scores
of every layer and multiplies its weights by the mask, the gradient goes straight through to the scores, and an attack
calls ``loss.backward()``, which computes the scores' gradients too. All of it is float32, in torch's own layout (NCHW).
"""

import copy
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from rst_hub import EdgePopup, ThreatModel
from rst_hub.attacks.common import project, random_start
from rst_hub.masks.patterns import kept_count


def sorted_mask(sizes: torch.Tensor, kept: int) -> torch.Tensor:
    """Return the bool mask of a stable ascending sort of all scores' sizes: its last ``kept`` stay."""
    _, order = sizes.flatten().sort(stable=True)
    mask = torch.zeros(sizes.numel(), dtype=torch.bool, device=sizes.device)
    mask[order[sizes.numel() - kept :]] = True
    return mask.view(sizes.shape)


class StraightThrough(torch.autograd.Function):
    """Sizes of scores to a mask of 0 and 1; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, sizes: torch.Tensor, kept: int) -> torch.Tensor:
        """Sort, and keep the last ones."""
        return sorted_mask(sizes, kept).to(sizes.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Pass the gradient on."""
        return gradients[0], None


class Published(nn.Module):
    """A network of pixels that makes its masks in every forward, with the weights and the scores of ``popup``."""

    def __init__(self, network: nn.Module, popup: EdgePopup) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(memory_format=torch.contiguous_format).requires_grad_(False)
        of_parameter = {id(parameter): name for name, parameter in network.named_parameters()}
        names = {name: of_parameter[id(parameter)] for name, parameter in popup.parameters.items()}
        self.weights = {names[name]: weight.contiguous() for name, weight in popup.weights.items()}
        self.scores = {
            names[name]: nn.Parameter(scores.detach().clone(memory_format=torch.contiguous_format))
            for name, scores in popup.scores.items()
        }
        self.remaining_ratio = popup.remaining_ratio

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pixels to logits."""
        masked = {}
        for name, scores in self.scores.items():
            kept = kept_count(scores.numel(), self.remaining_ratio)
            masked[name] = self.weights[name] * StraightThrough.apply(scores.abs(), kept)
        return functional_call(self.network, masked, (x,))


def attacked(
    network: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    threat_model: ThreatModel,
    *,
    steps: int,
    step_size: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the last iterate of PGD from a random start; with one step it is FGSM-RS."""
    adversarial = random_start(x, threat_model, generator)
    for _ in range(steps):
        adversarial.requires_grad_()
        functional.cross_entropy(network(adversarial), y).backward()
        assert adversarial.grad is not None
        stepped = adversarial.detach() + step_size * adversarial.grad.sign()
        adversarial = project(stepped, x, threat_model)
    return adversarial


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    """Take an optimizer step on adversarial pixels; what the attack left of gradients is forgotten."""
    optimizer.zero_grad()
    functional.cross_entropy(network(x), y).backward()
    optimizer.step()
