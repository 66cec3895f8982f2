"""Dense networks in timm's form: written, read, and timm's own pretrained ones by their names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
from safetensors import SafetensorError
from torch import nn

from ..errors import ArchitectureError, TicketError, cause, foreign
from ..files import check_fetched, given_path, new_folder, write_file, write_json
from ..float32 import in_float32
from . import cifar as cifar  # registers the paper's networks with timm
from .build import build_model
from .inputs import carried_input, set_input


def dense_config(model: nn.Module, architecture: str, timm_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json, in timm's form, of a dense model."""
    return {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": dict(timm_kwargs),
        "pretrained_cfg": carried_input(model),
    }


def save_dense(
    model: nn.Module,
    folder: str | Path,
    architecture: str,
    timm_kwargs: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a dense model in timm's form: config.json and model.safetensors, for its ``local-dir:`` names.

    ``provenance`` is what its numbers must carry, JSON that timm does not read.
    """
    # clones, because safetensors refuses the tensors that some architectures share between layers
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    with new_folder(Path(folder)) as beside:
        config = dense_config(model, architecture, timm_kwargs)
        write_json(beside / "config.json", config | ({"provenance": dict(provenance)} if provenance else {}))
        # its bytes rather than save_file, whose error on a full disk is none that Python knows
        write_file(beside / "model.safetensors", safetensors.torch.save(tensors, metadata={"format": "pt"}))


def load_dense(folder: str | Path) -> nn.Module:
    """Return in eval mode the model that :func:`save_dense` wrote.

    Raises:
        ArchitectureError: the folder holds no such model.
        TicketError: a file of it is git-lfs's pointer.
        SettingsError: the folder is no path.
    """
    folder = given_path(folder)
    try:
        for name in ("config.json", "model.safetensors"):
            check_fetched(folder / name)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = build_model(config["architecture"], config["model_args"])
        set_input(model, config["pretrained_cfg"])
        # by its bytes: safetensors itself opens no path that is not UTF-8
        model.load_state_dict(safetensors.torch.load((folder / "model.safetensors").read_bytes()), strict=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ArchitectureError(f"{folder} holds no dense model as recipes/train.py writes it: {error}") from error
    return model.eval()


def load_timm(name: str) -> nn.Module:
    """Return in eval mode timm's own pretrained model: "resnet18.a1_in1k", "hf-hub:org/name" or "local-dir:folder".

    timm downloads and reads it in its own way, so give only names that you trust.

    Raises:
        ArchitectureError: timm cannot make or find it.
        TicketError: a file of a local folder is git-lfs's pointer.
    """
    try:
        if name.startswith("local-dir:"):
            for path in sorted(Path(name.removeprefix("local-dir:")).glob("*.*")):
                check_fetched(path)
        with in_float32():
            return timm.create_model(name, pretrained=True).eval()
    except TicketError:
        raise
    except Exception as error:  # timm, the Hub's client and torch raise many kinds
        raise ArchitectureError(f"timm cannot load {name}: {type(error).__name__} {foreign(error)}") from cause(error)
