"""A network's input and labels, in the words of timm's pretrained_cfg: described, checked, carried by a ticket."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import timm
import torch
from torch import nn

from ..errors import ArchitectureError, SettingsError, printable
from . import cifar as cifar  # registers the paper's networks with timm
from .values import are_channel_values, are_names, is_int, is_number

_INPUT_KEYS = {
    "input_size": lambda v: isinstance(v, list | tuple) and len(v) == 3 and all(is_int(n, 1, 4096) for n in v),
    "fixed_input_size": lambda v: isinstance(v, bool),
    "interpolation": lambda v: isinstance(v, str) and v in ("bicubic", "bilinear", "nearest", "lanczos", "random"),
    "crop_pct": lambda v: is_number(v) and 0 < v <= 2,
    "crop_mode": lambda v: isinstance(v, str) and v in ("center", "squash", "border"),
    "mean": lambda v: are_channel_values(v),
    "std": lambda v: are_channel_values(v) and all(value > 0 for value in v),
    "num_classes": lambda v: is_int(v, 0, 100_000),
    "label_names": lambda v: isinstance(v, list | tuple) and len(v) <= 100_000 and all(isinstance(n, str) for n in v),
    "first_conv": lambda v: v is None or are_names(v),
    "classifier": lambda v: v is None or are_names(v),
}
"""What of timm's pretrained_cfg a ticket carries: the input, the labels, two layer names; no URL, file or hook."""


class UndescribedInputWarning(UserWarning):
    """A ticket says of its input what timm says of the architecture, because nobody described it."""


TO_DESCRIBE = ("input_size", "mean", "std", "label_names")
_PREPARED = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
"""How images of a described size are made: resized, nothing cut off."""


def compacted(parameter: nn.Parameter) -> torch.Tensor:
    """Return a parameter's values on the CPU; of many equal ones a single one."""
    values = parameter.detach().float().cpu()
    first = values.flatten()[:1]
    return first.view(()).clone() if values.numel() and bool((values == first).all()) else values.clone()


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
    described_with(model, checked_input(image_size, mean, std, label_names))


def checked_input(
    image_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    label_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Return what is not None, in plain types."""
    found: dict[str, Any] = {}
    if image_size is not None:
        if not is_int(image_size, 1, 4096):
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


def described_with(model: nn.Module, described: Mapping[str, Any]) -> None:
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
    note_described(model, ["input_size" if key == "image_size" else key for key in described])


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
    preparation = {*TO_DESCRIBE, *_PREPARED}
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
    note_described(model, taken)


def note_described(model: nn.Module, keys: Iterable[str]) -> None:
    """Take what was described or changed off what a draw warns of."""
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
            check_classes(count, classes)
    timm_model: Any = model
    timm_model.pretrained_cfg = timm_model.default_cfg = dict(pretrained_cfg)


def check_classes(count: int, classes: int) -> None:
    """Raise ArchitectureError unless the numbers of classes agree."""
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


def own_input(model: nn.Module, timm_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's own pretrained_cfg for these arguments: their size and channels, without weights or labels."""
    own = dict(cast(Any, model.pretrained_cfg))
    channels = timm_kwargs.get("in_chans", own["input_size"][0])
    size = sides_of(timm_kwargs.get("img_size", own["input_size"][1:]))
    values = {key: list(own[key]) for key in ("mean", "std")}
    for key, numbers in values.items():
        values[key] = numbers if len(numbers) == channels else [sum(numbers) / len(numbers)] * channels
    kept = {key: own[key] for key in _INPUT_KEYS if key in own and key != "label_names"}
    return {**kept, **values, "input_size": [channels, *size], "num_classes": model.num_classes}


def sides_of(size: Any) -> tuple[int, ...]:
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
