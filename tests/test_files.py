import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, ROOT

import rst_hub
from rst_hub import Ticket
from rst_hub.cards.card import render, write_card
from rst_hub.cli import main
from rst_hub.errors import ArchitectureError, IntegrityError, RstHubError, SettingsError, TicketError
from rst_hub.files import (
    called,
    check_fetched,
    given_path,
    is_folder,
    is_snapshot,
    new_folder,
    read_inside,
    strict_json,
    write_file,
    write_files,
)
from rst_hub.hub.loading import load_tickets, look
from rst_hub.hub.push import plan_push, push_to_hub
from rst_hub.networks.dense import load_dense, load_timm
from rst_hub.tickets.export import export
from rst_hub.tickets.ticket import ticket_names


def test_a_file_is_replaced_whole_and_nothing_lies_beside_it(tmp_path):
    write_file(tmp_path / "a", b"old")
    write_file(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]


def test_a_folder_appears_whole(tmp_path):
    (tmp_path / "made" / "empty").mkdir(parents=True)
    for name in ("deep/er", "made/empty"):
        with new_folder(tmp_path / name) as beside:
            (beside / "a").write_text("a")
            assert not (tmp_path / name / "a").exists()
        assert [path.name for path in (tmp_path / name).iterdir()] == ["a"]
        assert [path.name for path in (tmp_path / name).parent.iterdir()] == [(tmp_path / name).name]


def test_a_folder_that_fails_half_way_never_appears(tmp_path):
    def fail():
        with new_folder(tmp_path / "b") as beside:
            (beside / "a").write_text("a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("mine")
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "b"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["b", "mine"]


def test_strict_json_reads_what_every_reader_reads_alike():
    assert strict_json(b'{"a": [1, 2.5, "\xc3\xa9", null, true]}') == {"a": [1, 2.5, "\u00e9", None, True]}
    refused = {
        "a key twice": b'{"a": 1, "a": 1}',
        "a key twice inside": b'[{"b": {"a": 1, "a": 2}}]',
        "NaN": b"[NaN]",
        "infinity": b"[-Infinity]",
        "a float beyond float64": b"[1e999]",
        "a lone surrogate": b'["\\ud800"]',
        "a byte-order mark": b"\xef\xbb\xbf{}",
        "no UTF-8": b'["\xff"]',
        "many lists": b"[" + b"[]," * 100_000 + b"[]]",
        "many keys": b"{" + b",".join(b'"%d":1' % n for n in range(200_001)) + b"}",
        "more behind it": b"{} {}",
    }
    for content in refused.values():
        with pytest.raises(ValueError):  # noqa: PT011  (of many messages)
            strict_json(content)
    assert len(refused) == 11


def test_read_inside_reads_regular_files_of_the_folder_alone(tmp_path):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.write_bytes(b"secret")
    (folder / "file").write_bytes(b"12345")
    (folder / "inner").symlink_to(folder / "file")
    (folder / "outer").symlink_to(outside)
    os.mkfifo(folder / "fifo")
    assert read_inside(folder, "file", 5) == read_inside(folder, "inner", 5) == b"12345"
    for name, limit, message in (
        ("file", 4, "too large"),
        ("outer", 99, "outside of its folder"),
        ("../outside", 99, "outside of its folder"),
        ("fifo", 99, "no file"),
        ("absent", 99, "no file"),
    ):
        with pytest.raises(ValueError, match=message):
            read_inside(folder, name, limit)


def test_only_a_snapshot_may_link_to_the_caches_blobs(tmp_path):
    for name, allowed in (("models--org--x", True), ("other", False)):
        snapshot = tmp_path / name / "snapshots" / "0123"
        blobs = tmp_path / name / "blobs"
        for path in (snapshot, blobs):
            path.mkdir(parents=True)
        (blobs / "abc").write_bytes(b"x")
        (snapshot / "file").symlink_to(blobs / "abc")
        assert is_snapshot(snapshot) is allowed
        if allowed:
            assert read_inside(snapshot, "file", 9) == b"x"
        else:
            with pytest.raises(ValueError, match="outside"):
                read_inside(snapshot, "file", 9)


TICKET = "ticket-r0.1.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 268336\n"


def readers(folder):
    """Return everything that reads a ticket folder, each as a function without arguments."""
    return {
        "from_pretrained": lambda: rst_hub.from_pretrained(folder),
        "features": lambda: rst_hub.from_pretrained(folder, features_only=True),
        "r2s_from_pretrained": lambda: rst_hub.r2s_from_pretrained(folder),
        "robustbench_model": lambda: rst_hub.robustbench_model(folder),
        "load_tickets": lambda: load_tickets(folder),
        "look": lambda: look(folder),
        "load": lambda: Ticket.load(folder),
        "ticket_names": lambda: ticket_names(folder),
        "render": lambda: render(folder),
        "write_card": lambda: write_card(folder),
        "push_to_hub": lambda: push_to_hub(folder, "org/rst-x"),
        "plan_push": lambda: plan_push(folder, "org/rst-x"),
    }


def test_a_git_lfs_pointer_is_said_to_be_one_and_what_fetches_the_file(folder, capsys):
    write_card(folder)
    (folder / "results").mkdir()
    cases = {
        "config.json": set(readers(folder)),
        "ticket-r0.1.safetensors": set(readers(folder)) - {"ticket_names"},
        "results/a.json": {"render", "write_card", "push_to_hub", "plan_push"},
        "card.json": {"render", "write_card", "push_to_hub", "plan_push"},
        "README.md": {"write_card", "push_to_hub", "plan_push"},
        "robust_accuracy.png": {"push_to_hub", "plan_push"},
    }
    refused = 0
    for name, who in cases.items():
        path = folder / name
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(POINTER)
        for reader in who:
            with pytest.raises(TicketError, match="install git-lfs, and run `git lfs pull`") as no:
                readers(folder)[reader]()
            assert str(path) in str(no.value)
            assert str(no.value).count(str(path)) == 1
            assert not isinstance(no.value, IntegrityError)
            refused += 1
        path.unlink() if before is None else path.write_bytes(before)
    assert refused == 12 + 11 + 4 + 4 + 3 + 2
    (folder / "ticket-r0.1.safetensors").write_bytes(POINTER)
    for command in (["info"], ["verify"], ["export", "--to", "onnx"], ["push", "org/rst-x"]):
        assert main([command[0], str(folder), *command[1:]]) == 2
        printed = capsys.readouterr()
        assert "git lfs pull" in printed.err
        assert "times as many" not in printed.out
    pointer_like = folder / "notes"
    pointer_like.write_bytes(POINTER + b"x" * 2000)  # a file of that size is no pointer
    check_fetched(pointer_like)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pointer_in_a_dense_model_is_said_to_be_one(ticket, tmp_path, name):
    export(ticket, tmp_path / "dense", "safetensors")
    load_dense(tmp_path / "dense")
    (tmp_path / "dense" / name).write_bytes(POINTER)
    for load in (load_dense, lambda path: load_timm(f"local-dir:{path}")):
        with pytest.raises(TicketError, match="run `git lfs pull`"):
            load(tmp_path / "dense")


def test_a_given_path_is_expanded_or_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert given_path("~/x") == tmp_path / "x"
    assert given_path("a/~b") == Path("a/~b")
    assert given_path("donn\udce9es") == Path("donn\udce9es")
    refused = {
        "~no-such-user/x": "there is no such user",
        "a\0b": "NUL",
        "a\ud800b": "no path of this system",
        5: "is no path",
        None: "is no path",
        b"x": "is no path",
    }
    for path, message in refused.items():
        with pytest.raises(SettingsError, match=message):
            given_path(path)
    assert len(refused) == 6
    for path in ("absent", "a" * 5000, "a\0b", "file/below"):
        (tmp_path / "file").write_text("")
        assert not is_folder(tmp_path / path)


def writers(ticket, path):
    return {
        "save": lambda: ticket.save(path),
        "export": lambda: export(ticket, path, "safetensors"),
        "load_dense": lambda: load_dense(path),
        "cache_dir": lambda: rst_hub.from_pretrained("org/name", cache_dir=path),
        "look's cache_dir": lambda: look("org/name", cache_dir=path),
    }


@pytest.mark.parametrize("path", ["~no-such-user/x", "a\0b", "a\ud800b", "x" * 5000, "x" * 300 + "/y"])
def test_a_path_that_cannot_be_one_is_an_error_of_ours_everywhere(ticket, folder, path, capsys):
    tried = 0
    for name, call in {**readers(path), **writers(ticket, path)}.items():
        with pytest.raises(RstHubError) as refusal:
            call()
        assert len(str(refusal.value)) > 20, name
        tried += 1
    with pytest.raises(RstHubError):
        write_card(folder, results=[path])
    assert tried == 17
    if "\0" not in path and "\ud800" not in path:
        for command in (["info", path], ["verify", path], ["card", path], ["push", path, "org/rst-x"]):
            assert main(command) == 2
        assert main(["export", str(folder), "--to", "safetensors", "--output", path]) == 2
        assert main(["card", str(folder), "--results", path]) == 2
        assert capsys.readouterr().err.count("error: ") == 6


def test_a_home_is_found_wherever_a_path_comes_in(ticket, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert ticket.save("~/t") == tmp_path / "t"
    for reader in ("from_pretrained", "look", "load", "ticket_names", "render", "write_card"):
        assert readers("~/t")[reader]()
    assert main(["export", "~/t", "--to", "safetensors", "--output", "~/dense"]) == 0
    load_dense("~/dense")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "t"]


def test_a_folder_in_place_of_a_file_is_an_error_of_ours(folder):
    write_card(folder, about={"license": "mit"})
    tried = 0
    for name in ("config.json", TICKET, "card.json", "README.md"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).mkdir()
        for reader in ("write_card", "push_to_hub"):
            with pytest.raises(RstHubError, match=name):
                readers(folder)[reader]()
            tried += 1
        (folder / name).rmdir()
        (folder / name).write_bytes(kept)
    assert tried == 8


STRANGER = """
import json, os, sys
import test_files
os.setgroups([]), os.setgid(65534), os.setuid(65534)  # nobody, to whom the folder is closed
found = {}
for name, reader in test_files.readers(sys.argv[1]).items():
    try:
        found[name] = repr(reader())
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may become somebody else")
@pytest.mark.parametrize(
    "closed", ["above", "folder", "unlistable", "config.json", "ticket-r0.1.safetensors", "results"]
)
def test_what_may_not_be_read_is_an_error_of_ours(ticket, closed):
    readable = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    try:
        folder = ticket.save(readable / "above" / "ticket")
        write_card(folder)
        (folder / "results").mkdir()
        for path in (readable, readable / "above", folder):
            path.chmod(0o755)
        path = {"above": folder.parent, "folder": folder, "unlistable": folder}.get(closed, folder / closed)
        path.chmod(0o311 if closed == "unlistable" else 0)
        home = {
            "HOME": str(readable),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, str(folder)],
            env={**ENVIRONMENT, **home, "HF_TOKEN": "hf_writer"},
            capture_output=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr.decode()
        found = json.loads(done.stdout.decode().splitlines()[-1])
        needed = {"results": {"render", "write_card", "push_to_hub", "plan_push"}}.get(closed, set(readers(folder)))
        needed -= {"ticket_names", "look"} if closed == "ticket-r0.1.safetensors" else set()
        assert len(found) == 12
        for name in needed:
            kind, _, said = found[name].partition(": ")
            assert kind in ("TicketError", "SettingsError"), found[name]
            assert "Permission denied" in said, found[name]
            assert str(path if closed != "above" else readable) in said, found[name]
        if closed == "ticket-r0.1.safetensors":
            assert "PermissionError" not in found["look"]
    finally:
        for path in (readable / "above", readable / "above" / "ticket"):
            path.chmod(0o755)
        shutil.rmtree(readable)


def test_an_error_names_the_path_that_somebody_knows_for_a_hidden_one(tmp_path):
    hidden, known = tmp_path / ".hidden", tmp_path / "known"
    with pytest.raises(ArchitectureError, match=r"^bad .*/known/a$") as refusal, called(hidden, known):
        raise ArchitectureError(f"bad {hidden}/a") from ValueError(str(hidden))
    assert str(hidden) not in "".join(traceback.format_exception(refusal.value))
    with pytest.raises(FileNotFoundError) as missing, called(hidden, known):
        (hidden / "a").read_bytes()
    assert missing.value.filename == str(known / "a")
    with pytest.raises(KeyError), called(hidden, known):
        raise KeyError(str(hidden))
    (tmp_path / "taken").mkdir()
    for write in (lambda path: write_files({path: b""}), _fill):
        with pytest.raises(OSError, match=r"taken|below") as failure:
            write(tmp_path / "taken" / "file" / "below" if write is not _fill else tmp_path / "taken")
        assert "/." not in str(failure.value), failure.value


def _fill(path):
    (path / "mine").write_text("")
    with new_folder(path) as beside:
        (beside / "a").write_text("")


def test_an_export_that_fails_names_the_folder_that_was_asked_for(ticket, tmp_path, monkeypatch):
    import rst_hub.tickets.export as module

    def fail(folder):
        raise ArchitectureError(f"{folder} holds no dense model")

    monkeypatch.setattr(module, "load_dense", fail)
    with pytest.raises(ArchitectureError) as refusal:
        export(ticket, tmp_path / "out", "safetensors")
    assert str(refusal.value) == f"{tmp_path / 'out'} holds no dense model"
    with contextlib.suppress(FileNotFoundError):
        assert list(tmp_path.iterdir()) == []
