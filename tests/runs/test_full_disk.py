"""A disk that is full: one line, nothing lost, and --resume goes on to the same result."""

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ENVIRONMENT, ROOT, make_popup

import rst_hub
from rst_hub.errors import TicketError
from rst_hub.evaluation.accuracy import BatchOutcome, _append, read_journal
from rst_hub.files import append_line, new_folder, write_file, write_files
from rst_hub.networks.dense import save_dense
from rst_hub.runs import settings as settings
from rst_hub.tickets.digests import digest

benchmark = importlib.import_module("rst_hub.runs.benchmark")
search = importlib.import_module("rst_hub.runs.search")
train = importlib.import_module("rst_hub.runs.train")
transfer = importlib.import_module("rst_hub.runs.transfer")

TINY = ("--model", "test_resnet", "--holdout", "60", "--test-samples", "60", "--batch-size", "64", "--epochs", "2")


def on_a_small_disk(kilobytes, recipe, *arguments):
    """Run a recipe in a process that cannot make a file grow beyond some kilobytes; return what it printed."""
    command = ["bash", "-c", 'ulimit -f "$0"; exec "$@"', str(kilobytes), sys.executable]
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command += [str(ROOT / "recipes" / recipe), *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert process.returncode == 2, process.stderr[-2000:]
    error = process.stderr.splitlines()[-1]
    assert error.startswith(("error: ", "\rerror: ")) or "error: " in error
    assert "Traceback" not in process.stderr
    assert "File too large" in error
    return error


def learned(folder):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    return digest(state, state)


@pytest.fixture(scope="module")
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that resume or are resumed
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def searched(threads, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    search.main([*TINY, "--output", str(folder)])
    return folder


@pytest.mark.usefixtures("threads")
def test_a_search_that_fills_the_disk_goes_on_to_the_same_bits(searched, tmp_path):
    output = tmp_path / "run"
    error = on_a_small_disk(8, "search.py", *TINY, "--output", output)  # no room for the first checkpoint
    assert f"{output / 'checkpoint.pt'}: File too large: make room there, and add --resume" in error
    assert [path.name for path in output.iterdir()] == ["settings.json"]
    search.main([*TINY, "--output", str(output), "--resume"])
    assert learned(output) == learned(searched)
    tickets = [rst_hub.Ticket.load(folder / "ticket") for folder in (output, searched)]
    assert digest(tickets[0].masks, tickets[0].masks) == digest(tickets[1].masks, tickets[1].masks)


@pytest.mark.usefixtures("threads")
def test_a_ticket_that_does_not_fit_leaves_the_checkpoint_whole(searched, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(searched, output, ignore=shutil.ignore_patterns("ticket"))
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    error = on_a_small_disk(16, "search.py", *TINY, "--output", output, "--resume")
    assert "cannot be written" in error
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    search.main([*TINY, "--output", str(output), "--resume"])
    tickets = [rst_hub.Ticket.load(folder / "ticket") for folder in (output, searched)]
    assert digest(tickets[0].masks, tickets[0].masks) == digest(tickets[1].masks, tickets[1].masks)


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_a_training_that_fills_the_disk_goes_on(tmp_path):
    output, whole = tmp_path / "run", tmp_path / "whole"
    train.main([*TINY, "--output", str(whole)])
    shutil.copytree(whole, output, ignore=shutil.ignore_patterns("model", "results.json"))
    error = on_a_small_disk(100, "train.py", *TINY, "--output", output, "--resume")  # no room for the weights
    assert "model.safetensors: File too large" in error
    assert {path.name for path in output.iterdir()} == {"checkpoint.pt", "metrics.jsonl", "settings.json"}
    train.main([*TINY, "--output", str(output), "--resume"])
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, output)]
    assert weights[0] == weights[1]


def test_a_dense_model_that_does_not_fit_is_an_error_of_the_system(monkeypatch, tmp_path):
    model, written = make_popup().model, Path.write_bytes

    def full(path, content):
        if "safetensors" in path.name:
            raise OSError(28, "No space left on device")
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: .*model.safetensors"):
        save_dense(model, tmp_path / "model", "test_resnet", {"num_classes": 10})
    assert os.listdir(tmp_path) == []


def numbers(path):
    """Return a result without what differs between any two measurements."""
    result = json.loads(path.read_text())
    for row in result.get("attacks", ()):
        row.update(seconds=0, images_per_second=0)
    return {key: value for key, value in result.items() if key not in ("device", "flags")}


@pytest.mark.usefixtures("threads")
@pytest.mark.slow
def test_a_benchmark_that_fills_the_disk_keeps_its_whole_lines(searched, tmp_path):
    few = ("--ticket", searched / "ticket", "--samples", 40, "--batch-size", 10, "--attacks", "pgd20")
    arguments = [*map(str, few), "--flag-samples", "0", "--output"]
    benchmark.main([*arguments, str(tmp_path / "whole")])
    output = tmp_path / "run"
    error = on_a_small_disk(1, "benchmark.py", *arguments, output)
    assert "0.jsonl: File too large: make room there, and add --resume" in error
    (journal,) = (output / "journal").rglob("0.jsonl")
    parts = read_journal(journal)
    assert 1 <= len(parts) < 4
    assert len(journal.read_bytes().splitlines()) == len(parts)
    assert journal.read_bytes().endswith(b"\n")
    assert not (output / "results.json").exists()
    benchmark.main([*arguments, str(output), "--resume"])
    assert numbers(output / "results.json") == numbers(tmp_path / "whole" / "results.json")


@pytest.mark.usefixtures("threads")
@pytest.mark.slow
def test_a_transfer_matrix_that_fills_the_disk_keeps_its_journal(searched, tmp_path):
    pytest.importorskip("matplotlib")
    other = rst_hub.Ticket.draw(make_popup(remaining_ratio=0.2), provenance={"settings": {"dataset": "digits"}})
    folder = other.save(tmp_path / "other")
    tickets = f"{searched / 'ticket'},{folder}"
    arguments = ["--tickets", tickets, "--dataset", "digits", "--samples", "20", "--batch-size", "10", "--output"]
    transfer.main([*arguments, str(tmp_path / "whole")])
    output = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", output, ignore=shutil.ignore_patterns("transfer.*"))
    journal = {path: path.read_bytes() for path in output.rglob("0.jsonl")}
    assert len(journal) == 1
    error = on_a_small_disk(12, "transfer.py", *arguments, output, "--resume")  # no room for the heat map
    assert "transfer.png: File too large" in error
    assert {path: path.read_bytes() for path in journal} == journal
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
    transfer.main([*arguments, str(output), "--resume"])
    assert numbers(output / "transfer.json") == numbers(tmp_path / "whole" / "transfer.json")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "recipes" / "search.py"), *TINY, "--output", str(tmp_path / "run")]
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=200, check=False
        )
    assert process.returncode == 2
    assert "perhaps the one that the output is written to: No space left on device" in process.stderr
    assert "Traceback" not in process.stderr
    assert "Exception ignored" not in process.stderr


# What writes


def limited(code, *arguments):
    """Run code in a process that cannot make a file larger than a kilobyte; return what it printed."""
    command = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=100, check=True)
    return process.stdout


def test_a_line_is_added_whole_or_not_at_all(tmp_path):
    code = """
import sys
from pathlib import Path
from rst_hub.files import append_line
path = Path(sys.argv[1])
try:
    for number in range(9):
        append_line(path, str(number).encode() * 300)
except OSError as error:
    print(error.errno, error.filename)
append_line(path, b"short")
"""
    path = tmp_path / "journal"
    assert limited(code, path) == f"27 {path}\n"
    assert path.read_bytes().splitlines() == [b"0" * 300, b"1" * 300, b"2" * 300, b"short"]
    path.write_bytes(b"whole\nto")
    append_line(path, b"next")
    assert path.read_bytes() == b"whole\nto\nnext\n"


def test_a_journal_that_a_full_disk_ended_goes_on_with_whole_lines(tmp_path):
    journal, one = tmp_path / "journal", BatchOutcome(0, [1.0], [[1]], [0.0], [0.0], [0], 0.5)
    _append(journal, one)
    _append(journal, one)
    assert read_journal(journal) == [one, one]
    assert journal.read_bytes().count(b"\n") == 2


def test_files_that_do_not_fit_leave_nothing_and_name_themselves(tmp_path):
    code = """
import sys
from pathlib import Path
from rst_hub.files import new_folder, write_files
root = Path(sys.argv[1])
try:
    write_files({root / "a": b"new", root / "b": bytes(5000)})
except OSError as error:
    print(error.filename)
try:
    with new_folder(root / "folder") as beside:
        write_files({beside / "a": b"a", beside / "b": bytes(5000)})
except OSError as error:
    print(Path(error.filename).name)
"""
    write_file(tmp_path / "a", b"old")
    assert limited(code, tmp_path) == f"{tmp_path / 'b'}\nb\n"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}
    write_files({tmp_path / "a": b"new", tmp_path / "b": b"b"})
    with new_folder(tmp_path / "folder") as beside:
        write_file(beside / "a", b"a")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "a", "b", "folder"]


def test_a_warning_of_autoattack_that_cannot_be_kept_ends_the_attack(tmp_path):
    warning, blocked = "Warning: it seems to be a randomized defense!", tmp_path / "absent" / "0.warnings"
    with benchmark.autoattack_warnings(tmp_path / "0.warnings"):
        logging.getLogger("auto-attack").warning(warning)
        logging.getLogger("auto-attack").info("not a warning")
    assert (tmp_path / "0.warnings").read_text() == warning + "\n"
    with pytest.raises(FileNotFoundError) as caught, benchmark.autoattack_warnings(blocked):
        logging.getLogger("auto-attack").warning(warning)
    assert caught.value.filename == str(blocked)


def test_a_set_that_dies_between_its_two_files_can_save_that_ticket_anew(ticket, tmp_path, monkeypatch):
    from rst_hub import files

    folder, replace, calls = ticket.save(tmp_path / "set"), files.os.replace, []

    def die(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    first, again = (
        rst_hub.Ticket.draw(make_popup(remaining_ratio=0.2), provenance={"seconds": seconds}) for seconds in (1, 2)
    )
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            first.save(folder)
    assert list(search.ended(folder, settings.SearchSettings())) == rst_hub.tickets.ticket.ticket_names(folder)[:1]
    again.save(folder)  # a search that is made again takes other seconds
    assert rst_hub.Ticket.load(folder, "r0.2").provenance["seconds"] == 2
    rst_hub.Ticket.load(folder, "r0.1").verify()
    with pytest.raises(TicketError, match="already holds another ticket"):
        first.save(folder)
