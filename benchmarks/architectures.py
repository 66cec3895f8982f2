"""Every architecture that timm registers: how much of it a mask covers, and whether a ticket of it works.

    python benchmarks/architectures.py
    python benchmarks/architectures.py --only convnext_atto sequencer2d_s      these, run for real

First every registered name is built on the meta device, and the share of its parameters that a mask covers is counted.
Then the smallest model of every module file, and one of every awkward kind, is run for real with ten classes at a small
image size, and these have to hold:

- in eval mode the outputs are (N, 10), finite, and depend on the input; in train mode nothing is random;
- with 30% kept, every tensor of scores gets a finite gradient that is not 0 throughout;
- with nothing masked, and activations made leaky, every single score gets a gradient that is not 0: what a masked
  network or a dead unit cuts off can come back;
- what is masked stays 0 in the weights that convolutions and linear layers are called with;
- a ticket, drawn, saved and loaded in another random state, has the searched state dict bit for bit;
- where timm builds the architecture with features_only=True, a ticket gives finite feature maps of the kept weights.

What is not so is printed with its reason, by EXPECTED; the counts are printed last. The exit status is 1 if something
was not expected.
"""

import argparse
import multiprocessing
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import undescribed
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from rst_hub import EdgePopup, Init, Ticket, create_model
from rst_hub.console import print_anything
from rst_hub.files import write_json
from rst_hub.networks.architectures import size_arguments
from rst_hub.networks.build import build_masked
from rst_hub.networks.roles import maskable_weights
from rst_hub.tickets.digests import digest

RATIO = 0.3
SIZES = (128, 192, 224, 256)
AWKWARD = (
    "tf_efficientnet_cc_b0_4e",  # CondConv2d experts
    "vgg11",  # no normalisation
    "resnetv2_50x1_bit",  # weight standardisation
    "test_nfnet",  # scaled weight standardisation, gains and skip gains of 0
    "test_efficientnet_evos",  # EvoNorm
    "resnetv2_50d_frn",  # filter response norm
    "convnextv2_atto",  # global response norm
    "deit_tiny_distilled_patch16_224",  # two tokens, two heads
    "samvit_base_patch16_224",  # 4-D features, relative tables
    "vit_small_patch16_rope_mixed_224",  # learned rotary frequencies
    "vit_dwee_patch16_reg1_gap_256",  # differential attention
    "vit_base_patch16_xp_224",  # parallel blocks
    "beit_base_patch16_224",  # q and v biases beside qkv
    "test_vit3",  # attention pooling with a latent
    "poolformer_s12",  # layer scales of 1e-5, under another name
    "coat_lite_tiny",  # layers that share weights
    "mixer_s32_224",  # zero-initialised weights
    "resmlp_12_224",  # affine layers in place of norms
    "gcresnet33ts",
    "lambda_resnet26rpt_256",
    "halonet_h1",
    "botnet26t_256",
    "resnet50_clip",  # attention pooling
    "test_maxvit",
    "test_coatnet",
)
EXPECTED = (
    (
        "csatv2.*",
        r"no gradient .*attn\.attn\.(pos_embed|qkv|mlp).*",
        "behind a LayerNorm over a single channel, which is always 0",
    ),
    (
        "csatv2.*|edgenext_.*|efficientvit_m.*|inception_next_.*",
        r"no gradient for .*(dwconv(_w|_h)?|conv_dw|dws\.\d\.conv)\.weight",
        "the kernel is wider than the map at this image size, so its outer weights meet padding alone",
    ),
    (
        "fastvit_.*|repvit_.*|lcnetv2_.*",
        r"no gradient for .*(conv_scale\.conv|conv1\.c|dw_conv_list\.\d\.conv)\.weight",
        "one weight a channel before batch norm, which takes its size away: the gradient is 0 but for rounding",
    ),
    (
        "levit_.*",
        r"no gradient for 768 of .*blocks\.3\.mlp\.ln2\.linear\.weight",
        "one channel has opposite signs for all ten classes in the two heads, whose mean is the output",
    ),
    (".*_enc", r"output .*", "an encoder: it has no classifier, and gives its features for num_classes=10 too"),
    ("tf_efficientnet_cc_.*", r"\d+ weights in use .*", "a CondConv2d mixes its experts, each with its own mask"),
)
"""Patterns of (model, what is not so), and the structural reason."""
LEAKY = {
    *(functional.relu, functional.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_),
    *(functional.relu6, functional.hardtanh, functional.hardtanh_, functional.hardsigmoid, functional.hardswish),
    *(torch.clamp, torch.clamp_, torch.Tensor.clamp, torch.Tensor.clamp_, torch.maximum, torch.max),
    *(functional.gelu, functional.silu, torch.sigmoid, torch.Tensor.sigmoid),
}
"""What is 0, or is rounded to 0, or has a derivative of 0, over a part of its range."""


def main() -> int:
    """Count on the meta device, run for real, print."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="run these for real, and count nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path("runs/architectures.json"))
    options = parser.parse_args()
    names = [name for name in timm.list_models() if name != "rst"]
    started = time.monotonic()
    counted = [] if options.only else run(count, names, options.processes, "meta device")
    chosen = options.only or choose(counted)
    tried = run(try_out, chosen, options.processes, "for real")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, {"counted": counted, "tried": tried})
    return report(counted, tried, options.output, time.monotonic() - started)


def run(work: Callable[[str], dict], names: Iterable[str], processes: int, title: str) -> list[dict[str, Any]]:
    """Return ``work`` of every name, from processes of one thread each."""
    names = list(names)
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, quiet, maxtasksperchild=64) as pool:
        return list(tqdm(pool.imap(work, names, chunksize=1), title, len(names)))


def quiet() -> None:
    """Set up a process: one thread, no warnings of timm's."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")


def count(name: str) -> dict[str, Any]:
    """Build an architecture, unallocated where timm allows it; count its parameters and those that a mask covers."""
    row: dict[str, Any] = {"model": name, "file": timm.model_entrypoint(name).__module__}
    try:
        model = without_values(lambda: build_masked(name, {}))
        row["on_meta"] = all(parameter.is_meta for parameter in model.parameters())
        row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        row["masked"] = sum(weight.parameter.numel() for weight in maskable_weights(model))
        row["classes"] = model.num_classes
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    return row


@torch.no_grad()
def without_values(work: Callable[[], Any]) -> Any:
    """Return the result of ``work`` on the meta device, or for real where timm before 1.0.20 needs values."""
    try:
        with torch.device("meta"):
            return work()
    except Exception:  # whatever a timm model raises
        return work()


def choose(counted: list[dict[str, Any]]) -> list[str]:
    """Return the smallest model of every module file, and the awkward ones."""
    smallest: dict[str, dict[str, Any]] = {}
    for row in counted:
        if "error" not in row and row["parameters"] <= smallest.get(row["file"], row)["parameters"]:
            smallest[row["file"]] = row
    return sorted({row["model"] for row in smallest.values()} | set(AWKWARD))


def try_out(name: str) -> dict[str, Any]:
    """Run one architecture for real; ``faults`` lists what is not as it should be."""
    row: dict[str, Any] = {"model": name, "file": timm.model_entrypoint(name).__module__, "faults": []}
    faults: list[str] = row["faults"]
    started = time.monotonic()
    try:
        kwargs, size = small_size(name)
        row["image_size"] = size
        init = Init(0)
        x = torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0))
        model = create_model(name, init, **kwargs)
        popup = EdgePopup(model, init, 1.0)
        faults += unreached(popup, x)
        popup = EdgePopup(model, init, RATIO)
        backward(popup, x)
        row["tensors"] = len(popup.scores)
        row["scores"] = sum(scores.numel() for scores in popup.scores.values())
        faults += gradients(popup)
        faults += outputs(model, x)
        faults += effective_weights(model, x)
        ticket, different = save_and_load(popup)
        faults += different
        row["features_only"] = has_features(name, kwargs)
        if row["features_only"]:
            faults += feature_maps(ticket, x)
    except Exception as error:
        faults.append(f"error {type(error).__name__}: {str(error)[:300]}")
    row["seconds"] = round(time.monotonic() - started, 2)
    return row


def small_size(name: str) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return the timm arguments and the image size (height, width): the first of SIZES that it takes, or its own."""
    for side in SIZES:
        kwargs = {"num_classes": 10, **size_arguments(name, side)}
        try:
            without_values(partial(forward_zeros, name, kwargs, side))
            return kwargs, (side, side)
        except Exception:  # whatever a timm model raises when it does not take a size
            continue
    own: Any = timm.get_pretrained_cfg(name)
    height, width = own.input_size[1:]
    return {"num_classes": 10}, (height, width)


def forward_zeros(name: str, kwargs: dict[str, Any], side: int) -> None:
    """Run an architecture on two black images."""
    build_masked(name, kwargs).eval()(torch.zeros(2, 3, side, side))


class LeakyActivations(TorchFunctionMode):
    """Turns activations that cut gradients off into leaky ReLUs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace such a call, unless it is one of another purpose: on numbers, or along a dimension."""
        along = func is torch.max and not (len(args) > 1 and isinstance(args[1], torch.Tensor))
        if func in LEAKY and not along and args[0].is_floating_point() and args[0].numel() > 1:
            return functional.leaky_relu(args[0], 0.3)
        return func(*args, **(kwargs or {}))


def backward(popup: EdgePopup, x: torch.Tensor, seed: int = 2) -> None:
    """Leave the gradients of a random combination of the outputs, in train mode, on the scores."""
    popup.model.train()
    for module in popup.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # in eval mode it shall have this batch's statistics, not mean 0 and variance 1
    logits = total(popup.model(x))
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    (logits * direction).sum().backward()
    popup.collect_gradients()


def unreached(popup: EdgePopup, x: torch.Tensor) -> list[str]:
    """Return the tensors in which single scores have no gradient; those without any are for :func:`gradients`.

    A gradient may be 0 by rounding: it counts as none when it is 0 for a second batch too.
    """
    with LeakyActivations():
        backward(popup, x)
        zero = {name: (scores.grad == 0) for name, scores in popup.scores.items() if scores.grad is not None}
        if any(bool(flags.any()) for flags in zero.values()):
            backward(popup, torch.randn(x.shape, generator=torch.Generator().manual_seed(5)), seed=6)
            zero = {name: flags & (popup.scores[name].grad == 0) for name, flags in zero.items()}
    counts = {name: int(flags.sum()) for name, flags in zero.items()}
    return [
        f"no gradient for {count} of {zero[name].numel()} scores of {name}"
        for name, count in counts.items()
        if 0 < count < zero[name].numel()
    ]


def gradients(popup: EdgePopup) -> list[str]:
    """Return the tensors of scores whose gradient is 0 throughout or not finite."""
    faults = []
    for name, scores in popup.scores.items():
        if scores.grad is None or not bool((scores.grad != 0).any()):
            faults.append(f"no gradient {name}")
        elif not bool(scores.grad.isfinite().all()):
            faults.append(f"gradient not finite {name}")
    return faults


@torch.no_grad()
def outputs(model: nn.Module, x: torch.Tensor) -> list[str]:
    """Return what is wrong with the outputs: not (N, 10), not finite, the same for all inputs, random in train mode."""
    faults = []
    found = model.eval()(x)
    if not isinstance(found, torch.Tensor) or found.shape != (len(x), 10):
        faults.append(f"output {tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__}")
    logits = total(found)
    if not bool(logits.isfinite().all()):
        faults.append("not finite: output")
    spread = (logits - logits[:1]).abs().flatten(1).amax(1)[1:]
    if not bool((spread > 1e-6 * logits.abs().max()).all()):
        faults.append("does not depend on the input")
    model.train()
    torch.manual_seed(3)
    first = total(model(x))
    torch.manual_seed(4)
    if not torch.equal(total(model(x)), first):
        faults.append("random in train mode")
    model.eval()
    return faults


class SeenWeights(TorchFunctionMode):
    """Collects the weights computed from parameters that convolutions and linear layers are called with."""

    CALLS = (functional.conv1d, functional.conv2d, functional.conv3d, functional.conv_transpose2d, functional.linear)

    def __init__(self) -> None:
        super().__init__()
        self.computed: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the weight of a call, unless it is a parameter as it stands."""
        kwargs = kwargs or {}
        if func in self.CALLS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if weight.requires_grad and not isinstance(weight, nn.Parameter):
                self.computed.append(weight)
        return func(*args, **kwargs)


def effective_weights(model: nn.Module, x: torch.Tensor) -> list[str]:
    """Return which weights that are computed from parameters, as in standardisation, are not masked as they are."""
    with SeenWeights() as seen:
        model(x)
    shares = [float((weight == 0).float().mean()) for weight in seen.computed if weight.numel() > 100]
    filled = [share for share in shares if share < 0.9 * (1 - RATIO)]
    return [f"{len(filled)} weights in use have {min(filled):.0%} zeros"] if filled else []


def save_and_load(popup: EdgePopup) -> tuple[Ticket, list[str]]:
    """Return the ticket, loaded, and what is wrong with it: another state dict, loaded in another random state."""
    searched = popup.model.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        undescribed.draw(popup).save(Path(folder) / "ticket")
        torch.manual_seed(4)
        ticket = Ticket.load(Path(folder) / "ticket")
    loaded = ticket.model().state_dict()
    return ticket, [] if digest(loaded, loaded) == digest(searched, searched) else ["loads to another state dict"]


def has_features(name: str, kwargs: dict[str, Any]) -> bool:
    """Say whether timm itself builds the architecture with features_only=True."""
    try:
        without_values(lambda: timm.create_model(name, features_only=True, **kwargs))
    except Exception:  # whatever timm raises where it has no such form
        return False
    return True


@torch.no_grad()
def feature_maps(ticket: Ticket, x: torch.Tensor) -> list[str]:
    """Return what is wrong with the ticket's feature maps: not finite, all 0, other weights than the whole model's."""
    try:
        model = ticket.features()
        maps = model(x)
    except Exception as error:
        return [f"features {type(error).__name__}: {str(error)[:200]}"]
    faults = [f"features: map {i} is {what}" for i, each in enumerate(maps) for what in _wrong_with(each)]
    whole = {(tensor.shape, float(tensor.double().sum())) for tensor in ticket.state_dict().values()}
    if any((tensor.shape, float(tensor.double().sum())) not in whole for tensor in model.state_dict().values()):
        faults.append("features: a tensor is not one of the ticket's")
    return faults


def _wrong_with(features: torch.Tensor) -> list[str]:
    finite, alive = bool(features.isfinite().all()), bool((features != 0).any())
    return [what for what, wrong in (("not finite", not finite), ("all 0", not alive)) if wrong]


def total(output: Any) -> torch.Tensor:
    """Return a model's output as one tensor of a row a sample."""
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return torch.cat([total(part) for part in output], 1)
    return output.flatten(1)


def reason(row: dict[str, Any], fault: str) -> str | None:
    """Return why this fault of this model was expected, or None."""
    for model, pattern, why in EXPECTED:
        if re.fullmatch(model, row["model"]) and re.fullmatch(pattern, fault):
            return why
    return None


def report(counted: list[dict[str, Any]], tried: list[dict[str, Any]], output: Path, seconds: float) -> int:
    """Print every fault with its reason, then the counts; return 1 if one was not expected."""
    unexpected, exceptions = 0, 0
    for row in counted:
        if "error" in row:
            print(f"{row['model']}: cannot be built: {row['error']}")
            unexpected += 1
    for row in tried:
        for fault in row["faults"]:
            exceptions += 1
            unexpected += reason(row, fault) is None
            print(f"{row['model']}: {fault}: {reason(row, fault) or 'NOT EXPECTED'}")
    if counted:
        built = [row for row in counted if "error" not in row]
        parameters, masked = (sum(row[key] for row in built) for key in ("parameters", "masked"))
        low = sorted((row["masked"] / row["parameters"], row["model"]) for row in built)
        print("lowest shares masked: " + ", ".join(f"{name} {share:.1%}" for share, name in low[:5]))
        allocated = [row["model"] for row in built if not row["on_meta"]]
        if allocated:
            print(f"built for real, because this timm needs values: {', '.join(allocated)}")
        on_meta = len(built) - len(allocated)
        print(f"{on_meta} of {len(counted)} registered names built on the meta device without an exception")
        print(f"{masked:,} of {parameters:,} parameters can be masked: {masked / parameters:.2%}")
    clean = [row for row in tried if not row["faults"]]
    files, tensors = {row["file"] for row in tried}, sum(row.get("tensors", 0) for row in tried)
    scores = sum(row.get("scores", 0) for row in tried)
    print(f"{len(tried)} models of {len(files)} module files run for real, {scores:,} scores in {tensors:,} tensors")
    print(f"{sum(row.get('features_only', False) for row in tried)} of them have features_only in timm and as a ticket")
    print(f"{len(clean)} without an exception, {len(tried) - len(clean)} with {exceptions}; {unexpected} not expected")
    print(f"timm {timm.__version__}, torch {torch.__version__}, {seconds:.0f} s; wrote {output}")
    return int(unexpected > 0)


if __name__ == "__main__":
    sys.exit(main())
