"""What a run is called: its folder, and the command that repeats it."""

import dataclasses
import hashlib
import itertools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .settings import PRESETS, MeasureSettings, RunSettings, SearchSettings, dashed, own_name, preset_for, ratios_of


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
    preset = {key: value for key, value in PRESETS[preset_for(settings.dataset)].items() if key in names}
    usual = dataclasses.replace(type(settings)(), **{**preset, **said})
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


def command(recipe: str, settings: MeasureSettings) -> str:
    """Return the command line that measures this, whether it was measured at once or added to bit by bit."""
    words = []
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if value != f.default:
            words += [f"--{dashed(f.name)}"] if value is True else [f"--{dashed(f.name)}", str(value)]
    return repeatable(recipe, words)


def repeatable(recipe: str, arguments: Sequence[str], precision: str = "no", processes: int = 1) -> str:
    """Return a command line for others to repeat: nothing of where things lie on this machine, or are written.

    --output and --resume are left out. Of a data set's folder the last name is given, of other paths too unless they
    lead from here downwards.
    """
    launched = [] if precision == "no" else ["--mixed_precision", precision]
    launched += [] if processes == 1 else ["--num_processes", str(processes)]
    found = [*(["accelerate", "launch", *launched] if launched else []), f"recipes/{recipe}.py"]
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for name, value in itertools.pairwise([*words, ""]):
        if name.startswith("--") and name not in ("--output", "--resume"):
            given = [] if value.startswith("--") or not value else [_placeless(value, name == "--dataset")]
            found += [name, *given]
    return shlex.join(found).encode(errors="replace").decode()  # JSON holds no half characters, of a name say


def _placeless(value: str, is_data: bool) -> str:
    """Return names with commas between, of the paths among them the last part where they lead elsewhere."""
    parts = []
    for part in value.split(","):
        path = Path(part)
        leads_away = path.is_absolute() or ".." in path.parts or part.startswith("~")
        parts.append(path.resolve().name if leads_away or (is_data and path.is_dir()) else part)
    return ",".join(parts)
