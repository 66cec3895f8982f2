"""A recipe starts in several ways, from Python too, and is the same recipe in each."""

import dataclasses
import importlib
import json
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, launch

import rst_hub
from rst_hub import runs
from rst_hub.cli import main
from rst_hub.errors import SettingsError
from rst_hub.runs import BenchmarkSettings, SearchSettings, TrainSettings, TransferSettings
from rst_hub.tickets.digests import digest

TINY = {"model": "test_resnet", "epochs": 1, "max_steps": 2, "batch_size": 32, "holdout": 50, "test_samples": 50}
WORDS = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
RECIPES = ("benchmark", "search", "train", "transfer")


def bits(model):
    state = rst_hub.from_pretrained(model).state_dict()
    return digest(state, state)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    settings = runs.preset(SearchSettings, "digits", **TINY, output=tmp_path_factory.mktemp("runs") / "run")
    return runs.search(settings)


def test_a_search_from_python_returns_what_it_found_and_is_that_of_the_command(found, tmp_path):
    assert main(["search", *WORDS, "--output", str(tmp_path / "run")]) == 0
    assert bits(tmp_path / "run" / "ticket") == bits(found.model)
    assert found.model == found.folder / "ticket"
    (ticket,) = found.results.items()
    assert ticket[0] == "r0.1"
    assert ticket[1] == rst_hub.Ticket.load(found.model).provenance
    assert ticket[1]["results"]["samples"] == 50
    settings = json.loads((found.folder / "settings.json").read_text())["settings"]
    assert settings["model"] == "test_resnet"


def test_a_set_returns_every_ticket(tmp_path):
    settings = runs.preset(SearchSettings, "digits", **TINY, remaining_ratios="0.1,0.3", output=str(tmp_path / "run"))
    found = runs.search(settings)
    assert list(found.results) == ["r0.1", "r0.3"]
    for name, said in found.results.items():
        assert said == rst_hub.Ticket.load(found.model, name).provenance
    with pytest.raises(SettingsError, match="this search has ended"):
        runs.search(dataclasses.replace(settings, resume=True))


def test_training_and_measurements_return_what_they_wrote(found, tmp_path):
    trained = runs.train(runs.preset(TrainSettings, "digits", **TINY, output=tmp_path / "dense"))
    assert trained.results == json.loads((tmp_path / "dense" / "results.json").read_text())
    assert trained.model == tmp_path / "dense" / "model"
    few = {"samples": 20, "batch_size": 20, "eps": "2"}
    measured = runs.benchmark(
        BenchmarkSettings(ticket=str(found.model), attacks="fgsm", flag_samples=0, output=str(tmp_path / "b"), **few)
    )
    assert measured.results == json.loads((tmp_path / "b" / "results.json").read_text())
    assert (measured.folder, measured.model) == (tmp_path / "b", None)
    both = f"{found.model},{trained.model}"
    crossed = runs.transfer(TransferSettings(tickets=both, attack="fgsm", output=tmp_path / "t", **{**few, "eps": 2}))
    assert crossed.results == json.loads((tmp_path / "t" / "transfer.json").read_text())


def test_settings_made_in_python_are_checked_as_those_of_a_command_line():
    wrong = {
        "epochs = '3' must be of type int": SearchSettings(epochs="3"),
        "epochs = None must be of type int": SearchSettings(epochs=None),
        "epochs = True must be of type int": SearchSettings(epochs=True),
        "attack = 'pdg' must be one of pgd, fgsm, fgsm-rs": SearchSettings(attack="pdg"),
        "--eps 300.0: give a budget": SearchSettings(eps=300),
        "remaining ratio 2.0": SearchSettings(remaining_ratio=2),
        "for a set, not both": SearchSettings(remaining_ratio=0.3, remaining_ratios="0.1,0.2"),
        "2 things are wrong: (1) lr = '1' must be of type float; (2) --momentum 1.0": SearchSettings(
            lr="1", momentum=1
        ),
        "settings are of TrainSettings: give SearchSettings(...)": TrainSettings(),
        "settings are of type: give SearchSettings(...)": SearchSettings,
    }
    for message, settings in wrong.items():
        with pytest.raises(SettingsError) as caught:
            runs.search(settings)
        assert message in str(caught.value)
    with pytest.raises(SettingsError, match="--ticket '': give a name"):
        runs.benchmark(BenchmarkSettings())
    with pytest.raises(SettingsError, match="--eps x: give budgets"):
        runs.benchmark(BenchmarkSettings(ticket="a", eps="x"))
    with pytest.raises(SettingsError, match="--tickets '': give a name"):
        runs.transfer(TransferSettings())
    with pytest.raises(SettingsError, match=r"preset 'digit' is not known\. Did you mean digits"):
        runs.preset(SearchSettings, "digit")
    with pytest.raises(SettingsError, match=r"'epoch' is no setting of SearchSettings\. Did you mean epochs"):
        runs.preset(SearchSettings, "digits", epoch=3)


def test_a_room_s_function_stays_when_its_file_is_imported():
    for name in RECIPES:
        module = importlib.import_module(f"rst_hub.runs.{name}")
        function = getattr(runs, name)
        assert function is getattr(module, name)
        assert function is not module
        assert name in dir(runs)
    with pytest.raises(AttributeError, match="has no attribute 'serach'"):
        runs.serach  # noqa: B018


def started(*words):
    command = [sys.executable, "-W", "error::RuntimeWarning", *words]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=280, check=False)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_starts_as_a_module_and_by_the_command(name):
    for words in (["rst_hub.cli", name], [f"rst_hub.runs.{name}"]):
        process = started("-m", *words, "--ouptut", "x")
        assert process.returncode == 2
        assert process.stderr.startswith("error: ")
        assert "command line: '--ouptut' is not known. Did you mean --output" in process.stderr
        assert process.stderr.count("\n") == 1


@pytest.mark.slow
def test_accelerate_launches_a_module_in_two_processes(tmp_path):
    words = ["-m", "rst_hub.runs.search", *WORDS, "--output", str(tmp_path / "run")]
    process = started(*launch(2), *words)
    assert process.returncode == 0, process.stderr[-2000:]
    said = rst_hub.Ticket.load(tmp_path / "run" / "ticket").provenance
    assert said["processes"] == [2]
