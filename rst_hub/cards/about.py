"""card.json: what no file can measure, checked entry by entry."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import SettingsError, nearest
from ..files import read_inside, reading, strict_json
from .values import MALFORMED, is_repository, is_text

_ABOUT: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "repo_id": ("a name on the Hub, org/name", lambda v: is_repository(v)),
    "license": ("a text, as apache-2.0", lambda v: is_text(v)),
    "dataset": ("an object with the keys id and note", lambda v: isinstance(v, Mapping)),
    "notes": ("a list of texts", lambda v: isinstance(v, list) and all(is_text(note) for note in v)),
    "base_model": ("a name on the Hub, org/name", lambda v: is_repository(v)),
}
"""The keys of card.json, all optional, and what they must be."""

_ABOUT_DATASET: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "id": ("a data set's name on the Hub, as org/name", lambda v: is_repository(v) or is_repository(f"any/{v}")),
    "note": ("a text, as 'JPEG-recompressed'", lambda v: is_text(v)),
}


_MAX_ABOUT_BYTES, MAX_RESULT_BYTES = 2**20, 64 * 2**20


def read_about(folder: str | Path) -> dict[str, Any]:
    """Return card.json, checked; {} where there is none.

    Raises:
        SettingsError: it is no JSON object, has a key that is not known, or a value of the wrong type.
    """
    path = Path(folder) / "card.json"
    with reading(path, SettingsError):
        if not path.exists():
            return {}
    try:
        with reading(path, SettingsError):
            content = read_inside(path.parent, path.name, _MAX_ABOUT_BYTES)
        about = strict_json(content)
    except MALFORMED as error:
        raise SettingsError(f"{path} cannot be read as JSON ({str(error)[:300]}): correct or delete it") from error
    try:
        check_about(about)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    return dict(about)


def check_about(about: Any) -> None:
    """Raise SettingsError, naming the key, unless this is what card.json may hold."""
    _check_keys(about, _ABOUT, "card.json")
    _check_keys(about.get("dataset") or {}, _ABOUT_DATASET, "card.json's dataset")


def _check_keys(given: Any, known: Mapping[str, tuple[str, Callable[[Any], bool]]], where: str) -> None:
    if not isinstance(given, Mapping):
        raise SettingsError(f"{where} is {str(given)[:100]!r}: it must be an object with the keys {', '.join(known)}")
    for key, value in given.items():
        if key not in known:
            raise SettingsError(f"{where}: the key {str(key)[:100]!r} is not known. {nearest(str(key), known)}")
        form, fits = known[key]
        if value is not None and not fits(value):
            raise SettingsError(f"{where}: {key} is {str(value)[:100]!r}, but must be {form}")
