"""Start a recipe: errors as one line, Ctrl-C without a traceback, several processes on CPUs too.

``accelerate launch`` and ``torchrun`` print a traceback of their own when a process ends with an error, behind what the
process has said. No child can keep its launcher from that, so a recipe's line is made easy to find beside it.
"""

import errno
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from ..console import print_anything
from ..errors import RstHubError, SettingsError, printable

_INTERRUPTED = "interrupted; the last whole epoch or batch is saved: add --resume to continue from it"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MODULE = "rst_hub.runs.launch"
_PATIENCE = 3.0
"""Seconds that a launcher gets to say its last words when Ctrl-C ends it, so that ours stand behind them."""


def main_of(recipe: Callable[[list[str]], None], arguments: list[str] | None = None) -> int:
    """Run a recipe on its command line, this process's when None; return its exit status.

    An RstHubError, or an OSError such as that of a full disk, becomes one line; Ctrl-C one that says how to go on.
    """
    print_anything()
    try:
        _start_cpu_processes()
        recipe(sys.argv[1:] if arguments is None else arguments)
    except RstHubError as error:
        return _failed(printable(error, 10_000))
    except OSError as error:
        if error.errno is None:  # of a library that makes its own OSErrors
            raise
        return _failed(printable(_of_the_system(error), 10_000))
    except KeyboardInterrupt:
        return _interrupted()
    return 0


def _failed(said: str) -> int:
    """Print an error's line where the user finds it, beside what a launcher will print."""
    process = int(os.environ.get("RANK", "0"))
    _last_words(f"process {process}: error: {said}" if process else f"error: {said}")
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:  # from which torch's launcher takes what its report says of this process
        told = {"message": said, "extraInfo": {"py_callstack": said, "timestamp": str(int(time.time()))}}
        try:
            Path(file).write_text(json.dumps({"message": told}), encoding="utf-8")
        except OSError:
            Path(file).unlink(missing_ok=True)  # half of it would make the launcher fail
    _announce_traceback()
    return 2


def _of_the_system(error: OSError) -> str:
    """Return what the system refused, of which file, and what to do."""
    where = error.filename or "a file without a name, perhaps the one that the output is written to"
    found = f"{where}: {error.strerror or error}"
    if error.errno in _FULL:
        return f"{found}: make room there, and add --resume to continue; what was saved before is whole"
    return f"{found}: see to it, and add --resume to continue a run that had begun"


def _interrupted() -> int:
    """Say how to go on, behind what a launcher says that Ctrl-C ends at once; torch's waits for its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a launcher passes on what the terminal has sent already
    launcher = psutil.Process().parent()
    if _is_accelerate(launcher):
        with suppress(psutil.Error):
            launcher.wait(_PATIENCE)
    if os.environ.get("RANK", "0") == "0" and not _is_ours(launcher):
        _last_words(_INTERRUPTED)
    return 130


def _last_words(line: str) -> None:
    """Print a line on stderr; on a disk that is full the exit status has to do."""
    try:
        sys.stdout.flush()
    except OSError:  # where even that is refused, Python would print a traceback at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _announce_traceback() -> None:
    """Say what accelerate launch is about to print: a single process's exit status, as a traceback."""
    if _is_accelerate(psutil.Process().parent()):
        _last_words("(accelerate launch reports it with a traceback, which says no more; its --quiet leaves that out)")


def _is_accelerate(process: psutil.Process | None) -> bool:
    """Say whether a process is accelerate's launcher of a single process, without --quiet."""
    words = _words_of(process)
    named = any(Path(word).name.startswith("accelerate") for word in words[:3])
    quiet = {"--quiet", "-q"} & set(words)
    return named and "TORCHELASTIC_RUN_ID" not in os.environ and not quiet


def _is_ours(process: psutil.Process | None) -> bool:
    return _MODULE in _words_of(process)


def _words_of(process: psutil.Process | None) -> list[str]:
    try:
        return [] if process is None else list(process.cmdline())
    except psutil.Error:
        return []


def _start_cpu_processes() -> None:
    """Make ``accelerate launch --cpu --num_processes N`` mean N processes.

    Accelerate starts a single process there (seen up to 1.15) and leaves the rest to mpirun. What it leaves behind is a
    master address without a world size; the number is on its own command line. torch's launcher then does the rest.
    """
    env = os.environ
    alone = "MASTER_ADDR" in env and not any(name in env for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    if env.get("ACCELERATE_USE_CPU", "").lower() not in ("true", "1", "yes") or not alone:
        return
    words = " ".join(_words_of(psutil.Process().parent()))
    number = re.search(r"--num[_-]processes[= ](\d+)", words)
    if number is None or re.search(r"--num[_-]machines[= ](?!1\b)", words):
        raise SettingsError(
            "on CPUs accelerate launch starts one process and leaves more to mpirun: give --num_processes on its line "
            "(for one machine), or start with ACCELERATE_USE_CPU=true torchrun --nproc_per_node N"
        )
    launch = [sys.executable, "-m", _MODULE, "--nproc_per_node", number[1]]
    rendezvous = ["--master_addr", env["MASTER_ADDR"], "--master_port", env["MASTER_PORT"]]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    started = sys.argv[:1] if spec is None else ["--module", spec.name]  # by its file, or by python -m
    os.execv(sys.executable, [*launch, *rendezvous, *started, *sys.argv[1:]])


def lead(arguments: list[str]) -> int:
    """Run torch's launcher without its report and traceback; return the first failed process's exit status."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable()  # what it logs of an end is said below, and by the processes themselves
    try:
        run.run(run.parse_args(arguments))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode not in (2, 130):  # of which a process says itself what they mean
            status = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"status {failure.exitcode}"
            _last_words(f"error: process {rank} ended with {status}: add --resume to continue")
        _announce_traceback()
        return max(1, failure.exitcode)
    except (SignalException, KeyboardInterrupt):
        return _interrupted()
    return 0


if __name__ == "__main__":
    sys.exit(lead(sys.argv[1:]))
