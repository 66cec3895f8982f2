"""Tickets from a folder or from the Hugging Face Hub: one as a plain timm model, several as an R2S.

A repository is as foreign as a file from anywhere: only config.json and the asked ticket files are downloaded, none of
them larger than the architecture allows, all of one commit, and each is checked at every load, from the cache too.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
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
from torch import nn

from .config import MAX_CONFIG_BYTES, choose_entry, read_config
from .errors import ArchitectureError, HubError, IntegrityError, SettingsError, TicketError, cause, foreign, printable
from .files import check_fetched, given_path, is_folder, reading
from .listing import LIBRARY, UNAUTHORISED, checked_token, hub_api, is_unauthorised, near_names
from .models import PixelModel
from .pool import TicketPool
from .r2s import R2S, shares_of
from .results import REPOSITORY
from .ticket import Ticket, claimed_layout, largest_file
from .version import __version__

_NAMED = re.compile(r"(hf://)?(?P<repo>[^@\s]+)(@(?P<revision>\S+))?")
_REVISION = re.compile(r"(?!.*\.\.)[\w][\w./-]{0,250}")
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class _Source:
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


def from_pretrained(
    repo_or_folder: str | Path,
    *,
    ticket: str | None = None,
    remaining_ratio: float | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> nn.Module:
    """Return a plain timm model in eval mode whose parameters are the masked weights of a ticket; no score, no wrapper.

    ``model.pretrained_cfg`` carries input size, mean and std: ``timm.data.resolve_model_data_config(model)`` is right.

    Args:
        repo_or_folder: a ticket folder, as ``Ticket.save`` writes it, or a repository on the Hub: ``org/name``,
            ``org/name@revision``, ``hf://org/name``.
        ticket: the name of one ticket, when there are several.
        remaining_ratio: of one ticket, instead of its name.
        features_only: return timm's ``features_only`` form instead, which maps images to a list of feature maps.
        out_indices: which of its feature levels to return, or how many of the last ones; timm's own choice when None.
        revision: a branch, tag or commit of the repository; its main branch when None.
        token: for the Hub; the one that is logged in when None.
        cache_dir: the Hub's cache; its usual place when None.
        local_files_only: take what is in the cache, and ask for nothing.
        force_download: download anew what is in the cache.

    Raises:
        HubError: the repository, the revision or a file of it is not on the Hub, or the Hub cannot be reached.
        IntegrityError: a file is not what was saved; of the Hub, also after a fresh download.
        TicketError: the folder is not there, has no such ticket, or what it says of itself is false.
        ArchitectureError: the installed timm does not know the architecture, or has no features of it.
        SettingsError: two revisions are given, or out_indices without features_only.
    """
    if out_indices is not None and not features_only:
        raise SettingsError(f"out_indices={out_indices!r} goes with features_only=True")
    drawn = load_ticket(
        repo_or_folder,
        ticket,
        remaining_ratio=remaining_ratio,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    return drawn.features(out_indices) if features_only else drawn.model()


def r2s_from_pretrained(
    repo_or_folder: str | Path,
    *,
    tickets: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
    probabilities: Sequence[float] | None = None,
    per: Literal["sample", "batch"] = "sample",
    materialised: bool = False,
    pool: TicketPool | None = None,
    **options: Any,
) -> R2S:
    """Return several tickets of a folder or repository as an :class:`R2S`, which draws one for each sample.

    They are read one after the other, so that no more than one is ever unpacked.

    Args:
        repo_or_folder: as for :func:`from_pretrained`.
        tickets: their names; all when None.
        generator: of the draws, for repeatable ones.
        probabilities: of the tickets, in the order of their names; equal when None.
        per: "sample" or "batch".
        materialised: hold every member whole.
        pool: the random weights to share with other tasks.
        **options: revision, token, cache_dir, local_files_only and force_download of :func:`from_pretrained`.

    Raises:
        HubError, TicketError, ArchitectureError, SettingsError: as for :func:`from_pretrained` and :class:`R2S`.
    """
    names = _names(tickets)

    def load(folder: Path, config: dict[str, Any], source: _Source) -> R2S:
        entries = _entries(source, config, names)
        shares_of(probabilities, len(entries))  # before anything is downloaded
        found = (_load(folder, config, entry, source) for entry in entries)
        return R2S(
            found, generator=generator, probabilities=probabilities, per=per, materialised=materialised, pool=pool
        )

    return _with_config(_source(repo_or_folder, **options), load)


def robustbench_model(repo_or_folder: str | Path, **options: Any) -> PixelModel:
    """Return a ticket in the form that RobustBench and AutoAttack's own scripts expect.

    It takes float32 pixels in [0, 1] of shape (N, C, H, W), normalises them itself and returns logits; it is in eval
    mode and nothing in it asks for a gradient. A single ticket is eligible there, a randomised R2S is not.

    Args:
        repo_or_folder: as for :func:`from_pretrained`.
        **options: those of :func:`from_pretrained`, but for the features.

    Raises:
        HubError, TicketError, ArchitectureError, SettingsError: as for :func:`from_pretrained`.
    """
    if {"features_only", "out_indices"} & set(options):
        raise SettingsError("features are no class logits: leave out features_only and out_indices")
    return PixelModel(from_pretrained(repo_or_folder, **options)).eval().requires_grad_(False)


def load_ticket(
    repo_or_folder: str | Path, name: str | None = None, *, remaining_ratio: float | None = None, **options: Any
) -> Ticket:
    """Return one ticket of a folder or repository; arguments and errors are those of :func:`from_pretrained`."""

    def load(folder: Path, config: dict[str, Any], source: _Source) -> Ticket:
        entry = choose_entry(str(source), config, name, remaining_ratio)
        return _load(folder, config, entry, source)

    return _with_config(_source(repo_or_folder, **options), load)


def load_tickets(
    repo_or_folder: str | Path, names: Sequence[str] | None = None, **options: Any
) -> tuple[Path, list[Ticket]]:
    """Return (folder, tickets) of the named tickets, or all, of a folder or repository, all of one commit."""
    names = _names(names)

    def load(folder: Path, config: dict[str, Any], source: _Source) -> tuple[Path, list[Ticket]]:
        return folder, [_load(folder, config, entry, source) for entry in _entries(source, config, names)]

    return _with_config(_source(repo_or_folder, **options), load)


def _names(names: Sequence[str] | None) -> Sequence[str] | None:
    if isinstance(names, str):
        raise SettingsError(f"tickets={names!r}: give a list of names")
    return names


def _entries(source: _Source, config: Mapping[str, Any], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return the entries of the named tickets, or all."""
    if names is None:
        return list(config["rst"]["tickets"])
    return [choose_entry(str(source), config, name) for name in names]


def look(repo_or_folder: str | Path, **options: Any) -> tuple[dict[str, Any], dict[str, int]]:
    """Return (config.json, bytes by file name) of a folder or repository; no ticket is downloaded or read.

    The bytes are {} where the Hub was not asked or does not answer.

    Args:
        repo_or_folder: as for :func:`from_pretrained`.
        **options: revision, token, cache_dir, local_files_only and force_download of :func:`from_pretrained`.

    Raises:
        HubError, TicketError, SettingsError: as for :func:`from_pretrained`.
    """

    def sizes(folder: Path, config: dict[str, Any], source: _Source) -> tuple[dict[str, Any], dict[str, int]]:
        names = [entry["file"] for entry in config["rst"]["tickets"]]
        if source.folder is not None:
            with reading(folder):
                present = [folder / name for name in names if (folder / name).is_file()]
                for path in present:
                    check_fetched(path)
                return config, {path.name: path.stat().st_size for path in present}
        if source.local_files_only:
            return config, {}
        try:
            files = (
                hub_api(source.token).model_info(source.repo, revision=folder.name, files_metadata=True).siblings or []
            )
        except Exception:  # offline, say: what config.json says is there all the same
            return config, {}
        return config, {file.rfilename: file.size for file in files if file.rfilename in names and file.size}

    return _with_config(_source(repo_or_folder, **options), sizes)


def _source(
    repo_or_folder: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> _Source:
    """Return what a name means, before anything is asked or read."""
    if not isinstance(repo_or_folder, str | Path):
        raise SettingsError(f"{repo_or_folder!r} is neither the path of a folder nor a repository's name")
    if str(repo_or_folder).startswith("~"):
        repo_or_folder = given_path(repo_or_folder)
    if is_folder(Path(repo_or_folder)):
        if revision is not None:
            raise SettingsError(f"{repo_or_folder} is a folder here, without revisions: hf://org/name is on the Hub")
        return _Source(Path(repo_or_folder))
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
    return _Source(None, found["repo"], revision, token, cache, local_files_only, force_download)


def check_revision(revision: str | None) -> None:
    """Raise SettingsError unless this can be the name of a branch, tag or commit; the cache makes a path of it."""
    if revision is not None and not (isinstance(revision, str) and _REVISION.fullmatch(revision)):
        raise SettingsError(f"revision {str(revision)[:300]!r} is not the name of a branch, tag or commit")


def _with_config(source: _Source, use: Callable[[Path, dict[str, Any], _Source], _Found]) -> _Found:
    """Return what ``use`` makes of (folder, config.json, source); of the Hub once more if a file was damaged."""
    if source.folder is not None:
        return use(source.folder, read_config(source.folder), source)
    path = _download(source, "config.json", MAX_CONFIG_BYTES)
    try:
        return use(path.parent, read_config(path.parent), source)
    except (TicketError, ArchitectureError) as error:
        if source.force_download or not _is_damaged(source, path, error):
            raise
        found = error
    if source.local_files_only:
        raise IntegrityError(
            f"{found}. It is damaged in the cache, or at its owner's: load it once without local_files_only, which "
            "downloads it anew"
        ) from found
    return _afresh(source, use, path.parent, found)


def _afresh(
    source: _Source, use: Callable[[Path, dict[str, Any], _Source], _Found], folder: Path, found: Exception
) -> _Found:
    """Return what ``use`` makes of files that are downloaded anew, after it has ``found`` one of them damaged.

    The Hub's cache compares sizes, not contents: a flipped byte in it is served as good until it is replaced.
    """
    source, before = replace(source, force_download=True), _contents(folder)
    try:
        path = _download(source, "config.json", MAX_CONFIG_BYTES)
    except HubError as error:
        raise IntegrityError(f"{found}. A fresh download failed: {error}") from error
    try:
        return use(path.parent, read_config(path.parent), source)
    except HubError as error:
        raise IntegrityError(f"{found}. A fresh download failed: {error}") from error
    except (TicketError, ArchitectureError) as error:
        if not isinstance(error, IntegrityError) and _is_as_sent(path) is not False:
            raise
        if _contents(path.parent) == before and all(_is_as_sent(one) is not False for one in _files(path.parent)):
            raise IntegrityError(f"{error}. A fresh download changed nothing: tell its owner") from error
        raise IntegrityError(
            f"{error}. A fresh download is damaged too: a proxy or the disk changes it. Load it again, or elsewhere"
        ) from error


def _is_damaged(source: _Source, config: Path, error: Exception) -> bool:
    """Say whether it is damage in the cache that an error is of; config.json is downloaded anew if only that tells."""
    as_sent = _is_as_sent(config)
    if isinstance(error, IntegrityError) or as_sent is not None:
        return isinstance(error, IntegrityError) or not as_sent
    if source.local_files_only:
        return False
    before, again = config.read_bytes(), replace(source, revision=config.parent.name, force_download=True)
    try:
        return _download(again, config.name, MAX_CONFIG_BYTES).read_bytes() != before
    except HubError:
        return False


def _contents(folder: Path) -> dict[str, str]:
    """Return the digests of a snapshot's files by name."""
    with reading(folder):
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in _files(folder)}


def _files(folder: Path) -> list[Path]:
    return [path for path in (folder / "config.json", *folder.glob("ticket-*.safetensors")) if path.is_file()]


def _is_as_sent(path: Path) -> bool | None:
    """Say whether a file of the Hub's cache has the digest that it is named by there; None where it has no such name.

    So it is in a cache without links, as on Windows: its files lie in the snapshot itself, under their own names.
    """
    named = Path(os.readlink(path) if path.is_symlink() else path).name
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", named):
        return None
    with reading(path):
        content = path.read_bytes()
    return named in (git_hash(content), hashlib.sha256(content).hexdigest())


def _load(folder: Path, config: Mapping[str, Any], entry: Mapping[str, Any], source: _Source) -> Ticket:
    if source.folder is None:
        try:
            limit = largest_file(claimed_layout(config))
        except (TicketError, ArchitectureError) as error:
            raise type(error)(f"{source}: {error}") from error
        commit = folder.name  # the cache names a snapshot by it
        _download(replace(source, revision=commit), entry["file"], limit)
    return Ticket.load(folder, entry["name"])


def _download(source: _Source, file: str, limit: int) -> Path:
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
def _hub_errors(source: _Source, file: str) -> Iterator[None]:
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
