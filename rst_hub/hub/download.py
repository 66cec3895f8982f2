"""Files of a repository, through the Hub's client and its cache; damaged ones are replaced."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash

from ..errors import HubError, IntegrityError, TicketError, cause, foreign
from ..files import given_path, reading
from ..tickets.config import MAX_CONFIG_BYTES
from ..version import __version__
from .listing import LIBRARY, UNAUTHORISED, is_unauthorised, near_names
from .source import Source


def is_damaged(source: Source, config: Path, error: Exception) -> bool:
    """Say whether it is damage in the cache that an error is of; config.json is downloaded anew if only that tells."""
    as_sent = is_as_sent(config)
    if isinstance(error, IntegrityError) or as_sent is not None:
        return isinstance(error, IntegrityError) or not as_sent
    if source.local_files_only:
        return False
    before, again = config.read_bytes(), replace(source, revision=config.parent.name, force_download=True)
    try:
        return fetch(again, config.name, MAX_CONFIG_BYTES).read_bytes() != before
    except HubError:
        return False


def file_contents(folder: Path) -> dict[str, str]:
    """Return the digests of a snapshot's files by name."""
    with reading(folder):
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files_of(folder)}


def files_of(folder: Path) -> list[Path]:
    """Return config.json and the tickets that lie in a folder."""
    return [path for path in (folder / "config.json", *folder.glob("ticket-*.safetensors")) if path.is_file()]


def is_as_sent(path: Path) -> bool | None:
    """Say whether a file of the Hub's cache has the digest that it is named by there; None where it has no such name.

    So it is in a cache without links, as on Windows: its files lie in the snapshot itself, under their own names.
    """
    named = Path(os.readlink(path) if path.is_symlink() else path).name
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", named):
        return None
    with reading(path):
        content = path.read_bytes()
    return named in (git_hash(content), hashlib.sha256(content).hexdigest())


def fetch(source: Source, file: str, limit: int) -> Path:
    """Return the path of one file in the Hub's cache, downloaded if it is not there and not too large."""
    cache = (source.cache_dir or given_path(constants.HF_HUB_CACHE)).resolve()
    options: dict[str, Any] = {
        "revision": source.revision,
        "token": source.token,
        "cache_dir": cache,
        "local_files_only": source.local_files_only,
        "force_download": source.force_download,
        "library_name": LIBRARY,
        "library_version": __version__,
    }
    with _hub_errors(source, file):
        # What is there and how large it is: one HEAD for a branch, nothing for a commit in the cache.
        there: Any = hf_hub_download(source.repo, file, dry_run=True, **options)
    if there.file_size is not None and there.file_size > limit:
        raise TicketError(
            f"{file} of {source} has {there.file_size:,} bytes, more than a ticket's can have ({limit:,}): it is not "
            "downloaded"
        )
    known = try_to_load_from_cache(source.repo, file, cache, source.revision)
    if not there.will_download and known == there.local_path:
        return Path(there.local_path)
    replaced = _moved_aside(Path(there.local_path)) if source.force_download else nullcontext()
    with _hub_errors(source, file), replaced:
        return Path(hf_hub_download(source.repo, file, **options))


@contextmanager
def _moved_aside(path: Path) -> Iterator[None]:
    """Move a file of a cache without links aside while it is downloaded anew, and back if that fails.

    The client leaves a file that lies in the snapshot itself as it is, also when it has downloaded another one.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    is_moved = path.is_file() and not path.is_symlink()
    if is_moved:
        os.replace(path, aside)
    try:
        yield
    finally:
        if is_moved and not path.exists():
            os.replace(aside, path)
        aside.unlink(missing_ok=True)


@contextmanager
def _hub_errors(source: Source, file: str) -> Iterator[None]:
    """Turn what the Hub's client raises over one file into a HubError that says what to do."""
    try:
        yield
    except GatedRepoError as error:
        raise HubError(f"{source.repo} is gated: ask for access on its page, and give a token that has it") from cause(
            error
        )
    except RepositoryNotFoundError as error:
        raise HubError(
            f"there is no folder {source.repo} here, and no such repository on the Hub, or it is private: check the "
            f"name, or give a token. {near_names(source.repo, source.token)}".rstrip()
        ) from cause(error)
    except RevisionNotFoundError as error:
        raise HubError(
            f"{source.repo} has no revision {source.revision}: check the name of the branch, tag or commit"
        ) from cause(error)
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"{file} of {source} is not in the cache, and the Hub was not asked or not reached ({foreign(error)})"
        ) from cause(error)
    except EntryNotFoundError as error:
        raise HubError(f"{source} has no {file}, so it is no whole ticket repository: choose another") from cause(error)
    except Exception as error:  # the client's HTTP library, of either version, has errors of its own
        if isinstance(error.__cause__, HfHubHTTPError):  # of force_download the client says that it failed, not why
            with _hub_errors(source, file):
                raise error.__cause__ from None
        reason = error.__cause__ or error  # the client may only say "failed due to the above error"
        said = f"{type(reason).__name__} {foreign(reason)}"
        said = f"{UNAUTHORISED} ({said})" if is_unauthorised(error) else said
        raise HubError(f"{file} of {source} cannot be downloaded: {said}") from cause(error)
