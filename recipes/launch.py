"""Start a recipe: errors as one line, Ctrl-C without a traceback, several processes on CPUs too."""

import os
import re
import sys
from collections.abc import Callable

import psutil

from rst_hub.console import print_anything
from rst_hub.errors import RstHubError, SettingsError, printable


def main_of(recipe: Callable[[list[str]], None]) -> int:
    """Run a recipe; print an RstHubError as one line, and what Ctrl-C lost; return the exit status."""
    print_anything()
    try:
        _start_cpu_processes()
        recipe(sys.argv[1:])
    except RstHubError as error:
        process = int(os.environ.get("RANK", "0"))
        said = printable(error, 10_000)
        print(f"process {process}: error: {said}" if process else f"error: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the last whole epoch or batch is saved: add --resume to continue from it", file=sys.stderr)
        return 130
    return 0


def _start_cpu_processes() -> None:
    """Make ``accelerate launch --cpu --num_processes N`` mean N processes.

    Accelerate starts a single process there (seen up to 1.15) and leaves the rest to mpirun. What it leaves behind is a
    master address without a world size; the number is on its own command line. torch's launcher then does the rest.
    """
    env = os.environ
    alone = "MASTER_ADDR" in env and not any(name in env for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    if env.get("ACCELERATE_USE_CPU", "").lower() not in ("true", "1", "yes") or not alone:
        return
    launcher = psutil.Process().parent()
    words = " ".join(launcher.cmdline() if launcher else [])
    number = re.search(r"--num[_-]processes[= ](\d+)", words)
    if number is None or re.search(r"--num[_-]machines[= ](?!1\b)", words):
        raise SettingsError(
            "on CPUs accelerate launch starts one process and leaves more to mpirun: give --num_processes on its line "
            "(for one machine), or start with ACCELERATE_USE_CPU=true torchrun --nproc_per_node N"
        )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", number[1]]
    rendezvous = ["--master_addr", env["MASTER_ADDR"], "--master_port", env["MASTER_PORT"]]
    os.execv(sys.executable, [*launch, *rendezvous, *sys.argv])
