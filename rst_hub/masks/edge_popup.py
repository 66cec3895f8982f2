"""EdgePopup: scores beside a frozen random network, top-k masks, and the straight-through gradient (paper, section 3).

The model stays an ordinary module: its parameters hold weight x mask and are rewritten once an optimizer step. The
straight-through estimator is elementwise, so the scores' gradient is exact when it is taken from the gradient that
autograd (or DDP, autocast, checkpointing) left on the parameter: score.grad = parameter.grad x weight x sign(score).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import ArchitectureError, SettingsError, nearest
from ..networks.roles import maskable_weights
from ..networks.weights import Init, SeededTensor, uniform
from .patterns import LAYER_RATIOS, PATTERNS, check_remaining_ratio, kept_counts, top_k_mask


class EdgePopup:
    """Scores, masks and their gradients for the maskable weights of one model (Ramanujan et al., 2020, edge-popup).

    The scores are float32 parameters of the weights' shapes, on the weights' devices, initialised Kaiming uniform
    with a = sqrt(5) from ``score_seed``. The optimizer holds ``popup.scores.values()``; a search step is::

        loss(model(x_adv), y).backward()
        popup.collect_gradients()
        optimizer.step()
        popup.apply()

    Args:
        model: from :func:`rst_hub.create_model` with the same ``init``; it may have been moved, cast or masked by
            another EdgePopup since, but not trained. Its maskable parameters are overwritten at once.
        init: the seed and distribution of the weights.
        remaining_ratio: share of the weights that is kept, from 0.001 to 1.
        pattern: what is kept or removed as one; "element" is a single weight.
        score_seed: seed of the initial scores.
        layer_ratios: how it is shared among layers: "uniform", as in the paper (section 4.1), or "erk", by which small
            layers keep more; see :func:`kept_counts`.

    Raises:
        SettingsError: the ratio, the pattern or the layers' ratios are not one of those above; or the model is not the
            random network of ``init``: timm's own, a ticket's, trained, or changed otherwise. Nothing is overwritten.
        ArchitectureError: the model has no weight that can be masked.
    """

    def __init__(
        self,
        model: nn.Module,
        init: Init,
        remaining_ratio: float,
        *,
        pattern: str = "element",
        score_seed: int = 0,
        layer_ratios: str = "uniform",
    ) -> None:
        check_remaining_ratio(remaining_ratio)
        if layer_ratios not in LAYER_RATIOS:
            raise SettingsError(
                f"layer ratios {layer_ratios!r} are not known. {nearest(str(layer_ratios), LAYER_RATIOS)}"
            )
        if pattern not in PATTERNS:
            raise SettingsError(f"sparsity pattern {pattern!r} is not known. {nearest(str(pattern), PATTERNS)}")
        Init(score_seed)  # refuses a bad seed
        if not isinstance(model, nn.Module) or not isinstance(init, Init):
            raise SettingsError(f"EdgePopup of a {type(model).__name__} and {init!r}: give a model and its Init")
        weights = maskable_weights(model)
        if not weights:
            raise ArchitectureError(f"{type(model).__name__} has no convolution or linear weight to mask")
        self.model, self.init, self.pattern, self.score_seed = model, init, pattern, score_seed
        self.remaining_ratio, self.layer_ratios = float(remaining_ratio), layer_ratios
        shapes = {w.name: tuple(w.parameter.shape) for w in weights}
        self.kept = kept_counts(shapes, self.remaining_ratio, layer_ratios)
        self.seeded = {w.name: w.seeded(init) for w in weights}
        self.parameters = {w.name: w.parameter for w in weights}
        source = _source_of(model, init, self.seeded)
        self.weights = {w.name: _like(w.parameter, init.tensor(self.seeded[w.name])) for w in weights}
        _refuse_changed([w.name for w in weights if not _is_masked(w.parameter, self.weights[w.name])])
        check_neutral(model, source)
        self.scores: dict[str, nn.Parameter] = {}
        for w in weights:
            scores = uniform("scores", score_seed, w.name, w.parameter.shape, float(np.float32(w.fan_in**-0.5)))
            self.scores[w.name] = nn.Parameter(_like(w.parameter, scores))
        self.apply()

    def __repr__(self) -> str:
        size = sum(scores.numel() for scores in self.scores.values())
        return (
            f"EdgePopup({type(self.model).__name__}, {self.init}, remaining_ratio={self.remaining_ratio:g}, "
            f"pattern={self.pattern!r}, score_seed={self.score_seed}, layer_ratios={self.layer_ratios!r}: keeps "
            f"{sum(self.kept.values()):,} of {size:,} weights in {len(self.scores)} layers)"
        )

    def masks(self) -> dict[str, torch.Tensor]:
        """Return the bool mask of every maskable weight: its ``kept`` largest scores by size, layer by layer."""
        return {name: self._mask(name) for name in self.scores}

    @torch.no_grad()
    def apply(self) -> None:
        """Write weight x mask into the model's parameters; what the mask removes becomes +0.0, never -0.0."""
        for name in self.scores:
            # Bits times 0 or 1: less time than torch.where takes on a CPU.
            bits, parameter = self.weights[name].view(torch.int32), self.parameters[name].detach()
            if (parameter.dtype, parameter.device) == (torch.float32, bits.device):
                torch.mul(bits, self._mask(name), out=parameter.view(torch.int32))
            else:  # somebody has cast or moved the model
                parameter.copy_((bits * self._mask(name)).view(torch.float32))

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Turn the parameters' gradients into the scores' and clear the former; call once before optimizer.step()."""
        for name, scores in self.scores.items():
            gradient = self.parameters[name].grad
            self.parameters[name].grad = None
            if gradient is not None:  # in its own memory, which nobody else needs any more
                gradient = gradient.to(scores.dtype).mul_(self.weights[name]).mul_(scores.sign())
            scores.grad = gradient

    def _mask(self, name: str) -> torch.Tensor:
        return top_k_mask(self.scores[name], self.kept[name])


_ANEW = "masks over trained weights are not supported yet, so make the network anew with rst_hub.create_model"


def _source_of(model: nn.Module, init: Init, seeded: Mapping[str, SeededTensor]) -> Any:
    """Return how create_model made a model; raise SettingsError unless it did, with this Init and these weights."""
    source = getattr(model, "rst_source", None)
    if source is None:
        raise SettingsError(
            f"this {type(model).__name__} was not made by rst_hub.create_model, and a search would overwrite its "
            f"weights: {_ANEW}, and give that itself, not a wrapper around it"
        )
    if source.init != init:
        raise SettingsError(f"the model's weights are those of {source.init}, not of {init}: give the same to both")
    of_masks = {name: spec for name, spec in source.seeded.items() if spec.masked}
    different = [name for name in {**of_masks, **seeded} if of_masks.get(name) != seeded.get(name)]
    if different:
        raise SettingsError(
            f"the model is no longer what create_model made: its weights {different[:3]} are of other layers, replaced "
            "or in a wrapper. Nothing is overwritten; give the model itself, with the layers that create_model made"
        )
    return source


def check_neutral(model: nn.Module, source: Any) -> None:
    """Raise SettingsError if a parameter that no mask covers is not what create_model gave it."""
    expected = {name: spec for name, spec in source.seeded.items() if not spec.masked} | source.neutral
    changed = []
    for name, parameter in model.named_parameters():
        values = expected.get(name)
        made = source.init.tensor(values) if isinstance(values, SeededTensor) else values
        is_masked = name in source.seeded and source.seeded[name].masked
        if not is_masked and (made is None or not _is_cast(parameter.detach(), made.to(parameter.device))):
            changed.append(name)
    _refuse_changed(changed)


def _refuse_changed(names: Sequence[str]) -> None:
    if names:
        raise SettingsError(
            f"the model is no longer what create_model made: its tensors {list(names[:3])} are others, as after "
            f"training or load_state_dict. Nothing is overwritten; {_ANEW}"
        )


def _is_masked(parameter: torch.Tensor, weight: torch.Tensor) -> bool:
    """Say whether each value of a parameter is that of the weight, in the parameter's precision, or 0."""
    values = parameter.detach()
    return _is_cast(values, weight.masked_fill(values == 0, 0))


def _is_cast(values: torch.Tensor, expected: torch.Tensor) -> bool:
    """Say whether the values are the expected float32 ones in their precision, perhaps cast to a lower one before."""
    ways = (expected.to(dtype) for dtype in (values.dtype, torch.bfloat16, torch.float16))
    return any(bool((values == way.to(values.dtype)).all()) for way in ways)


def _like(parameter: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return ``values`` as float32 with the parameter's device and memory layout (channels_last, say)."""
    return torch.empty_like(parameter, dtype=torch.float32, requires_grad=False).copy_(values)
