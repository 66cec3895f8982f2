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
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from .bits import PackedMasks, encode_mask, kept_in
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
from .errors import ArchitectureError, IntegrityError, RstHubError, SettingsError, TicketError, printable
from .files import given_path, new_folder, read_inside, reading, strict_json, write_files
from .masking import EdgePopup, check_neutral, kept_counts
from .models import (
    TIMM_VERSION,
    Layout,
    UndescribedInputWarning,
    assumed_input,
    build_features,
    build_unfilled,
    carried_input,
    check_architecture,
    check_channels,
    check_input,
    dense_bytes,
    features_input,
    fill,
    set_input,
    state_layout,
)
from .roles import maskable_weights
from .weights import Init, SeededTensor, Ternary

_MAX_HEADER_BYTES = 4 * 2**20
_BLOCK_ROWS, _CACHED = 32, 2**20
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""What a state dict of timm may hold, by the names of safetensors."""


@dataclass(frozen=True, eq=False)
class Ticket:
    """A subnetwork of a random network: masks, the seed that makes the weights, and what the seed cannot make.

    ``masks`` are bool tensors by weight name, held packed; ``seeded`` says what the seed makes; ``state`` is the rest
    of the state dict (batch-norm statistics and constants); ``weights_digest`` is that of :func:`weights_digest` for
    the masked weights and seeded tables; ``provenance`` is whatever JSON the search left about itself.
    """

    name: str
    architecture: str
    timm_kwargs: dict[str, Any]
    init: Init
    remaining_ratio: float
    pattern: str
    masks: PackedMasks
    seeded: dict[str, SeededTensor]
    state: dict[str, torch.Tensor]
    pretrained_cfg: dict[str, Any]
    weights_digest: str
    provenance: dict[str, Any] = field(default_factory=dict)
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
            seeded=dict(source.seeded),
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
        found = _digest_of_weights(made, self.seeded)
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
        _compare_layouts(self.architecture, _layout_of(self.seeded, self.state, layout), layout, self.provenance)
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
        _check_counts(kept, shapes, self.remaining_ratio, self.layer_ratios)

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
    def load(cls, folder: str | Path, name: str | None = None) -> "Ticket":
        """Read a ticket from its folder; ``name`` may be left out when it holds only one.

        Every byte is checked against config.json, and every shape against the architecture before it is allocated.

        Raises:
            IntegrityError: a file is truncated or edited.
            TicketError: something is missing, foreign, false, of a newer format version, or too large for this
                machine's memory.
            ArchitectureError: the installed timm does not know the architecture.
            SettingsError: the folder is no path.
        """
        folder = given_path(folder)
        config = read_config(folder)
        entry = choose_entry(folder, config, name)
        path = folder / entry["file"]
        try:
            layout = claimed_layout(config)
            content = _read_checked(folder, entry, largest_file(layout))
            return _from_safetensors(config, entry, content, layout)
        except (TicketError, ArchitectureError) as error:
            said = str(error)
            raise type(error)(said if said.startswith(str(path)) else f"{path}: {said}") from error


def ticket_names(folder: str | Path) -> list[str]:
    """Return the names of the tickets in a folder, in the order of its config.json."""
    return [entry["name"] for entry in read_config(given_path(folder))["rst"]["tickets"]]


def digest(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> str:
    """Return the SHA-256, in hex, of the named tensors' names, dtypes, shapes and bytes, in sorted order."""
    sha = hashlib.sha256()
    for name in sorted(names):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def weights_digest(tensors: Mapping[str, torch.Tensor], seeded: Mapping[str, SeededTensor]) -> str:
    """Return the SHA-256, in hex, of what the tensors are that ``seeded`` describes, in the order of their names.

    A masked weight that is +scale, -scale or +0.0 everywhere (:class:`rst_hub.weights.Ternary`) counts as its name,
    shape, scale and two bits a weight, those of +scale and those of -scale: they say all of it in a sixteenth of its
    bytes. Any other tensor counts as its name, dtype, shape and bytes.

    Bits and bytes count by their sums: they are read as little-endian 64-bit integers in blocks of 32 rows of 64 for
    bits, of 512 for bytes. Each block gives the sums of its columns, each row its sum, modulo 2**64; what fills no
    block stands for itself. That takes a fifth of the time of hashing all, and no mistake in making weights escapes it
    but one that cancels out in rows and columns at once. Forgers could write any digest anyway: edited files are for
    SHA-256 to find.
    """
    return _digest_of_weights(tensors.__getitem__, seeded)


def _digest_of_weights(made: Callable[[str], torch.Tensor | Ternary], seeded: Mapping[str, SeededTensor]) -> str:
    sha = hashlib.sha256()
    for name, spec in sorted(seeded.items()):
        values = made(name)
        bits = Ternary.of(values, spec.scale) if spec.masked and isinstance(values, torch.Tensor) else None
        for part in _counted(name, values if bits is None else bits):
            sha.update(part)
    return sha.hexdigest()


def _counted(name: str, values: torch.Tensor | Ternary) -> Iterator[Any]:
    """Give what :func:`weights_digest` takes of a tensor."""
    if isinstance(values, Ternary):
        yield f"{name}\0ternary\0{values.shape}\0{values.scale!r}\0".encode()
        for bits in (values.plus, values.minus):
            yield from _sums(bits, 64)
        return
    tensor = values.detach().cpu().contiguous()
    yield f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode()
    yield from _sums(tensor.reshape(-1).view(torch.uint8).numpy(), 512)


def _sums(part: np.ndarray, words: int) -> Iterator[np.ndarray]:
    """Give the sums of columns, those of rows, and the rest of bytes in blocks of 32 rows of so many words."""
    whole = part.size - part.size % (8 * _BLOCK_ROWS * words)
    blocks = part[:whole].view("<u8").reshape(-1, _BLOCK_ROWS, words)
    at_once = _CACHED // (8 * _BLOCK_ROWS * words)  # so that the second sum finds them cached
    pieces = [blocks[start : start + at_once] for start in range(0, len(blocks), at_once)]
    sums = [(piece.sum(1), piece.sum(2)) for piece in pieces]
    yield from (columns.astype("<u8", copy=False) for columns, _ in sums)
    yield from (rows.astype("<u8", copy=False) for _, rows in sums)
    yield part[whole:]


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


def claimed_layout(config: Mapping[str, Any]) -> dict[str, Layout]:
    """Return (shape, dtype) of every tensor of the network that a config.json names, without allocating any.

    Raises:
        ArchitectureError: the installed timm does not know the architecture, or something about it is not allowed.
        TicketError: this machine has not the memory that the network takes while it is loaded.
    """
    rst = config["rst"]
    check_architecture(rst["architecture"], rst["timm_kwargs"])
    check_input(config["pretrained_cfg"])
    check_channels(rst["architecture"], rst["timm_kwargs"], config["pretrained_cfg"])
    layout = _layout(rst["architecture"], json.dumps(rst["timm_kwargs"], sort_keys=True))
    # at the most, by features(): the weights made, a model of their features beside them, and what is made of a mask
    needed, free = dense_bytes(layout) * 9 // 4, psutil.virtual_memory().available
    if needed > free:
        raise TicketError(
            f"{rst['architecture']} takes about {needed / 1e9:.1f} GB of memory to load; {free / 1e9:.1f} GB are free"
        )
    return layout


@lru_cache(maxsize=8)
def _layout(architecture: str, timm_kwargs: str) -> dict[str, Layout]:
    return state_layout(architecture, json.loads(timm_kwargs))


def largest_file(layout: Mapping[str, Layout]) -> int:
    """Return how many bytes a ticket of this layout can have at the most: every tensor whole, and its header."""
    return dense_bytes(layout) + 64 * len(layout) + _MAX_HEADER_BYTES


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


def _from_safetensors(
    config: dict[str, Any], entry: dict[str, Any], content: bytes, layout: Mapping[str, Layout]
) -> Ticket:
    rst = config["rst"]
    try:
        header = _read_header(content)
        metadata = strict_json(header.pop("__metadata__")["rst"].encode())
        if set(metadata) != {"config", "seeded"}:
            raise ValueError(f"its metadata has the keys {list(metadata)[:5]}")
        said = metadata["config"]
        seeded = {name: _seeded(name, spec, f"mask.{name}" in header) for name, spec in metadata["seeded"].items()}
        _check_names(header, seeded)
        tensors = safetensors.torch.load(content)
        if {name: [list(t.shape), t.dtype] for name, t in tensors.items()} != header:
            raise ValueError("its header can be read in two ways")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise TicketError(f"it is not a ticket's safetensors file ({printable(error, 500)})") from error
    if said != config_digest(config, entry):
        raise IntegrityError("config.json says something else of it than when it was drawn: fetch the folder anew")
    stored = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    codes = {key.removeprefix("mask."): value for key, value in tensors.items() if key.startswith("mask.")}
    _compare_layouts(rst["architecture"], _layout_of(seeded, stored, layout), layout, entry["provenance"])
    return Ticket(
        name=entry["name"],
        architecture=rst["architecture"],
        timm_kwargs=rst["timm_kwargs"],
        init=Init(rst["init"]["seed"], rst["init"]["distribution"]),
        remaining_ratio=entry["remaining_ratio"],
        pattern=entry["pattern"],
        masks=_decode_masks(codes, seeded, entry),
        seeded=seeded,
        state={name: tensor.expand(layout[name][0]).clone() for name, tensor in stored.items()},
        pretrained_cfg=config["pretrained_cfg"],
        weights_digest=entry["weights_digest"],
        provenance=entry["provenance"],
        layer_ratios=layer_ratios_of(entry),
    )


def _read_header(content: bytes) -> dict[str, Any]:
    """Return a safetensors file's header: [shape, dtype] by name, and ``__metadata__`` as it is."""
    size = int.from_bytes(content[:8], "little")
    if not 2 <= size <= min(_MAX_HEADER_BYTES, len(content) - 8):
        raise ValueError(f"a header of {size:,} bytes")
    header = strict_json(content[8 : 8 + size])
    for name, tensor in header.items():
        if name != "__metadata__":
            if set(tensor) != {"dtype", "shape", "data_offsets"}:
                raise ValueError(f"tensor {name[:100]} has the fields {list(tensor)[:5]}")
            header[name] = [_sizes(tensor["shape"]), _DTYPES[tensor["dtype"]]]
    return header


def _check_names(header: Mapping[str, Any], seeded: Mapping[str, SeededTensor]) -> None:
    """Raise TicketError for a tensor that no ticket has, or a mask that is no row of bytes."""
    for key, (shape, dtype) in header.items():
        kind, _, name = key.partition(".")
        if kind not in ("mask", "state") or (kind == "mask") != (name in seeded):
            raise TicketError(f"it holds tensors that no ticket has: '{printable(key)}'")
        if kind == "mask" and (dtype != torch.uint8 or len(shape) != 1):
            raise TicketError(f"{printable(key)} is not of dtype U8 and one dimension")


def _decode_masks(
    codes: Mapping[str, torch.Tensor], seeded: Mapping[str, SeededTensor], entry: Mapping[str, Any]
) -> PackedMasks:
    """Return the masks, after all of them have claimed to keep what is due."""
    data = {name: code.numpy().tobytes() for name, code in codes.items()}
    sizes = {name: math.prod(seeded[name].shape) for name in codes}
    claimed = {name: kept_in(data[name], sizes[name]) for name in codes}
    if sum(claimed.values()) != entry["kept"]:
        raise TicketError(f"its masks keep {sum(claimed.values())} weights, config.json says {entry['kept']}")
    shapes = {name: seeded[name].shape for name in codes}
    _check_counts(claimed, shapes, entry["remaining_ratio"], layer_ratios_of(entry))
    return PackedMasks.decoded(data, shapes)


def _check_counts(
    kept: Mapping[str, int], shapes: Mapping[str, Sequence[int]], remaining_ratio: float, layer_ratios: str
) -> None:
    for name, due in kept_counts(shapes, remaining_ratio, layer_ratios).items():
        if kept[name] != due:
            size = math.prod(shapes[name])
            raise TicketError(f"the mask of {printable(name)} keeps {kept[name]} of {size} weights; {due} are due")


def _seeded(name: str, spec: list[Any], masked: bool) -> SeededTensor:
    shape, scale = spec
    in_float32 = torch.finfo(torch.float32)
    if type(scale) is not float or not in_float32.tiny <= scale <= in_float32.max:
        raise ValueError(f"{name[:100]} of shape {shape} and scale {str(scale)[:100]}")
    return SeededTensor(name, tuple(_sizes(shape)), scale, masked)


def _sizes(shape: list[Any]) -> list[int]:
    """Return a shape after a look at it: JSON may have anything there."""
    if not isinstance(shape, list) or len(shape) > 16 or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise ValueError(f"a tensor of shape {str(shape)[:100]}")
    return shape


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
        shown = "; ".join(
            f"{printable(n)}: {_shown(own.get(n))} here, {_shown(layout.get(n))} in timm" for n in different[:3]
        )
        versions = provenance.get("versions")
        drawn = versions.get("timm", "unknown") if isinstance(versions, dict) else "unknown"
        advice = f"Install timm {printable(drawn)}, which it was drawn with"
        if drawn == TIMM_VERSION:
            advice = "It was drawn with the same timm, so its files were edited, or something here changes timm"
        raise TicketError(
            f"{len(different)} tensors differ from {architecture} of timm {TIMM_VERSION}: {shown}. {advice}"
        )


def _shown(layout: Layout | None) -> str:
    return "absent" if layout is None else f"{list(layout[0])} {str(layout[1]).removeprefix('torch.')}"


def _read_checked(folder: Path, entry: Mapping[str, Any], limit: int) -> bytes:
    with reading(folder / entry["file"]):
        is_there = (folder / entry["file"]).exists()
    if not is_there:
        raise IntegrityError("it is missing, though config.json lists it: fetch the whole folder anew")
    try:
        content = read_inside(folder, entry["file"], limit)
    except (ValueError, OSError) as error:
        raise TicketError(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != entry["sha256"]:
        raise IntegrityError(
            f"it is not the file that config.json lists: SHA-256 {found} found, {entry['sha256']} expected. It was "
            "truncated, edited or exchanged: fetch the folder anew"
        )
    return content
