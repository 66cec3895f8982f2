"""What a user sees of a recipe's end: one line, whatever started it."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ENVIRONMENT, LAUNCH, ROOT, launch, run_recipe

SMALL = ("--model", "test_resnet", "--holdout", "60", "--test-samples", "60", "--batch-size", "64")
INTERRUPTED = "interrupted; the last whole epoch or batch is saved: add --resume to continue from it"
MISSPELT = "has no architecture 'resnet81'. Did you mean resnet18"


def interrupted(launcher, output, group):
    """Start a search, interrupt it after an epoch as a terminal does (``group``) or alone; return what it printed."""
    arguments = (*SMALL, "--epochs", "50", "--output", str(output))
    process = subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "recipes" / "search.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a run in the background has it ignored
    )
    try:
        deadline = time.monotonic() + 200
        while not (output / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        said = process.communicate(timeout=100)[1]  # until the last process that holds the pipe has ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    return said


def test_ctrl_c_under_accelerate_launch_ends_with_our_line(tmp_path):
    said = interrupted((*LAUNCH, "--num_processes", "1"), tmp_path / "run", group=True)
    assert "KeyboardInterrupt" in said  # of accelerate launch, which no child can keep from it
    assert said.splitlines()[-1] == INTERRUPTED
    assert said.count(INTERRUPTED) == 1


@pytest.mark.slow
def test_ctrl_c_of_two_processes_ends_with_our_line(tmp_path):
    said = interrupted(launch(2), tmp_path / "run", group=True)
    assert said.splitlines()[-1] == INTERRUPTED
    assert said.count(INTERRUPTED) == 1
    assert "torch/distributed" not in said


@pytest.mark.slow
def test_an_error_under_accelerate_launch_is_set_off_from_its_traceback(tmp_path):
    for launcher in ((*LAUNCH, "--num_processes", "1"), launch(2)):
        arguments = ("--model", "resnet81", "--output", tmp_path / "run")
        process = run_recipe("search.py", *arguments, launcher=launcher, check=False)
        assert process.returncode != 0
        ours, _, theirs = process.stderr.partition("Traceback (most recent call last)")
        assert MISSPELT in ours
        assert ours.splitlines()[-1].startswith("(accelerate launch reports it with a traceback, which says no more")
        assert "CalledProcessError" in theirs
        assert "torch/distributed" not in theirs
        quiet = run_recipe("search.py", *arguments, launcher=(*launcher, "--quiet"), check=False)
        assert quiet.returncode != 0
        assert MISSPELT in quiet.stderr
        assert "Traceback" not in quiet.stderr
        assert "(accelerate launch" not in quiet.stderr


@pytest.mark.slow
def test_a_process_that_is_killed_is_named(tmp_path):
    def victim():
        return "import os, signal, time; time.sleep(2 * int(os.environ['RANK'])); os.kill(os.getpid(), signal.SIGKILL)"

    (tmp_path / "dies.py").write_text(victim())
    command = [sys.executable, "-m", "rst_hub.runs.launch", "--nproc_per_node", "2", str(tmp_path / "dies.py")]
    process = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=100, check=False)
    assert process.returncode == 1
    assert process.stderr == "error: process 0 ended with signal 9: add --resume to continue\n"
