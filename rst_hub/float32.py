"""Networks are of float32, whatever dtype torch gives new tensors by default (``torch.set_default_dtype``).

The default is one for all of a process, so it is left alone: another thread may be making tensors.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

_FLOATING = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.normal}
"""What makes tensors of the default dtype. Not made twice: it takes memory, or random numbers."""


def in_float32() -> AbstractContextManager[object]:
    """Return a context in which this thread's new tensors are float32 where torch's default dtype is another."""
    default = torch.get_default_dtype()
    return nullcontext() if default == torch.float32 else _InFloat32(default)


class _InFloat32(TorchFunctionMode):
    """In this thread, what would become the default dtype of itself becomes float32, with the bits of that default."""

    def __init__(self, default: torch.dtype) -> None:
        super().__init__()
        self.default = default

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args = tuple(self._asked(value) for value in args)  # some of timm asks torch for its default dtype
        given = {key: self._asked(value) for key, value in (kwargs or {}).items()}
        tensors = [value for value in (*args, *given.values()) if isinstance(value, torch.Tensor)]
        of_others = func is torch.normal and tensors  # of its means' dtype; another tensor may be a size
        if func in _FLOATING and not of_others and given.get("dtype") is None and given.get("out") is None:
            given["dtype"] = torch.float32
        found = func(*args, **given)
        if not isinstance(found, torch.Tensor) or found.dtype != self.default:
            return found
        if any(tensor.dtype == self.default for tensor in tensors):
            return found
        if not tensors:  # of Python's numbers; numpy's arrays have a dtype of their own
            own = bool(args) and isinstance(args[0], np.ndarray | np.generic)
            return found if own or given.get("dtype") is not None else func(*args, **{**given, "dtype": torch.float32})
        return func(*(_as_float32(value) for value in args), **{key: _as_float32(v) for key, v in given.items()})

    def _asked(self, value: Any) -> Any:
        return torch.float32 if value is self.default else value


def _as_float32(value: Any) -> Any:
    """Return a tensor of whole numbers as the floating-point ones that torch makes of it in a computation."""
    return value.float() if isinstance(value, torch.Tensor) and not value.is_floating_point() else value
