"""from_pretrained: a ticket, from a folder or from the Hugging Face Hub, as a plain timm model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import nn

from .config import choose_entry, read_config
from .errors import SettingsError, TicketError
from .models import PixelModel
from .ticket import Ticket

_REPOSITORY = re.compile(r"(hf://)?(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>\S+))?")


def from_pretrained(
    repo_or_folder: str | Path,
    *,
    ticket: str | None = None,
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
        features_only: return timm's ``features_only`` form instead, which maps images to a list of feature maps.
        out_indices: which of its feature levels to return, or how many of the last ones; timm's own choice when None.
        revision: a branch, tag or commit of the repository; its main branch when None.
        token: for the Hub; the one that is logged in when None.
        cache_dir: the Hub's cache; its usual place when None.
        local_files_only: take what is in the cache, and ask for nothing.
        force_download: download anew what is in the cache.

    Raises:
        TicketError: the folder or repository is not there, or not exactly what was saved.
        ArchitectureError: the installed timm does not know the architecture, or has no features of it.
        SettingsError: two revisions are given, or out_indices without features_only.
    """
    if out_indices is not None and not features_only:
        raise SettingsError(f"out_indices={out_indices!r} goes with features_only=True")
    folder, name = fetch(
        repo_or_folder,
        ticket,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    drawn = Ticket.load(folder, name)
    return drawn.features(out_indices) if features_only else drawn.model()


def robustbench_model(repo_or_folder: str | Path, **options: Any) -> PixelModel:
    """Return a ticket in the form that RobustBench and AutoAttack's own scripts expect.

    It takes float32 pixels in [0, 1] of shape (N, C, H, W), normalises them itself and returns logits; it is in eval
    mode and nothing in it asks for a gradient. A single ticket is eligible there, a randomised R2S is not.

    Args:
        repo_or_folder: as for :func:`from_pretrained`.
        **options: those of :func:`from_pretrained`, but for the features.

    Raises:
        TicketError, ArchitectureError, SettingsError: as for :func:`from_pretrained`.
    """
    if {"features_only", "out_indices"} & set(options):
        raise SettingsError("features are no class logits: leave out features_only and out_indices")
    return PixelModel(from_pretrained(repo_or_folder, **options)).eval().requires_grad_(False)


def fetch(
    repo_or_folder: str | Path,
    ticket: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> tuple[Path, str]:
    """Return (folder, name) of one ticket, downloading its config.json and its own file where they are on the Hub.

    The revision is resolved to a commit once, and both files are those of that commit.

    Raises:
        TicketError, SettingsError: as for :func:`from_pretrained`.
    """
    options = {
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    folder, repo, options = _locate(repo_or_folder, revision, options)
    entry = choose_entry(folder, read_config(folder), ticket)
    if repo is not None:
        _download(repo, entry["file"], folder.name, options)  # the cache names a snapshot by its commit
    return folder, entry["name"]


def fetch_all(repo_or_folder: str | Path) -> tuple[Path, list[str]]:
    """Return (folder, names) of all tickets of a folder or repository, as :func:`fetch` does for one of them."""
    folder, repo, options = _locate(repo_or_folder, None, {})
    entries = read_config(folder)["rst"]["tickets"]
    for entry in entries if repo is not None else ():
        _download(str(repo), entry["file"], folder.name, options)
    return folder, [entry["name"] for entry in entries]


def _locate(
    repo_or_folder: str | Path, revision: str | None, options: dict[str, Any]
) -> tuple[Path, str | None, dict[str, Any]]:
    """Return (the folder with config.json, the repository's name or None for a folder here, the client's options)."""
    options = {**options, "library_name": "rst-hub"}
    if not isinstance(repo_or_folder, str | Path):
        raise SettingsError(f"{repo_or_folder!r} is neither the path of a folder nor a repository's name")
    if _is_folder(repo_or_folder):
        return Path(repo_or_folder), None, options
    found = _REPOSITORY.fullmatch(str(repo_or_folder))
    if found is None:
        raise TicketError(
            f"{str(repo_or_folder)[:300]} is neither a ticket folder here nor a repository's name, org/name"
        )
    if found["revision"] and revision not in (None, found["revision"]):
        raise SettingsError(f"{repo_or_folder} and revision={revision!r} name two revisions: give one")
    revision = found["revision"] or revision or None
    folder = _download(found["repo"], "config.json", revision, options).parent
    return folder, found["repo"], options


def _download(repo: str, file: str, revision: str | None, options: dict[str, Any]) -> Path:
    where = f"{repo}@{revision}" if revision else repo
    try:
        return Path(hf_hub_download(repo, file, revision=revision, **options))
    except GatedRepoError as error:
        raise TicketError(f"{repo} is gated: ask for access on its page, and give a token that has it") from error
    except RepositoryNotFoundError as error:
        raise TicketError(
            f"there is no folder {repo} here, and no such repository on the Hub, or it is private: check the name, or "
            "give a token"
        ) from error
    except RevisionNotFoundError as error:
        raise TicketError(f"{repo} has no revision {revision}: check the name of the branch, tag or commit") from error
    except LocalEntryNotFoundError as error:
        raise TicketError(
            f"{file} of {where} is not in the cache, and the Hub was not asked or not reached ({error})"
        ) from error
    except EntryNotFoundError as error:
        raise TicketError(f"{where} has no {file}, so it is no whole ticket repository: choose another") from error
    except Exception as error:  # the client's HTTP library, of either version, has errors of its own
        raise TicketError(f"{file} of {where} cannot be downloaded: {type(error).__name__} {error}") from error


def _is_folder(path: str | Path) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):  # too long for a path, or of characters that none has
        return False
