"""What a result must carry: data, attack, settings, accuracies with sample counts, versions, command."""

import contextlib
import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import torch

from ..data.images import name_of
from ..networks.architectures import TIMM_VERSION
from ..version import __version__
from .naming import command
from .own import recorded
from .run import Run

EVAL_STEPS, EVAL_STEP_SIZE = 20, 2
"""PGD-20 of the paper, section 4.1; the step size is in pixels over 255."""


def provenance(run: Run, metrics: list[dict[str, Any]], best: int, test: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result must carry: data, attack, settings, accuracies with sample counts, versions, command.

    ``metrics`` has a record for each epoch, ``best`` is the position of the chosen one, and ``test`` what was measured.
    """
    settings = run.settings
    name = settings.dataset_name or name_of(settings.dataset)
    skipped = run.train.skipped + run.test.skipped
    values = {**dataclasses.asdict(settings), "dataset": name, **{key: one.name for key, one in run.own.items()}}
    return {
        "recipe": run.recipe,
        "command": command(
            run.recipe,
            (run.part_of or run).settings,  # a ticket of a set comes of the command that makes the set
            run.accelerator.mixed_precision,
            run.accelerator.num_processes,
        ),
        "settings": {key: value for key, value in values.items() if key not in ("output", "resume")},
        **recorded(run.own),
        "dataset": {
            "name": name,
            "training_samples": len(run.train),
            "heldout_samples": len(run.holdout),
            **({"left_out": skipped} if skipped else {}),
        },
        "epoch": metrics[best]["epoch"],
        "optimizer_steps": metrics[best]["steps"],
        "results": {
            "split": run.test.split,
            "samples": test["samples"],
            "clean_accuracy": test["clean"],
            "robust_accuracy": test["pgd20"],
            "attack": {
                "name": "pgd",
                "norm": "Linf",
                "eps_over_255": settings.eps,
                "steps": EVAL_STEPS,
                "step_size_over_255": EVAL_STEP_SIZE,
                "restarts": 1,
                "keep": "enough",
                "seed": settings.seed,
            },
        },
        "heldout": {key: metrics[best][key] for key in ("clean", "pgd20", "samples")},
        "precision": run.accelerator.mixed_precision,
        "processes": sorted({record["processes"] for record in metrics}),
        "device": device_name(run.accelerator.device),
        "seconds": round(sum(record["seconds"] for record in metrics), 1),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {
        "rst_hub": __version__,
        "torch": torch.__version__,
        "timm": TIMM_VERSION,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
    }
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["pyautoattack"] = importlib.metadata.version("pyautoattack")
    return found


def device_name(device: torch.device) -> str:
    """Return what computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    threads = f"{count} thread{'' if count == 1 else 's'}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {threads}"
    return f"{platform.machine()}, {threads}"
