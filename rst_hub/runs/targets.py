"""What benchmark.py and transfer.py measure: tickets, sets of tickets (R2S), dense models, and the images for them."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from tqdm import tqdm

from ..data.images import Images, load_images, name_of
from ..data.images import fingerprint as fingerprint_of_images
from ..data.loader import evaluation_batches
from ..data.order import permutation
from ..errors import ArchitectureError, DataError, HubError, RstHubError, SettingsError, TicketError
from ..evaluation.accuracy import interval, percent
from ..files import given_path, is_folder
from ..hub.loading import load_tickets
from ..networks.dense import load_dense, load_timm
from ..networks.pixels import PixelModel
from ..tickets.digests import digest
from .guard import make_accelerator
from .provenance import device_name, versions
from .settings import MeasureSettings


@dataclass(frozen=True)
class Victim:
    """A network to attack, or the members of an R2S; ``about`` says in JSON what it is.

    ``origins`` has what is recorded of each member's search or training: its command, settings and so on.
    """

    label: str
    kind: str
    members: list[PixelModel]
    about: dict[str, Any]
    origins: list[dict[str, Any]]

    @property
    def model(self) -> PixelModel | list[PixelModel]:
        """The network, or all members: an attacker knows them all, and none is drawn."""
        return self.members[0] if self.kind != "r2s" else self.members

    @property
    def names(self) -> list[str]:
        """The tickets' names."""
        return [entry["name"] for entry in self.about.get("tickets", ())]

    @property
    def input_cfg(self) -> dict[str, Any]:
        """Input size, labels and the like, in the words of timm: its pretrained_cfg."""
        cfg: Any = self.members[0].model.pretrained_cfg
        return dict(cfg)


def several_processes() -> Accelerator:
    """Return an Accelerator whose processes may wait for each other for days: attacks take unequally long."""
    return make_accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])


def load_victim(source: str, name: str | None = None) -> Victim:
    """Return what ``source`` is: a ticket, several tickets of a folder as one R2S, or a dense model.

    Args:
        source: a folder of ours (tickets, or a dense model of train.py); ``org/name`` on the Hub, of tickets; a
            pretrained model of timm by its name, ``hf-hub:org/name`` or ``local-dir:folder``.
        name: one of several tickets, or some with commas between; all when None.

    Raises:
        RstHubError: it cannot be found or read, or a ticket is named twice.
    """
    prefix, _, path = source.partition(":")
    if prefix in ("hf-hub", "local-dir"):
        with contextlib.suppress(TicketError, HubError):  # timm's names, of a ticket
            return _tickets(path, name)
    folder = given_path(source)
    is_dense_folder = is_folder(folder) and not _holds_tickets(folder)
    is_timms = not is_folder(folder) and (":" in source or "/" not in source) and not source.startswith("hf://")
    if (is_dense_folder or is_timms) and name is not None:
        raise SettingsError(f"--name {name} goes with tickets; {source} is a dense model")
    if is_dense_folder:
        return _dense(_label(folder), load_dense(folder), _trained(folder))
    if is_timms:
        return _dense(_label(Path(path)) if prefix == "local-dir" else source, load_timm(source), {})
    return _tickets(source, name)


def _tickets(source: str, name: str | None) -> Victim:
    names = None if name is None else _names(name)
    where, tickets = load_tickets(source, names)
    config = json.loads((where / "config.json").read_text(encoding="utf-8"))
    sha256 = {entry["name"]: entry["sha256"] for entry in config["rst"]["tickets"]}
    label = _label(where) if is_folder(given_path(source)) else source
    about = {
        "source": label,
        "architecture": tickets[0].architecture,
        "timm_kwargs": tickets[0].timm_kwargs,
        "init": {"seed": tickets[0].init.seed, "distribution": tickets[0].init.distribution},
        "tickets": [
            {"name": t.name, "remaining_ratio": t.remaining_ratio, "kept": t.kept, "sha256": sha256[t.name]}
            for t in tickets
        ],
        "dataset": _searched_on(tickets[0].provenance),
    }
    members = [PixelModel(ticket.model()) for ticket in tickets]
    origins = [dict(ticket.provenance) for ticket in tickets]
    if len(members) == 1:
        return Victim(f"{label}-{tickets[0].name}", "ticket", members, about, origins)
    return Victim("-".join([label, *(names or ())]), "r2s", members, about, origins)


def _names(text: str) -> list[str]:
    """Return tickets' names; raise SettingsError where one is there twice."""
    names = [name.strip() for name in text.split(",")]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise SettingsError(f"--name {text}: {twice[0]!r} is there twice, and an R2S has each ticket once")
    return names


def each_alone(victim: Victim) -> list[Victim]:
    """Return the members of an R2S as tickets of their own; another victim as it is."""
    if victim.kind != "r2s":
        return [victim]
    entries = victim.about["tickets"]
    return [
        Victim(entry["name"], "ticket", [member], {**victim.about, "tickets": [entry]}, [origin])
        for entry, member, origin in zip(entries, victim.members, victim.origins, strict=True)
    ]


def load_test_images(settings: MeasureSettings, victims: list[Victim], accelerator: Accelerator) -> tuple[str, Images]:
    """Return (the data set's name, its test images), as many as asked for, checked against what the victims say.

    Raises:
        DataError: no data set is given or known, or its images or labels are not those of the victims.
    """
    known = {victim.about.get("dataset") for victim in victims} - {None}
    dataset = settings.dataset or (next(iter(known)) if len(known) == 1 else None)
    if dataset is None:
        raise DataError("what is measured names no data set, or several: give one by --dataset")
    name = settings.dataset_name or name_of(dataset)
    sizes = {tuple(victim.input_cfg["input_size"]) for victim in victims}
    if len(sizes) > 1 or len(set(next(iter(sizes))[1:])) > 1 or next(iter(sizes))[0] != 3:
        raise DataError(f"inputs of sizes {sorted(sizes)}: give networks of one square size and three channels")
    columns: dict[str, Any] = {"image_column": settings.image_column, "label_column": settings.label_column}
    columns |= {"skip_broken": settings.skip_broken, "progress": accelerator.is_main_process}
    with accelerator.main_process_first():  # the first reader fills the cache for the others
        images = load_images(dataset, "test", image_size=next(iter(sizes))[1], **columns)
    if accelerator.is_main_process:
        for note in images.notes:
            tqdm.write(note)
    for victim in victims:
        _check_labels(victim, images, dataset)
    if settings.samples is not None and settings.samples < len(images):  # at random: many data sets are sorted by class
        images = images.subset(permutation("test", 0, 0, len(images))[: settings.samples])  # as in a search
    return name, images


def fingerprint(victims: Sequence[Victim], images: Images) -> str:
    """Return some digits that change when a ticket, a checkpoint or the data of the same name do."""
    sha = hashlib.sha256(json.dumps([victim.about for victim in victims], sort_keys=True).encode())
    for member in (member for victim in victims for member in victim.members):
        state = {**member.state_dict(), "mean": member.mean, "std": member.std}
        sha.update(digest(state, state).encode())
    sha.update(fingerprint_of_images(images).encode())
    return sha.hexdigest()[:16]


def place(victims: list[Victim], device: torch.device) -> None:
    """Move networks to a device, in channels_last, where convolutions are fast, and in full float32 there."""
    torch.backends.cudnn.allow_tf32 = False  # cuDNN would take 10 bits of mantissa for float32 otherwise
    for victim in victims:
        for member in victim.members:
            member.to(device).to(memory_format=torch.channels_last).requires_grad_(False)


def batches_of(
    images: Images, settings: MeasureSettings, size: int, accelerator: Accelerator, *, alone: bool = False
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield this process's numbered batches, or all of them if ``alone``, on its device."""
    shard = (0, 1) if alone else (accelerator.process_index, accelerator.num_processes)
    for number, x, y in evaluation_batches(images, settings.batch_size, image_size=size, shard=shard):
        yield number, x.to(accelerator.device, memory_format=torch.channels_last), y.to(accelerator.device)


def circumstances(
    settings: MeasureSettings, dataset: str, images: Images, image_size: int, accelerator: Accelerator, command: str
) -> dict[str, Any]:
    """Return what every number must carry: data, sample count, seed, command, device and versions."""
    chosen = "all" if settings.samples is None else "the first of rst_hub.data.order.permutation('test', 0, 0, all)"
    return {
        "dataset": {
            "name": dataset,
            "split": images.split,
            "samples": len(images),
            "chosen": chosen,
            **({"left_out": images.skipped} if images.skipped else {}),
        },
        "images": {
            "size": image_size,
            "resize": "shorter side, bilinear with antialiasing; centre crop (crop_pct 1)",
        },
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "precision": "float32",
        "command": command,
        "processes": accelerator.num_processes,
        "device": device_name(accelerator.device),
        "versions": versions(),
    }


def accuracy(correct: torch.Tensor) -> dict[str, Any]:
    """Return an accuracy in percent with its 95% interval and the number of samples."""
    low, high = interval(correct)
    return {"accuracy": percent(correct), "interval_95": [round(low, 2), round(high, 2)], "samples": len(correct)}


def encoded(correct: torch.Tensor) -> str | list[float]:
    """Return per-sample outcomes as a string of 0 and 1; of an R2S, as shares of the members."""
    if bool(((correct == 0) | (correct == 1)).all()):
        return "".join(str(int(value)) for value in correct.tolist())
    return [round(value, 6) for value in correct.tolist()]


def decoded(outcomes: str | list[float]) -> torch.Tensor:
    """Return what :func:`encoded` was given."""
    return torch.tensor([float(value) for value in outcomes], dtype=torch.float64)


def _label(folder: Path) -> str:
    """Return a folder's name; of a run's ``ticket/`` or ``model/`` the run's."""
    folder = folder.resolve()
    name = folder.parent.name if folder.name in ("ticket", "model") else folder.name
    return name.encode(errors="replace").decode()  # results.json holds no half characters


def _searched_on(provenance: dict[str, Any]) -> str | None:
    settings = provenance.get("settings")
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    return dataset if isinstance(dataset, str) else None


def _holds_tickets(folder: Path) -> bool:
    try:
        return "rst" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return True  # let the tickets' own reader say what is wrong with it


def _trained(folder: Path) -> dict[str, Any]:
    """Return what train.py recorded of a dense model; {} where there is nothing."""
    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("provenance")
    return found if isinstance(found, dict) else {}


def _dense(label: str, model: nn.Module, origin: dict[str, Any]) -> Victim:
    cfg: Any = model.pretrained_cfg
    state = model.state_dict()
    about = {
        "source": label,
        "architecture": cfg.get("architecture") or type(model).__name__,
        "state_digest": digest(state, state),
        "dataset": _searched_on(origin),
    }
    try:
        return Victim(label, "dense", [PixelModel(model)], about, [origin])
    except RstHubError as error:
        raise ArchitectureError(f"{label}: {error}") from error


def _check_labels(victim: Victim, images: Images, dataset: str) -> None:
    """Raise DataError where the network's classes are not the data set's: its accuracy would mean nothing.

    Names that have nothing in common ("n01440764", "tench") cannot be compared, and pass.
    """
    classes: Any = victim.members[0].model.num_classes
    names = list(victim.input_cfg.get("label_names") or ())
    if classes != len(images.classes):
        raise DataError(f"{victim.label} knows {classes} classes, data set {dataset} has {len(images.classes)}")
    if set(names) & set(images.classes) and names != list(images.classes):
        odd = next((a, b) for a, b in zip(names, images.classes, strict=True) if a != b)
        raise DataError(f"{victim.label} and data set {dataset} name their classes differently: {odd[0]!r}, {odd[1]!r}")
