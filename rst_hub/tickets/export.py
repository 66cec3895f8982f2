"""A ticket as a dense checkpoint for those without rst_hub: timm's safetensors form, or ONNX."""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ..choices import FORMATS
from ..errors import ArchitectureError, SettingsError
from ..files import given_path, new_folder, write_json
from ..networks.build import build_model
from ..networks.dense import dense_config, load_dense, save_dense
from ..networks.inputs import set_input
from ..networks.weight_standardisation import MaskedStdConv2d
from .ticket import Ticket


def export(ticket: Ticket, folder: str | Path, to: str) -> float:
    """Write ``ticket`` into a new ``folder``: config.json in timm's words, and model.safetensors or model.onnx.

    What was written is loaded and compared on one random batch before the folder appears. A safetensors folder loads in
    plain timm, ``timm.create_model("local-dir:FOLDER", pretrained=True)``, if the architecture is timm's own; rst_hub's
    three, for 32 x 32 images, need rst_hub imported there. The ONNX graph maps ``input``, float32
    (batch, channels, height, width) of the ticket's input size, normalised as config.json says, to ``output``.

    Returns:
        the largest difference from the ticket's outputs, relative to their largest, on that batch (nan for ONNX where
        onnxruntime is not installed, so that nothing could be compared).

    Raises:
        SettingsError: the folder is not empty, the format is not known, or ONNX's packages are not installed.
        ArchitectureError: the ticket's network cannot be written in this form.
    """
    folder = given_path(folder)
    if to not in FORMATS:
        raise SettingsError(f"a ticket cannot be exported to {to!r}: choose {' or '.join(FORMATS)}")
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{str(folder)[:300]!r} is no folder to write to: {error}") from error
    if taken:
        raise SettingsError(f"{folder} is there already: choose another output folder")
    size = ticket.pretrained_cfg["input_size"]
    x = torch.randn(2, *size, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    expected = _forward(ticket, ticket.model(), x)
    try:
        with new_folder(folder) as beside:
            found = (_safetensors if to == "safetensors" else _onnx)(ticket, beside, x)
            if found is None:
                return float("nan")
            difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
            if not difference < 1e-3:
                raise ArchitectureError(
                    f"{ticket.architecture} as {to} gives outputs that differ by {difference:.1e}: nothing is written"
                )
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"{folder} cannot be written: {error}") from error
    return difference


def for_plain_timm(ticket: Ticket) -> nn.Module:
    """Return timm's own module, in eval mode, that computes what the ticket's does.

    Its state dict is the ticket's, but for weight-standardised convolutions, whose weights are those that timm's own
    standardisation turns into the ticket's effective ones, to about 1e-7 of their size.
    """
    masked = ticket.model()
    tensors = masked.state_dict()
    for name, module in masked.named_modules():
        if isinstance(module, MaskedStdConv2d):
            tensors[f"{name}.weight"] = module.weight_for_timm()
    model = build_model(ticket.architecture, ticket.timm_kwargs)
    set_input(model, ticket.pretrained_cfg)
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def _safetensors(ticket: Ticket, beside: Path, x: torch.Tensor) -> torch.Tensor:
    save_dense(for_plain_timm(ticket), beside, ticket.architecture, ticket.timm_kwargs)
    return _forward(ticket, load_dense(beside), x)


def _onnx(ticket: Ticket, beside: Path, x: torch.Tensor) -> torch.Tensor | None:
    """Write model.onnx and config.json; return its outputs, or None where onnxruntime is not installed."""
    model: Any = ticket.model()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # the plain formula of the same attention, which exporters know
    path = beside / "model.onnx"
    batch = {"input": {0: "batch"}, "output": {0: "batch"}}
    ways: list[dict[str, Any]] = [{"dynamo": False, "dynamic_axes": batch}]
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 9):  # before, it failed on half of timm
        dynamic = ({0: torch.export.Dim("batch")},)
        ways.insert(0, {"dynamo": True, "dynamic_shapes": dynamic, "external_data": False, "verbose": False})
    reasons = []
    for way in ways:
        try:
            import onnx as onnx  # torch says so in several ways, or not at all, when it is missing

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # notes on traced constants
                torch.onnx.export(model, (x,), str(path), input_names=["input"], output_names=["output"], **way)
            break
        except ImportError as error:
            raise SettingsError(
                f"ONNX needs more packages ({error}): pip install onnx onnxscript onnxruntime"
            ) from error
        except Exception as error:  # the exporter raises whatever the traced code does
            reasons.append(str(error.__cause__ or error).strip().splitlines()[0])
    else:
        raise ArchitectureError(
            f"torch {torch.__version__} cannot export {ticket.architecture} to ONNX: {'; '.join(reasons)}"
        )
    write_json(beside / "config.json", dense_config(model, ticket.architecture, ticket.timm_kwargs))
    try:
        import onnxruntime
    except ImportError:
        return None
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    except Exception as error:  # onnxruntime's errors have no common kind
        raise ArchitectureError(f"onnxruntime cannot run {ticket.architecture} as exported: {error}") from error


@torch.no_grad()
def _forward(ticket: Ticket, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    try:
        output = model(x)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        size = " x ".join(str(side) for side in x.shape[1:])
        raise ArchitectureError(f"{ticket.architecture} cannot take its own input, {size}: {error}") from error
    if not isinstance(output, torch.Tensor):
        raise ArchitectureError(f"{ticket.architecture} returns a {type(output).__name__}, not one tensor of outputs")
    return output
