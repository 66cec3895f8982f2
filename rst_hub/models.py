"""timm models with random seeded weights: built by plain names and checked arguments, neutral but for the weights."""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from torch import nn
from torch.overrides import TorchFunctionMode

from . import cifar as cifar  # registers the paper's networks with timm
from .errors import ArchitectureError, DataError, SettingsError, TicketError, cause, foreign, nearest, printable
from .files import check_fetched, given_path, new_folder, write_file, write_json
from .float32 import in_float32
from .roles import make_neutral, maskable_weights, turn_off_dropout
from .standardised import standardise_over_kept
from .weights import Init, SeededTensor

TIMM_VERSION: str = timm.__version__
Layout = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a tensor in a state dict."""

_POOLS = ("", "avg", "avgmax", "catavgmax", "map", "max", "token")
_ARGUMENTS = {
    "num_classes": lambda v: _is_int(v, 0, 100_000),
    "in_chans": lambda v: _is_int(v, 1, 1024),
    # 1024: timm's own largest is 1024, and index tables made in Python (MaxViT) take seconds from there on
    "img_size": lambda v: _is_int(v, 1, 1024) or (_is_pair(v) and all(_is_int(side, 1, 1024) for side in v)),
    "global_pool": lambda v: isinstance(v, str) and v in _POOLS,
    "drop_rate": lambda v: _is_share(v),
    "drop_path_rate": lambda v: _is_share(v),
}
"""The timm arguments that a ticket may carry. Others (checkpoint_path, pretrained, ...) can load or run things."""

_INPUT_KEYS = {
    "input_size": lambda v: isinstance(v, list | tuple) and len(v) == 3 and all(_is_int(n, 1, 4096) for n in v),
    "fixed_input_size": lambda v: isinstance(v, bool),
    "interpolation": lambda v: isinstance(v, str) and v in ("bicubic", "bilinear", "nearest", "lanczos", "random"),
    "crop_pct": lambda v: _is_number(v) and 0 < v <= 2,
    "crop_mode": lambda v: isinstance(v, str) and v in ("center", "squash", "border"),
    "mean": lambda v: _are_channel_values(v),
    "std": lambda v: _are_channel_values(v) and all(value > 0 for value in v),
    "num_classes": lambda v: _is_int(v, 0, 100_000),
    "label_names": lambda v: isinstance(v, list | tuple) and len(v) <= 100_000 and all(isinstance(n, str) for n in v),
    "first_conv": lambda v: v is None or _are_names(v),
    "classifier": lambda v: v is None or _are_names(v),
}
"""What of timm's pretrained_cfg a ticket carries: the input, the labels, two layer names; no URL, file or hook."""


class UndescribedInputWarning(UserWarning):
    """A ticket says of its input what timm says of the architecture, because nobody described it."""


_TO_DESCRIBE = ("input_size", "mean", "std", "label_names")
_PREPARED = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
"""How images of a described size are made: resized, nothing cut off."""


@dataclass(frozen=True)
class Source:
    """How a model was made; :func:`create_model` leaves it on the model as ``rst_source``.

    ``neutral`` has the values of the parameters that no seed makes, float32 on the CPU, one that all values of a
    parameter have as a tensor of shape ().
    """

    architecture: str
    timm_kwargs: dict[str, Any]
    init: Init
    seeded: dict[str, SeededTensor]
    neutral: dict[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)


# What is told apart while a network is built: methods that make a tensor random, functions that draw one, functions
# whose values nobody needs yet.
_RANDOM = {
    *("uniform_", "normal_", "trunc_normal_", "bernoulli_", "exponential_", "geometric_", "log_normal_", "random_"),
    *("cauchy_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "orthogonal_", "sparse_"),
}
_DRAWN = {torch.rand, torch.randn, torch.normal, torch.bernoulli, torch.randint, torch.randperm, torch.multinomial}
_EMPTY_OR_RANDOM = {torch.empty, torch.rand, torch.randn}
_META = torch.device("meta")
_WHOLE = {"zero_", "fill_", "copy_"}
"""Methods that give every value of a tensor."""
_NOT_VALUES = {
    "requires_grad_",
    "detach_",
    "resize_",
    "resize_as_",
    "set_",
    "squeeze_",
    "unsqueeze_",
    "t_",
    "transpose_",
}
"""Methods that end as if they wrote values into a tensor, and change something else."""


class PixelModel(nn.Module):
    """A model that takes pixels in [0, 1]: it normalises them, then calls ``model``, whose mode and precision it has.

    Normalisation is computed in float32 at least, whatever the model's precision, and mean and std are never rounded:
    ``PixelModel(model).half()`` and ``PixelModel(model.half())`` take float32 pixels and give them float32 gradients.

    Args:
        model: any module from normalised images (N, C, H, W) to logits.
        mean: one number a channel, of pixels from 0 to 1; that of ``model.pretrained_cfg`` (timm's) when None.
        std: likewise, above 0.

    Raises:
        ArchitectureError: mean or std is neither given nor in ``model.pretrained_cfg``.
        SettingsError: ``model`` is no module, or normalises pixels already; or mean and std are not finite numbers, one
            for each channel.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, model: nn.Module, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise SettingsError(f"PixelModel of a {type(model).__name__}: give one torch.nn.Module")
        if any(isinstance(module, PixelModel) for module in model.modules()):
            raise SettingsError(
                f"this {type(model).__name__} is or has a PixelModel already (robustbench_model returns one too), and "
                "pixels would be normalised twice: give the model that is inside, or use it as it is"
            )
        self.model = model
        device = next((tensor.device for tensor in _tensors_of(model)), torch.device("cpu"))
        for name, given in (("mean", mean), ("std", std)):
            values = _normalisation(name, _own_values(model, name) if given is None else given)
            self.register_buffer(name, values.to(device).view(1, -1, 1, 1), persistent=False)
        if self.mean.shape != self.std.shape:
            raise SettingsError(
                f"mean has {self.mean.numel()} and std {self.std.numel()} numbers: give one of each a channel"
            )

    # The mode is the model's own, also where that changes directly: a library that "puts back" this wrapper's mode
    # would else put a model in eval mode into train mode.
    @property
    def training(self) -> bool:
        """Whether ``model`` is in train mode."""
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        if "model" in self.__dict__.get("_modules", {}):
            self.model.training = mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float pixels (N, C, H, W) in [0, 1] to the model's logits.

        Raises:
            DataError: the pixels are no floats, or not (N, C, H, W) of the mean's channels.
        """
        channels = self.mean.shape[1]
        fits = torch.jit.is_tracing() or (x.is_floating_point() and x.ndim == 4 and x.shape[1] == channels)
        if not fits:  # a trace, of sizes that are tensors, would be warned about
            raise _wrong_pixels(x, channels)
        dtype = next((tensor.dtype for tensor in _tensors_of(self.model) if tensor.is_floating_point()), x.dtype)
        return self.model(((x.to(torch.promote_types(x.dtype, dtype)) - self.mean) / self.std).to(dtype))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        exact = self.mean, self.std
        super()._apply(fn, recurse)
        if self.mean.dtype != torch.float32:  # half precision would round them
            self.mean, self.std = (values.to(self.mean.device) for values in exact)
        return self


def _tensors_of(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield a model's parameters and buffers in the order of its layers, so that the first is where an input goes."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            yield from (tensor for tensor in held.values() if tensor is not None)


def _own_values(model: Any, name: str) -> Any:
    """Return mean or std as the model's own pretrained_cfg has it."""
    own = getattr(model, "pretrained_cfg", None)
    if not isinstance(own, Mapping):
        raise ArchitectureError(
            f"{type(model).__name__} has no pretrained_cfg, as timm's models have, to take {name} from: give "
            "PixelModel(model, mean=(...), std=(...)), or zeros and ones if it takes pixels as they are"
        )
    if own.get(name) is None:
        raise ArchitectureError(
            f"the model's pretrained_cfg has no {name}: give PixelModel(model, mean=(...), std=(...)), or set it with "
            "describe_input"
        )
    return own[name]


def _normalisation(name: str, given: Any) -> torch.Tensor:
    """Return mean or std as float32 (C,) on the CPU; raise SettingsError for what cannot be one."""
    try:
        values = torch.as_tensor(given, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        values = torch.zeros(0, device="cpu")
    values = values.detach().flatten() if values.ndim else values[None][:0]
    is_of_pixels = bool(values.isfinite().all()) and (name == "std" or not bool((values > 1).any()))
    if not values.numel() or not is_of_pixels or (name == "std" and not bool((values > 0).all())):
        above = " above 0" if name == "std" else ""
        raise SettingsError(
            f"{name}={printable(repr(given))}: give finite numbers{above}, one for each channel, such as "
            "(0.5, 0.5, 0.5), of pixels from 0 to 1: those of pixels up to 255 are to be divided by 255"
        )
    return values


def _wrong_pixels(x: torch.Tensor, channels: int) -> DataError:
    """Return what to say of pixels that are not what a PixelModel of so many channels takes."""
    if not x.is_floating_point():
        return DataError(f"pixels of {x.dtype}: give floats in [0, 1], as in x.float() / 255")
    shape = f"pixels of shape {tuple(x.shape)}"
    if x.ndim == 3:
        return DataError(f"{shape} have no batch dimension: give (N, C, H, W), as in x.unsqueeze(0)")
    if x.ndim == 4 and x.shape[3] == channels:
        return DataError(f"{shape} are channels-last: give (N, C, H, W), as in x.permute(0, 3, 1, 2)")
    return DataError(f"{shape}: mean and std are of {channels} channels, so give (N, {channels}, H, W)")


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
    described = _checked_input(image_size, mean, std, label_names)
    timm_kwargs = _with_input(architecture, timm_kwargs, described)
    model = build_masked(architecture, timm_kwargs)
    set_input(model, _own_input(model, timm_kwargs))
    cast(Any, model).rst_assumed = {key: cast(Any, model).pretrained_cfg.get(key) for key in _TO_DESCRIBE}
    _describe(model, described)
    _told(model, ["input_size"] if "img_size" in timm_kwargs else [])
    turn_off_dropout(model)
    seeded = [weight.seeded(init) for weight in maskable_weights(model)] + make_neutral(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for spec in seeded:
            parameters[spec.name].copy_(init.tensor(spec))
    made = {spec.name: spec for spec in seeded}
    neutral = {name: _compact(parameter) for name, parameter in parameters.items() if name not in made}
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
        _check_classes(len(labels), found.setdefault("num_classes", len(labels)))
    if size is not None and "img_size" not in found:
        found.update(size_arguments(architecture, size))
    given = found.get("img_size")
    if size is not None and given is not None and given != size and list(_sides(given)) != [size, size]:
        raise SettingsError(f"image_size={size} and img_size={given!r} disagree: give one of them")
    return found


def _compact(parameter: nn.Parameter) -> torch.Tensor:
    values = parameter.detach().float().cpu()
    first = values.flatten()[:1]
    return first.view(()).clone() if values.numel() and bool((values == first).all()) else values.clone()


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
            with _Unfilled():
                model = _create(architecture, arguments)
            needs_values = any(tensor.is_meta or bool(tensor.isnan().any()) for tensor in _beside_the_state(model))
        except ArchitectureError:  # also where it asks for a value before it has any
            needs_values = True
        if needs_values:
            model = _build(architecture, arguments, 0)
    standardise_over_kept(model)
    return model


@torch.no_grad()
def fill(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a model of :func:`build_unfilled` its state dict; what was on the meta device takes the tensors themselves.

    They are of the right names, shapes and dtypes. A parameter of several names stays one.
    """
    filled: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the old ones too: a new one could get their id
    for prefix, module in model.named_modules():
        for leaf, old in [*module._parameters.items(), *module._buffers.items()]:
            if old is None or leaf in module._non_persistent_buffers_set:
                continue
            new = tensors[f"{prefix}.{leaf}" if prefix else leaf]
            if old.is_meta:
                if id(old) not in filled:
                    is_parameter = isinstance(old, nn.Parameter)
                    filled[id(old)] = old, nn.Parameter(new, old.requires_grad) if is_parameter else new
                setattr(module, leaf, filled[id(old)][1])
            else:
                old.copy_(new)


class _Unfilled(TorchFunctionMode):
    """In this thread, new tensors that are empty or random are on the meta device, and no tensor is made random.

    What is no parameter is real again as soon as all of it is given values, and NaN if they are to be random; so is
    what else is made on the device of a parameter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.get_default_device()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given, name = kwargs or {}, getattr(func, "__name__", "")
        device, is_float = given.get("device"), given.get("dtype") in (None, torch.float32)
        if func in _EMPTY_OR_RANDOM:
            if device is None and is_float:  # others are indices, made to be kept
                return func(*args, **{**given, "device": "meta"})
        elif device is not None and torch.device(device) == _META:
            given = {**given, "device": self.device}
        if name[-1:] == "_" != name[-2:-1] and name not in _NOT_VALUES:
            tensor = given["tensor"] if "tensor" in given else args[0]
            is_parameter = isinstance(tensor, nn.Parameter)
            if name in _RANDOM:
                return tensor if tensor.is_meta or is_parameter else tensor.fill_(math.nan)
            if tensor.is_meta:
                is_known = not any(isinstance(one, torch.Tensor) and one.is_meta for one in args[1:])
                if name in _WHOLE and is_known and not is_parameter:
                    real = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    torch.utils.swap_tensors(tensor, func(real, *args[1:], **given))
                return tensor
        return func(*args, **given)


class _Seeded(TorchFunctionMode):
    """In this thread, a CPU's random numbers are drawn from a generator of its own, and nobody else's are touched."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        on_cpu = torch.get_default_device().type == "cpu"  # another device does not take a CPU's generator
        self.generator = torch.Generator("cpu").manual_seed(seed) if on_cpu else None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if (func in _DRAWN or getattr(func, "__name__", "") in _RANDOM) and given.get("generator") is None:
            given["generator"] = self.generator
        return func(*args, **given)


def _beside_the_state(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the tensors of a model that its state dict does not have: other buffers, and plain attributes."""
    for module in model.modules():
        for leaf in module._non_persistent_buffers_set:
            buffer = module._buffers[leaf]
            if buffer is not None:
                yield buffer
        for value in vars(module).values():
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, torch.Tensor) and not isinstance(one, nn.Parameter):
                    yield one


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
    with _Seeded(seed):
        return _create(architecture, arguments)


def _create(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        with in_float32():
            return timm.create_model(architecture, pretrained=False, **arguments)
    except Exception as error:  # timm checks little: what wrong arguments raise depends on where they hurt first
        raise ArchitectureError(
            f"timm {TIMM_VERSION} cannot build {architecture} with {dict(arguments)}: {type(error).__name__} {error}"
        ) from error


def check_architecture(architecture: str, timm_kwargs: Mapping[str, Any]) -> None:
    """Raise ArchitectureError unless the name is registered and every argument is allowed and in range."""
    plain = isinstance(architecture, str) and not set(architecture) & set(":/.@\\")
    if not plain or not timm.is_model(architecture) or architecture == "rst":
        name = re.split(r"[:/@\\]", str(architecture)[:100].partition(".")[0])[-1]
        known = nearest(name, [known for known in timm.list_models() if known != "rst"])
        raise ArchitectureError(f"timm {TIMM_VERSION} has no architecture {str(architecture)[:100]!r}. {known}")
    for name, value in timm_kwargs.items():
        if name not in _ARGUMENTS:
            known = nearest(name[:100], _ARGUMENTS)
            raise ArchitectureError(f"timm argument {name[:100]!r} cannot go into a ticket. {known}")
        if not _ARGUMENTS[name](value):
            shown = f"{name}={value!r}"[:200]
            raise ArchitectureError(f"timm argument {shown} is not of the right type or out of range")


def is_ours(architecture: str) -> bool:
    """Say whether rst_hub registers this architecture, so that timm alone does not know it."""
    return timm.model_entrypoint(architecture).__module__ == cifar.__name__


class _NumbersStayNumbers(TorchFunctionMode):
    """Makes torch.linspace on the CPU inside of ``torch.device("meta")``, so that its values can be asked for."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*args, **{**({"device": "cpu"} if func is torch.linspace else {}), **(kwargs or {})})


def state_layout(architecture: str, timm_kwargs: Mapping[str, Any]) -> dict[str, Layout]:
    """Return (shape, dtype) of every tensor in the architecture's state dict, without allocating any.

    Raises:
        ArchitectureError: as for :func:`create_model`.
    """
    check_architecture(architecture, timm_kwargs)
    try:
        with torch.device("meta"), _Unfilled():
            model = _create(architecture, timm_kwargs)
    except ArchitectureError:
        if architecture.startswith(("efficientformerv2_", "nest_")):  # timm 1.0.15 cannot; these ten are small
            model = build_model(architecture, timm_kwargs)
        else:
            with torch.device("meta"), _NumbersStayNumbers():  # timm 1.0.15 asks tensors for dropout rates
                model = build_model(architecture, timm_kwargs)
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}


def dense_bytes(layout: Mapping[str, Layout]) -> int:
    """Return the bytes of a state dict of this layout, in an unbounded integer."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())


def size_arguments(architecture: str, image_size: int) -> dict[str, Any]:
    """Return the timm arguments that an architecture needs to take square images of this size: img_size, or none."""
    check_architecture(architecture, {})
    fixed = timm.get_pretrained_cfg(architecture)
    return {"img_size": image_size} if fixed is not None and fixed.fixed_input_size else {}


def describe_input(
    model: nn.Module,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    label_names: Sequence[str] | None = None,
) -> None:
    """Set ``model.pretrained_cfg`` (timm's form), so that ``timm.data.resolve_model_data_config(model)`` is right.

    What is None stays as it is. With an image size, images are resized to it whole, bilinearly.

    Args:
        model: a timm model, such as those of :func:`create_model`.
        image_size: side of the square images in pixels.
        mean: of each channel of the images, whose pixels are in [0, 1].
        std: standard deviation of each channel.
        label_names: the classes' names in the order of their numbers.

    Raises:
        ArchitectureError: the model has another number of classes than there are labels, or no classifier at all; or it
            takes images of other channels, or only of another size; or it is none of timm's.
        SettingsError: an argument is not what it should be.
    """
    if not isinstance(getattr(model, "pretrained_cfg", None), Mapping):
        raise ArchitectureError(f"{type(model).__name__} has no pretrained_cfg: give one of timm's models, which have")
    _describe(model, _checked_input(image_size, mean, std, label_names))


def _checked_input(
    image_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    label_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Return what is not None, in plain types."""
    found: dict[str, Any] = {}
    if image_size is not None:
        if not _is_int(image_size, 1, 4096):
            raise SettingsError(f"image_size={image_size!r}: give the side of square images in pixels, from 1 to 4096")
        found["image_size"] = image_size
    for name, given in (("mean", mean), ("std", std)):
        if given is not None:
            found[name] = channel_values(name, given)
    if len({len(found[name]) for name in ("mean", "std") if name in found}) == 2:
        raise SettingsError(f"mean={found['mean']} and std={found['std']}: give one number for each channel in both")
    if label_names is not None:
        found["label_names"] = checked_names("label_names", label_names)
    return found


def channel_values(name: str, given: Any) -> list[float]:
    """Return one float a channel, of a sequence of numbers, an array or a tensor.

    Raises:
        SettingsError: they are not the ``name``, "mean" or "std", of pixels in [0, 1].
    """
    try:
        values = [float(value) for value in given]
    except (TypeError, ValueError):
        values = []
    if not values or not all(0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
        low = "above 0" if name == "std" else "from 0"
        raise SettingsError(
            f"{name}={printable(repr(given))}: give one number for each channel, {low} to 1, as pixels are in [0, 1]; "
            "numbers of pixels up to 255 are to be divided by 255"
        )
    return values


def checked_names(name: str, given: Any) -> list[str]:
    """Return the classes' names, of a sequence of them.

    Raises:
        SettingsError: they are no texts, one is there twice, or has what no line of a card or a terminal can hold.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise SettingsError(f"{name}={printable(repr(given))}: give a list with each class's name")
    places: dict[str, int] = {}
    for number, label in enumerate(given):
        if not isinstance(label, str):
            raise SettingsError(f"{name} have {printable(repr(label))}: give each class's name as text")
        shown = printable(repr(label))
        if any(unicodedata.category(char) in _UNPRINTABLE for char in label):
            raise SettingsError(
                f"{name}: class {number} is named {shown}, with a line break or a control character, or half of a "
                "character: give each class a name that stands on one line"
            )
        if label in places:
            raise SettingsError(
                f"{name}: {shown} is there twice, as classes {places[label]} and {number} (counted from 0): give each "
                "class a name of its own"
            )
        places[label] = number
    return [str(label) for label in given]


_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Control characters, halves of a character, ends of lines; joiners and blanks of other scripts belong to names."""


def _describe(model: nn.Module, described: Mapping[str, Any]) -> None:
    """Put what was described into a model's pretrained_cfg, and take it for no assumption any more."""
    if not described:
        return
    labels = described.get("label_names")
    if labels and not getattr(model, "num_classes", 0):
        raise ArchitectureError(
            f"this {type(model).__name__} has no classifier for {len(labels)} classes. timm's encoders, called "
            "..._enc, never have one: choose another architecture; others have one unless num_classes is 0"
        )
    cfg = {"fixed_input_size": False, "first_conv": None, "classifier": None, **carried_input(model)}
    channels, *sides = cfg.get("input_size", (3,))
    for key in {"mean", "std"} & set(described):
        if hasattr(model, "rst_assumed") and len(described[key]) != channels:
            raise ArchitectureError(
                f"{key}={described[key]} is of {len(described[key])} channels, and the model takes images of "
                f"{channels}: in_chans says how many"
            )
        cfg[key], channels = described[key], len(described[key])
    if "image_size" in described:
        cfg.update(_PREPARED)
        if hasattr(model, "rst_assumed") and cfg["fixed_input_size"]:
            _check_side(model, described["image_size"], sides)
        sides = [described["image_size"]] * 2
    if sides:
        cfg["input_size"] = [channels, *sides]
    if labels is not None:
        cfg.update(num_classes=len(labels), label_names=labels)
    elif hasattr(model, "num_classes"):  # timm's own cfg may have those that it was pretrained for
        cfg["num_classes"] = model.num_classes
    set_input(model, {key: cfg[key] for key in _INPUT_KEYS if key in cfg})
    _told(model, ["input_size" if key == "image_size" else key for key in described])


def _check_side(model: nn.Module, image_size: int, sides: Sequence[int]) -> None:
    if list(sides) != [image_size] * 2:
        raise ArchitectureError(
            f"image_size={image_size}, but this {type(model).__name__} was made for images of {sides[0]} x {sides[1]} "
            "and takes no others: give image_size to create_model"
        )


def describe_as(model: nn.Module, pretrained_cfg: Mapping[str, Any]) -> None:
    """Let a model of :func:`create_model` say of its input and labels what another pretrained_cfg says, if it fits.

    Nothing is taken of another number of channels, no size that the network does not take, no labels of other classes.
    """
    own = carried_input(model)
    preparation = {*_TO_DESCRIBE, *_PREPARED}
    taken = {key: value for key, value in pretrained_cfg.items() if key in preparation and value is not None}
    size = list(taken.get("input_size", own["input_size"]))
    if size[:1] != own["input_size"][:1]:
        taken = {key: value for key, value in taken.items() if key not in ("input_size", "mean", "std")}
    elif own.get("fixed_input_size") and size != own["input_size"]:
        del taken["input_size"]
    if len(taken.get("label_names", ())) != own["num_classes"]:
        taken.pop("label_names", None)
    cfg = {**own, **taken}
    set_input(model, {key: cfg[key] for key in _INPUT_KEYS if key in cfg})
    _told(model, taken)


def _told(model: nn.Module, keys: Iterable[str]) -> None:
    assumed: Any = getattr(model, "rst_assumed", None)
    if assumed is not None:
        cast(Any, model).rst_assumed = {key: value for key, value in assumed.items() if key not in set(keys)}


def assumed_input(model: nn.Module) -> dict[str, Any]:
    """Return what of its input a model of :func:`create_model` has from timm, and nobody described or changed."""
    own, assumed = carried_input(model), getattr(model, "rst_assumed", {})
    kept = {key: value for key, value in assumed.items() if own.get(key) == value}
    return {key: value for key, value in kept.items() if key != "label_names" or own.get("num_classes")}


def set_input(model: nn.Module, pretrained_cfg: Mapping[str, Any]) -> None:
    """Give a model this pretrained_cfg, in both places where timm looks.

    Raises:
        ArchitectureError: as for :func:`check_input`, or the number of classes or labels is not the model's.
    """
    check_input(pretrained_cfg)
    classes: Any = getattr(model, "num_classes", None)  # a features_only model has none
    labels = pretrained_cfg.get("label_names")
    for count in (pretrained_cfg.get("num_classes", classes), classes if labels is None else len(labels)):
        if classes is not None:
            _check_classes(count, classes)
    timm_model: Any = model
    timm_model.pretrained_cfg = timm_model.default_cfg = dict(pretrained_cfg)


def _check_classes(count: int, classes: int) -> None:
    if count != classes:
        raise ArchitectureError(f"{count} classes were given for a model of {classes}: they must be the same")


def check_input(pretrained_cfg: Mapping[str, Any]) -> None:
    """Raise ArchitectureError unless a ticket may carry every entry, and they fit together."""
    for key, value in pretrained_cfg.items():
        if key not in _INPUT_KEYS or not _INPUT_KEYS[key](value):
            shown = printable(f"{key}={value!r}", 200)
            raise ArchitectureError(f"pretrained_cfg entry {shown} is not one that a ticket may carry")
    channels = {len(pretrained_cfg[key]) for key in ("mean", "std") if key in pretrained_cfg}
    if "input_size" in pretrained_cfg and channels - {pretrained_cfg["input_size"][0]}:
        raise ArchitectureError(f"mean and std of {channels} channels do not fit {pretrained_cfg['input_size']} images")


def input_channels(architecture: str, timm_kwargs: Mapping[str, Any]) -> int:
    """Return how many channels the architecture's images have."""
    own = timm.get_pretrained_cfg(architecture)
    return int(timm_kwargs.get("in_chans", 3 if own is None else own.input_size[0]))


def check_channels(architecture: str, timm_kwargs: Mapping[str, Any], pretrained_cfg: Mapping[str, Any]) -> None:
    """Raise ArchitectureError unless a pretrained_cfg is of images of the architecture's channels."""
    channels = input_channels(architecture, timm_kwargs)
    said = {key: pretrained_cfg.get(key) for key in ("input_size", "mean", "std")}
    if any(v is not None and (v[0] if k == "input_size" else len(v)) != channels for k, v in said.items()):
        raise ArchitectureError(f"{architecture} takes images of {channels} channels, its pretrained_cfg others")


def _own_input(model: nn.Module, timm_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's own pretrained_cfg for these arguments: their size and channels, without weights or labels."""
    own = dict(cast(Any, model.pretrained_cfg))
    channels = timm_kwargs.get("in_chans", own["input_size"][0])
    size = _sides(timm_kwargs.get("img_size", own["input_size"][1:]))
    values = {key: list(own[key]) for key in ("mean", "std")}
    for key, numbers in values.items():
        values[key] = numbers if len(numbers) == channels else [sum(numbers) / len(numbers)] * channels
    kept = {key: own[key] for key in _INPUT_KEYS if key in own and key != "label_names"}
    return {**kept, **values, "input_size": [channels, *size], "num_classes": model.num_classes}


def _sides(size: Any) -> tuple[int, ...]:
    """Return (height, width) of timm's img_size."""
    return (size, size) if isinstance(size, int) else tuple(size)


def features_input(pretrained_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a model's pretrained_cfg its ``features_only`` form has: no classes."""
    of_classes = ("num_classes", "label_names", "classifier")
    return {key: value for key, value in pretrained_cfg.items() if key not in of_classes}


def carried_input(model: nn.Module) -> dict[str, Any]:
    """Return what of ``model.pretrained_cfg`` a ticket carries."""
    own = dict(cast(Any, model.pretrained_cfg))
    return {key: own[key] for key in _INPUT_KEYS if key in own}


def dense_config(model: nn.Module, architecture: str, timm_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json, in timm's form, of a dense model."""
    return {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": dict(timm_kwargs),
        "pretrained_cfg": carried_input(model),
    }


def save_dense(
    model: nn.Module,
    folder: str | Path,
    architecture: str,
    timm_kwargs: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a dense model in timm's form: config.json and model.safetensors, for its ``local-dir:`` names.

    ``provenance`` is what its numbers must carry, JSON that timm does not read.
    """
    # clones, because safetensors refuses the tensors that some architectures share between layers
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    with new_folder(Path(folder)) as beside:
        config = dense_config(model, architecture, timm_kwargs)
        write_json(beside / "config.json", config | ({"provenance": dict(provenance)} if provenance else {}))
        # its bytes rather than save_file, whose error on a full disk is none that Python knows
        write_file(beside / "model.safetensors", safetensors.torch.save(tensors, metadata={"format": "pt"}))


def load_dense(folder: str | Path) -> nn.Module:
    """Return in eval mode the model that :func:`save_dense` wrote.

    Raises:
        ArchitectureError: the folder holds no such model.
        TicketError: a file of it is git-lfs's pointer.
        SettingsError: the folder is no path.
    """
    folder = given_path(folder)
    try:
        for name in ("config.json", "model.safetensors"):
            check_fetched(folder / name)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = build_model(config["architecture"], config["model_args"])
        set_input(model, config["pretrained_cfg"])
        # by its bytes: safetensors itself opens no path that is not UTF-8
        model.load_state_dict(safetensors.torch.load((folder / "model.safetensors").read_bytes()), strict=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ArchitectureError(f"{folder} holds no dense model as recipes/train.py writes it: {error}") from error
    return model.eval()


def load_timm(name: str) -> nn.Module:
    """Return in eval mode timm's own pretrained model: "resnet18.a1_in1k", "hf-hub:org/name" or "local-dir:folder".

    timm downloads and reads it in its own way, so give only names that you trust.

    Raises:
        ArchitectureError: timm cannot make or find it.
        TicketError: a file of a local folder is git-lfs's pointer.
    """
    try:
        if name.startswith("local-dir:"):
            for path in sorted(Path(name.removeprefix("local-dir:")).glob("*.*")):
                check_fetched(path)
        with in_float32():
            return timm.create_model(name, pretrained=True).eval()
    except TicketError:
        raise
    except Exception as error:  # timm, the Hub's client and torch raise many kinds
        raise ArchitectureError(f"timm cannot load {name}: {type(error).__name__} {foreign(error)}") from cause(error)


def _is_int(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6  # so neither inf nor nan


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _are_channel_values(value: Any) -> bool:
    return isinstance(value, list | tuple) and 1 <= len(value) <= 1024 and all(_is_number(v) for v in value)


def _are_names(value: Any) -> bool:
    names = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(name, str) and len(name) < 256 for name in names)
