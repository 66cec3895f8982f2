"""A ticket's safetensors file, taken apart and checked before anything of its size is allocated (format version 1)."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch

from ..errors import IntegrityError, TicketError, printable
from ..files import read_inside, reading, strict_json
from ..masks.packed import PackedMasks, kept_in
from ..masks.patterns import kept_counts
from ..networks.architectures import TIMM_VERSION, check_architecture
from ..networks.build import Layout, dense_bytes, state_layout
from ..networks.inputs import (
    check_channels,
    check_input,
)
from ..networks.weights import SeededTensor
from .config import (
    layer_ratios_of,
)

_MAX_HEADER_BYTES = 4 * 2**20


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


def one_value(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of one repeated bit pattern as a scalar, any other as it is."""
    flat = tensor.contiguous().reshape(-1)
    if flat.numel() < 2:
        return tensor.contiguous()
    patterns = flat.view(torch.uint8).reshape(flat.numel(), -1)
    return flat[0].clone() if bool((patterns == patterns[0]).all()) else tensor.contiguous()


def read_header(content: bytes) -> dict[str, Any]:
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


def check_names(header: Mapping[str, Any], seeded: Mapping[str, SeededTensor]) -> None:
    """Raise TicketError for a tensor that no ticket has, or a mask that is no row of bytes."""
    for key, (shape, dtype) in header.items():
        kind, _, name = key.partition(".")
        if kind not in ("mask", "state") or (kind == "mask") != (name in seeded):
            raise TicketError(f"it holds tensors that no ticket has: '{printable(key)}'")
        if kind == "mask" and (dtype != torch.uint8 or len(shape) != 1):
            raise TicketError(f"{printable(key)} is not of dtype U8 and one dimension")


def decode_masks(
    codes: Mapping[str, torch.Tensor], seeded: Mapping[str, SeededTensor], entry: Mapping[str, Any]
) -> PackedMasks:
    """Return the masks, after all of them have claimed to keep what is due."""
    data = {name: code.numpy().tobytes() for name, code in codes.items()}
    sizes = {name: math.prod(seeded[name].shape) for name in codes}
    claimed = {name: kept_in(data[name], sizes[name]) for name in codes}
    if sum(claimed.values()) != entry["kept"]:
        raise TicketError(f"its masks keep {sum(claimed.values())} weights, config.json says {entry['kept']}")
    shapes = {name: seeded[name].shape for name in codes}
    check_kept(claimed, shapes, entry["remaining_ratio"], layer_ratios_of(entry))
    return PackedMasks.decoded(data, shapes)


def check_kept(
    kept: Mapping[str, int], shapes: Mapping[str, Sequence[int]], remaining_ratio: float, layer_ratios: str
) -> None:
    """Raise TicketError unless every mask keeps as many weights as are due."""
    for name, due in kept_counts(shapes, remaining_ratio, layer_ratios).items():
        if kept[name] != due:
            size = math.prod(shapes[name])
            raise TicketError(f"the mask of {printable(name)} keeps {kept[name]} of {size} weights; {due} are due")


def as_seeded(name: str, spec: list[Any], masked: bool) -> SeededTensor:
    """Return what the seed makes of a tensor; raise ValueError for a shape or scale that cannot be."""
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


def layout_of(
    seeded: Mapping[str, SeededTensor], state: Mapping[str, torch.Tensor], layout: Mapping[str, Layout]
) -> dict[str, Layout]:
    """Return the layout of what a ticket makes and stores; a stored scalar stands for any shape."""
    own: dict[str, Layout] = {name: (spec.shape, torch.float32) for name, spec in seeded.items()}
    for name, tensor in state.items():
        shape = layout[name][0] if tensor.ndim == 0 and name in layout else tuple(tensor.shape)
        own[name] = (shape, tensor.dtype)
    return own


def compare_layouts(
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


def read_checked(folder: Path, entry: Mapping[str, Any], limit: int) -> bytes:
    """Return a ticket file's bytes; raise IntegrityError unless they have the SHA-256 that config.json lists."""
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
