"""Ticket: what a seed cannot make of a network, as a folder (format version 1).

``config.json`` names the architecture, the seed and the tickets (config.py). ``ticket-<name>.safetensors`` holds, per
masked weight, ``mask.<name>`` (U8 bytes of bits.py) and, per other tensor of the state dict, ``state.<name>`` (a
constant tensor as one value of shape ()). Its metadata ``rst`` is JSON: ``seeded`` lists what the seed makes, shape and
scale by name; ``config`` is the digest of what config.json says of the ticket. Masked weights and seeded tables are
made anew when a ticket is loaded, and their digest is compared.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from .bits import decode_mask, encode_mask
from .config import TICKET_NAME, add_entry, choose_entry, config_digest, new_config, read_config, ticket_file, to_json
from .errors import ArchitectureError, RstHubError, SettingsError, TicketError
from .files import new_folder, write_files
from .masking import EdgePopup, kept_count
from .models import TIMM_VERSION, Layout, build_features, build_masked, carried_input, set_input, state_layout
from .weights import Init, SeededTensor

_MAX_TICKET_BYTES = 4 * 2**30


@dataclass(frozen=True, eq=False)
class Ticket:
    """A subnetwork of a random network: masks, the seed that makes the weights, and what the seed cannot make.

    ``masks`` are bool tensors by weight name; ``seeded`` says what the seed makes; ``state`` is the rest of the state
    dict (batch-norm statistics and constants); ``weights_digest`` is the SHA-256 of the masked weights and seeded
    tables; ``provenance`` is whatever JSON the search left about itself.
    """

    name: str
    architecture: str
    timm_kwargs: dict[str, Any]
    init: Init
    remaining_ratio: float
    pattern: str
    masks: dict[str, torch.Tensor]
    seeded: dict[str, SeededTensor]
    state: dict[str, torch.Tensor]
    pretrained_cfg: dict[str, Any]
    weights_digest: str
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def draw(
        cls, popup: EdgePopup, *, name: str | None = None, provenance: Mapping[str, Any] | None = None
    ) -> "Ticket":
        """Return the ticket that the scores of ``popup`` choose now, with its model's other state as it is now.

        What was drawn is made anew and compared before it is returned, so that what is saved can be loaded.

        Raises:
            SettingsError: the model was not made by :func:`rst_hub.create_model` with the popup's Init, or has been
                changed since, or its scores are not numbers; or the name is not of letters, digits, '.', '_' and '-'.
        """
        source = getattr(popup.model, "rst_source", None)
        if source is None or source.init != popup.init:
            raise SettingsError("a ticket can only be drawn from a model of rst_hub.create_model with the same Init")
        name = f"r{popup.remaining_ratio:g}" if name is None else name
        if not TICKET_NAME.fullmatch(name):
            raise SettingsError(f"ticket name {name!r}: use letters, digits, '.', '_' and '-', 64 at most")
        popup.apply()
        tensors = {key: value.detach().cpu().clone() for key, value in popup.model.state_dict().items()}
        ticket = cls(
            name=name,
            architecture=source.architecture,
            timm_kwargs=dict(source.timm_kwargs),
            init=popup.init,
            remaining_ratio=popup.remaining_ratio,
            pattern=popup.pattern,
            masks={key: mask.cpu() for key, mask in popup.masks().items()},
            seeded=dict(source.seeded),
            state={key: value for key, value in tensors.items() if key not in source.seeded},
            pretrained_cfg=carried_input(popup.model),
            weights_digest=digest(tensors, source.seeded),
            provenance={"versions": {"timm": TIMM_VERSION}, **(provenance or {})},
        )
        try:
            ticket.verify()
        except RstHubError as error:
            raise SettingsError(f"the model is no longer what create_model made, and no ticket: {error}") from error
        return ticket

    @property
    def file(self) -> str:
        """The name of the ticket's file in its folder."""
        return ticket_file(self.name)

    @property
    def kept(self) -> int:
        """The number of weights that the masks keep."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the whole state dict on the CPU: seeded weights x masks, seeded tables, and the stored rest.

        Raises:
            TicketError: the weights made here are not those that the ticket was drawn with.
        """
        tensors = dict(self.state)
        for name, spec in self.seeded.items():
            values = self.init.tensor(spec)
            tensors[name] = values.where(self.masks[name], torch.zeros(())) if spec.masked else values
        found = digest(tensors, self.seeded)
        if found != self.weights_digest:
            raise TicketError(
                f"ticket {self.name}: the weights made from seed {self.init.seed} have SHA-256 {found[:16]}..., those "
                f"it was drawn with {self.weights_digest[:16]}...: its files were edited, or this rst-hub is at fault"
            )
        return tensors

    def model(self) -> nn.Module:
        """Return a plain timm model in eval mode whose parameters are the masked weights.

        Raises:
            TicketError: as for :meth:`state_dict`, or the installed timm builds other tensors under this name.
        """
        tensors = self.state_dict()
        model = build_masked(self.architecture, self.timm_kwargs)
        set_input(model, self.pretrained_cfg)
        layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
        _compare_layouts(self.architecture, _layout_of(self.seeded, self.state, layout), layout, self.provenance)
        model.load_state_dict(tensors, strict=True)
        return model.eval()

    def features(self, out_indices: int | Sequence[int] | None = None) -> nn.Module:
        """Return timm's ``features_only`` form of the model, in eval mode: it maps images to a list of feature maps.

        Args:
            out_indices: which of timm's feature levels, or how many of the last ones; its own choice when None.

        Raises:
            TicketError: as for :meth:`state_dict`.
            ArchitectureError: the architecture has no such form or no such level.
        """
        model = build_features(self.architecture, self.timm_kwargs, self.state_dict(), out_indices)
        of_classes = ("num_classes", "label_names", "classifier")
        set_input(model, {key: value for key, value in self.pretrained_cfg.items() if key not in of_classes})
        return model.eval()

    def verify(self) -> None:
        """Count the masks, make weights and model anew; raise TicketError if anything is not as it was drawn."""
        self.check_counts()
        self.model()

    def check_counts(self) -> None:
        """Raise TicketError unless every mask keeps as many weights as the remaining ratio says."""
        for name, mask in self.masks.items():
            found, due = int(mask.sum()), kept_count(mask.numel(), self.remaining_ratio)
            if found != due:
                raise TicketError(f"the mask of {name} keeps {found} of {mask.numel()} weights; {due} are due")

    def save(self, folder: str | Path) -> Path:
        """Write the ticket into ``folder``, made anew or holding other tickets of the same random network.

        A new folder appears at once or not at all; in a folder of tickets, the others stay whole whatever happens.

        Raises:
            TicketError: the folder holds something else, tickets of another network, or another ticket of this name;
                or it cannot be written.
            SettingsError: the provenance is not JSON.
        """
        folder = Path(folder)
        is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        config = new_config(self.architecture, self.timm_kwargs, self.init, self.pretrained_cfg)
        entry = json.loads(to_json(_entry_of(self)))
        content = _to_safetensors(self, config_digest(config, entry))
        entry["sha256"] = hashlib.sha256(content).hexdigest()
        add_entry(folder, config, entry, None if is_new else read_config(folder))
        try:
            with new_folder(folder) if is_new else nullcontext(folder) as target:
                # config.json first: should this die between the two, the folder's other tickets load as before
                write_files({target / "config.json": to_json(config), target / self.file: content})
        except OSError as error:
            raise TicketError(f"{folder} cannot be written: {error}") from error
        return folder

    @classmethod
    def load(cls, folder: str | Path, name: str | None = None) -> "Ticket":
        """Read a ticket from its folder; ``name`` may be left out when it holds only one.

        Every byte is checked against config.json, and every shape against the architecture before it is allocated.

        Raises:
            TicketError: something is missing, truncated, edited, foreign, or of a newer format version.
            ArchitectureError: the installed timm does not know the architecture.
        """
        folder = Path(folder)
        config = read_config(folder)
        entry = choose_entry(folder, config, name)
        content = _read_checked(folder / entry["file"], entry["sha256"])
        try:
            ticket = _from_safetensors(config, entry, content)
            ticket.check_counts()
            return ticket
        except (TicketError, ArchitectureError) as error:
            raise type(error)(f"{folder / entry['file']}: {error}") from error


def ticket_names(folder: str | Path) -> list[str]:
    """Return the names of the tickets in a folder, in the order of its config.json."""
    return [entry["name"] for entry in read_config(Path(folder))["rst"]["tickets"]]


def digest(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> str:
    """Return the SHA-256, in hex, of the named tensors' names, dtypes, shapes and bytes, in sorted order."""
    sha = hashlib.sha256()
    for name in sorted(names):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _entry_of(ticket: Ticket) -> dict[str, Any]:
    return {
        "name": ticket.name,
        "remaining_ratio": ticket.remaining_ratio,
        "pattern": ticket.pattern,
        "file": ticket.file,
        "weights_digest": ticket.weights_digest,
        "kept": ticket.kept,
        "provenance": ticket.provenance,
    }


def _to_safetensors(ticket: Ticket, said: str) -> bytes:
    tensors = {
        f"mask.{name}": torch.frombuffer(bytearray(encode_mask(mask)), dtype=torch.uint8)
        for name, mask in ticket.masks.items()
    }
    tensors.update({f"state.{name}": _one_value(tensor) for name, tensor in ticket.state.items()})
    seeded = {name: [list(spec.shape), spec.scale] for name, spec in sorted(ticket.seeded.items())}
    metadata = json.dumps({"config": said, "seeded": seeded}, separators=(",", ":"))
    return safetensors.torch.save(tensors, metadata={"rst": metadata})  # one entry: several have no fixed order


def _one_value(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of one repeated bit pattern as a scalar, any other as it is."""
    flat = tensor.contiguous().reshape(-1)
    if flat.numel() < 2:
        return tensor.contiguous()
    patterns = flat.view(torch.uint8).reshape(flat.numel(), -1)
    return flat[0].clone() if bool((patterns == patterns[0]).all()) else tensor.contiguous()


def _from_safetensors(config: dict[str, Any], entry: dict[str, Any], content: bytes) -> Ticket:
    rst = config["rst"]
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = json.loads(header["__metadata__"]["rst"])
        said = metadata["config"]
        seeded = {name: _seeded(name, spec, f"mask.{name}" in tensors) for name, spec in metadata["seeded"].items()}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise TicketError(f"it is not a ticket's safetensors file ({error})") from error
    if said != config_digest(config, entry):
        raise TicketError("config.json says something else of it than when it was drawn: fetch the folder anew")
    layout = state_layout(rst["architecture"], rst["timm_kwargs"])
    stored = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    codes = {key.removeprefix("mask."): value for key, value in tensors.items() if key.startswith("mask.")}
    strays = [key for key in tensors if not key.startswith(("mask.", "state."))]
    strays += [key for key in codes if key not in seeded] + [key for key in stored if key in seeded]
    if strays:
        raise TicketError(f"it holds tensors that no ticket has: {strays[:3]}")
    _compare_layouts(rst["architecture"], _layout_of(seeded, stored, layout), layout, entry["provenance"])
    masks = {}
    for name, code in codes.items():
        if code.dtype != torch.uint8:
            raise TicketError(f"mask.{name} is not of dtype U8")
        masks[name] = decode_mask(code.numpy().tobytes(), math.prod(seeded[name].shape)).view(seeded[name].shape)
    ticket = Ticket(
        name=entry["name"],
        architecture=rst["architecture"],
        timm_kwargs=rst["timm_kwargs"],
        init=Init(rst["init"]["seed"], rst["init"]["distribution"]),
        remaining_ratio=entry["remaining_ratio"],
        pattern=entry["pattern"],
        masks=masks,
        seeded=seeded,
        state={name: tensor.expand(layout[name][0]).clone() for name, tensor in stored.items()},
        pretrained_cfg=config["pretrained_cfg"],
        weights_digest=entry["weights_digest"],
        provenance=entry["provenance"],
    )
    if ticket.kept != entry["kept"]:
        raise TicketError(f"its masks keep {ticket.kept} weights, config.json says {entry['kept']}")
    return ticket


def _seeded(name: str, spec: list[Any], masked: bool) -> SeededTensor:
    shape, scale = spec
    if not all(type(size) is int and size >= 0 for size in shape) or not math.isfinite(scale):
        raise ValueError(f"{name} of shape {shape} and scale {scale}")
    return SeededTensor(name, tuple(shape), float(scale), masked)


def _layout_of(
    seeded: Mapping[str, SeededTensor], state: Mapping[str, torch.Tensor], layout: Mapping[str, Layout]
) -> dict[str, Layout]:
    """Return the layout of what a ticket makes and stores; a stored scalar stands for any shape."""
    own: dict[str, Layout] = {name: (spec.shape, torch.float32) for name, spec in seeded.items()}
    for name, tensor in state.items():
        shape = layout[name][0] if tensor.ndim == 0 and name in layout else tuple(tensor.shape)
        own[name] = (shape, tensor.dtype)
    return own


def _compare_layouts(
    architecture: str, own: Mapping[str, Layout], layout: Mapping[str, Layout], provenance: Mapping[str, Any]
) -> None:
    """Raise TicketError naming the first tensors in which a ticket and the installed timm differ."""
    names = [*layout, *(name for name in own if name not in layout)]
    different = [name for name in names if own.get(name) != layout.get(name)]
    if different:
        shown = "; ".join(f"{n}: {_shown(own.get(n))} here, {_shown(layout.get(n))} in timm" for n in different[:3])
        versions = provenance.get("versions")
        drawn = versions.get("timm", "unknown") if isinstance(versions, dict) else "unknown"
        raise TicketError(
            f"{len(different)} tensors differ from {architecture} of timm {TIMM_VERSION}: {shown}. "
            f"Install timm {drawn}, which it was drawn with"
        )


def _shown(layout: Layout | None) -> str:
    return "absent" if layout is None else f"{list(layout[0])} {str(layout[1]).removeprefix('torch.')}"


def _read_checked(path: Path, sha256: str) -> bytes:
    if not path.is_file():
        raise TicketError(f"{path} is missing, though config.json lists it: fetch the whole folder anew")
    if path.stat().st_size > _MAX_TICKET_BYTES:
        raise TicketError(f"{path} is larger than any ticket")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise TicketError(
            f"{path} is not the file that config.json lists: SHA-256 {found[:16]}... found, {sha256[:16]}... expected. "
            "It was truncated, edited or exchanged: fetch the folder anew"
        )
    return content
