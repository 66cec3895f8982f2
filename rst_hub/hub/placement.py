"""Where a loaded model goes, and in which precision: checked before anything is read, done after all is compared."""

from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import SettingsError, foreign, printable

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_Model = TypeVar("_Model", bound=nn.Module)


def checked_device(device: Any, dtype: Any) -> torch.device | None:
    """Return the device with its number, None for none; raise SettingsError unless it is here and holds the dtype.

    Raises:
        SettingsError: the dtype is not one that networks compute in, or torch has no such device here.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise SettingsError(f"dtype={printable(repr(dtype))}: give one of {', '.join(map(str, _DTYPES))}")
    if device is None:
        return None
    if isinstance(device, bool) or not isinstance(device, str | int | torch.device):
        raise SettingsError(f"device={printable(repr(device))}: give a name such as 'cuda' or 'cpu', or a torch.device")
    try:
        found = torch.empty(0, dtype=dtype or torch.float32, device=device).device
    except Exception as error:  # torch raises a kind of its own for each device
        said = foreign(error, 200)
        raise SettingsError(f"device={printable(repr(device))} cannot be used here: {said}") from error
    if found.type == "meta":
        raise SettingsError("device='meta' holds no values, so nothing of a ticket would be left: give 'cpu' or a GPU")
    return found


def place(model: _Model, device: torch.device | None, dtype: torch.dtype | None) -> _Model:
    """Return a model of float32 on the CPU in another precision, on another device; None leaves either as it is.

    Raises:
        SettingsError: a value of it is too large for the precision.
    """
    if dtype is not None:
        finite = [name for name, tensor in _floats(model) if bool(tensor.isfinite().all())]
        model = model.to(dtype=dtype)
        cast = dict(_floats(model))
        lost = [name for name in finite if not bool(cast[name].isfinite().all())]
        if lost:
            raise SettingsError(f"dtype={dtype} cannot hold {lost[:3]}, which has larger numbers: give torch.bfloat16")
    return model if device is None else model.to(device=device)


def _floats(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor) for name, tensor in model.state_dict().items() if tensor.is_floating_point()]
