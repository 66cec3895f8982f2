"""Models that draw at random who answers (R2S): a warning where one is taken for a single model.

Such a module says ``draws_members = True`` and has ``probabilities``.
"""

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

_DRAWS = "an R2S answers each sample by a member that it draws"
_ATTACKED = (
    "attacked as one model it looks more robust than it is, because the attacker does not know which member answers. "
    "Give the attack all members"
)
_MEASURED = "this accuracy is that of one random draw. For its exact expectation give all members"


@contextlib.contextmanager
def warned_of_draws(model: Any, *, attacked: bool = True) -> Iterator[None]:
    """Warn once, here, of an R2S that is attacked or measured as one model; not again for what is done inside."""
    if not warn_of_draws(model, attacked=attacked):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_DRAWS)
        yield


def warn_of_draws(model: Any, *, attacked: bool = True) -> bool:
    """Warn (UserWarning) if ``model``, or one of a list, is or has an R2S, and say whether it is so.

    Args:
        model: a module, another callable, or a list of them. A list of an R2S's members is what it should be.
        attacked: whether it is attacked, or only measured.
    """
    models = [_behind(one) for one in (model if isinstance(model, list | tuple) else [model])]
    modules = [module for one in models if isinstance(one, nn.Module) for module in one.modules()]
    found: list[Any] = [module for module in modules if getattr(module, "draws_members", False) is True]
    if found:
        told = _ATTACKED if attacked else _MEASURED
        uneven = any(max(r2s.probabilities) - min(r2s.probabilities) > 1e-9 for r2s in found)
        weigh = " A list takes its members as equally likely, which these are not: weigh what each of them leaves."
        warnings.warn(
            f"{_DRAWS}: {told}, list(r2s.members), or [PixelModel(m) for m in r2s.members] for pixels in [0, 1]."
            + (weigh if uneven else ""),
            stacklevel=_outside(),
        )
    return bool(found)


def _behind(model: Any) -> Any:
    """Return the module whose forward a method or a partial is; a function of one's own does not say what it calls."""
    while isinstance(model, functools.partial):
        model = model.func
    forward = getattr(model, "__name__", "") in ("forward", "__call__", "_wrapped_call_impl", "_call_impl")
    return getattr(model, "__self__", model) if forward else model


def _outside() -> int:
    """Return, as a stacklevel of the caller's, how far up is the first line that is not ours."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("rst_hub", "contextlib", "torch"):
        frame, level = frame.f_back, level + 1
    return level
