"""What a name means: a folder here, or a repository on the Hub at a revision."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..cards.values import REPOSITORY
from ..errors import SettingsError, TicketError, printable
from ..files import given_path, is_folder
from .listing import checked_token

_NAMED = re.compile(r"(hf://)?(?P<repo>[^@\s]+)(@(?P<revision>\S+))?")
_REVISION = re.compile(r"(?!.*\.\.)[\w][\w./-]{0,250}")


@dataclass(frozen=True)
class Source:
    """Where tickets are: a folder here, or a repository at a revision; and how the Hub's client is to get them."""

    folder: Path | None
    repo: str = ""
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    def __str__(self) -> str:
        """Return the folder, or the repository's name with its revision."""
        return str(self.folder) if self.folder else self.repo + (f"@{self.revision}" if self.revision else "")


def source_of(
    repo_or_folder: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Source:
    """Return what a name means, before anything is asked or read."""
    if not isinstance(repo_or_folder, str | Path):
        raise SettingsError(f"{repo_or_folder!r} is neither the path of a folder nor a repository's name")
    if str(repo_or_folder).startswith("~"):
        repo_or_folder = given_path(repo_or_folder)
    if is_folder(Path(repo_or_folder)):
        if revision is not None:
            raise SettingsError(f"{repo_or_folder} is a folder here, without revisions: hf://org/name is on the Hub")
        return Source(Path(repo_or_folder))
    if os.path.isfile(repo_or_folder):  # "tickets/config.json" could be a repository's name too
        raise TicketError(f"{repo_or_folder} is a file: give its folder, or hf://org/name for what is on the Hub")
    name = repo_or_folder.as_posix() if isinstance(repo_or_folder, Path) else repo_or_folder.removesuffix("/")
    found = _NAMED.fullmatch(name)
    if found is None or not REPOSITORY.fullmatch(found["repo"]):
        raise TicketError(
            f"{printable(repo_or_folder, 300)} is neither a ticket folder here nor a repository's name: give the "
            "path of a folder that is there, or org/name, without the Hub's address"
        )
    if found["revision"] and revision not in (None, found["revision"]):
        raise SettingsError(f"{repo_or_folder} and revision={revision!r} name two revisions: give one")
    revision = found["revision"] or revision or None
    check_revision(revision)
    cache = None if cache_dir is None else given_path(cache_dir)
    token = token if local_files_only else checked_token(token)
    return Source(None, found["repo"], revision, token, cache, local_files_only, force_download)


def check_revision(revision: str | None) -> None:
    """Raise SettingsError unless this can be the name of a branch, tag or commit; the cache makes a path of it."""
    if revision is not None and not (isinstance(revision, str) and _REVISION.fullmatch(revision)):
        raise SettingsError(f"revision {str(revision)[:300]!r} is not the name of a branch, tag or commit")
