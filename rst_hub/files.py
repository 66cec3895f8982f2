"""Files and folders that appear whole or not at all: written beside, then renamed."""

import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import IntegrityError, RstHubError, SettingsError, TicketError, printable

_POINTER, _LONGEST_POINTER = b"version https://git-lfs.github.com/spec/", 1024
_MOST_CONTAINERS, _MOST_KEYS = 100_000, 200_000


def strict_json(content: bytes) -> Any:
    """Return the value of JSON that every reader reads alike.

    Raises:
        ValueError: it is not UTF-8, names a key twice, holds NaN, a number beyond float64, or half a character (a lone
            surrogate), or so many lists, objects and keys that its values would take fifty times its bytes.
        RecursionError: it is nested too deeply.
    """
    if content.count(b"[") + content.count(b"{") > _MOST_CONTAINERS or content.count(b":") > _MOST_KEYS:
        raise ValueError(f"more than {_MOST_CONTAINERS:,} lists and objects, or {_MOST_KEYS:,} keys")
    value = json.loads(
        content.decode("utf-8"), object_pairs_hook=_once_each, parse_constant=_no_number, parse_float=_finite
    )
    json.dumps(value, ensure_ascii=False).encode("utf-8")  # fails on a lone surrogate
    return value


def given_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that somebody gave, with their home for a leading ~.

    Raises:
        SettingsError: no system has such a path, or the user behind ~ is not there.
    """
    if not isinstance(path, str | os.PathLike):
        raise SettingsError(f"{printable(repr(path))} is no path: give a string or a pathlib.Path")
    try:
        found = Path(path).expanduser()
        encoded = os.fsencode(found)
    except RuntimeError as error:
        raise SettingsError(f"{printable(path)}: there is no such user, or no home: give the whole path") from error
    except ValueError as error:
        raise SettingsError(f"{printable(path)} is no path of this system: {error}") from error
    if b"\0" in encoded:
        raise SettingsError(f"{printable(path)} is no path: it has a NUL character")
    return found


def is_folder(path: Path) -> bool:
    """Say whether a path leads to a folder.

    Raises:
        TicketError: that cannot be known: the system lets nobody look, or has trouble of its own.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):  # nothing can be there
            return False
        raise TicketError(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def reading(path: Path, kind: type[RstHubError] = TicketError) -> Iterator[None]:
    """Turn what the system refuses in this block into an error of ours that names the path."""
    try:
        yield
    except OSError as error:
        raise kind(f"{_refused_at(error, path)} cannot be read: {error.strerror or error}") from error


def _refused_at(error: OSError, path: Path) -> str:
    """Return the path that an error is about where it says one, which is more than the folder that was given."""
    return printable(error.filename if isinstance(error.filename, str) else path, 1000)


def check_listable(folder: Path) -> None:
    """Raise OSError for a folder whose files cannot be listed, which a search by a pattern takes for an empty one."""
    if folder.is_dir():
        os.listdir(folder)


def check_fetched(path: Path) -> None:
    """Raise TicketError for what git leaves in a clone's folder in place of a large file, without git-lfs."""
    with path.open("rb") as file:
        _check_no_pointer(path, file.read(_LONGEST_POINTER + 1))


def is_pointer(content: bytes) -> bool:
    """Say whether a file holds what git leaves in its place where git-lfs is not installed."""
    return content.startswith(_POINTER) and len(content) <= _LONGEST_POINTER


def _check_no_pointer(path: Path, content: bytes) -> None:
    if is_pointer(content):
        if is_snapshot(path.parent):  # no clone, where git-lfs could fetch it
            raise IntegrityError(f"{path} is not the file, but git-lfs's pointer to it")
        raise TicketError(
            f"{path} is not the file, but git-lfs's pointer to it: install git-lfs, and run `git lfs pull` there"
        )


@contextmanager
def called(here: Path, by: Path) -> Iterator[None]:
    """Let the errors of this block name the path ``by``, which somebody knows, for ``here``, which is hidden."""
    try:
        yield
    except RstHubError as error:
        said = str(error).replace(str(here), str(by))
        if said == str(error):
            raise
        raise type(error)(said) from None  # a traceback would print the hidden path
    except OSError as error:
        for name in ("filename", "filename2"):
            if isinstance(getattr(error, name), str):
                setattr(error, name, getattr(error, name).replace(str(here), str(by)))
        raise


def read_inside(folder: Path, name: str, limit: int) -> bytes:
    """Return the bytes of one file of a folder, which may be a snapshot of the Hub's cache, full of links.

    Raises:
        ValueError: it is no regular file, larger than ``limit`` bytes, or a link to somewhere else.
        TicketError: it is git-lfs's pointer to the file; IntegrityError in a snapshot.
        OSError: it cannot be read.
    """
    given, folder = folder, folder.resolve()
    path = (folder / name).resolve()
    homes = [folder]
    if is_snapshot(folder):
        # snapshots/<commit>/<name> is a link to blobs/<ETag>, and that, with Xet, one to the store of all repositories
        homes += [folder.parent.parent / "blobs", folder.parent.parent.parent / "blobs"]
    if not any(home.resolve() in path.parents for home in homes):
        raise ValueError(f"{name} is a link to a file outside of its folder")
    if not path.is_file():
        raise ValueError(f"{name} is no file")
    size = path.stat().st_size
    if size > limit:
        raise ValueError(f"{name} is too large: {size:,} bytes, where {limit:,} are the most")
    with path.open("rb") as file:
        content = file.read(size + 1)  # which takes memory for so many bytes at once: not for the limit
    if len(content) > size:
        raise ValueError(f"{name} has grown while it was read, or does not know its size")
    _check_no_pointer(given / name, content)
    return content


def is_snapshot(folder: Path) -> bool:
    """Say whether a folder is a snapshot in the Hub's cache: models--<org>--<name>/snapshots/<commit>."""
    above = folder.resolve().parent
    return above.name == "snapshots" and above.parent.name.startswith("models--")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"the number {text[:20]} is too large")
    return float(text)


def write_file(path: Path, content: bytes) -> None:
    """Write or replace one file."""
    write_files({path: content})


def write_json(path: Path, value: Any) -> None:
    """Write or replace a JSON file."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write or replace several files: all are written beside first, then renamed in this order."""
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            with naming(path):
                beside[path].write_bytes(content)
        for path in contents:
            with called(beside[path], path):
                os.replace(beside[path], path)
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file, whole or not at all; one that an interruption tore before it is ended first.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    with naming(path), path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        torn = size > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        rest = memoryview((b"\n" if torn else b"") + line + b"\n")
        try:
            while rest:  # a disk that is nearly full takes a part
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(size)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError say which file it is about: that of a full disk names none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` (absent, or an empty folder) when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with called(beside, path):
            yield beside
        beside.chmod(0o777 & ~_umask())
        if path.is_dir():
            path.rmdir()  # refuses one that is not empty
        os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
