import subprocess
import sys

import pytest
from conftest import ENVIRONMENT

from rst_hub import Ticket
from rst_hub.cli import main


def test_info_says_what_a_folder_holds(folder, capsys):
    assert main(["info", str(folder)]) == 0
    words = capsys.readouterr().out
    size = (folder / "ticket-r0.1.safetensors").stat().st_size
    for part in ("r0.1 of test_resnet", "seed 0, signed_kaiming_constant", f"{size:,} bytes", "not measured"):
        assert part in words
    kept = Ticket.load(folder).kept
    assert f"{kept:,} of" in words


def test_info_gives_every_measured_number_with_its_conditions(ticket, tmp_path, capsys):
    attack = {"name": "pgd", "norm": "Linf", "eps_over_255": 8.0, "steps": 20, "step_size_over_255": 2, "restarts": 1}
    results = {"split": "test", "samples": 500, "clean_accuracy": 99.25, "robust_accuracy": 90.5}
    provenance = {
        "dataset": {"name": "digits"},
        "results": {**results, "attack": {**attack, "seed": 3}},
        "command": "recipes/search.py --seed 3",
    }
    import dataclasses

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
    for command in ("info", "verify"):
        assert main([command, str(folder)]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ")
        assert "ticket-r0.1.safetensors" in printed.err
    with pytest.raises(SystemExit):
        main(["infos", str(folder)])


def test_it_runs_as_a_program(folder):
    command = [sys.executable, "-m", "rst_hub.cli", "verify", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert "verified: 1 of 1" in run.stdout


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
