"""A timm model built without its values: tensors on the meta device, no random number drawn, and what fills it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from . import cifar as cifar  # registers the paper's networks with timm

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


class Unfilled(TorchFunctionMode):
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


class Seeded(TorchFunctionMode):
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


def beside_the_state(model: nn.Module) -> Iterator[torch.Tensor]:
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


class NumbersStayNumbers(TorchFunctionMode):
    """Makes torch.linspace on the CPU inside of ``torch.device("meta")``, so that its values can be asked for."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*args, **{**({"device": "cpu"} if func is torch.linspace else {}), **(kwargs or {})})
