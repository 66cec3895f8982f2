import dataclasses
import json
import subprocess
import sys

import hub_server
import pytest
from conftest import ENVIRONMENT, make_popup
from hub_server import REPOS, REQUESTS, add_commit

from rst_hub import Ticket
from rst_hub.choices import IN_A_SEARCH, NAMES
from rst_hub.cli import main
from rst_hub.masks.patterns import PATTERNS
from rst_hub.runs.objectives import OBJECTIVES
from rst_hub.runs.own import SIGNATURES
from rst_hub.runs.settings import SearchSettings


def test_info_says_what_a_folder_holds(folder, capsys):
    assert main(["info", str(folder)]) == 0
    words = capsys.readouterr().out
    size = (folder / "ticket-r0.1.safetensors").stat().st_size
    for part in ("r0.1 of test_resnet", "seed 0, signed_kaiming_constant", f"{size:,} bytes", "not measured"):
        assert part in words
    kept = Ticket.load(folder).kept
    assert f"{kept:,} weights kept, 10.00% of each layer" in words


def test_info_gives_every_measured_number_with_its_conditions(ticket, tmp_path, capsys):
    attack = {"name": "pgd", "norm": "Linf", "eps_over_255": 8.0, "steps": 20, "step_size_over_255": 2, "restarts": 1}
    results = {"split": "test", "samples": 500, "clean_accuracy": 99.25, "robust_accuracy": 90.5}
    provenance = {
        "dataset": {"name": "digits"},
        "results": {**results, "attack": {**attack, "seed": 3}},
        "command": "recipes/search.py --seed 3",
    }
    dataclasses.replace(ticket, provenance=provenance).save(tmp_path / "t")
    assert main(["info", str(tmp_path / "t")]) == 0
    words = capsys.readouterr().out
    assert "99.25 % (digits, test split, 500 samples)" in words
    assert "90.50 % (PGD-20, Linf, eps 8/255, step 2/255, 1 restart, seed 3)" in words
    assert "recipes/search.py --seed 3" in words


def test_verify_says_so_in_words(folder, capsys):
    assert main(["verify", str(folder)]) == 0
    words = capsys.readouterr().out
    assert "SHA-256" in words
    assert "bit for bit" in words
    assert words.endswith("verified: 1 of 1 tickets\n")


def test_what_is_wrong_goes_to_stderr_and_the_status(folder, capsys):
    (folder / "ticket-r0.1.safetensors").write_bytes(b"")
    assert main(["verify", str(folder)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "ticket-r0.1.safetensors" in printed.err
    (folder / "config.json").write_text("{}")
    for command in ("info", "verify", "card"):
        assert main([command, str(folder)]) == 2
        assert "config.json is another kind of model's" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["infos", str(folder)])


def test_it_runs_as_a_program(folder):
    command = [sys.executable, "-m", "rst_hub.cli", "verify", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert "verified: 1 of 1" in run.stdout
    piped = subprocess.run(
        ["bash", "-c", '"$@" | true; exit "${PIPESTATUS[0]}"', "bash", *command],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    )
    assert piped.stderr == ""


def test_export_writes_a_dense_checkpoint(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(folder), "--to", "safetensors"]) == 0
    shown = capsys.readouterr().out
    assert "wrote test_resnet-r0.1-safetensors (" in shown
    assert "outputs are the ticket's to 0.0e+00" in shown
    assert (tmp_path / "test_resnet-r0.1-safetensors" / "model.safetensors").is_file()
    assert main(["export", str(folder), "--to", "safetensors"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["export", str(folder), "--to", "safetensors", "--ticket", "r0.2"]) == 2
    assert "holds no ticket 'r0.2'" in capsys.readouterr().err


@pytest.fixture
def hub(monkeypatch):
    hub_server.reset()
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    yield
    hub_server.reset()


def test_push_publishes_and_a_dry_run_says_what_it_would(folder, hub, capsys):
    before = sorted(path.name for path in folder.iterdir())
    assert main(["push", str(folder), "org/rst-x", "--private", "--dry-run"]) == 0
    words = capsys.readouterr().out
    assert "org/rst-x would be made, private; one commit on branch main would have:" in words
    for name in ("README.md", "card.json", "config.json", "ticket-r0.1.safetensors"):
        assert f"bytes  {name}\n" in words
    assert REPOS == {}
    assert sorted(path.name for path in folder.iterdir()) == before
    assert main(["push", str(folder), "org/rst-x", "--private", "--message", "First"]) == 0
    assert f"published {folder}: {hub_server.ENDPOINT}/org/rst-x/commit/" in capsys.readouterr().out
    assert REPOS["org/rst-x"].private
    assert "First" in [commit.message for commit in REPOS["org/rst-x"].commits.values()]
    assert main(["push", str(folder), "org/rst-x", "--dry-run", "--create-pr"]) == 0
    words = capsys.readouterr().out
    assert "org/rst-x is there; nothing to send: its branch main holds all of" in words
    assert words.count("  same  ") == 4
    Ticket.draw(make_popup(remaining_ratio=0.2)).save(folder)
    assert main(["push", str(folder), "org/rst-x", "--dry-run", "--create-pr"]) == 0
    words = capsys.readouterr().out
    assert "org/rst-x is there; one commit on a pull request would have:" in words
    assert (words.count("  same  "), words.count("  send  ")) == (2, 3)


def test_a_push_that_sends_nothing_says_so_and_where_the_folder_is(folder, hub, capsys):
    def said(*options):
        before = {name: dict(repo.commits) for name, repo in REPOS.items()}
        assert main(["push", str(folder), "org/rst-x", *options]) == 0
        return capsys.readouterr().out, {name: dict(repo.commits) for name, repo in REPOS.items()} != before

    url = f"{hub_server.ENDPOINT}/org/rst-x"
    assert said() == (f"published {folder}: {url}/commit/{hub_server.head('org/rst-x')}\n", True)
    held = f"holds all of {folder}: {url}/commit/{hub_server.head('org/rst-x')}\n"
    assert said() == (f"nothing to send: branch main of org/rst-x {held}", False)
    no_request = "nothing to send, no pull request was opened: branch main of org/rst-x"
    assert said("--create-pr") == (f"{no_request} {held}", False)
    assert REPOS["org/rst-x"].pull_requests == {}
    assert said("--dry-run")[0].startswith(f"org/rst-x is there; nothing to send: its branch main {held}  same")
    made = f"branch dev would be made of main, which holds all of {folder}; nothing else to send"
    assert said("--dry-run", "--revision", "dev")[0].startswith(f"org/rst-x is there; {made}\n  same")
    assert said("--revision", "dev") == (f"the branch was made; nothing to send: branch dev of org/rst-x {held}", False)
    Ticket.draw(make_popup(remaining_ratio=0.2)).save(folder)
    assert said("--create-pr") == (f"published {folder}: {url}/discussions/1\n", True)
    held = f"pull request 1 of org/rst-x holds all of {folder}: {url}/discussions/1\n"
    assert said("--create-pr") == (f"nothing to send, no pull request was opened: {held}", False)
    words, _ = said("--create-pr", "--dry-run")
    assert words.startswith("org/rst-x is there; nothing to send: its pull request 1 holds all of")
    assert words.count("  send  ") == 0
    assert said("--dry-run")[0].count("  send  ") == 3  # the branch itself still lacks it
    assert said()[0].startswith("published ")
    assert said("--create-pr")[0].startswith("nothing to send, no pull request was opened: branch main of")


def test_card_writes_the_readme(folder, capsys):
    assert main(["card", str(folder)]) == 0
    assert f"wrote {folder / 'README.md'} (" in capsys.readouterr().out
    assert "not measured" in (folder / "README.md").read_text()


def test_list_is_a_table_and_obeys_no_control_characters(folder, hub, capsys):
    assert main(["push", str(folder), "org/rst-x"]) == 0
    capsys.readouterr()
    assert main(["list"]) == 0
    head, row, end = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["repository", "ticket", "architecture"]
    assert row.split()[:4] == ["org/rst-x", "r0.1", "test_resnet", "0.1"]
    assert "not measured" in row
    assert end.startswith("1 tickets of 1 repositories")
    (folder / "README.md").write_text('---\nlibrary_name: rst-hub\nrst: {architecture: "a\\x1b[2Jb"}\n---\n')
    add_commit("org/evil", folder)
    assert main(["list", "--search", "evil"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    forged = "x\\norg/good  r0.05  resnet50  0.05  1  digits  99.00  98.00  PGD"
    (folder / "README.md").write_text(f'---\nlibrary_name: rst-hub\nrst: {{tickets: [{{name: "{forged}"}}]}}\n---\n')
    add_commit("org/evil", folder)
    assert main(["list", "--search", "evil"]) == 0
    assert not any(line.startswith("org/good") for line in capsys.readouterr().out.splitlines())
    for options in (["--author", "nobody"], ["--limit", "0"]):
        assert main(["list", *options]) == 0
        assert "0 tickets" in capsys.readouterr().out


def test_info_reads_a_repository_without_its_tickets(folder, hub, capsys):
    assert main(["info", str(folder)]) == 0
    here = capsys.readouterr().out
    add_commit("org/rst-x", folder)
    assert main(["info", "org/rst-x"]) == 0
    assert capsys.readouterr().out == here.replace(str(folder), "org/rst-x")
    assert not any("safetensors" in request for request in REQUESTS)
    assert main(["info", "org/rst-x", "--revision", "v9"]) == 2
    assert "has no revision v9" in capsys.readouterr().err
    config = json.loads((folder / "config.json").read_text())
    config["rst"]["architecture"] = config["model_args"]["base"] = "\x1b[2Jnet"
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["info", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "its dense size is not known here" in printed
    assert "\x1b" not in printed


def test_attacks_lists_what_the_options_take(capsys):
    assert main(["attacks"]) == 0
    words = capsys.readouterr().out
    taken = [*NAMES, *IN_A_SEARCH, *OBJECTIVES, *PATTERNS]
    assert [line.split()[0] for line in words.splitlines() if line.startswith("  ")][: len(taken)] == taken
    assert len(taken) == 20
    choices = {f.name: f.metadata["choices"] for f in dataclasses.fields(SearchSettings)}
    assert (choices["attack"], choices["loss"]) == (tuple(IN_A_SEARCH), tuple(OBJECTIVES))
    for signature in SIGNATURES.values():
        assert signature in words
