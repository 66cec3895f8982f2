"""The published folders of model_cards/, measured again: what a stranger would do who doubts a card."""

import importlib
import json

import pytest
import timm
import zoo
from conftest import ROOT

from rst_hub.cards.results import read_results
from rst_hub.runs.parsing import parse
from rst_hub.runs.settings import SearchSettings, TrainSettings
from rst_hub.tickets.config import read_config

benchmark = importlib.import_module("rst_hub.runs.benchmark")

FOLDERS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/config.json"))


def of_the_digits():
    """Return (folder, ticket) of every published ticket whose data set comes with scikit-learn."""
    return [
        pytest.param(folder, entry["name"], id=f"{folder.name}-{entry['name']}")
        for folder in FOLDERS
        for entry in read_config(folder)["rst"]["tickets"]
        if entry["provenance"]["dataset"]["name"] == "digits"
    ]


def test_the_pages_table_is_what_the_cards_say():
    assert zoo.table(ROOT) in (ROOT / zoo.PAGE).read_text()
    assert zoo.table(ROOT).count("\n") >= 15


def test_the_readmes_rows_are_of_that_table():
    lines = (ROOT / "README.md").read_text().splitlines()
    head, rule, *table = zoo.table(ROOT, up="").splitlines()
    first = lines.index(head)
    rows = lines[first + 2 : lines.index("", first)]
    assert lines[first + 1] == rule
    assert [row for row in rows if row not in table] == []
    assert len(rows) == 5


def test_every_plan_is_one_that_a_recipe_takes():
    plans = sorted((ROOT / "recipes" / "zoo").glob("*.toml"))
    for path in plans:
        kind = SearchSettings if path.stem.startswith("rst-") else TrainSettings
        planned = parse(kind, ["--config", str(path)], "")
        assert timm.is_model(planned.model), path
        assert f"recipes/zoo/{path.name}" in path.read_text()
    assert len(plans) == 10


def test_there_are_some():
    assert len(of_the_digits()) >= 7


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "name"), of_the_digits())
def test_pgd20_is_within_the_cards_interval(folder, name, tmp_path):
    arguments = ("--ticket", str(folder), "--name", name, "--attacks", "pgd20", "--samples", "500")
    benchmark.main([*arguments, "--flag-samples", "0", "--output", str(tmp_path / "run")])
    found = json.loads((tmp_path / "run" / "results.json").read_text())["attacks"][0]
    rows = [
        row
        for result in read_results(folder).values()
        for row in result.rows
        if result.seed is None
        if (row.members, row.name, row.norm, row.eps) == ((name,), "pgd20", "Linf", 8.0) and row.samples == 500
    ]
    assert len(rows) == 1
    low, high = rows[0].interval
    assert low <= found["accuracy"] <= high
    assert found["samples"] == 500
