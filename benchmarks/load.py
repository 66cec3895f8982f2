"""What it costs to load a ticket, beside timm's way to a dense checkpoint of the same network.

    python benchmarks/load.py

``from_pretrained(folder)``, with every digest, against ``timm.create_model`` and ``load_state_dict`` of the dense
float32 safetensors, both files in the page cache. CPU time is that of one thread: the two take turns in one process,
after one load of each that is not counted, and the ratio is the median of the turns' ratios. Memory is what a fresh
process grows by at the most while it loads, in shares of the dense network's tensors. The exit status is 1 if a limit
is missed at 5% kept.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import safetensors.torch
import timm
import torch
from size import random_ticket
from timing import interleaved
from timing import ratio as relative
from torch import nn

import rst_hub

ARCHITECTURES = ("resnet18", "resnet50", "resnet101", "swin_tiny_patch4_window7_224", "vitamin_small_224")
"""The last one is built with its values, as some are that compute with them."""
RATIOS = (0.05, 0.1, 0.3)
LIMITED, TIME, MEMORY = 0.05, 0.35, 1.3
"""At this remaining ratio at most these shares of the CPU time and of the dense network's bytes, for ResNets."""
TURNS = 15


def main() -> int:
    """Print a line for each network and ratio, and the ratios last; return 1 if a limit is missed."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, timm {timm.__version__}, one thread; medians of {TURNS}")
    print(f"{'':38}{'dense':>10}{'ticket':>10}   milliseconds of CPU")
    lines, missed = [], False
    for architecture in ARCHITECTURES:
        for ratio in RATIOS:
            with tempfile.TemporaryDirectory() as scratch:
                folder, dense, size = saved(Path(scratch), architecture, ratio)
                ways = {
                    "dense": partial(load_dense, architecture, dense),
                    "ticket": partial(rst_hub.from_pretrained, folder),
                }
                times = interleaved(ways, TURNS, clock=time.process_time)
                grown = [grows_by(way, architecture, folder, dense) / size for way in ways]
            own, theirs = (1000 * statistics.median(times[way]) for way in ("ticket", "dense"))
            print(f"{architecture + f' at {ratio:g}':38}{theirs:10.1f}{own:10.1f}")
            share = relative(times["ticket"], times["dense"])
            limited = ratio == LIMITED and architecture.startswith("resnet")
            over = limited and (share > TIME or grown[1] > MEMORY)
            missed |= over
            lines.append(
                f"  {architecture + f' at {ratio:g}':38}CPU time {share:.2f} of timm's; memory {grown[1]:.2f} of the "
                f"dense network's bytes (timm's way: {grown[0]:.2f}){'  MISSED' if over else ''}"
            )
    print("\nRatios:", *lines, sep="\n")
    return int(missed)


def saved(scratch: Path, architecture: str, ratio: float) -> tuple[Path, Path, int]:
    """Return a ticket's folder, the dense file of the same network, and the bytes of that network's tensors."""
    ticket = random_ticket(architecture, ratio)
    folder, tensors = ticket.save(scratch / "ticket"), ticket.state_dict()
    safetensors.torch.save_file(tensors, scratch / "dense.safetensors")
    return folder, scratch / "dense.safetensors", sum(tensor.nbytes for tensor in tensors.values())


def load_dense(architecture: str, file: Path) -> nn.Module:
    """Load as timm does, from a file that is here."""
    model = timm.create_model(architecture)
    model.load_state_dict(safetensors.torch.load_file(file), strict=True)
    return model.eval()


def grows_by(way: str, architecture: str, folder: Path, dense: Path) -> int:
    """Return by how many bytes a fresh process grows at the most while it loads, watched from within."""
    command = [sys.executable, __file__, "--grow", way, architecture, str(folder), str(dense)]
    return int(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)


def grow(way: str, architecture: str, folder: str, dense: str) -> int:
    """Print that and return 0: the highest resident set, which the system keeps, above the one before."""
    torch.set_num_threads(1)
    timm.create_model("test_resnet")  # what a first model allocates once
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the highest starts anew
    before = resident("VmRSS")
    model = load_dense(architecture, Path(dense)) if way == "dense" else rst_hub.from_pretrained(folder)
    print(resident("VmHWM") - before)
    del model
    return 0


def resident(field: str) -> int:
    """Return a line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    sys.exit(grow(*sys.argv[2:]) if sys.argv[1:2] == ["--grow"] else main())
