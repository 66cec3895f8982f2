"""timm's names: which are registered, which arguments a ticket may carry, and what an architecture needs."""

import re
from collections.abc import Mapping
from typing import Any

import timm

from ..errors import ArchitectureError, nearest
from . import cifar as cifar  # registers the paper's networks with timm
from .values import is_int, is_pair, is_share

TIMM_VERSION: str = timm.__version__


_POOLS = ("", "avg", "avgmax", "catavgmax", "map", "max", "token")
_ARGUMENTS = {
    "num_classes": lambda v: is_int(v, 0, 100_000),
    "in_chans": lambda v: is_int(v, 1, 1024),
    # 1024: timm's own largest is 1024, and index tables made in Python (MaxViT) take seconds from there on
    "img_size": lambda v: is_int(v, 1, 1024) or (is_pair(v) and all(is_int(side, 1, 1024) for side in v)),
    "global_pool": lambda v: isinstance(v, str) and v in _POOLS,
    "drop_rate": lambda v: is_share(v),
    "drop_path_rate": lambda v: is_share(v),
}
"""The timm arguments that a ticket may carry. Others (checkpoint_path, pretrained, ...) can load or run things."""


def check_architecture(architecture: str, timm_kwargs: Mapping[str, Any]) -> None:
    """Raise ArchitectureError unless the name is registered and every argument is allowed and in range."""
    plain = isinstance(architecture, str) and not set(architecture) & set(":/.@\\")
    if not plain or not timm.is_model(architecture) or architecture == "rst":
        name = re.split(r"[:/@\\]", str(architecture)[:100].partition(".")[0])[-1]
        known = nearest(name, [known for known in timm.list_models() if known != "rst"])
        raise ArchitectureError(f"timm {TIMM_VERSION} has no architecture {str(architecture)[:100]!r}. {known}")
    for name, value in timm_kwargs.items():
        if name not in _ARGUMENTS:
            known = nearest(name[:100], _ARGUMENTS)
            raise ArchitectureError(f"timm argument {name[:100]!r} cannot go into a ticket. {known}")
        if not _ARGUMENTS[name](value):
            shown = f"{name}={value!r}"[:200]
            raise ArchitectureError(f"timm argument {shown} is not of the right type or out of range")


def is_ours(architecture: str) -> bool:
    """Say whether rst_hub registers this architecture, so that timm alone does not know it."""
    return timm.model_entrypoint(architecture).__module__ == cifar.__name__


def size_arguments(architecture: str, image_size: int) -> dict[str, Any]:
    """Return the timm arguments that an architecture needs to take square images of this size: img_size, or none."""
    check_architecture(architecture, {})
    fixed = timm.get_pretrained_cfg(architecture)
    return {"img_size": image_size} if fixed is not None and fixed.fixed_input_size else {}


def own_side(architecture: str) -> tuple[int | None, bool]:
    """Return (the side of the images that timm made an architecture for, whether it takes no others by itself)."""
    own = timm.get_pretrained_cfg(architecture)
    return (None, False) if own is None else (own.input_size[-1], bool(own.fixed_input_size))
