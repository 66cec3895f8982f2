"""kill -9 at random moments of a search, then --resume: the same ticket as without."""

import random
import subprocess
import sys
import time

import pytest
import torch
from conftest import ENVIRONMENT, ROOT, run_recipe

import rst_hub
from rst_hub.tickets.digests import digest

pytestmark = pytest.mark.slow
SEARCH = ("--model", "test_resnet", "--holdout", "60", "--test-samples", "60", "--batch-size", "64", "--epochs", "6")
WHOLE = {"checkpoint.pt", "metrics.jsonl", "settings.json", "ticket"}


def bits(folder):
    ticket = rst_hub.Ticket.load(folder / "ticket")
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    return digest(ticket.masks, ticket.masks), digest(ticket.state_dict(), ticket.state_dict()), digest(state, state)


def killed(output, delay):
    """Start or resume a search and kill it so long after it began to write; say whether it lived until then."""
    resume = ("--resume",) if (output / "settings.json").exists() else ()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "recipes" / "search.py"), *SEARCH, "--output", str(output), *resume],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    with process:
        assert any("run folder" in line for line in process.stdout)  # the last line before the search begins
        time.sleep(delay)
        lived = process.poll() is None
        process.kill()  # which is -9, and nothing where it has ended by itself
    return lived


def search_through_kills(output, count, seed):
    """Kill a search ``count`` times at seeded moments, then let it end; return how many kills struck one that lived."""
    moments, struck = random.Random(seed), 0
    for _ in range(count):
        if (output / "ticket").exists():  # it ended before its kill: nothing is left to kill
            break
        struck += killed(output, moments.uniform(0.1, 4.0))
    if not (output / "ticket").exists():
        resume = ("--resume",) if (output / "settings.json").exists() else ()
        run_recipe("search.py", *SEARCH, "--output", output, *resume)
    return struck


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_recipe("search.py", *SEARCH, "--output", folder)
    return bits(folder)


def test_a_search_that_is_killed_once_ends_with_the_same_bits(uninterrupted, tmp_path):
    assert search_through_kills(tmp_path / "run", 1, seed=0) == 1
    assert bits(tmp_path / "run") == uninterrupted
    assert {path.name for path in (tmp_path / "run").iterdir()} - {".lock"} == WHOLE


def test_searches_that_are_killed_ten_times_end_with_the_same_bits(uninterrupted, tmp_path):
    struck = 0
    for number in range(20):
        output = tmp_path / f"run{number}"
        struck += search_through_kills(output, 10 - struck, seed=number)
        assert bits(output) == uninterrupted, number
        assert {path.name for path in output.iterdir()} - {".lock"} == WHOLE
        if struck == 10:
            break
    assert struck == 10
