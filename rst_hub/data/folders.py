"""Class folders of images to (path, class) by split: every file is named, none is guessed by a pattern.

Either ``FOLDER/<split>/<class>/<image>``, where a split is called train, test, validation or the like, or
``FOLDER/<class>/<image>``, which is one split called "all". The split of a file is its top folder and nothing else: a
class may be called "train", and the folder's own path may hold any characters.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from ..errors import DataError, printable

SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "evaluation", "eval", "validation", "valid", "val", "dev"),
}
"""What a split may be called, best name first; a validation split serves where no test split has labels."""

ALL = "all"
"""The one split of a folder of class folders."""

_OF_TOOLS = ("__MACOSX", "__pycache__")
_STUBS = ("BUFR", "GRIB", "HDF5", "MPEG")
"""What Pillow only knows by name."""


@dataclass(frozen=True)
class ClassFolders:
    """One split: ``files`` are (path, class), sorted; ``notes`` say in words what was found and what left out."""

    files: list[tuple[Path, str]]
    notes: tuple[str, ...]


def class_folders(folder: Path) -> dict[str, ClassFolders]:
    """Return the splits of a folder of images, by their folders' names.

    Raises:
        DataError: there are no class folders, one is nested or has no image that can be read, an image lies outside of
            them or in two splits, or a folder cannot be read.
    """
    inside, loose = _visible(folder)
    splits = [path for path in inside if _is_split(path.name) and _visible(path)[0]]
    if not splits and inside and all(_is_split(path.name) for path in inside):
        raise DataError(
            f"{folder} holds images in {_named(inside)}, but no class folders: put the images of each class into a "
            f"folder of their own, as in {inside[0] / 'cat' / 'one.png'}"
        )
    beside = [*loose, *(path for path in inside if splits and path not in splits)]
    found = {path.name: _one_split(path) for path in splits} or {ALL: _one_split(folder, loose)}
    _check_apart(found)
    if splits and beside:
        note = f"{folder}: left out {_named(beside)}, which are in no split"
        found = {name: ClassFolders(split.files, (*split.notes, note)) for name, split in found.items()}
    return found


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the image formats that the installed Pillow reads, in lower case."""
    Image.init()
    read = set(Image.OPEN) - set(_STUBS)
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in read)


def is_image(path: Path) -> bool:
    """Say whether a file's suffix is that of an image which can be read."""
    return path.suffix.lower() in image_suffixes()


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, sorted, but for hidden ones.

    Raises:
        DataError: a folder cannot be read.
    """
    inside, files = _visible(folder)
    yield from files
    for path in inside:
        if not path.is_symlink():  # it could lead back up, and around for ever
            yield from visible_files(path)


def _one_split(folder: Path, aside: Iterable[Path] = ()) -> ClassFolders:
    """Return the images of the class folders in ``folder``; the files ``aside`` are left out."""
    inside, loose = _visible(folder)
    runs = [path for path in inside if path.name == "runs" and any(path.glob("*/settings.json"))]
    inside = [path for path in inside if path not in runs]
    stray = [path for path in loose if path not in set(aside) and is_image(path)]
    if stray:
        raise DataError(f"{stray[0]} lies outside of the class folders of {folder}: move it into one, or remove it")
    if not inside:
        raise DataError(
            f"{folder} cannot be read as images with labels: it has no class folders. Put the images of each class "
            "into a folder of their own"
        )
    files: list[tuple[Path, str]] = []
    left_out, empty = list(loose), []
    for path in inside:
        images, others = _of_class(path)
        if others and not images:
            raise DataError(
                f"class folder {path} has no image that can be read ({_counted(others)}): convert its files"
            )
        if not images:
            empty.append(path)
        files += [(image, path.name) for image in images]
        left_out += others
    if not files:
        raise DataError(f"{folder} cannot be read as images with labels: its class folders hold no image")
    notes = [f"{folder}: {len(files):,} images of {len(inside) - len(empty)} classes"]
    notes += (
        [f"{folder}: left out {len(left_out):,} files that are no images ({_counted(left_out)})"] if left_out else []
    )
    notes += [f"{folder}: left out {_named(empty)}, which hold nothing"] if empty else []
    notes += [f"{folder}: left out runs, which holds runs of recipes"] if runs else []
    return ClassFolders(files, tuple(notes))


def _of_class(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return (images, other files) of one class folder."""
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"class folder {printable(folder)} has a name that is not UTF-8: rename it") from error
    inside, files = _visible(folder)
    deeper = [file for path in inside for file in visible_files(path)]
    nested = next(filter(is_image, deeper), None)
    if nested is not None:
        raise DataError(
            f"{nested} lies in a folder inside of the class folder {folder}: each class is one folder of images. Move "
            f"the images up into {folder.name}, or give {folder} itself as the data set if its folders are the classes"
        )
    return [path for path in files if is_image(path)], [path for path in files if not is_image(path)] + deeper


def _check_apart(splits: dict[str, ClassFolders]) -> None:
    """Raise DataError for a file that is in two splits or classes by a link, or twice in what is split later."""
    seen: dict[tuple[int, int], tuple[Path, str, str]] = {}
    for name, split in splits.items():
        for path, label in split.files:
            try:
                str(path).encode()
                found = path.stat()
            except UnicodeEncodeError as error:
                raise DataError(f"{printable(path, 300)} is not UTF-8: rename it") from error
            except OSError:  # a dead link, say: decoding names it
                continue
            other, where, kind = seen.setdefault((found.st_dev, found.st_ino), (path, name, label))
            twice = " in two splits" if where != name else " in two classes" if kind != label else ""
            if twice or (other != path and len(splits) == 1):
                raise DataError(f"{other} and {path} are one file{twice}: remove one of them")


def _visible(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return (folders, files) of a folder by their names' order, but for hidden ones and those of tools."""
    try:
        with os.scandir(folder) as entries:
            named = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _OF_TOOLS]
            shown = sorted((entry.name, entry.is_dir()) for entry in named)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror or error}): check its permissions") from error
    return [folder / name for name, is_dir in shown if is_dir], [folder / name for name, is_dir in shown if not is_dir]


def _is_split(name: str) -> bool:
    return any(name.lower() in names for names in SPLITS.values())


def _counted(files: Iterable[Path]) -> str:
    count = Counter(path.suffix.lower() or "no suffix" for path in files)
    return ", ".join(f"{suffix}: {number}" for suffix, number in count.most_common(5))


def _named(paths: list[Path]) -> str:
    names = ", ".join(printable(path.name) for path in paths[:5])
    return names if len(paths) <= 5 else f"{names} and {len(paths) - 5} more"
