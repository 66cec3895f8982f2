"""What each parameter of a timm model is to a ticket, in one table.

A ticket masks the weights of linear maps. Nothing but the masks is ever learned, so everything that could block or
shrink the signal is made neutral, as the paper's non-affine batch norm is; timm's own values would leave some scores
without a gradient. The first row of the table below that fits a parameter decides.

=======  ==============================================================================  =============================
role     which parameters                                                                value
=======  ==============================================================================  =============================
masked   the weight of a convolution (also transposed) or linear layer, of any subclass  the Init's distribution, by
         CondConv2d experts; an LSTM's weight matrices; a bare ``w_g``                   fan_in and fan_out
zero     every ``bias`` and ``*_bias``, also a norm layer's and an LSTM's; ``beta``      0
one      the weight of a norm layer (a GlobalResponseNorm is none); ``gain``;            1
         ``skipinit_gain``; layer and residual scales: ``gamma*``, ``ls*``,
         ``layer_scale*``, ``res_scale*`` and their ``.scale``
seeded   tokens, latents, tables of positions, and differential attention's              normal, deviation 0.02
         ``lambda_*``, where timm draws them at random
kept     the rest: temperatures, gates, GlobalResponseNorm, thresholds, tables that      timm's own
         timm leaves 0, rotary frequencies
=======  ==============================================================================  =============================

Of the buffers, batch-norm statistics start at mean 0 and variance 1, as timm leaves them. Dropout of every kind is off:
it would zero gradients at random. A weight-standardised convolution is masked as standardised.py says.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from .weights import TABLE_STD, Init, SeededTensor

_LINEAR_MAPS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ONE = re.compile(r"(.*\.)?(gain|skipinit_gain|gamma(_?\w+)?|ls\d*|(layer|res)_scale\w*(\.scale)?)$")
_ZERO = re.compile(r"((\w+_)?bias|bias_[ih]h_l\d+(_reverse)?|beta)$")
_SEEDED = re.compile(r"\w*(token|latent|pos|_rel|lambda_)\w*$")
_DROP = re.compile(r"\w*drop\w*$")


@dataclass(frozen=True)
class MaskableWeight:
    """A parameter that a mask may cover: its name in the state dict, the parameter, and its fans."""

    name: str
    parameter: nn.Parameter
    fan_in: int
    fan_out: int

    def seeded(self, init: Init) -> SeededTensor:
        """Return what ``init`` needs to know to make this weight."""
        return SeededTensor(self.name, tuple(self.parameter.shape), init.scale(self.fan_in, self.fan_out), masked=True)


def maskable_weights(model: nn.Module) -> list[MaskableWeight]:
    """Return the maskable weights of ``model`` in the order of its parameters."""
    found = []
    for name, module, parameter in _parameters(model):
        fans = _fans(module, name.rsplit(".", 1)[-1], parameter)
        if fans is not None:
            found.append(MaskableWeight(name, parameter, *fans))
    return found


@torch.no_grad()
def make_neutral(model: nn.Module) -> list[SeededTensor]:
    """Set what is not masked to the table's value and freeze it; return what is to be seeded (tokens and tables)."""
    seeded = []
    for name, module, parameter in _parameters(model):
        leaf = name.rsplit(".", 1)[-1]
        if _fans(module, leaf, parameter) is not None:
            continue
        parameter.requires_grad_(False)
        if _ZERO.match(leaf):
            parameter.zero_()
        elif _ONE.match(name) or (leaf == "weight" and _is_norm(module)):
            parameter.fill_(1.0)
        elif _SEEDED.match(leaf) and bool((parameter != parameter.flatten()[0]).any()):
            seeded.append(SeededTensor(name, tuple(parameter.shape), TABLE_STD, masked=False))
    return seeded


def turn_off_dropout(model: nn.Module) -> None:
    """Set every rate of dropout, stochastic depth and the like in ``model`` to 0."""
    for module in model.modules():
        is_dropout = "drop" in type(module).__name__.lower()
        for name, value in vars(module).items():
            if isinstance(value, float) and (_DROP.match(name) or (is_dropout and name in ("p", "prob"))):
                setattr(module, name, 0.0)


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Yield (name in the state dict, owning module, parameter) once for each parameter."""
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        yield name, modules[name.rpartition(".")[0]], parameter


def _fans(module: nn.Module, leaf: str, parameter: nn.Parameter) -> tuple[int, int] | None:
    """Return (fan_in, fan_out) of a maskable weight, or None for any other parameter."""
    shape = parameter.shape
    if isinstance(module, nn.LSTM) and leaf.startswith("weight_"):
        return shape[1], shape[0]
    if leaf == "w_g" and parameter.ndim == 2:
        return shape[0], shape[1]
    if leaf != "weight":
        return None
    expert = getattr(module, "weight_shape", None)  # CondConv2d keeps each expert as one row
    if expert is not None and parameter.ndim == 2 and math.prod(expert) == shape[1]:
        shape = torch.Size(expert)
    elif not isinstance(module, _LINEAR_MAPS):
        return None
    receptive = math.prod(shape[2:])
    if isinstance(module, _TRANSPOSED):
        return shape[0] // module.groups * receptive, shape[1] * receptive
    return shape[1] * receptive, shape[0] * receptive


def _is_norm(module: nn.Module) -> bool:
    kind = type(module).__name__.lower()
    return "norm" in kind and kind != "globalresponsenorm"  # timm's 0 makes that one the identity
