"""Weight-standardised convolutions (Qiao et al., 2019; Brock et al., 2021) that keep a mask's zeros.

timm's subtract each output channel's mean from its whole weight, which fills the zeros of a mask: at 30% kept, 1.5% of
the weight that the convolution uses were zero. Here the mean is that of the kept weights, and what a mask removes stays
exactly 0. The parameter itself is weight x mask, as everywhere.
"""

from typing import Any

import torch
from timm.layers import ScaledStdConv2d, StdConv2d, pad_same
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2dSame
from torch import nn
from torch.nn import functional

_OF_TIMM = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


class MaskedStdConv2d(nn.Conv2d):
    """A weight-standardised convolution of timm's, made by :func:`standardise_over_kept`; attributes are timm's.

    The weight (out, in, h, w) in use is (weight - mean of the channel's kept weights) / root mean square of the
    channel, and 0 where the weight is 0. The root mean square is taken about 0: that leaves gradients tame where a
    channel keeps one weight, or several equal ones; such a channel itself is 0. Where layers are narrow and few weights
    are kept, many are: of a test_nfnet at 2% kept, all of the first layer's.
    """

    eps: float
    same_pad: bool
    gain: nn.Parameter  # the scaled ones alone, with scale
    scale: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve ``x`` (N, C, H, W) with the standardised weight."""
        if self.same_pad:
            x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        weight = self.standardised()
        if hasattr(self, "gain"):
            weight = weight * (self.gain * self.scale)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def standardised(self) -> torch.Tensor:
        """Return the weight in use, of mean 0 and mean square at most 1 a channel, before any gain."""
        weight = self.weight.float()  # a mean square of half precision would round to 0
        kept = (weight != 0).float()
        count = kept.sum((1, 2, 3), keepdim=True)
        centred = weight - kept * (weight.sum((1, 2, 3), keepdim=True) / count.clamp(min=1))
        square = weight.square()
        of_one = square.sum() / count.sum().clamp(min=1)  # a channel that keeps nothing is as if it kept one weight
        mean_square = square.mean((1, 2, 3), keepdim=True).where(count > 0, of_one / weight[0].numel())
        return (centred * mean_square.clamp(min=1e-30).rsqrt()).to(self.weight.dtype)

    @torch.no_grad()
    def weight_for_timm(self) -> torch.Tensor:
        """Return the weight that timm's own module standardises to this one's, up to float rounding."""
        weight = self.standardised()
        rest = 1 - weight.square().mean((1, 2, 3), keepdim=True)
        return weight * (self.eps / rest.clamp(min=1e-7)).sqrt()  # timm divides by sqrt(variance + eps)


def standardise_over_kept(model: nn.Module) -> None:
    """Turn timm's weight-standardised convolutions in ``model`` into :class:`MaskedStdConv2d`; names stay the same."""
    for module in model.modules():
        if isinstance(module, _OF_TIMM):
            ours: Any = module
            ours.same_pad = getattr(module, "same_pad", False)
            ours.__class__ = MaskedStdConv2d
