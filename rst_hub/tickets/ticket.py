"""Ticket: what a seed cannot make of a network, as a folder (format version 1).

``config.json`` names the architecture, the seed and the tickets (config.py). ``ticket-<name>.safetensors`` holds, per
masked weight, ``mask.<name>`` (U8 bytes of bits.py) and, per other tensor of the state dict, ``state.<name>`` (a
constant tensor as one value of shape ()). Its metadata ``rst`` is JSON: ``seeded`` lists what the seed makes, shape and
scale by name; ``config`` is the digest of what config.json says of the ticket. Masked weights and seeded tables are
made anew when a ticket is loaded, and their digest is compared.

Nothing is believed that can be checked: what a folder claims is compared in the order of what the comparison costs, and
before anything of the claimed size is allocated.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from ..errors import ArchitectureError, IntegrityError, RstHubError, SettingsError, TicketError, printable
from ..files import given_path, new_folder, reading, strict_json, write_files
from ..masks.edge_popup import EdgePopup, check_neutral
from ..masks.packed import PackedMasks, encode_mask
from ..networks.architectures import TIMM_VERSION
from ..networks.build import Layout, build_features, build_unfilled
from ..networks.inputs import (
    UndescribedInputWarning,
    assumed_input,
    carried_input,
    check_channels,
    features_input,
    set_input,
)
from ..networks.roles import maskable_weights
from ..networks.unfilled import fill
from ..networks.weights import Init, SeededTensor, Ternary
from .config import (
    TICKET_NAME,
    add_entry,
    choose_entry,
    config_digest,
    layer_ratios_of,
    new_config,
    read_config,
    ticket_file,
    to_json,
)
from .digests import digest_of_weights, weights_digest
from .format import (
    as_seeded,
    check_kept,
    check_names,
    claimed_layout,
    compare_layouts,
    decode_masks,
    largest_file,
    layout_of,
    one_value,
    read_checked,
    read_header,
)


@dataclass(frozen=True, eq=False)
class Ticket:
    """A subnetwork of a random network: masks, the seed that makes the weights, and what the seed cannot make.

    ``masks`` are bool tensors by weight name, held packed; ``seeded`` says what the seed makes; ``state`` is the rest
    of the state dict (batch-norm statistics and constants); all three are in the order of the network's layers, drawn
    or loaded. ``weights_digest`` is that of :func:`weights_digest` for
    the masked weights and seeded tables; ``provenance`` is whatever JSON the search left about itself.
    """

    name: str
    architecture: str
    timm_kwargs: dict[str, Any]
    init: Init
    remaining_ratio: float
    pattern: str
    masks: PackedMasks
    seeded: dict[str, SeededTensor] = field(repr=False)
    state: dict[str, torch.Tensor] = field(repr=False)
    pretrained_cfg: dict[str, Any] = field(repr=False)
    weights_digest: str = field(repr=False)
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    layer_ratios: str = "uniform"

    def __post_init__(self) -> None:
        """Pack the masks, if they are a dict of tensors."""
        if not isinstance(self.masks, PackedMasks):
            object.__setattr__(self, "masks", PackedMasks(self.masks))

    @classmethod
    def draw(
        cls, popup: EdgePopup, *, name: str | None = None, provenance: Mapping[str, Any] | None = None
    ) -> "Ticket":
        """Return the ticket that the scores of ``popup`` choose now, with its model's other state as it is now.

        What was drawn is made anew and compared before it is returned, so that what is saved can be loaded.

        An :class:`UndescribedInputWarning` names what it assumes of images and labels that nobody described.

        Raises:
            SettingsError: the model was not made by :func:`rst_hub.create_model` with the popup's Init, or has been
                changed since, or its scores are not numbers; or the name is not of letters, digits, '.', '_' and '-'.
            ArchitectureError: the model's pretrained_cfg is of images of other channels than the model takes.
        """
        source = getattr(popup.model, "rst_source", None)
        if source is None or source.init != popup.init:
            raise SettingsError("a ticket can only be drawn from a model of rst_hub.create_model with the same Init")
        check_neutral(popup.model, source)
        name = f"r{popup.remaining_ratio:g}" if name is None else name
        if not TICKET_NAME.fullmatch(name):
            raise SettingsError(
                f"ticket name {name!r}: use letters, digits, '.', '_' and '-', 64 at most, a letter first"
            )
        nans = [key for key, scores in popup.scores.items() if not bool(scores.isfinite().all())]
        if nans:
            raise SettingsError(f"the model is no longer what create_model made: its scores {nans[:3]} are not finite")
        check_channels(source.architecture, source.timm_kwargs, carried_input(popup.model))
        _warn_of_assumptions(popup.model, source.architecture)
        popup.apply()
        tensors = {key: value.detach().cpu().clone() for key, value in popup.model.state_dict().items()}
        ticket = cls(
            name=name,
            architecture=source.architecture,
            timm_kwargs=dict(source.timm_kwargs),
            init=popup.init,
            remaining_ratio=popup.remaining_ratio,
            pattern=popup.pattern,
            masks=PackedMasks(popup.masks()),
            seeded={key: source.seeded[key] for key in tensors if key in source.seeded},
            state={key: value for key, value in tensors.items() if key not in source.seeded},
            pretrained_cfg=carried_input(popup.model),
            weights_digest=weights_digest(tensors, source.seeded),
            provenance={"versions": {"timm": TIMM_VERSION}, **(provenance or {})},
            layer_ratios=popup.layer_ratios,
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
        tensors = {name: tensor.clone() for name, tensor in self.state.items()}

        def made(name: str) -> torch.Tensor | Ternary:
            values = self.made(name)
            tensors[name] = values.tensor() if isinstance(values, Ternary) else values
            return values

        self.check_weights(made)
        return tensors

    def made(self, name: str) -> torch.Tensor | Ternary:
        """Return what the seed and the mask make of one weight, or the seed of one table, on the CPU."""
        spec = self.seeded[name]
        return self.init.masked(spec, self.masks.packed(name)) if spec.masked else self.init.tensor(spec)

    def check_weights(self, made: Callable[[str], torch.Tensor | Ternary]) -> None:
        """Raise TicketError unless ``made`` gives, by name, the masked weights and tables that were drawn."""
        found = digest_of_weights(made, self.seeded)
        if found != self.weights_digest:
            raise TicketError(
                f"ticket {self.name}: the weights made from seed {self.init.seed} have the digest {found}, those "
                f"it was drawn with {self.weights_digest}: its files were edited, or this rst-hub is at fault"
            )

    def model(self) -> nn.Module:
        """Return a plain timm model in eval mode whose parameters are the masked weights.

        Raises:
            TicketError: as for :meth:`state_dict`, or the installed timm builds other tensors under this name.
        """
        model = self.unfilled_model()
        fill(model, self.state_dict())
        return model

    def unfilled_model(self) -> nn.Module:
        """Return the model of :meth:`model` before it is given values, compared with the ticket by name and shape.

        Raises:
            TicketError: the installed timm builds other tensors under this name.
        """
        model = build_unfilled(self.architecture, self.timm_kwargs)
        set_input(model, self.pretrained_cfg)
        layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
        compare_layouts(self.architecture, layout_of(self.seeded, self.state, layout), layout, self.provenance)
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
        set_input(model, features_input(self.pretrained_cfg))
        return model.eval()

    def verify(self) -> None:
        """Count the masks, make weights and model anew; raise TicketError if anything is not as it was drawn.

        Nor may a weight that roles.py masks be stored as it is: nothing but its random weights makes a ticket.
        """
        self.check_counts()
        model = self.model()
        self.check_weights(model.state_dict().__getitem__)  # a load compares the bits that it makes these values of
        whole = sorted({weight.name for weight in maskable_weights(model)} - set(self.masks))
        if whole:
            raise TicketError(
                f"its weights {whole[:3]} are stored whole or unmasked, so it is no random network's ticket"
            )

    def check_counts(self) -> None:
        """Raise TicketError unless every mask keeps as many weights as the remaining ratio says."""
        kept = {name: int(mask.sum()) for name, mask in self.masks.items()}
        shapes = {name: self.seeded[name].shape for name in kept}
        check_kept(kept, shapes, self.remaining_ratio, self.layer_ratios)

    def save(self, folder: str | Path) -> Path:
        """Write the ticket into ``folder``, made anew or holding other tickets of the same random network.

        A new folder appears at once or not at all; in a folder of tickets, the others stay whole whatever happens.

        Raises:
            TicketError: the folder holds something else, tickets of another network, or another ticket of this name;
                or it cannot be written.
            SettingsError: the provenance is not JSON, or the folder is no path.
        """
        folder = given_path(folder)
        with reading(folder):
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
    def from_pretrained(
        cls,
        repo_or_folder: str | Path,
        name: str | None = None,
        *,
        remaining_ratio: float | None = None,
        **options: Any,
    ) -> "Ticket":
        """Read a ticket from a folder or from the Hub; its masks, seed and state, where :meth:`model` is the network.

        Args:
            repo_or_folder: as for :func:`rst_hub.from_pretrained`: a folder, ``org/name``, ``org/name@revision``.
            name: of one ticket, when there are several.
            remaining_ratio: of one ticket, instead of its name.
            **options: revision, token, cache_dir, local_files_only and force_download of
                :func:`rst_hub.from_pretrained`.

        Raises:
            HubError, IntegrityError, TicketError, ArchitectureError, SettingsError: as for
                :func:`rst_hub.from_pretrained`.
        """
        # The one import against the order of the rooms (tests/test_layers.py): users look for this on the class, and
        # whoever only reads folders never imports the Hub's client.
        from ..hub.loading import load_ticket

        return load_ticket(repo_or_folder, name, remaining_ratio=remaining_ratio, **options)

    @classmethod
    def load(cls, folder: str | Path, name: str | None = None, *, remaining_ratio: float | None = None) -> "Ticket":
        """Read a ticket from its folder; :meth:`from_pretrained` takes what is on the Hub too.

        Every byte is checked against config.json, and every shape against the architecture before it is allocated.

        Args:
            folder: as :meth:`save` writes it.
            name: of one ticket; may be left out when the folder holds only one.
            remaining_ratio: of one ticket, instead of its name.

        Raises:
            IntegrityError: a file is truncated or edited.
            TicketError: something is missing, foreign, false, of a newer format version, or too large for this
                machine's memory.
            ArchitectureError: the installed timm does not know the architecture.
            SettingsError: the folder is no path.
        """
        folder = given_path(folder)
        config = read_config(folder)
        entry = choose_entry(folder, config, name, remaining_ratio)
        path = folder / entry["file"]
        try:
            layout = claimed_layout(config)
            content = read_checked(folder, entry, largest_file(layout))
            return _from_safetensors(config, entry, content, layout)
        except (TicketError, ArchitectureError) as error:
            said = str(error)
            raise type(error)(said if said.startswith(str(path)) else f"{path}: {said}") from error


def ticket_names(folder: str | Path) -> list[str]:
    """Return the names of the tickets in a folder, in the order of its config.json."""
    return [entry["name"] for entry in read_config(given_path(folder))["rst"]["tickets"]]


def _warn_of_assumptions(model: nn.Module, architecture: str) -> None:
    assumed = assumed_input(model)
    if not assumed:
        return
    words = {
        "input_size": ("image_size", "images of {} x {} x {} (channels, height, width)"),
        "mean": ("mean", "their mean {}"),
        "std": ("std", "their standard deviation {}"),
        "label_names": ("label_names", "classes without names, numbered"),
    }
    values = {key: value if key == "input_size" else [value] for key, value in assumed.items()}
    said = ", ".join(words[key][1].format(*value) for key, value in values.items())
    arguments = ", ".join(f"{words[key][0]}=..." for key in assumed)
    warnings.warn(
        f"nobody described the input of this {architecture}, so the ticket assumes {said}: whoever loads it prepares "
        f"images that way. If yours are others, call rst_hub.describe_input(model, {arguments}) before Ticket.draw, or "
        "give the same arguments to create_model",
        UndescribedInputWarning,
        stacklevel=3,
    )


def _entry_of(ticket: Ticket) -> dict[str, Any]:
    return {
        "name": ticket.name,
        "remaining_ratio": ticket.remaining_ratio,
        "pattern": ticket.pattern,
        "file": ticket.file,
        "weights_digest": ticket.weights_digest,
        "kept": ticket.kept,
        "provenance": ticket.provenance,
        **({} if ticket.layer_ratios == "uniform" else {"layer_ratios": ticket.layer_ratios}),
    }


def _to_safetensors(ticket: Ticket, said: str) -> bytes:
    tensors = {
        f"mask.{name}": torch.frombuffer(bytearray(encode_mask(mask)), dtype=torch.uint8)
        for name, mask in ticket.masks.items()
    }
    tensors.update({f"state.{name}": one_value(tensor) for name, tensor in ticket.state.items()})
    seeded = {name: [list(spec.shape), spec.scale] for name, spec in sorted(ticket.seeded.items())}
    metadata = json.dumps({"config": said, "seeded": seeded}, separators=(",", ":"))
    return safetensors.torch.save(tensors, metadata={"rst": metadata})  # one entry: several have no fixed order


def _from_safetensors(
    config: dict[str, Any], entry: dict[str, Any], content: bytes, layout: Mapping[str, Layout]
) -> Ticket:
    rst = config["rst"]
    try:
        header = read_header(content)
        metadata = strict_json(header.pop("__metadata__")["rst"].encode())
        if set(metadata) != {"config", "seeded"}:
            raise ValueError(f"its metadata has the keys {list(metadata)[:5]}")
        said = metadata["config"]
        seeded = {name: as_seeded(name, spec, f"mask.{name}" in header) for name, spec in metadata["seeded"].items()}
        check_names(header, seeded)
        tensors = safetensors.torch.load(content)
        if {name: [list(t.shape), t.dtype] for name, t in tensors.items()} != header:
            raise ValueError("its header can be read in two ways")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise TicketError(f"it is not a ticket's safetensors file ({printable(error, 500)})") from error
    if said != config_digest(config, entry):
        raise IntegrityError("config.json says something else of it than when it was drawn: fetch the folder anew")
    stored = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    compare_layouts(rst["architecture"], layout_of(seeded, stored, layout), layout, entry["provenance"])
    # in the order of the layers, which a file has no room for; after the comparison, all names are the layout's
    codes = {name: tensors[f"mask.{name}"] for name in layout if f"mask.{name}" in tensors}
    stored = {name: stored[name] for name in layout if name in stored}
    seeded = {name: seeded[name] for name in layout if name in seeded}
    return Ticket(
        name=entry["name"],
        architecture=rst["architecture"],
        timm_kwargs=rst["timm_kwargs"],
        init=Init(rst["init"]["seed"], rst["init"]["distribution"]),
        remaining_ratio=entry["remaining_ratio"],
        pattern=entry["pattern"],
        masks=decode_masks(codes, seeded, entry),
        seeded=seeded,
        state={name: tensor.expand(layout[name][0]).clone() for name, tensor in stored.items()},
        pretrained_cfg=config["pretrained_cfg"],
        weights_digest=entry["weights_digest"],
        provenance=entry["provenance"],
        layer_ratios=layer_ratios_of(entry),
    )
