"""A user's own attack or objective, by "module:function" or "my_attack.py:function": found, called, held to its word.

Whoever starts a run names them, on the command line, in a TOML file or in settings made in Python. Nothing that a
ticket, a card, a result or a run's folder says is ever imported. docs/extend.md says how to write one.
"""

import hashlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import nn

from ..attacks.common import ThreatModel, Victim, check_finite, members_of, norm_of, out_of_memory
from ..attacks.names import NamedAttack
from ..errors import DataError, RstHubError, SettingsError, foreign, nearest, printable
from .objectives import Objective
from .settings import RunSettings, is_own, own_name

SIGNATURES = {
    "attack": "attack(model, x, y, threat_model, *, generator=None) -> pixels",
    "loss": "objective(network, x, attacked, y) -> (loss, logits)",
}
_ROUNDING = 1e-6
"""By how much float32 may take pixels from 0 to 1 out of a budget."""


@dataclass(frozen=True)
class Own:
    """A function of the user's: its name for results (no folder in it), and the SHA-256 of its source file."""

    name: str
    function: Callable[..., Any]
    sha256: str


def own_code(settings: RunSettings) -> dict[str, Own]:
    """Return the user's own functions that a run's settings name, by the setting: "attack", "loss".

    Raises:
        SettingsError: one cannot be found, or takes other arguments.
    """
    return {name: load_own(getattr(settings, name), name) for name in SIGNATURES if is_own(getattr(settings, name))}


def load_own(word: str, setting: str) -> Own:
    """Import a user's own function; of a file exactly the bytes whose digest is taken.

    Args:
        word: "my_attack.py:function", or "module:function" of what can be imported, also from the current folder.
        setting: what it is for, a key of :data:`SIGNATURES`.

    Raises:
        SettingsError: there is no such file, module or function, it cannot be imported, or takes other arguments.
    """
    where, _, called = word.rpartition(":")
    if not called.isidentifier() or not (where.endswith(".py") or all(map(str.isidentifier, where.split(".")))):
        raise SettingsError(f"{word!r}: give a function of your own as module:function or my_attack.py:function")
    module, path = _of_file(where) if where.endswith(".py") else _of_module(where)
    function = getattr(module, called, None)
    if not callable(function):
        there = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise SettingsError(f"{where} has no function {called!r}. {nearest(called, there)}")
    expected = SIGNATURES[setting]
    try:
        inspect.signature(function).bind(None, None, None, None)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{word} takes other arguments ({error}): write {expected}") from error
    return Own(own_name(word), function, _digest(function, path))


def _of_file(where: str) -> tuple[ModuleType, Path]:
    """Return a module made of a file, whatever was imported by its name before."""
    path = Path(os.path.expanduser(where)).resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{where} cannot be read: {error.strerror}") from error
    module = ModuleType(f"rst_hub_own_{path.stem}_{hashlib.sha256(content).hexdigest()[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look
    with _importing(where):
        code: CodeType = compile(content, str(path), "exec")
        exec(code, module.__dict__)
    _READ[path] = hashlib.sha256(content).hexdigest()
    return module, path


_READ: dict[Path, str] = {}
"""The digest of each source file when it was imported here."""


def _of_module(where: str) -> tuple[ModuleType, Path | None]:
    """Return a module by its name; the current folder comes last, so that it hides nothing."""
    sys.path.append(os.getcwd())
    try:
        with _importing(where):
            module = importlib.import_module(where)
    finally:
        sys.path.pop()
    return module, None if getattr(module, "__file__", None) is None else Path(str(module.__file__)).resolve()


@contextmanager
def _importing(where: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:  # somebody's file raises whatever it likes
        raise SettingsError(f"{where} cannot be imported: {type(error).__name__}: {foreign(error)}") from error


def _digest(function: Callable[..., Any], path: Path | None) -> str:
    """Return the SHA-256 of the file that a function is written in."""
    try:
        found = inspect.getsourcefile(inspect.unwrap(function))
        path = path if found is None else Path(found).resolve()
    except TypeError:  # no plain function: the file that names it
        pass
    if path is None or path.suffix != ".py":
        raise SettingsError(f"{printable(function)} has no source file to record: write it in a .py file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if _READ.setdefault(path, digest) != digest:
        raise SettingsError(f"{path.name} has changed since it was imported: start Python anew")
    return digest


def own_attack(own: Own, threat_model: ThreatModel) -> NamedAttack:
    """Return a user's attack as one that can be measured with."""
    return NamedAttack(own.name, as_attack(own), threat_model, {}, own.sha256)


def as_attack(own: Own) -> Callable[..., torch.Tensor]:
    """Return a user's attack, held to what every attack keeps to.

    It gets copies of pixels and labels; the model's modes, and the gradients of its parameters, are left alone. What it
    draws from torch's own random numbers comes from the batch's generator too.

    Its errors: DataError for pixels of another shape or dtype, outside [0, 1] or outside the budget; RstHubError where
    they are not finite, or the function raises.
    """
    taken = inspect.signature(own.function).parameters.values()
    draws = any(p.name == "generator" or p.kind is inspect.Parameter.VAR_KEYWORD for p in taken)

    def attack(
        model: Victim,
        x: torch.Tensor,
        y: torch.Tensor,
        threat_model: ThreatModel,
        *,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        with _untouched(model), _drawing(generator, x.device), _calling(own):
            given = {"generator": generator} if draws else {}
            pixels = own.function(model, x.detach().clone(), y.clone(), threat_model, **given)
        return _checked(own, pixels, x, threat_model)

    attack.__name__ = attack.__qualname__ = own.name.rpartition(":")[2]
    return attack


def _checked(own: Own, pixels: Any, x: torch.Tensor, threat_model: ThreatModel) -> torch.Tensor:
    if not isinstance(pixels, torch.Tensor) or (pixels.shape, pixels.dtype) != (x.shape, x.dtype):
        made = f"{pixels.dtype} {tuple(pixels.shape)}" if isinstance(pixels, torch.Tensor) else type(pixels).__name__
        raise DataError(f"attack {own.name} made {made} of {x.dtype} {tuple(x.shape)} pixels: it must keep them")
    pixels = pixels.detach().to(x.device)
    check_finite(pixels, f"pixels by {own.name}")
    low, high = (float(value) for value in pixels.aminmax()) if len(pixels) else (0.0, 1.0)
    if low < 0 or high > 1:
        raise DataError(f"attack {own.name} made pixels from {low:g} to {high:g}: clamp them to [0, 1]")
    farthest = float(norm_of(pixels - x, threat_model.norm).max()) if len(pixels) else 0.0
    if farthest > threat_model.eps * (1 + 1e-5) + _ROUNDING:
        raise DataError(
            f"attack {own.name} leaves its budget: {threat_model.norm} {255 * farthest:.4f}/255 of at most "
            f"{255 * threat_model.eps:.4f}/255: project its pixels before it returns them"
        )
    return pixels


@contextmanager
def _untouched(model: Victim) -> Iterator[None]:
    """Let no gradient reach the model's parameters, and put its modules back into their modes."""
    networks = [member for member in members_of(model) if isinstance(member, nn.Module)]
    modes = [(module, module.training) for network in networks for module in network.modules()]
    learned = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


@contextmanager
def _drawing(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Let torch's own random numbers be those of the batch, and put them back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if generator is not None:
            torch.manual_seed(generator.initial_seed())
        yield


@contextmanager
def _calling(own: Own) -> Iterator[None]:
    try:
        yield
    except RstHubError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        raise RstHubError(f"{own.name} failed ({where}): {type(error).__name__}: {foreign(error)}") from error


def as_objective(own: Own) -> Objective:
    """Return a user's objective; RstHubError where it gives no loss to minimise or no logits. No value is looked at."""

    def objective(
        network: nn.Module, x: torch.Tensor, attacked: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with _calling(own):
            found = own.function(network, x, attacked, y)
        both = isinstance(found, tuple) and len(found) == 2 and all(isinstance(one, torch.Tensor) for one in found)
        if not both or found[0].ndim or not found[0].requires_grad or found[1].ndim != 2 or len(found[1]) != len(y):
            raise RstHubError(
                f"objective {own.name} must return (loss, logits): a tensor of shape () with a gradient, and "
                f"({len(y)}, classes)"
            )
        loss, logits = found
        return loss, logits.detach()

    return objective


def recorded(own: Mapping[str, Own]) -> dict[str, Any]:
    """Return what a result says of the user's own functions, for JSON; {} where there is none."""
    found = {setting: {"name": one.name, "source_sha256": one.sha256} for setting, one in own.items()}
    return {"own_code": found} if found else {}
