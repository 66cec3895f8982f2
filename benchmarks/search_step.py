"""One step of a search, beside the published formulation and beside dense adversarial training by the same loop.

    python benchmarks/search_step.py                                       every case below, on one thread; half an hour
    python benchmarks/search_step.py --only preact_resnet18/pgd --rounds 3
    python benchmarks/search_step.py --device cuda

A step is runs/loop.py's own: the attack, the backward, the optimizer's step and the masks that follow from it, on
one batch of random pixels. The published formulation is benchmarks/published.py; both keep 5% of the weights. Each
round takes a step of every kind one after the other, and a ratio is the median of the rounds' ratios. With bf16 the
scores, the masks and the optimizer stay in float32. The exit status is 1 if a ratio misses its limit.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import published
import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from timing import interleaved, ratio

from rst_hub import EdgePopup, Init, PixelModel, ThreatModel, create_model
from rst_hub.networks.architectures import size_arguments
from rst_hub.networks.build import build_model
from rst_hub.networks.inputs import describe_input
from rst_hub.runs.loop import Learner, make_attack, make_optimizer, step
from rst_hub.runs.provenance import device_name
from rst_hub.runs.settings import SearchSettings


@dataclass(frozen=True)
class Case:
    """A network, the side of its images, the attack, and how many images a step has on each kind of device."""

    model: str
    size: int
    attack: str
    batch: dict[str, int]

    @property
    def name(self) -> str:
        """Return what --only calls it."""
        return f"{self.model}/{self.attack}"


SMALL, LARGE = {"cpu": 64, "cuda": 256}, {"cpu": 8, "cuda": 128}
CASES = {
    case.name: case
    for case in (
        Case("preact_resnet18", 32, "pgd", SMALL),
        Case("preact_resnet18", 32, "fgsm-rs", SMALL),
        Case("resnet50", 224, "fgsm-rs", LARGE),
        Case("vit_tiny_patch16_224", 224, "fgsm-rs", LARGE),
    )
}
FASTER = {"cpu": {"fp32": 2.2, "bf16": 4.5}, "cuda": {"bf16": 4.0}}
"""At least so many times as fast as the published formulation in fp32."""
OF_DENSE, BUSY = 1.05, 0.9
"""At most this share of a dense step's time; at least this share of the time with the GPU at work."""
RATIO, CLASSES = 0.05, 10
INPUT = ((0.5,) * 3, (0.25,) * 3, tuple("0123456789"))


def main() -> int:
    """Measure every case, print its table, and all ratios last; return 1 if one misses its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, help="images a step; default: 64 or 256 small ones, 8 or 128 large")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True  # as in a search
    device = torch.device(arguments.device)
    print(f"{device_name(device)}; torch {torch.__version__}; medians of {arguments.rounds} rounds")
    missed, lines = False, []
    for case in (CASES[name] for name in arguments.only):
        found = measured(case, arguments.batch_size or case.batch[device.type], device, arguments.rounds)
        for what, (value, low, high) in found.items():
            misses = not low <= value <= high
            missed |= misses
            lines.append(f"  {case.name:30}{what:44}{value:7.2f}{'  MISSED' if misses else ''}")
    print("\nRatios:", *lines, sep="\n")
    return int(missed)


def measured(case: Case, batch: int, device: torch.device, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Print how long a step of each kind takes; return the ratios: value, lowest and highest that will do."""
    steps = steps_of(case, batch, device)
    seconds = interleaved(steps, rounds, torch.cuda.synchronize if device.type == "cuda" else lambda: None)
    print(f"\n{case.model}, {case.attack}, {batch} images of {case.size} x {case.size}: milliseconds a step")
    for name, spent in seconds.items():
        each = statistics.median(spent)
        print(f"  {name:18}{1000 * each:10.1f}   {batch / each:8.1f} images/s")
    found = compared(seconds, device)
    if device.type == "cuda":
        for name in list(steps)[1:]:
            found[f"{name}: GPU at work"] = (busy(steps[name], seconds[name]), BUSY, float("inf"))
    return found


def steps_of(case: Case, batch: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Return what takes a step of each kind, on the same batch."""
    noise = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, case.size, case.size, generator=noise).to(device)
    y = torch.randint(CLASSES, (batch,), generator=noise).to(device)
    steps: dict[str, Callable[[], object]] = {"published fp32": published_step(case, x, y)}
    x = x.to(memory_format=torch.channels_last)
    for precision in ("fp32", "bf16"):
        steps[f"dense {precision}"] = own_step(case, dense_learner(case, device), precision, x, y)
        steps[f"search {precision}"] = own_step(case, search_learner(case, device), precision, x, y)
    return steps


def published_step(case: Case, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """Return a step of the published formulation, with the settings of :func:`own_step`."""
    settings, model = settings_of(case), masked_model(case, x.device)
    network = published.Published(PixelModel(model), EdgePopup(model, Init(0), RATIO)).train()
    optimizer = make_optimizer(settings, network.scores)
    steps, step_size = (settings.steps, 2 / 255) if case.attack == "pgd" else (1, 10 / 255)
    attack = partial(published.attacked, steps=steps, step_size=step_size, generator=torch.Generator(x.device))
    return lambda: published.step(network, optimizer, attack(network, x, y, ThreatModel()), y)


def own_step(case: Case, learner: Learner, precision: str, x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    """Return a step of the recipes' loop."""
    accelerator = accelerator_of(precision, x.device)
    settings = settings_of(case)
    network = accelerator.prepare_model(PixelModel(learner.model)).train()
    optimizer = accelerator.prepare_optimizer(make_optimizer(settings, learner.learned))
    attack = make_attack(settings, torch.Generator(x.device))
    return lambda: step(accelerator, learner, network, optimizer, attack, x, y)


def accelerator_of(precision: str, device: torch.device) -> Accelerator:
    """Return one that computes in fp32 or bf16: it has one precision for all of a process, which is switched off."""
    switch = AutocastKwargs(enabled=precision == "bf16")
    return Accelerator(mixed_precision="bf16", kwargs_handlers=[switch], cpu=device.type == "cpu")


def settings_of(case: Case) -> SearchSettings:
    """Return the paper's settings with a network and an attack."""
    return SearchSettings(model=case.model, image_size=case.size, attack=case.attack, remaining_ratio=RATIO)


def search_learner(case: Case, device: torch.device) -> Learner:
    """Return what recipes/search.py learns."""
    model = masked_model(case, device).to(memory_format=torch.channels_last)
    popup = EdgePopup(model, Init(0), RATIO)
    return Learner(model, popup.scores, before_step=popup.collect_gradients, after_step=popup.apply)


def dense_learner(case: Case, device: torch.device) -> Learner:
    """Return what recipes/train.py learns."""
    model = build_model(case.model, arguments_of(case), seed=0)
    describe_input(model, case.size, *INPUT)
    model.to(device).to(memory_format=torch.channels_last)
    return Learner(model, dict(model.named_parameters()), before_step=lambda: None, after_step=lambda: None)


def masked_model(case: Case, device: torch.device) -> torch.nn.Module:
    """Return the random network."""
    model = create_model(case.model, Init(0), **arguments_of(case))
    describe_input(model, case.size, *INPUT)
    return model.to(device)


def arguments_of(case: Case) -> dict[str, Any]:
    """Return timm's arguments."""
    return {"num_classes": CLASSES, **size_arguments(case.model, case.size)}


def compared(seconds: dict[str, list[float]], device: torch.device) -> dict[str, tuple[float, float, float]]:
    """Return the ratios of the times of one case: value, lowest and highest that will do."""
    found = {}
    for precision in ("fp32", "bf16"):
        faster = ratio(seconds["published fp32"], seconds[f"search {precision}"])
        low = FASTER[device.type].get(precision, 0.0) if precision == "fp32" or multiplies_bf16(device) else 0.0
        found[f"search {precision}: times as fast as published"] = (faster, low, float("inf"))
        share = ratio(seconds[f"search {precision}"], seconds[f"dense {precision}"])
        found[f"search {precision}: of a dense step's time"] = (share, 0.0, OF_DENSE)
    return found


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions for products in bf16."""
    info = Path("/proc/cpuinfo")
    return device.type == "cuda" or (info.exists() and "avx512_bf16" in info.read_text(encoding="utf-8"))


def busy(work: Callable[[], object], seconds: list[float], steps: int = 3) -> float:
    """Return the share of a step's time in which the GPU computes: kernels by the profiler, the time without it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            work()
        torch.cuda.synchronize()
    at_work = [e for e in profile.events() if e.device_type.name == "CUDA" and not e.is_user_annotation]
    kernels = sum(event.time_range.elapsed_us() for event in at_work)
    return kernels / 1e6 / steps / statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
