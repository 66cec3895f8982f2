"""What a run is called: its folder, and the command that repeats it."""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .settings import (
    PRESETS,
    MeasureSettings,
    RunSettings,
    SearchSettings,
    dashed,
    own_name,
    preset,
    preset_for,
    ratios_of,
)


def default_name(recipe: str, settings: RunSettings) -> str:
    """Return the name of a run's folder: what is read first, and a hash of all settings where those do not say all."""
    parts = [
        recipe,
        settings.model,
        Path(settings.dataset).resolve().name,
        filed(settings.attack),
        f"eps{settings.eps:g}",
    ]
    ratios = [f"{ratio:g}" for ratio in ratios_of(settings)] if isinstance(settings, SearchSettings) else []
    said: dict[str, Any] = {"model": settings.model, "attack": settings.attack, "seed": settings.seed}
    said |= {"dataset": parts[2], "eps": float(f"{settings.eps:g}")}
    if isinstance(settings, SearchSettings):
        exact = [float(ratio) for ratio in ratios]
        several = settings.remaining_ratios is not None
        said |= {"remaining_ratios": _listed(exact)} if len(exact) > 1 else {"remaining_ratio": exact[0]}
        settings = dataclasses.replace(settings, remaining_ratios=_listed(ratios_of(settings)) if several else None)
    if len("-".join([*parts, *ratios])) > 120:  # of a long list the first and the last
        ratios, said = [ratios[0], "to", ratios[-1], "of", str(len(ratios))], {}
    parts += ["r" + "-".join(ratios)] if ratios else []
    names = {f.name for f in dataclasses.fields(settings)}
    chosen = {key: value for key, value in PRESETS[preset_for(settings.dataset)].items() if key in names}
    usual = dataclasses.replace(type(settings)(), **{**chosen, **said})
    return "-".join([*parts, f"s{settings.seed}", *hash_unless(settings, usual)])


def filed(attack: str) -> str:
    """Return an attack's name as a part of a folder's, whatever the system."""
    return own_name(attack).replace(":", "-")


def _listed(ratios: Sequence[float]) -> str:
    return ",".join(repr(ratio) for ratio in ratios)


def hash_unless(settings: Any, usual: Any) -> list[str]:
    """Return some digits of a hash of all settings but where a run lies, or nothing where they are the usual ones."""
    own, other = ({**dataclasses.asdict(each), "output": None, "resume": False} for each in (settings, usual))
    if own == other:
        return []
    return [hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:6]]


def command(recipe: str, settings: RunSettings | MeasureSettings, precision: str = "no", processes: int = 1) -> str:
    """Return the command line that repeats a run, made from its settings, however it was started.

    It says what is not a default, of the class or of the preset that leaves the least to say. It says nothing of where
    things lie on this machine, or are written: --output and --resume are left out. Of a data set's folder the last
    name is given, of other paths too unless they lead from here downwards.
    """
    launched = [] if precision == "no" else ["--mixed_precision", precision]
    launched += [] if processes == 1 else ["--num_processes", str(processes)]
    start = ["accelerate", "launch", *launched, "-m", f"rst_hub.runs.{recipe}"] if launched else ["rst-hub", recipe]
    # JSON holds no half characters, of a name say.
    return shlex.join([*start, *_words_of(settings)]).encode(errors="replace").decode()


def _words_of(settings: RunSettings | MeasureSettings) -> list[str]:
    """Return the words of the command line that make these settings."""
    given = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    given = {name: value for name, value in given.items() if name not in ("output", "resume")}
    given |= {name: _placeless(given[name], name == "dataset") for name in _PLACES if given.get(name) is not None}
    for name in ("attack", "attacks", "loss"):  # of one's own, the file without its folder
        if isinstance(given.get(name), str):
            given[name] = ",".join(own_name(word) for word in given[name].split(","))
    usual = type(settings)()
    for name in ("eps", "step_size"):  # which a command line takes for a mistake below 1, unless it says of what
        value = given.get(name)
        if isinstance(value, float) and 0 < value < 1 and value != getattr(usual, name):
            given[name] = f"{value:g}/255" if float(f"{value:g}") == value else f"{value!r}/255"
    if not isinstance(settings, RunSettings):
        return _unlike(usual, given)
    if given.get("remaining_ratios") is not None:
        del given["remaining_ratio"]  # which a set takes no notice of
    own = preset_for(given["dataset"])
    found = []
    for name in (own, *(name for name in PRESETS if name != own)):
        base = preset(type(settings), name, optimizer=settings.optimizer)  # on which the rate depends
        base = dataclasses.replace(base, optimizer=RunSettings.optimizer)
        if all(value is not None or getattr(base, key) is None for key, value in given.items()):
            found.append([*([] if name == own else ["--preset", name]), *_unlike(base, given)])
    return min(found, key=len)


_PLACES = ("dataset", "ticket", "tickets")


def _unlike(base: Any, given: dict[str, Any]) -> list[str]:
    """Return the words for settings that are not those of ``base``."""
    words = []
    for name, value in given.items():
        option = f"--{dashed(name)}"
        if value != getattr(base, name):
            apart = not isinstance(value, str) or not value.startswith("-")  # a word that looks like an option is none
            words += [option] if value is True else [option, str(value)] if apart else [f"{option}={value}"]
    return words


def _placeless(value: str, is_data: bool) -> str:
    """Return names with commas between, of the paths among them the last part where they lead elsewhere."""
    parts = []
    for part in value.split(","):
        path = Path(part)
        leads_away = path.is_absolute() or ".." in path.parts or part.startswith("~")
        parts.append(path.resolve().name if leads_away or (is_data and path.is_dir() and part != "digits") else part)
    found = ",".join(parts)
    return "./digits" if is_data and found == "digits" != value else found  # a folder, and not scikit-learn's
