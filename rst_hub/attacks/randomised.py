"""Models that draw at random who answers (R2S): a warning where one is taken for a single model.

Such a module says ``draws_members = True`` and has ``probabilities``.
"""

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from torch import nn

_ATTACKED = (
    "attacked as one model it looks more robust than it is, because the attacker does not know which member answers. "
    "Give the attack all members"
)
_MEASURED = "this accuracy is that of one random draw. For its exact expectation give all members"


_UNTOLD: ContextVar[str | None] = ContextVar("the words for a draw; empty once told, None in plain use", default=None)


@contextlib.contextmanager
def warned_of_draws(model: Any, *, attacked: bool = True) -> Iterator[None]:
    """Warn (UserWarning) of an R2S that is attacked or measured inside as one model: once, whatever is done inside.

    That is told at once if ``model``, or one of a list, is or has an R2S, and else when one draws, which may be behind
    a function or in a list where nothing of it is seen before.

    Args:
        model: a module, another callable, or a list of them. A list of an R2S's members is what it should be.
        attacked: whether it is attacked, or only measured.
    """
    token = _UNTOLD.set(_ATTACKED if attacked else _MEASURED) if _UNTOLD.get() is None else None
    try:
        models = [_behind(one) for one in (model if isinstance(model, list | tuple) else [model])]
        modules = [module for one in models if isinstance(one, nn.Module) for module in one.modules()]
        found = [module for module in modules if getattr(module, "draws_members", False) is True]
        if found:
            tell_of_draws(found)
        yield
    finally:
        if token is not None:
            _UNTOLD.reset(token)


def tell_of_draws(drawing: Sequence[Any]) -> None:
    """Warn of these R2S, if that is inside of :func:`warned_of_draws` and not told yet."""
    words = _UNTOLD.get()
    if not words:
        return
    _UNTOLD.set("")
    uneven = any(max(r2s.probabilities) - min(r2s.probabilities) > 1e-9 for r2s in drawing)
    weigh = " A list takes its members as equally likely, which these are not: weigh what each of them leaves."
    warnings.warn(
        "an R2S answers each sample by a member that it draws: "
        f"{words}, list(r2s.members), or [PixelModel(m) for m in r2s.members] for pixels in [0, 1]."
        + (weigh if uneven else ""),
        stacklevel=_outside(),
    )


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
