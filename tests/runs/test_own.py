import copy
import dataclasses
import hashlib
import importlib
import json
import shutil

import pytest
import torch
from conftest import ROOT, run_recipe
from torch import nn

import rst_hub
from rst_hub import ThreatModel, cli
from rst_hub.cards.card import write_card
from rst_hub.errors import DataError, RstHubError, SettingsError
from rst_hub.evaluation.accuracy import evaluate
from rst_hub.runs import own as own_
from rst_hub.runs.parsing import parse
from rst_hub.runs.settings import BenchmarkSettings, SearchSettings, TrainSettings

benchmark, search, transfer = (
    importlib.import_module(f"rst_hub.runs.{name}") for name in ("benchmark", "search", "transfer")
)

EXAMPLE = ROOT / "tests" / "runs" / "examples" / "my_attack.py"
SHA256 = hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()
ATTACK, LOSS = f"{EXAMPLE}:sign_steps", f"{EXAMPLE}:half_clean"
FEW = ("--model", "test_resnet", "--image-size", "16", "--holdout", "8", "--test-samples", "8", "--batch-size", "7")
LINF = ThreatModel("Linf", 8 / 255)


@pytest.fixture(scope="module")
def searched(image_folder, tmp_path_factory):
    """Return the folder of a search by an attack and an objective of one's own."""
    output = tmp_path_factory.mktemp("own") / "run"
    own = ("--attack", ATTACK, "--loss", LOSS, "--epochs", "1")
    search.main([*FEW, "--dataset", str(image_folder), *own, "--output", str(output)])
    return output


def network_and_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 5))
    return model, torch.rand(6, 3, 2, 2), torch.randint(5, (6,))


def written(folder, body, name="attack", arguments="model, x, y, threat_model, *, generator=None"):
    """Return the name of a function in a new file."""
    path = folder / "mine.py"
    path.write_text(f"import torch\n\ndef {name}({arguments}):\n    {body}\n")
    return f"{path}:{name}"


def test_a_search_by_ones_own_attack_and_objective_says_so(searched):
    ticket = rst_hub.Ticket.load(searched / "ticket")
    origin = ticket.provenance
    assert origin["own_code"] == {
        "attack": {"name": "my_attack.py:sign_steps", "source_sha256": SHA256},
        "loss": {"name": "my_attack.py:half_clean", "source_sha256": SHA256},
    }
    assert (origin["settings"]["attack"], origin["settings"]["loss"]) == (
        "my_attack.py:sign_steps",
        "my_attack.py:half_clean",
    )
    assert str(ROOT) not in json.dumps(origin)
    write_card(searched / "ticket")
    page = (searched / "ticket" / "README.md").read_text()
    assert SHA256 in page
    assert "sign" in page
    assert "TRADES" not in page


def test_a_benchmark_and_a_transfer_are_made_with_ones_own_attack(searched, image_folder, tmp_path):
    ticket = searched / "ticket"
    arguments = ["--ticket", str(ticket), "--dataset", str(image_folder), "--flag-samples", "0"]
    arguments += ["--attacks", f"{ATTACK},fgsm", "--output", str(tmp_path / "run")]
    benchmark.main(arguments)
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    row = found["attacks"][0]
    assert row["key"] == "my_attack.py:sign_steps-eps8"
    assert row["attack"] == {
        "name": "my_attack.py:sign_steps",
        "function": "sign_steps",
        "norm": "Linf",
        "eps_over_255": 8.0,
        "source_sha256": SHA256,
    }
    assert 0 < row["largest_linf_over_255"] <= 8.001
    assert str(ROOT) not in json.dumps(found)
    assert found["worst_case"][0]["attacks"] == ["my_attack.py:sign_steps-eps8", "fgsm-eps8"]
    shutil.copytree(ticket, tmp_path / "published")
    write_card(tmp_path / "published", results=[tmp_path / "run" / "results.json"])
    assert "sign" in (tmp_path / "published" / "README.md").read_text()
    # A run's folder is nobody's command line: what is to be resumed is named again.
    without = [*arguments[:-3], "fgsm", *arguments[-2:], "--resume"]
    with pytest.raises(SettingsError, match="give it again, --attacks"):
        benchmark.main(without)
    benchmark.main([*arguments, "--resume"])

    pair = ["--tickets", f"{ticket},{ticket}", "--dataset", str(image_folder), "--attack", ATTACK]
    transfer.main([*pair, "--output", str(tmp_path / "transfer")])
    said = json.loads((tmp_path / "transfer" / "transfer.json").read_text())["attack"]
    assert (said["name"], said["source_sha256"]) == ("my_attack.py:sign_steps", SHA256)


def test_a_module_of_the_current_folder_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "attack_of_mine.py").write_bytes(EXAMPLE.read_bytes())
    monkeypatch.chdir(tmp_path)
    own = own_.load_own("attack_of_mine:sign_steps", "attack")
    assert (own.name, own.sha256) == ("attack_of_mine:sign_steps", SHA256)
    # A changed file is not what was imported; by its path it is read anew.
    (tmp_path / "attack_of_mine.py").write_text(EXAMPLE.read_text() + "\n")
    with pytest.raises(SettingsError, match="has changed since it was imported"):
        own_.load_own("attack_of_mine:sign_steps", "attack")
    changed = own_.load_own("attack_of_mine.py:sign_steps", "attack")
    assert changed.sha256 == hashlib.sha256((tmp_path / "attack_of_mine.py").read_bytes()).hexdigest() != SHA256


def test_what_cannot_be_taken_is_one_error(tmp_path, monkeypatch, image_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("import not_there_at_all")
    (tmp_path / "ends.py").write_text("raise SystemExit(3)")
    cases = {
        "absent.py:attack": "absent.py cannot be read: No such file",
        "absent:attack": "absent cannot be imported: ModuleNotFoundError",
        "broken.py:attack": "broken.py cannot be imported: ModuleNotFoundError",
        "ends.py:attack": "ends.py cannot be imported: SystemExit",
        f"{EXAMPLE}:sign_step": "Did you mean sign_steps",
        f"{EXAMPLE}:torch": "has no function 'torch'",
        f"{EXAMPLE}:": "give a function of your own as module:function",
        "org/name:attack": "give a function of your own as module:function",
        "hf://org/name:attack": "give a function of your own as module:function",
        written(tmp_path, "return x", arguments="model, x"): "write attack(model, x, y, threat_model",
        "math:dist": "takes other arguments",
        "builtins:print": "has no source file to record",
    }
    for word, said in cases.items():
        with pytest.raises(SettingsError) as caught:
            own_.load_own(word, "attack")
        assert said in str(caught.value), word
        with pytest.raises(RstHubError):
            search.main([*FEW, "--dataset", str(image_folder), "--attack", word, "--output", str(tmp_path / "run")])
        assert not (tmp_path / "run").exists()
    assert len(cases) == 12
    for kind in (SearchSettings, TrainSettings):
        assert parse(kind, ["--attack", "a:b", "--loss", "c.py:d"], "").attack == "a:b"
    for arguments, said in (
        (("--pattern", "a:b"), "only the patterns that its format knows: element"),
        (("--attack", "a:b", "--step-size", "2"), "a:b has no step of its own"),
        (("--attack", "a:b", "--loss", "trades"), "not a:b"),
        (("--optimizer", "a:b"), "invalid choice"),
    ):
        with pytest.raises(SettingsError, match=said):
            parse(SearchSettings, list(arguments), "")
    assert parse(BenchmarkSettings, ["--ticket", "x", "--attacks", "PGD-20,My.py:F"], "").attacks == "pgd20,My.py:F"


def test_an_attack_of_ones_own_is_held_to_range_shape_and_budget(tmp_path):
    model, x, y = network_and_images()
    cases = {
        "return x + 16 / 255 * (x < 0.5)": "leaves its budget: Linf 16.0000/255 of at most 8.0000/255",
        "return x.add_(16 / 255 * (x < 0.5))": "leaves its budget: Linf 16.0000/255",
        "return x - 2": "made pixels from -",
        "return x[:1]": "it must keep them",
        "return x.double()": "it must keep them",
        "return None": "made NoneType",
        "return x * float('nan')": "not finite",
        "return 1 / 0": "attack failed (mine.py, line 4): ZeroDivisionError",
    }
    for body, said in cases.items():
        attack = own_.own_attack(own_.load_own(written(tmp_path, body), "attack"), LINF)
        with pytest.raises(RstHubError) as caught:
            evaluate(model, [(0, x, y)], attack)
        assert said in str(caught.value), body
    assert len(cases) == 8
    far = own_.own_attack(
        own_.load_own(written(tmp_path, "return x + 0.1 * (x < 0.5)"), "attack"), ThreatModel("L2", 0.1)
    )
    with pytest.raises(DataError, match="leaves its budget: L2"):
        evaluate(model, [(0, x, y)], far)


def test_an_attack_of_ones_own_changes_nothing_and_draws_from_its_batch(tmp_path):
    model, x, y = network_and_images()
    body = "model.eval(); model(x.requires_grad_()).sum().backward(); y.zero_(); r = (torch.rand_like(x) - 0.5) / 100"
    attack = own_.as_attack(own_.load_own(written(tmp_path, f"{body}; return (x + r).clamp(0, 1)"), "attack"))
    before, labels, state = x.clone(), y.clone(), torch.get_rng_state()
    found = [attack(model, x, y, LINF, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(x, before)
    assert torch.equal(y, labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(one.requires_grad for one in found)


def test_an_objective_of_ones_own_is_held_to_loss_and_logits(tmp_path):
    model, x, y = network_and_images()
    arguments = "network, x, attacked, y"
    bodies = (
        "return network(x).sum()",
        "return network(x).sum().detach(), network(x)",
        "return network(x).mean(1), network(x)",
        "return network(x).sum(), network(x)[:2]",
        "return 0.5, network(x)",
    )
    for body in bodies:
        objective = own_.as_objective(own_.load_own(written(tmp_path, body, "loss", arguments), "loss"))
        with pytest.raises(RstHubError, match=r"must return \(loss, logits\)"):
            objective(model, x, x, y)
    objective = own_.as_objective(own_.load_own(LOSS, "loss"))
    loss, logits = objective(model, x, x, y)
    assert torch.equal(logits, model(torch.cat([x, x])).chunk(2)[1].detach())
    assert loss.requires_grad


def test_a_changed_source_file_does_not_continue_a_run(image_folder, tmp_path):
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    arguments = [*FEW, "--dataset", str(image_folder), "--attack", f"{tmp_path / 'mine.py'}:sign_steps"]
    arguments += ["--output", str(tmp_path / "run"), "--schedule", "constant"]
    search.main([*arguments, "--epochs", "1"])
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text().replace("range(4)", "range(3)"))
    with pytest.raises(SettingsError, match="another --attack: its source file has changed"):
        search.main([*arguments, "--epochs", "2", "--resume"])
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    search.main([*arguments, "--epochs", "2", "--resume"])


def test_no_code_is_run_that_a_ticket_names(searched, image_folder, tmp_path, monkeypatch, capsys):
    folder, marker = tmp_path / "hostile", tmp_path / "marker"
    ticket = rst_hub.Ticket.load(searched / "ticket")
    names = [f"{folder / 'evil.py'}:attack", "evil:attack", "evil.py:attack"]
    said = copy.deepcopy(dict(ticket.provenance))
    said["settings"] |= dict.fromkeys(("attack", "loss", "pattern"), names[0])
    said["own_code"] = {"attack": {"name": names[1], "source_sha256": "0" * 64}, names[2]: names[2]}
    said["results"]["attack"]["name"] = names[2]
    dataclasses.replace(ticket, provenance=said).save(folder)
    code = (
        f"open({str(marker)!r}, 'w').close()\ndef attack(model, x, y, threat_model, *, generator=None):\n    return x\n"
    )
    (folder / "evil.py").write_text(code)
    (tmp_path / "evil.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["info", str(folder)]) == 0
    assert cli.main(["verify", str(folder)]) == 0
    rst_hub.from_pretrained(folder)
    write_card(folder)
    arguments = ["--ticket", str(folder), "--dataset", str(image_folder), "--attacks", "fgsm", "--flag-samples", "0"]
    benchmark.main([*arguments, "--output", str(tmp_path / "run")])
    # Nor one that a run's folder, from elsewhere, names.
    path = tmp_path / "run" / "settings.json"
    said = json.loads(path.read_text())
    for name in names:
        said["settings"]["attacks"] = f"fgsm,{name}"
        path.write_text(json.dumps(said))
        with pytest.raises(SettingsError, match="give it again"):
            benchmark.main([*arguments, "--output", str(tmp_path / "run"), "--resume"])
    # What is not a recipe's own setting is no way in either.
    for name in names:
        with pytest.raises(SettingsError, match="is not known"):
            rst_hub.attacks.names.named_attack(name, LINF, 8)
    assert not marker.exists()
    with pytest.raises(RstHubError):  # the test would see it
        own_.load_own(f"{names[0]}s", "attack")
    assert marker.exists()


def test_the_recipe_takes_a_file_in_a_process_of_its_own(image_folder, tmp_path):
    shutil.copy(EXAMPLE, tmp_path)
    own = ("--attack", "my_attack:sign_steps", "--loss", f"{tmp_path}/my_attack.py:half_clean", "--epochs", "1")
    run_recipe("search.py", *FEW, "--dataset", image_folder, *own, cwd=tmp_path)
    (ticket,) = (tmp_path / "runs").glob("*/ticket")
    origin = rst_hub.Ticket.load(ticket).provenance
    assert origin["own_code"]["attack"] == {"name": "my_attack:sign_steps", "source_sha256": SHA256}
    assert "--attack my_attack:sign_steps " in origin["command"]
    assert "--loss my_attack.py:half_clean " in origin["command"] + " "


def test_the_documentation_shows_the_file_that_is_tested():
    page = (ROOT / "docs" / "extend.md").read_text()
    assert page.split("```python\n")[1].split("```")[0] == EXAMPLE.read_text()
    for signature in own_.SIGNATURES.values():
        assert signature in page
    for option in ("--attack", "--attacks", "--loss", "--pattern"):
        assert f"`{option}`" in page
