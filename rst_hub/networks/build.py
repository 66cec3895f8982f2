"""timm models with random seeded weights: built by plain names and checked arguments, neutral but for the weights."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import timm
import torch
from torch import nn

from ..errors import ArchitectureError, SettingsError
from ..float32 import in_float32
from . import cifar as cifar  # registers the paper's networks with timm
from .architectures import TIMM_VERSION, check_architecture, size_arguments
from .inputs import (
    TO_DESCRIBE,
    check_classes,
    checked_input,
    compacted,
    described_with,
    note_described,
    own_input,
    set_input,
    sides_of,
)
from .roles import make_neutral, maskable_weights, turn_off_dropout
from .unfilled import NumbersStayNumbers, Seeded, Unfilled, beside_the_state, fill
from .weight_standardisation import standardise_over_kept
from .weights import Init, SeededTensor

Layout = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a tensor in a state dict."""


@dataclass(frozen=True)
class Source:
    """How a model was made; :func:`create_model` leaves it on the model as ``rst_source``.

    ``neutral`` has the values of the parameters that no seed makes, float32 on the CPU, one that all values of a
    parameter have as a tensor of shape ().
    """

    architecture: str
    timm_kwargs: dict[str, Any]
    init: Init
    seeded: dict[str, SeededTensor] = field(repr=False)
    neutral: dict[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)


def create_model(
    architecture: str,
    init: Init,
    *,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    label_names: Sequence[str] | None = None,
    **timm_kwargs: Any,
) -> nn.Module:
    """Return a timm model whose maskable weights are those of ``init``, with everything else neutral and frozen.

    The table in ``roles.py`` says what is masked, neutral and seeded. Only maskable weights require gradients. Whatever
    the rates given, dropout and stochastic depth are off here; a ticket keeps the rates, and its model has them, for
    those who fine-tune it. All of it is float32, whatever torch's default dtype is.

    What is not said of the input is timm's own for the architecture; :func:`describe_input` says it later.

    Args:
        architecture: a name that timm has registered, without a pretrained tag.
        init: seed and distribution of the weights.
        image_size: side of the square images in pixels; also ``img_size``, where the architecture needs that.
        mean: of each channel of the images, whose pixels are in [0, 1].
        std: standard deviation of each channel.
        label_names: the classes' names in the order of their numbers; ``num_classes`` is their count if not given.
        **timm_kwargs: num_classes, in_chans, img_size, global_pool, drop_rate or drop_path_rate.

    Raises:
        ArchitectureError: timm does not know the name, or it refuses an argument; or num_classes is another number than
            that of the labels.
        SettingsError: ``init`` is no Init, image_size, mean, std or label_names are not what they should be, or
            image_size and img_size disagree.
    """
    if not isinstance(init, Init):
        raise SettingsError(f"init is {init!r}: give an Init, of a seed and a distribution")
    described = checked_input(image_size, mean, std, label_names)
    timm_kwargs = _with_input(architecture, timm_kwargs, described)
    model = build_masked(architecture, timm_kwargs)
    set_input(model, own_input(model, timm_kwargs))
    cast(Any, model).rst_assumed = {key: cast(Any, model).pretrained_cfg.get(key) for key in TO_DESCRIBE}
    described_with(model, described)
    note_described(model, ["input_size"] if "img_size" in timm_kwargs else [])
    turn_off_dropout(model)
    seeded = [weight.seeded(init) for weight in maskable_weights(model)] + make_neutral(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for spec in seeded:
            parameters[spec.name].copy_(init.tensor(spec))
    made = {spec.name: spec for spec in seeded}
    neutral = {name: compacted(parameter) for name, parameter in parameters.items() if name not in made}
    cast(Any, model).rst_source = Source(architecture, dict(timm_kwargs), init, made, neutral)
    return model


def _with_input(architecture: str, timm_kwargs: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's arguments with those that follow from the described input."""
    check_architecture(architecture, timm_kwargs)
    found: dict[str, Any] = dict(timm_kwargs)
    labels, size = described.get("label_names"), described.get("image_size")
    if labels is not None:
        if not labels and "num_classes" not in found:
            raise SettingsError("label_names is empty: give a name for each class, or num_classes=0 for no classifier")
        check_classes(len(labels), found.setdefault("num_classes", len(labels)))
    if size is not None and "img_size" not in found:
        found.update(size_arguments(architecture, size))
    given = found.get("img_size")
    if size is not None and given is not None and given != size and list(sides_of(given)) != [size, size]:
        raise SettingsError(f"image_size={size} and img_size={given!r} disagree: give one of them")
    return found


def build_model(architecture: str, timm_kwargs: Mapping[str, Any], *, seed: int = 0) -> nn.Module:
    """Return timm's own model of that name, never pretrained, initialised by timm from torch's ``seed``.

    torch's global random state is left as it was.

    Raises:
        ArchitectureError: as for :func:`create_model`.
    """
    check_architecture(architecture, timm_kwargs)
    return _build(architecture, timm_kwargs, seed)


def build_masked(architecture: str, timm_kwargs: Mapping[str, Any]) -> nn.Module:
    """Return timm's model, made ready to hold masked weights: its standardisation leaves a mask's zeros alone.

    Raises:
        ArchitectureError: as for :func:`create_model`.
    """
    model = build_model(architecture, timm_kwargs)
    standardise_over_kept(model)
    return model


def build_unfilled(architecture: str, timm_kwargs: Mapping[str, Any]) -> nn.Module:
    """Return what :func:`build_masked` does, but for the values: :func:`fill` gives it those, in a tenth of the time.

    A network that computes with its parameters while it is built gets them all, and takes no less time.

    What torch leaves empty until it is initialised is on the meta device, and no random number is drawn, so that
    several threads may build at once. Buffers that are not in the state dict have timm's values.

    Raises:
        ArchitectureError: as for :func:`create_model`.
    """
    check_architecture(architecture, timm_kwargs)
    return _build_unfilled(architecture, timm_kwargs)


def _build_unfilled(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    # On the CPU, whatever the caller's default is; only then, because a context makes all of this a third slower.
    with nullcontext() if torch.get_default_device() == torch.device("cpu") else torch.device("cpu"):
        try:
            with Unfilled():
                model = _create(architecture, arguments)
            needs_values = any(tensor.is_meta or bool(tensor.isnan().any()) for tensor in beside_the_state(model))
        except ArchitectureError:  # also where it asks for a value before it has any
            needs_values = True
        if needs_values:
            model = _build(architecture, arguments, 0)
    standardise_over_kept(model)
    return model


def build_features(
    architecture: str,
    timm_kwargs: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    out_indices: int | Sequence[int] | None = None,
) -> nn.Module:
    """Return timm's ``features_only`` form of a model that :func:`build_masked` builds, holding its ``tensors``.

    Args:
        architecture: a name that timm has registered.
        timm_kwargs: as for :func:`create_model`.
        tensors: the whole model's state dict; the parts behind the last feature are left out.
        out_indices: which of timm's feature levels to return, or how many of the last ones; its own choice when None.

    Raises:
        ArchitectureError: the architecture has no such form or no such level.
    """
    check_architecture(architecture, timm_kwargs)
    levels: dict[str, Any] = {}
    if out_indices is not None:
        levels["out_indices"] = out_indices if isinstance(out_indices, int) else tuple(out_indices)
    model = _build_unfilled(architecture, {**timm_kwargs, "features_only": True, **levels})
    # timm keeps the names, but puts the model into a wrapper, or joins a name's first two parts by "_".
    flat = {name.replace(".", "_"): tensor for name, tensor in tensors.items()}
    needed = model.state_dict()
    own = {name: re.sub(r"^(model|body)\.", "", name).replace(".", "_") for name in needed}
    unknown = [name for name, whole in own.items() if whole not in flat or flat[whole].shape != needed[name].shape]
    if len(flat) != len(tensors):
        raise ArchitectureError(f"{architecture}'s features cannot be told apart by their tensors' names")
    if unknown:
        raise ArchitectureError(f"{architecture}'s features have tensors that the whole model has not: {unknown[:3]}")
    fill(model, {name: flat[whole] for name, whole in own.items()})
    return model


def _build(architecture: str, arguments: Mapping[str, Any], seed: int) -> nn.Module:
    with Seeded(seed):
        return _create(architecture, arguments)


def _create(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        with in_float32():
            return timm.create_model(architecture, pretrained=False, **arguments)
    except Exception as error:  # timm checks little: what wrong arguments raise depends on where they hurt first
        raise ArchitectureError(
            f"timm {TIMM_VERSION} cannot build {architecture} with {dict(arguments)}: {type(error).__name__} {error}"
        ) from error


def state_layout(architecture: str, timm_kwargs: Mapping[str, Any]) -> dict[str, Layout]:
    """Return (shape, dtype) of every tensor in the architecture's state dict, without allocating any.

    Raises:
        ArchitectureError: as for :func:`create_model`.
    """
    check_architecture(architecture, timm_kwargs)
    try:
        with torch.device("meta"), Unfilled():
            model = _create(architecture, timm_kwargs)
    except ArchitectureError:
        if architecture.startswith(("efficientformerv2_", "nest_")):  # timm 1.0.15 cannot; these ten are small
            model = build_model(architecture, timm_kwargs)
        else:
            with torch.device("meta"), NumbersStayNumbers():  # timm 1.0.15 asks tensors for dropout rates
                model = build_model(architecture, timm_kwargs)
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}


def dense_bytes(layout: Mapping[str, Layout]) -> int:
    """Return the bytes of a state dict of this layout, in an unbounded integer."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())
