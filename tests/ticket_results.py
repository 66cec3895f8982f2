"""Tickets with results, as recipes/benchmark.py and recipes/transfer.py write them, for the tests of the card."""

import json
import re
from dataclasses import asdict

import pytest
import torch

import rst_hub.attacks.autoattack as autoattack
from rst_hub import ThreatModel, Ticket
from rst_hub.attacks.names import ADAPTIVE, NamedAttack, named_attack
from rst_hub.cards.card import render
from rst_hub.cards.gathered import Folder
from rst_hub.cards.measured import Measured, Result
from rst_hub.evaluation.accuracy import Outcomes
from rst_hub.evaluation.sanity import Flag
from rst_hub.tickets.config import read_config

SAMPLES = 1000


SEARCHED = {
    "command": "recipes/search.py --model test_resnet --dataset cifar10",
    "settings": {"dataset": "cifar10", "attack": "pgd", "steps": 7, "eps": 8.0, "epochs": 20, "batch_size": 256}
    | {"lr": 0.1, "optimizer": "sgd", "schedule": "step", "seed": 0, "max_steps": None},
    "dataset": {"name": "cifar10", "training_samples": 49000, "heldout_samples": 1000},
    "epoch": 17,
    "results": {
        "split": "test",
        "samples": 400,
        "clean_accuracy": 61.25,
        "robust_accuracy": 34.75,
        "attack": {"name": "pgd", "norm": "Linf", "eps_over_255": 8.0, "steps": 20, "step_size_over_255": 2}
        | {"restarts": 1, "keep": "best", "seed": 0},
    },
    "precision": "no",
    "device": "a test",
    "versions": {"timm": "1.0.31"},
}


@pytest.fixture(scope="module")
def tickets():
    from conftest import make_popup  # which imports the fixtures of this module

    return [
        Ticket.draw(make_popup(remaining_ratio=ratio), provenance=SEARCHED if ratio == 0.05 else None)
        for ratio in (0.05, 0.1)
    ]


@pytest.fixture
def searched(tickets, tmp_path):
    return tickets[0].save(tmp_path / "searched")


@pytest.fixture
def pair(tickets, tmp_path):
    for ticket in tickets:
        ticket.save(tmp_path / "pair")
    return tmp_path / "pair"


def left(right, tickets=1):
    """Return outcomes of which the first ``right`` are right; of several tickets each next one has 7 less.

    An ensemble is right on 3 more than the first of them.
    """
    nothing = torch.zeros(SAMPLES, dtype=torch.float64)
    counts = [right - 7 * i for i in range(tickets)] + ([right + 3] if tickets > 1 else [])
    each = torch.stack([(torch.arange(SAMPLES) < count).double() for count in counts])
    return Outcomes(each[:tickets].mean(0), nothing, nothing, nothing.long(), 1.0, each)


def circumstances(**dataset):
    return {
        "dataset": {"name": "cifar10", "split": "test", "samples": SAMPLES, "chosen": "all", **dataset},
        "images": {"size": 32, "resize": "none"},
        "seed": 0,
        "precision": "float32",
        "command": "recipes/benchmark.py --ticket it",
        "processes": 1,
        "device": "a test",
        "versions": {"torch": "2"},
    }


def network(folder, names=None):
    rst = read_config(folder)["rst"]
    keys = ("name", "remaining_ratio", "kept", "sha256")
    listed = [{key: one[key] for key in keys} for one in rst["tickets"] if names is None or one["name"] in names]
    same = {key: rst[key] for key in ("architecture", "timm_kwargs", "init")}
    return {"source": "run", **same, "tickets": listed}


def named(name, threat_model):
    if name == "autoattack":  # which named_attack has only where the extra is installed
        return NamedAttack(name, autoattack, threat_model, {"version": "standard"})
    return named_attack(name, threat_model, 32)


def result(kind, about, attacks=("pgd20", "fgsm", "cw_l2"), eps=(8,), norm="Linf", clean=700, **dataset):
    """Return what recipes/benchmark.py writes, by its own functions, with accuracies that are all different."""
    import importlib

    from rst_hub.runs.switched import on_all, on_each, on_ensemble
    from rst_hub.runs.targets import Victim

    benchmark = importlib.import_module("rst_hub.runs.benchmark")
    count = len(about.get("tickets", [1]))
    victim = Victim("it", kind, [torch.nn.Identity()] * count, about, [])
    planned = {}
    for name in dict.fromkeys([*(ADAPTIVE if kind == "r2s" else ()), *attacks]):
        for one in eps:
            attack = named(name, ThreatModel(norm, one / 255))
            planned[name if attack.threat_model is None else f"{name}-eps{one}"] = on_all(victim, attack)
    planned |= {**on_ensemble(victim, planned), **on_each(victim, planned)} if kind == "r2s" else {}
    before, rows = left(clean, count), []
    for key, crafting in planned.items():
        right = left(clean - (11 if kind == "r2s" else 31) * (len(rows) + 1), count)
        rows.append(benchmark.row(key, crafting, victim, before, right, []))
    flags = [asdict(Flag("gradients are not zero", True, "none of 50")), asdict(Flag("few", None, "on 3 samples"))]
    return {
        "kind": kind,
        "network": about,
        **circumstances(**dataset),
        **benchmark.concluded(norm, list(eps), victim, before, rows),
        "flags": {"norm": norm, "eps_over_255": eps[0], "samples": 50, "checks": flags, "attacks": []},
    }


def transfer(folder):
    entries = network(folder)["tickets"]
    own = [{**network(folder, [one["name"]]), "label": one["name"], "kind": "ticket"} for one in entries]
    attack = named_attack("pgd20", ThreatModel("Linf", 8 / 255), 32).described()
    said = {"networks": own, "attack": attack, "rows": "crafted on", "columns": "tested on", **circumstances()}
    return {**said, "accuracy": {"full": [[30.0, 60.0], [50.0, 40.0]], "paper": [[30.0, 70.0], [60.0, 40.0]]}}


def put(path, value):
    path.write_text(json.dumps(value))
    return path


def accuracies(said):
    return [said["clean"]["accuracy"], *(row["accuracy"] for row in (*said["attacks"], *said["worst_case"]))]


def text_of(folder):
    return render(folder)["README.md"].decode()


def section(text, title):
    return re.search(rf"^#+ {re.escape(title)}.*?(?=^#+ )", text, re.MULTILINE | re.DOTALL)[0]


def like_the_papers(architecture, dataset, ratios, rows, note=None, **settings):
    """Return a folder's contents for a network that is too large for a test, with results of ``rows``."""
    provenance = {**SEARCHED, "results": None, "settings": {**SEARCHED["settings"], **settings}}
    entries = [
        {"name": f"r{ratio}", "remaining_ratio": ratio, "pattern": "element", "provenance": provenance}
        for ratio in ratios
    ]
    init = {"seed": 0, "distribution": "signed_kaiming_constant"}
    rst = {"architecture": architecture, "timm_kwargs": {}, "init": init, "tickets": entries}
    kind = "r2s" if len(ratios) > 1 else "ticket"
    run = Result(kind, tuple(rows), dataset, "test", circumstances())
    return Folder("x", {"rst": rst}, {"dataset": {"note": note}} if note else {}, {"a.json": run}, ())


def measured(members, name, accuracy, eps=None, norm=None, attacker=None):
    of = members[0] if len(members) == 1 else "R2S"
    return Measured(of, members, name, name, accuracy, (1.0, 99.0), SAMPLES, norm, eps, {}, attacker)
