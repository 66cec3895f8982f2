"""What an R2S of the paper's six ratios takes: memory beside one dense network, throughput beside one fixed ticket.

    python benchmarks/r2s.py                                resnet18 and resnet50 at 224 pixels, on the CPU
    python benchmarks/r2s.py --models resnet101 --distributions kaiming_normal --device cuda

Memory is what the tensors take, those held by several members counted once; and, on Linux, what the process grows by
when it loads the R2S or the dense network from a folder, after the loading and at the highest within a forward.
Throughputs are compared pair by pair: each round times the fixed ticket, the R2S and the R2S with materialised members
one after the other on the same images, and the ratio is the median of the rounds' ratios.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import undescribed
from torch import nn

import rst_hub
from rst_hub import R2S, EdgePopup, Init, create_model
from rst_hub.console import print_anything
from rst_hub.hub.loading import load_tickets

RATIOS = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
"""The paper's candidate set, section 6.3."""
ROUNDS = {1: 41, 16: 7, 32: 5}
LIMITS = {"memory": 1.25, "batch 1": 0.8, "batch": 0.9}


def main() -> int:
    """Print a table for each network; return 1 if one of the limits is broken."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--distributions", nargs="+", default=["signed_kaiming_constant"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", help="write the numbers as JSON, too")
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)  # of the processes that are weighed
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(growth(*arguments.load)))
        return 0
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.device}; 224 x 224 pixels, float32"
    )
    found = []
    for architecture in arguments.models:
        for distribution in arguments.distributions:
            with tempfile.TemporaryDirectory() as scratch:
                folder = save_tickets(Path(scratch) / "tickets", architecture, Init(0, distribution))
                found.append({"model": architecture, "distribution": distribution, **memory(folder)})
                # how the weights were drawn changes nothing but how they are held: both are timed all the same
                found[-1]["throughput"] = throughput(folder, torch.device(arguments.device))
            show(found[-1])
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(any(broken(one) for one in found))


def save_tickets(folder: Path, architecture: str, init: Init) -> Path:
    """Save tickets of the six ratios, of random scores: neither memory nor time depends on which weights are kept."""
    model = create_model(architecture, init)
    for ratio in RATIOS:
        undescribed.draw(EdgePopup(model, init, ratio, score_seed=round(1000 * ratio))).save(folder)
    return folder


def memory(folder: Path) -> dict[str, float]:
    """Return the R2S's bytes as shares of the dense network's, by their tensors and by what a process grows by."""
    _, tickets = load_tickets(folder)
    dense = bytes_of(tickets[0].model())
    shared, whole = bytes_of(R2S(tickets)), bytes_of(R2S(tickets, materialised=True))
    process = {}
    if sys.platform == "linux":
        weighed = {
            kind: json.loads(subprocess.check_output([sys.executable, __file__, "--load", kind, str(folder)]))
            for kind in ("dense", "r2s")
        }
        process = {
            "process, held": weighed["r2s"]["held"] / weighed["dense"]["held"],
            "process, highest in a forward": weighed["r2s"]["highest"] / weighed["dense"]["highest"],
        }
    return {"dense bytes": dense, "tensors": shared / dense, "materialised": whole / dense, **process}


def bytes_of(model: nn.Module) -> int:
    """Return the bytes of all tensors of a model and, of an R2S, of what its members share, each storage once."""
    modules = [m for module in model.modules() for m in (module, *getattr(module, "_shared", ()))]
    tensors = [t for module in modules for t in (*module.parameters(False), *module.buffers(False))]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def growth(kind: str, folder: str) -> dict[str, int]:
    """Return by how many bytes this process grows: after loading, and at the most in the forwards of one image."""
    settle()
    before = psutil.Process().memory_info().rss
    model = rst_hub.r2s_from_pretrained(folder) if kind == "r2s" else rst_hub.from_pretrained(folder, ticket="r0.05")
    settle()
    held = psutil.Process().memory_info().rss - before
    x, highest, running = torch.zeros(1, 3, 224, 224), 0, True

    def watch() -> None:
        nonlocal highest
        while running:
            highest = max(highest, psutil.Process().memory_info().rss - before)
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with torch.inference_mode():
        for _ in range(30):
            model(x)
    running = False
    watcher.join()
    return {"held": held, "highest": highest}


def settle() -> None:
    """Give freed memory back to the system, so that what is left is what is held."""
    import ctypes

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def throughput(folder: Path, device: torch.device) -> dict[str, dict[str, float]]:
    """Return for each batch size the images a second of the fixed ticket, and the R2S's throughputs as its shares."""
    _, tickets = load_tickets(folder)
    networks = {
        "fixed ticket": tickets[3].model(),
        "R2S": R2S(tickets),
        "R2S, one a batch": R2S(tickets, per="batch"),
        "R2S, materialised": R2S(tickets, materialised=True),
    }
    for network in networks.values():
        network.to(device)
    found = {}
    for batch, rounds in ROUNDS.items():
        x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
        seconds: dict[str, list[float]] = {name: [] for name in networks}
        with torch.inference_mode():
            for number in range(rounds + 1):
                for name, network in networks.items():
                    spent = timed(network, x)
                    if number:  # the first round warms up
                        seconds[name].append(spent)
        fixed = seconds["fixed ticket"]
        found[f"batch {batch}"] = {
            "images a second": batch / statistics.median(fixed),
            **{
                name: statistics.median(one / own for one, own in zip(fixed, seconds[name], strict=True))
                for name in list(networks)[1:]
            },
        }
    return found


def timed(network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    """Return the seconds of a forward."""
    started = time.perf_counter()
    network(x)
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def show(one: dict) -> None:
    """Print what was found of one network."""
    print(f"\n{one['model']}, {one['distribution']}; dense network {one['dense bytes'] / 1e6:.1f} MB")
    shares = [
        f"{key} {one[key]:.3f}" for key in one if key not in ("model", "distribution", "dense bytes", "throughput")
    ]
    print("  memory, times the dense network:  " + "; ".join(shares))
    for batch, row in one["throughput"].items():
        cells = "; ".join(f"{name} {value:.3f}" for name, value in row.items() if name != "images a second")
        print(f"  {batch:8}  fixed ticket {row['images a second']:6.1f} images/s; its throughput times:  {cells}")


def broken(one: dict) -> list[str]:
    """Return what breaks a limit, and print it."""
    said = [f"memory {one['tensors']:.3f}"] if one["tensors"] > LIMITS["memory"] else []
    for batch, row in one["throughput"].items():
        if row["R2S"] < LIMITS.get(batch, LIMITS["batch"]):
            said.append(f"{batch}: {row['R2S']:.3f} of the fixed ticket's throughput")
    for text in said:
        print(f"  OVER THE LIMIT ({one['model']}, {one['distribution']}): {text}")
    return said


if __name__ == "__main__":
    sys.exit(main())
