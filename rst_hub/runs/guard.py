"""What a recipe makes sure of before it writes: its processes know of each other, and its folder is its own."""

import functools
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import filelock
import psutil
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..errors import RstHubError, SettingsError, printable

LOCK = ".lock"
"""The file in a run's folder that its main process holds locked; one that kill -9 left behind is nobody's."""

_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_TP": "tensor parallelism",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""What Accelerate 1.0 to 1.15 sets for the ways of running that share one network between processes."""
_SHARDING_TYPES = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM", "TP": "tensor parallelism"}
_WORLD = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where Accelerate looks for the number of processes, in this order."""
_LEFT_BEHIND = re.compile(
    r"\.(checkpoint\.pt|config\.json|metrics\.jsonl|settings\.json|results\.json|transfer\.json|transfer\.png"
    r"|ticket-.*\.safetensors|\d+\.jsonl)\.\d+|\.(ticket|model|trial)-.+"
)
"""Names of what rst_hub.files writes beside, which kill -9 leaves there."""

_held: list[tuple[filelock.BaseFileLock, Path, list[Path]]] = []


def make_accelerator(**arguments: Any) -> Accelerator:
    """Return an Accelerator that does what a recipe counts on.

    Raises:
        SettingsError: Accelerate cannot start; it is set up to share one network between processes, or to compute in
            a precision that it does not have here; or a launcher started more processes than it knows of.
    """
    for name, what in _SHARDING.items():
        if os.environ.get(name, "").lower() not in ("", "0", "false", "no", "n", "f", "off"):
            raise _sharded(what)
    dynamo = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if dynamo.lower() not in ("", "no"):  # it would also multiply float32 in TF32, and no result would say so
        raise SettingsError(f"Accelerate's dynamo backend is {dynamo}: set it to no, and give the recipe --compile")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("", "no", "fp16", "bf16"):
        raise SettingsError(f"mixed precision {precision!r} is not one of no, fp16 and bf16: choose one of these")
    try:
        accelerator = Accelerator(**arguments)
    except Exception as error:  # of a dozen kinds: a wrong variable, a missing library, a network that fails
        raise SettingsError(
            f"Accelerate cannot start: {printable(error, 300)} (accelerate env shows its configuration)"
        ) from error
    sharding = _SHARDING_TYPES.get(accelerator.distributed_type.value)
    if sharding is not None:
        raise _sharded(sharding)
    if accelerator.mixed_precision != "no" and not accelerator.native_amp:
        raise SettingsError(
            f"mixed precision {accelerator.mixed_precision} is nothing that {accelerator.device.type} computes in: "
            "choose bf16, or no"
        )
    _check_world(accelerator.num_processes)
    return accelerator


def _sharded(what: str) -> SettingsError:
    return SettingsError(
        f"Accelerate is set up for {what}, while a recipe needs the whole network in every process: launch with "
        "--multi_gpu on GPUs or with --cpu on CPUs, which a configuration file gives way to, or by python alone"
    )


def _check_world(known: int) -> None:
    """Raise SettingsError if a launcher started more processes than this one knows of: each would run it all alone."""
    words = [os.environ[name] for name in _WORLD if os.environ.get(name)][:1]
    words += [os.environ["LOCAL_WORLD_SIZE"]] if os.environ.get("LOCAL_WORLD_SIZE") else []
    started = max([int(word) for word in words if word.strip().isdecimal()], default=1)
    if started > known:
        raise SettingsError(
            f"a launcher started {started} processes, of which each knows of {known}, because there are no GPUs for "
            f"them and Accelerate was not told to use CPUs: launch with accelerate launch --cpu --num_processes "
            f"{started}, or a single process"
        )


def claim(accelerator: Accelerator, output: Path, check: Callable[[], None]) -> None:
    """Lock a run's folder until :func:`letting_go`, or until this process ends, however it ends.

    ``check`` raises SettingsError where the folder is no place for this run. It is asked before there is a lock, so
    that nothing is written into such a folder, and again behind it, when no other run can change the folder any more.

    Raises:
        SettingsError: another process holds the folder, or it cannot be written; in all processes alike.
    """
    check()
    refusal = _refusal(output, check) if accelerator.is_main_process else None
    said = [text for text in gather_object([refusal]) if text is not None]
    if said:
        raise SettingsError(said[0])


def _refusal(output: Path, check: Callable[[], None]) -> str | None:
    """Lock the folder and check it once more; return what speaks against it."""
    try:
        if _lock(output):
            check()
            _sweep(output)
    except RstHubError as error:
        return str(error)
    return None


def _lock(output: Path) -> bool:
    """Lock the folder, which is made if need be; return False where this process has it already."""
    path = output.resolve() / LOCK
    if any(path == held for _, held, _ in _held):
        return False
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        pid = _holder(path)
        who = "another run" if pid is None else f"another run, process {pid}"
        raise SettingsError(
            f"{output} is in use by {who}: wait until it has ended, or choose another --output"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise SettingsError(f"{output} cannot be written or locked ({error}): choose another --output") from error
    _held.append((lock, path, made))
    return True


def _holder(path: Path) -> int | None:
    """Return the process that has a file open, where this user may know."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and any(Path(file.path) == path for file in process.open_files()):
                return int(process.pid)
    return None


def _sweep(output: Path) -> None:
    """Delete what a run that was killed had begun to write beside its files."""
    for path in [*output.glob(".*"), *output.glob("*/.*"), *output.glob("journal/*/*/.*")]:
        if _LEFT_BEHIND.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def letting_go(recipe: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Return a recipe's function that lets go of its folder at the end, and leaves no empty one behind."""

    @functools.wraps(recipe)
    def wrapped(*arguments: Given.args, **named: Given.kwargs) -> Returned:
        try:
            return recipe(*arguments, **named)
        finally:
            while _held:
                lock, path, made = _held.pop()
                with suppress(OSError):
                    path.unlink()  # while it is locked: afterwards it may be another run's
                lock.release()
                with suppress(OSError):
                    for folder in made:
                        folder.rmdir()  # which refuses one that holds something

    return wrapped
