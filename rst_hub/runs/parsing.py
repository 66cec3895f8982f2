"""The command line and a TOML file to settings: one name for each setting, everywhere."""

import argparse
import dataclasses
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import SettingsError, nearest
from ..spelling import folded, over_255, spelled
from .settings import (
    GROUPS,
    PRESETS,
    MeasureSettings,
    RunSettings,
    SearchSettings,
    Settings,
    dashed,
    is_own,
    preset_for,
    report_all,
    wrong_in,
    wrong_in_measure,
)
from .settings import preset as preset_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def parse(kind: type[Settings], arguments: list[str], description: str, program: str | None = None) -> Settings:
    """Return settings of ``kind`` from the command line ``arguments`` of ``program``.

    Raises:
        SettingsError: unknown names (the nearest right ones are said), wrong types, or values out of range: all of them
            in one message.
    """
    given, wrong = _command_line(kind, description, program, arguments)
    config, preset = given.pop("config", None), given.pop("preset", None)
    from_file, wrong_in_file = _read_toml(config, kind) if config else ({}, [])
    wrong += wrong_in_file
    own = {key: _at_home(key, value) for key, value in {**from_file, **given}.items()}
    if not issubclass(kind, RunSettings):
        settings = kind(**own)
        report_all([*wrong, *(wrong_in_measure(settings) if isinstance(settings, MeasureSettings) else [])])
        return settings
    preset_in_file = own.pop("preset", None)
    preset = preset or preset_in_file or preset_for(own.get("dataset", "digits"))
    if "remaining_ratio" in own and "remaining_ratios" in own:
        wrong.append(_BOTH)
    try:
        run_settings = preset_of(kind, preset, **own)
    except SettingsError as error:  # there is no such preset
        wrong.append(str(error))
        run_settings = kind(**own)
    report_all([*wrong, *wrong_in(run_settings)])
    return run_settings


_BOTH = "give --remaining-ratio for one ticket or --remaining-ratios for a set, not both"


def checked(kind: type[Settings], settings: Settings) -> Settings:
    """Return settings that were made in Python as a command line would make them: whole numbers as floats, "~" as home.

    Raises:
        SettingsError: they are of another class, or a value is of the wrong type or out of range: all that is wrong in
            one message.
    """
    if not isinstance(settings, kind):
        raise SettingsError(f"settings are of {type(settings).__name__}: give {kind.__name__}(...)")
    right: dict[str, Any] = {}
    wrong = []
    for f in dataclasses.fields(kind):
        value = getattr(settings, f.name)
        if isinstance(value, Path) and f.name in _PATHS:
            value = str(value)
        try:
            right[f.name] = None if value is None and f.default is None else _typed(value, _type_of(kind, f.name), f)
        except ValueError as error:
            wrong.append(str(error))
    found = kind(**{name: _at_home(name, value) for name, value in right.items()})
    if isinstance(found, SearchSettings) and found.remaining_ratios is not None:
        usual = [SearchSettings.remaining_ratio, *(values.get("remaining_ratio") for values in PRESETS.values())]
        wrong += [] if found.remaining_ratio in usual else [_BOTH]
    if isinstance(found, RunSettings):
        wrong += wrong_in(found)
    elif isinstance(found, MeasureSettings):
        wrong += wrong_in_measure(found)
    report_all(wrong)
    return found


_PATHS = ("dataset", "output", "ticket", "tickets", "folder", "results")
"""Settings that name a place, or several with commas between."""


def _at_home(name: str, value: Any) -> Any:
    """Return a path with its home folder in place of "~", which a shell leaves alone behind "--dataset="."""
    if name not in _PATHS or not isinstance(value, str):
        return value
    return ",".join(os.path.expanduser(part) for part in value.split(","))


_OVER_255 = ("eps", "step_size")
"""Settings that are pixels over 255: "8/255" is 8."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"command line: {message}")


def _command_line(
    kind: type[Any], description: str, program: str | None, arguments: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return (settings that are given and right, what is wrong with the others)."""
    parser = _Parser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", help="TOML file of settings, by the names below")
    if issubclass(kind, RunSettings):
        parser.add_argument("--preset", choices=tuple(PRESETS), help="default: digits for digits, else cifar")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    groups: dict[str, Any] = {}
    for title, names in GROUPS.items():
        if not fields.keys().isdisjoint(names):
            groups |= dict.fromkeys(names, parser.add_argument_group(title))
    for f in fields.values():
        options: dict[str, Any] = {"help": f.metadata["help"] + _default_of(kind, f), "dest": f.name}
        if _type_of(kind, f.name) is bool:
            options["action"] = "store_true"
        elif f.metadata["choices"]:
            own = ("MODULE:FUNCTION",) if f.metadata["own"] else ()
            options["metavar"] = "{" + ",".join((*f.metadata["choices"], *own)) + "}"
        groups.get(f.name, parser).add_argument(f"--{dashed(f.name)}", **options)
    known, unknown = parser.parse_known_args(arguments)
    names = [option for action in parser._actions for option in action.option_strings]
    stray = [word for before, word in zip(["", *unknown], unknown, strict=False) if not _is_value(before, word)]
    wrong = [f"command line: {word!r} is not known. {nearest(word.split('=')[0], names)}" for word in stray]
    given = vars(known)
    for name in [name for name in given if name in fields]:
        try:
            wanted = over_255 if name in _OVER_255 and _type_of(kind, name) is float else _type_of(kind, name)
            given[name] = _converted(given[name], wanted, fields[name])
        except ValueError as error:
            wrong.append(f"command line: argument --{dashed(name)}: {error}")
            del given[name]
    return given, wrong


def _default_of(kind: type[Any], f: Any) -> str:
    """Return what --help says of a setting's default, in brackets, and of those of presets."""
    if f.default is None or f.default is False or f.default == "":
        said = []
    else:
        said = [f"default: {f.default:g}" if isinstance(f.default, float) else f"default: {f.default}"]
    if issubclass(kind, RunSettings):
        said += [f"{name}: {values[f.name]}" for name, values in PRESETS.items() if f.name in values]
    return f" ({'; '.join(said)})" if said else ""


def _is_value(before: str, word: str) -> bool:
    """Say whether a word that argparse leaves over is the value of the unknown option in front of it."""
    return before.startswith("--") and "=" not in before and not word.startswith("--")


def _converted(value: Any, wanted: Callable[[Any], Any], setting: dataclasses.Field[Any]) -> Any:
    """Return a word of the command line as what it must be; raise ValueError if it is not."""
    if setting.metadata["choices"]:
        return _chosen(value, setting)
    if wanted is bool:
        return value
    try:
        return wanted(value)
    except ValueError as error:
        if wanted is over_255 and "could not convert" not in str(error):
            raise
        name = "float" if wanted is over_255 else wanted.__name__
        raise ValueError(f"invalid {name} value: {value!r}") from None


def _chosen(value: str, setting: dataclasses.Field[Any]) -> str:
    """Return the choice that a word is a spelling of, or a user's own function; raise ValueError if it is neither."""
    choices: Sequence[str] = setting.metadata["choices"]
    if is_own(value) and setting.metadata["own"]:
        return value
    if is_own(value) and setting.name == "pattern":
        raise ValueError(f"{value!r}: a ticket can say only the patterns that its format knows: {', '.join(choices)}")
    if (name := spelled(value, choices)) in choices:
        return name
    kind = re.sub(r"\d+$", "", folded(value))
    more = (
        f"; the steps are --steps: --attack {kind} --steps {folded(value)[len(kind) :]}"
        if kind == "pgd" in choices
        else ""
    )
    raise ValueError(f"invalid choice: {value!r}; choose from {', '.join(choices)}{more}")


def _read_toml(path: str, kind: type[Any]) -> tuple[dict[str, Any], list[str]]:
    """Return (settings that are right, what is wrong with the others) of a file."""
    try:  # with or without the mark that editors on Windows put first
        values = tomllib.loads(Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as TOML: {error}") from error
    fields, right, wrong = {f.name: f for f in dataclasses.fields(kind)}, {}, []
    for name, value in values.items():
        if name == "preset" and issubclass(kind, RunSettings):
            right[name] = value
            continue
        if name not in fields:
            wrong.append(f"{path}: {name!r} is not known. {nearest(name, fields)}")
            continue
        try:
            right[name] = _typed(value, _type_of(kind, name), fields[name])
        except ValueError as error:
            wrong.append(f"{path}: {error}")
    return right, wrong


def _typed(value: Any, wanted: type, setting: dataclasses.Field[Any]) -> Any:
    """Return a value of a TOML file or of Python as what a setting must be; raise ValueError if it is not."""
    name, choices = setting.name, setting.metadata["choices"]
    is_text, expected = type(value) is str, f"one of {', '.join(choices)}" if choices else f"of type {wanted.__name__}"
    if wanted is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if name in _OVER_255 and wanted is float and (type(value) is float or (is_text and "/" in value)):
        try:
            return over_255(str(value))
        except ValueError as error:
            raise ValueError(f"{name} = {error}") from None
    if type(value) is not wanted:
        raise ValueError(f"{name} = {value!r} must be {expected}")
    if not choices:
        return value
    word = str(value)
    try:
        return _chosen(word, setting)
    except ValueError as error:
        raise ValueError(f"{name} = {error if is_own(word) else f'{value!r} must be {expected}'}") from None


def _type_of(kind: type[Any], name: str) -> type:
    hint = typing.get_type_hints(kind)[name]
    if isinstance(hint, types.UnionType):
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    return hint
