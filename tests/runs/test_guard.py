"""Processes that know of each other, and folders that belong to one run."""

import importlib
import os
import signal
import subprocess
import sys

import pytest
from accelerate import Accelerator
from conftest import ENVIRONMENT, ROOT, run_recipe

from rst_hub.errors import RstHubError, SettingsError
from rst_hub.runs import guard as guard

benchmark = importlib.import_module("rst_hub.runs.benchmark")
search = importlib.import_module("rst_hub.runs.search")
train = importlib.import_module("rst_hub.runs.train")
transfer = importlib.import_module("rst_hub.runs.transfer")

FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
use_cpu: true
num_processes: 2
num_machines: 1
mixed_precision: 'no'
"""
TINY = ("--model", "test_resnet", "--holdout", "60", "--test-samples", "60", "--batch-size", "64")
RECIPES = {
    search: TINY,
    train: TINY,
    benchmark: ("--ticket", "FOLDER", "--samples", "8", "--flag-samples", "0", "--attacks", "pgd20"),
    transfer: ("--tickets", "FOLDER,FOLDER", "--samples", "8"),
}


def arguments_of(recipe, folder):
    return [*(word.replace("FOLDER", str(folder)) for word in RECIPES[recipe]), "--dataset", "digits"]


@pytest.fixture
def digits_ticket(folder):
    """Return a ticket's folder, to be measured on the digits."""
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_launcher_whose_processes_take_themselves_for_the_only_one_is_refused(
    recipe, digits_ticket, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="a launcher started 2 processes, of which each knows of 1"):
        recipe.main([*arguments_of(recipe, digits_ticket), "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_an_accelerate_configuration_of_fsdp_is_refused_by_each_of_its_processes(tmp_path):
    (tmp_path / "fsdp.yaml").write_text(FSDP)
    launcher = ("-m", "accelerate.commands.launch", "--config_file", tmp_path / "fsdp.yaml", "--main_process_port", "0")
    arguments = (*TINY, "--epochs", "1", "--output", tmp_path / "run")
    process = run_recipe("search.py", *arguments, launcher=tuple(map(str, launcher)), check=False)
    assert process.returncode != 0
    said = "Accelerate is set up for FSDP, while a recipe needs the whole network in every process"
    assert f"error: {said}" in process.stderr
    assert f"traceback : {said}" in process.stderr.partition("Root Cause")[2]  # in torch's own report, at its end
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_own_precision")
def test_what_accelerate_is_set_up_for_and_a_recipe_cannot_use_is_refused(monkeypatch):
    cases = {
        ("ACCELERATE_USE_FSDP", "true"): "set up for FSDP",
        ("ACCELERATE_USE_DEEPSPEED", "true"): "set up for DeepSpeed",
        ("ACCELERATE_USE_MEGATRON_LM", "True"): "set up for Megatron-LM",
        ("ACCELERATE_USE_TP", "true"): "set up for tensor parallelism",
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"): "set up for a parallelism_config",
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"): "give the recipe --compile",
        ("ACCELERATE_MIXED_PRECISION", "fp8"): "'fp8' is not one of no, fp16 and bf16",
        ("ACCELERATE_MIXED_PRECISION", "bf17"): "'bf17' is not one of",
        ("WORLD_SIZE", "3"): "started 3 processes, of which each knows of 1",
        ("PMI_SIZE", "2"): "started 2 processes",
        ("OMPI_COMM_WORLD_SIZE", "2"): "started 2 processes",
        ("MV2_COMM_WORLD_SIZE", "2"): "started 2 processes",
        ("LOCAL_WORLD_SIZE", "2"): "started 2 processes",
    }
    for (name, value), message in cases.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(SettingsError) as caught:
                guard.make_accelerator()
        assert message in str(caught.value), name
    assert len(cases) == 13
    for name, value in (("WORLD_SIZE", "1"), ("ACCELERATE_USE_FSDP", "false"), ("ACCELERATE_DYNAMO_BACKEND", "no")):
        monkeypatch.setenv(name, value)
    assert guard.make_accelerator().num_processes == 1


@pytest.mark.usefixtures("_own_precision")
def test_whatever_accelerate_raises_is_ours(monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "abacus")
    with pytest.raises(SettingsError, match=r"Accelerate cannot start: .*abacus"):
        guard.make_accelerator()


@pytest.mark.usefixtures("_own_precision")
def test_a_precision_that_the_device_does_not_compute_in_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # which Accelerate takes for float32 there, in silence
    with pytest.raises(SettingsError, match="fp16 is nothing that cpu computes in"):
        guard.make_accelerator()


# The lock

HOLDER = """
import sys, time
from pathlib import Path
from accelerate import Accelerator
from rst_hub.runs import guard
guard.claim(Accelerator(), Path(sys.argv[1]), lambda: None)
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def held(tmp_path):
    """Return a folder that another process holds, and that process."""
    folder = tmp_path / "held"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT)
    try:
        assert process.stdout.readline() == "held\n"
        yield folder, process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_two_runs_in_one_folder_are_refused_and_kill_9_lets_go(held, digits_ticket, tmp_path):
    folder, process = held
    said = f"{folder} is in use by another run, process {process.pid}: wait until it has ended"
    arguments = [*TINY, "--epochs", "1", "--output", str(folder)]
    for recipe in RECIPES:
        with pytest.raises(SettingsError) as caught:
            recipe.main([*arguments_of(recipe, digits_ticket), "--output", str(folder)])
        assert said in str(caught.value), recipe
    assert len(RECIPES) == 4
    assert os.listdir(folder) == [guard.LOCK]
    (tmp_path / "link").symlink_to(folder)  # another name of the same folder
    with pytest.raises(SettingsError, match="is in use by another run"):
        search.main([*arguments[:-1], str(tmp_path / "link")])
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.listdir(folder) == [guard.LOCK]
    search.main([*arguments, "--max-steps", "1"])  # what is left behind is nobody's, nor a foreign run
    assert {path.name for path in folder.iterdir()} == {"metrics.jsonl", "settings.json", "ticket"}


def test_a_run_is_looked_at_again_once_its_folder_is_locked(tmp_path):
    looks = []

    def check():
        looks.append((tmp_path / "run" / guard.LOCK).exists())
        if len(looks) == 2:  # another run ended here in between
            raise SettingsError("already holds a run")

    claim = guard.letting_go(lambda _: guard.claim(Accelerator(), tmp_path / "run", check))
    with pytest.raises(SettingsError, match="already holds a run"):
        claim([])
    assert looks == [False, True]
    assert not (tmp_path / "run").exists()


def test_an_error_before_the_first_step_leaves_no_folder_behind(tmp_path):
    output = tmp_path / "a" / "b"
    for _ in range(2):  # nor a lock that this process holds
        with pytest.raises(RstHubError, match="inception_v3 cannot take images"):
            search.main([*TINY, "--model", "inception_v3", "--output", str(output)])
        assert not (tmp_path / "a").exists()


def test_what_a_killed_run_left_half_written_is_swept_away_and_nothing_else(tmp_path):
    half = (".checkpoint.pt.123", "r0.1/.metrics.jsonl.9", "ticket/.config.json.77", "journal/a/b/.0.jsonl.5")
    kept = ("checkpoint.pt", ".checkpoint.pt", ".note.123", "ticket/config.json", ".ticket-notes.md.txt/a/b")
    folders = (".ticket-x3/a", ".trial-abc/ticket/a")
    for name in (*half, *kept[:-1], *folders):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    guard._sweep(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(kept[:-1])


@pytest.mark.slow
def test_two_searches_started_at_once_are_one(tmp_path):
    arguments = (*TINY, "--epochs", "1", "--output", str(tmp_path / "run"))
    command = [sys.executable, str(ROOT / "recipes" / "search.py"), *arguments]
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    said = {process.communicate(timeout=200)[1]: process.returncode for process in both}
    assert sorted(process.returncode for process in both) == [0, 2]
    (refused,) = [text for text, status in said.items() if status == 2]
    assert "is in use by another run, process" in refused or "already holds a run" in refused
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"checkpoint.pt", "metrics.jsonl", "settings.json", "ticket"}
