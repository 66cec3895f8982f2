"""Tickets from a folder or from the Hugging Face Hub: one as a plain timm model, several as an R2S.

A repository is as foreign as a file from anywhere: only config.json and the asked ticket files are downloaded, none of
them larger than the architecture allows, all of one commit, and each is checked at every load, from the cache too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from ..errors import ArchitectureError, HubError, IntegrityError, SettingsError, TicketError, printable
from ..files import check_fetched, reading
from ..networks.classifier import give_classes
from ..networks.pixels import PixelModel
from ..tickets.config import MAX_CONFIG_BYTES, choose_entry, read_config
from ..tickets.format import claimed_layout, largest_file
from ..tickets.pool import TicketPool
from ..tickets.r2s import R2S, shares_of
from ..tickets.ticket import Ticket
from .download import fetch, file_contents, files_of, is_as_sent, is_damaged
from .listing import hub_api
from .placement import checked_device, place
from .source import Source, source_of

_Found = TypeVar("_Found")


def from_pretrained(
    repo_or_folder: str | Path,
    *,
    ticket: str | None = None,
    remaining_ratio: float | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    device: str | int | torch.device | None = None,
    dtype: torch.dtype | None = None,
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
        num_classes: another number than the ticket's gives a new classifier behind its features, to be trained, as
            ``timm.create_model`` does; 0 leaves the pooled features. The ticket's own classifier when None.
        device: where the model goes, such as "cuda"; the CPU when None. The ticket is compared with its digests before,
            on the CPU and in float32.
        dtype: torch.float16, torch.bfloat16 or torch.float64, in which its parameters and statistics are rounded or
            held then; float32 when None.
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
            Or it takes no such num_classes.
        SettingsError: two revisions are given, out_indices without features_only or num_classes with it; or the device
            is not here, or the dtype cannot hold the model.
    """
    if out_indices is not None and not features_only:
        raise SettingsError(f"out_indices={out_indices!r} goes with features_only=True")
    if num_classes is not None and features_only:
        raise SettingsError(f"num_classes={num_classes!r}: a features_only model has no classifier, so leave it out")
    there = checked_device(device, dtype)
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
    model = drawn.features(out_indices) if features_only else drawn.model()
    give_classes(model, drawn.architecture, num_classes)
    return place(model, there, dtype)


def r2s_from_pretrained(
    repo_or_folder: str | Path,
    *,
    tickets: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
    probabilities: Sequence[float] | None = None,
    per: Literal["sample", "batch"] = "sample",
    materialised: bool = False,
    pool: TicketPool | None = None,
    device: str | int | torch.device | None = None,
    dtype: torch.dtype | None = None,
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
        device: as for :func:`from_pretrained`; where the pool is when None.
        dtype: as for :func:`from_pretrained`. Shared weights are rounded when they are read.
        **options: revision, token, cache_dir, local_files_only and force_download of :func:`from_pretrained`.

    Raises:
        HubError, TicketError, ArchitectureError, SettingsError: as for :func:`from_pretrained` and :class:`R2S`.
            SettingsError also where the pool is on another device already.
    """
    names, there = _names(tickets), checked_device(device, dtype)
    shared = None if pool is None else pool.device
    if there is not None and shared not in (None, there):
        raise SettingsError(
            f"device={printable(repr(device))}, but the pool's weights are on {shared}, where other models read them: "
            "move all of those, or leave out device"
        )

    def load(folder: Path, config: dict[str, Any], source: Source) -> R2S:
        entries = _entries(source, config, names)
        shares_of(probabilities, len(entries))  # before anything is downloaded
        found = (_load(folder, config, entry, source) for entry in entries)
        r2s = R2S(
            found, generator=generator, probabilities=probabilities, per=per, materialised=materialised, pool=pool
        )
        return place(r2s, there, dtype)

    return _with_config(source_of(repo_or_folder, **options), load)


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

    def load(folder: Path, config: dict[str, Any], source: Source) -> Ticket:
        entry = choose_entry(str(source), config, name, remaining_ratio)
        return _load(folder, config, entry, source)

    return _with_config(source_of(repo_or_folder, **options), load)


def load_tickets(
    repo_or_folder: str | Path, names: Sequence[str] | None = None, **options: Any
) -> tuple[Path, list[Ticket]]:
    """Return (folder, tickets) of the named tickets, or all, of a folder or repository, all of one commit."""
    names = _names(names)

    def load(folder: Path, config: dict[str, Any], source: Source) -> tuple[Path, list[Ticket]]:
        return folder, [_load(folder, config, entry, source) for entry in _entries(source, config, names)]

    return _with_config(source_of(repo_or_folder, **options), load)


def _names(names: Sequence[str] | None) -> Sequence[str] | None:
    if isinstance(names, str):
        raise SettingsError(f"tickets={names!r}: give a list of names")
    return names


def _entries(source: Source, config: Mapping[str, Any], names: Sequence[str] | None) -> list[dict[str, Any]]:
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

    def sizes(folder: Path, config: dict[str, Any], source: Source) -> tuple[dict[str, Any], dict[str, int]]:
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

    return _with_config(source_of(repo_or_folder, **options), sizes)


def _with_config(source: Source, use: Callable[[Path, dict[str, Any], Source], _Found]) -> _Found:
    """Return what ``use`` makes of (folder, config.json, source); of the Hub once more if a file was damaged."""
    if source.folder is not None:
        return use(source.folder, read_config(source.folder), source)
    path = fetch(source, "config.json", MAX_CONFIG_BYTES)
    try:
        return use(path.parent, read_config(path.parent), source)
    except (TicketError, ArchitectureError) as error:
        if source.force_download or not is_damaged(source, path, error):
            raise
        found = error
    if source.local_files_only:
        raise IntegrityError(
            f"{found}. It is damaged in the cache, or at its owner's: load it once without local_files_only, which "
            "downloads it anew"
        ) from found
    return _afresh(source, use, path.parent, found)


def _afresh(
    source: Source, use: Callable[[Path, dict[str, Any], Source], _Found], folder: Path, found: Exception
) -> _Found:
    """Return what ``use`` makes of files that are downloaded anew, after it has ``found`` one of them damaged.

    The Hub's cache compares sizes, not contents: a flipped byte in it is served as good until it is replaced.
    """
    source, before = replace(source, force_download=True), file_contents(folder)
    try:
        path = fetch(source, "config.json", MAX_CONFIG_BYTES)
    except HubError as error:
        raise IntegrityError(f"{found}. A fresh download failed: {error}") from error
    try:
        return use(path.parent, read_config(path.parent), source)
    except HubError as error:
        raise IntegrityError(f"{found}. A fresh download failed: {error}") from error
    except (TicketError, ArchitectureError) as error:
        if not isinstance(error, IntegrityError) and is_as_sent(path) is not False:
            raise
        if file_contents(path.parent) == before and all(is_as_sent(one) is not False for one in files_of(path.parent)):
            raise IntegrityError(f"{error}. A fresh download changed nothing: tell its owner") from error
        raise IntegrityError(
            f"{error}. A fresh download is damaged too: a proxy or the disk changes it. Load it again, or elsewhere"
        ) from error


def _load(folder: Path, config: Mapping[str, Any], entry: Mapping[str, Any], source: Source) -> Ticket:
    if source.folder is None:
        try:
            limit = largest_file(claimed_layout(config))
        except (TicketError, ArchitectureError) as error:
            raise type(error)(f"{source}: {error}") from error
        commit = folder.name  # the cache names a snapshot by it
        fetch(replace(source, revision=commit), entry["file"], limit)
    return Ticket.load(folder, entry["name"])
