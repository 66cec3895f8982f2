"""Small real things that several test files need: a model, a ticket, an image folder, a recipe run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import ENDPOINT  # before rst_hub: it points the Hub's client at the tests' own Hub
from PIL import Image
from ticket_results import pair, searched, tickets  # noqa: F401  (fixtures)

from rst_hub import EdgePopup, Init, Ticket, create_model
from rst_hub.networks.inputs import describe_input

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": ENDPOINT, "HF_HUB_OFFLINE": "1"}
LABELS = tuple("0123456789")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which would only wait for each other's threads
    torch.set_num_threads(1)
LAUNCH = ("-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--dynamo_backend", "no")


def make_popup(architecture="test_resnet", init=None, remaining_ratio=0.1, **kwargs):
    """Return an EdgePopup over a small random timm model that knows its input."""
    init = init or Init(0)
    model = create_model(architecture, init, **{"num_classes": 10, **kwargs})
    describe_input(model, 32, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3), LABELS)
    return EdgePopup(model, init, remaining_ratio)


def described(model):
    """Say of a model of create_model, whatever its channels and classes, that it knows its input; return it."""
    values = (0.3,) * model.pretrained_cfg["input_size"][0]
    describe_input(model, 32, values, values, [str(number) for number in range(model.num_classes)])
    return model


@pytest.fixture(scope="session")
def ticket():
    popup = make_popup()
    with torch.no_grad():  # batch-norm statistics that no seed makes
        popup.model.train()
        popup.model(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return Ticket.draw(popup, provenance={"versions": {"timm": "1.0.31"}})


@pytest.fixture
def folder(ticket, tmp_path):
    return ticket.save(tmp_path / "ticket")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Return a folder of train/ and test/ class folders: 3 classes of noisy 12 x 12 squares, one image grey."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (12, 12, 3), dtype=np.uint8)
                pixels[..., label] += 150
                image = Image.fromarray(pixels)
                (image.convert("L") if i == 0 else image).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def _own_precision():
    """Let a test choose accelerate's precision, of which a process has one, and add in one thread's order."""
    from accelerate.state import AcceleratorState  # which imports the Hub's client

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two may change the sign of a gradient under attack, and so on from step to step
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


def run_recipe(recipe, *arguments, launcher=(), check=True, cwd=None, **environment):
    """Run a recipe in a process of its own and return it, finished, with its output; fail with its errors."""
    command = [sys.executable, *launcher, str(ROOT / "recipes" / recipe), *map(str, arguments)]
    process = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", **environment},
        timeout=280,
    )
    if check and process.returncode:
        pytest.fail(f"{recipe} ended with {process.returncode}: {process.stderr[-2000:]}")
    return process


def launch(processes, precision="no"):
    """Return what starts so many processes of a recipe on the CPU."""
    with socket.socket() as probe:  # a port of our own, so that two test runs on one machine do not meet
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return (*LAUNCH, "--num_processes", str(processes), "--mixed_precision", precision, "--main_process_port", port)
