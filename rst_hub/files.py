"""Files and folders that appear whole or not at all: written beside, then renamed."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
            beside[path].write_bytes(content)
        for path in contents:
            os.replace(beside[path], path)
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` (absent, or an empty folder) when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
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
