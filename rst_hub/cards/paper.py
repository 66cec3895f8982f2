"""The paper's numbers (paper.json), and those of them that a folder's own can be compared with."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from .gathered import Folder, all_measured, lifts_of, over_seeds
from .measured import KNOWS_ENSEMBLE, Measured, Result
from .wording import budget, look, or_unknown, plain, thousands


@lru_cache(maxsize=1)
def paper() -> dict[str, Any]:
    """Return the paper's title, authors, settings and numbers."""
    return json.loads(resources.files(__package__).joinpath("paper.json").read_text(encoding="utf-8"))


def compared(folder: Folder) -> dict[str, Any]:
    """Return rows (of what, ours, theirs, their dense network, where) at equal settings, and what differs in words."""
    rows: list[tuple[str, ...]] = []
    differences: dict[str, list[str]] = {}
    for run, row in all_measured(folder):
        for theirs in _matching(folder, run, row):
            label = f"{row.of}, {row.words}" + (f", {budget(row.norm, row.eps)}" if row.norm else "")
            ours = f"{row.accuracy:.2f}" + (
                f" ({row.interval[0]:.2f} to {row.interval[1]:.2f})" if row.interval else ""
            )
            where = theirs["table"] + (f", attacker: {theirs['attacker']}" if theirs.get("attacker") else "")
            dense = next((str(one["accuracy"]) for one in paper()["rows"] if _is_dense_of(one, theirs)), "")
            rows.append((label, ours, str(theirs["accuracy"]), dense, where))
            for text in _differences(folder, run, row, theirs):
                differences.setdefault(text, []).append(label)
    every = {row[0] for row in rows}
    texts = [text if set(of) == every else f"{text} ({_first(of)})" for text, of in differences.items()]
    return {"rows": rows, "differences": texts, "network": _matched_network(folder) if rows else None}


def _first(labels: Sequence[str]) -> str:
    labels = list(dict.fromkeys(labels))
    return "; ".join(labels[:2]) + (f"; {len(labels) - 2} more" if len(labels) > 2 else "")


def _matched_network(folder: Folder) -> str:
    architecture = folder.config["rst"]["architecture"]
    return next(row["network"] for row in paper()["rows"] if architecture in row["architectures"])


def _matching(folder: Folder, run: Result, row: Measured) -> list[dict[str, Any]]:
    """Return the paper's rows of this network, data set, remaining ratio or set, attack and budget."""
    names = {run.dataset, str(folder.dataset.get("id"))}
    datasets = {_paper_dataset(name) for name in names}
    ratios = sorted(entry["remaining_ratio"] for entry in folder.entries if entry["name"] in row.members)
    searched = [
        look(entry["provenance"], "settings", "eps") for entry in folder.entries if entry["name"] in row.members
    ]
    found = []
    for theirs in paper()["rows"]:
        if theirs["kind"] == "ticket":
            same = not row.is_set and ratios == [theirs["remaining_ratio"]]
        else:
            same = theirs["kind"] == "r2s" and row.is_set and ratios == theirs["set"]
        same &= folder.config["rst"]["architecture"] in theirs["architectures"] and theirs["dataset"] in datasets
        same &= _is_attack(row, theirs) and row.norm == theirs.get("norm")
        if row.name == "clean":  # clean accuracy goes down with the budget that was searched with
            same &= all(eps == theirs["searched_eps_over_255"] for eps in searched)
        elif same and theirs.get("eps_over_255") is not None:
            same &= row.eps is not None and math.isclose(row.eps, theirs["eps_over_255"], rel_tol=0.01)
        if same:
            found.append(theirs)
    alike = [theirs for theirs in found if theirs.get("attacker") == row.attacker]
    return alike or found


def _is_attack(row: Measured, theirs: Mapping[str, Any]) -> bool:
    """Say whether it is the same attack; PGD on their ensemble is that on the mean logits or probabilities."""
    on_ensemble = row.name in ("logit_ensemble20", "probability_ensemble20")
    on_ensemble |= row.name == "pgd20" and row.attacker == KNOWS_ENSEMBLE
    if theirs.get("attacker") == KNOWS_ENSEMBLE and theirs["attack"] == "pgd20":
        return on_ensemble
    return row.name == theirs["attack"] and not (on_ensemble and row.name == "pgd20")


def _paper_dataset(name: str) -> str | None:
    stem = re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].lower())
    return paper()["aliases"].get(stem)


def _is_dense_of(one: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    keys = ("architectures", "dataset", "attack", "norm", "eps_over_255", "searched_eps_over_255")
    return one["kind"] == "dense" and all(one.get(key) == theirs.get(key) for key in keys)


def _differences(folder: Folder, run: Result, row: Measured, theirs: Mapping[str, Any]) -> list[str]:
    """Return what is not as in the paper, in words: data, counts, random weights, search, attack."""
    rst, settings = folder.config["rst"], paper()["settings"][theirs["dataset"]]
    said = [paper()["differences"].get(key) for key in (rst["architecture"], row.name, row.eps and row.norm)]
    note = folder.dataset.get("note")
    said += [f"data here: {plain(note)}" if note else None]
    if row.samples != settings["test_samples"]:
        said.append(f"{row.samples:,} test images here; the data set has {settings['test_samples']:,}")
    if rst["init"]["distribution"] != paper()["distribution"]:
        said.append(f"{rst['init']['distribution']} weights here, {paper()['distribution']} there")
    if row.eps is not None and row.eps != theirs.get("eps_over_255"):
        said.append(f"eps {row.eps:g}/255 here, {theirs['eps_over_255']:g}/255 there")
    if row.attacker != theirs.get("attacker"):
        said.append(f"the attacker's members: {row.attacker} here, {theirs.get('attacker')} there")
    for entry in folder.entries:
        if entry["name"] in row.members:
            said += _search_differences(entry, {**settings, "eps": theirs["searched_eps_over_255"]})
    seeds = len(over_seeds(folder, run, row))
    shown = f"one of {seeds} seeds here (the others are above)" if seeds else "one seed here"
    return [text for text in dict.fromkeys(said) if text] + [f"{shown}, {paper()['seeds']} there"]


def _search_differences(entry: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    own = look(entry["provenance"], "settings")
    if not isinstance(own, dict):
        return ["the settings of the search here are not recorded"]
    words = {
        "epochs": "epochs {}",
        "batch_size": "batch {}",
        "attack": "searched against {}",
        "steps": "attack steps of the search {}",
        "eps": "searched at eps {}/255",
        "optimizer": "optimizer {}",
        "lr": "learning rate {}",
        "schedule": "schedule {}",
    }
    if own.get("attack") != "pgd" or settings["attack"] != "pgd":
        words.pop("steps")
    pairs = [(text, own.get(key), settings[key]) for key, text in words.items()]
    count = look(entry["provenance"], "dataset", "training_samples")
    pairs += [("{} training images", thousands(count), thousands(settings["training_samples"]))]
    pairs += [("stopped after {} steps", own["max_steps"], "all")] if own.get("max_steps") is not None else []
    pairs += [("sparsity pattern {}", entry["pattern"], paper()["pattern"])]
    found = [
        f"{text.format(or_unknown(ours))} here, {or_unknown(their)} there"
        for text, ours, their in pairs
        if ours != their
    ]
    return [*found, *(f"{lift}: here, not there" for lift in lifts_of(entry["provenance"]))]
