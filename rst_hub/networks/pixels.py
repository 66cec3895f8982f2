"""PixelModel: a network that takes pixels in [0, 1] and normalises them itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ArchitectureError, DataError, SettingsError, printable
from . import cifar as cifar  # registers the paper's networks with timm


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

    def __repr__(self) -> str:
        return f"PixelModel({type(self.model).__name__}, mean={self.mean.flatten()}, std={self.std.flatten()})"

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
