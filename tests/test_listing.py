import json

import hub_server
import pytest
import yaml
from conftest import make_popup
from hub_server import FAULTS, Fault, add_commit

import rst_hub
from rst_hub.errors import HubError
from rst_hub.listing import Listed, near_names


@pytest.fixture(autouse=True)
def fresh_hub():
    hub_server.reset()
    yield
    hub_server.reset()


def add(tmp_path, repo, card, **options):
    folder = tmp_path / repo.replace("/", "-")
    folder.mkdir()
    front = card if isinstance(card, str) else yaml.safe_dump({"library_name": "rst-hub", **card})
    (folder / "README.md").write_text(f"---\n{front}\n---\n# {repo}\n")
    return add_commit(repo, folder, **options)


def metric(kind, value, name, **args):
    return {"type": kind, "value": value, "name": name, "args": {"ticket": "r0.05", "norm": "Linf", **args}}


RST = {"architecture": "resnet18", "tickets": [{"name": "r0.05", "remaining_ratio": 0.05, "bytes": 1234}]}


def index(*metrics):
    dataset = {"type": "digits", "name": "digits (scanned)"}
    task = {"type": "image-classification"}
    return [{"name": "x", "results": [{"task": task, "dataset": dataset, "metrics": list(metrics)}]}]


def test_a_row_has_what_the_card_says(tmp_path):
    metrics = (
        metric("accuracy", 97.5, "clean"),
        metric("robust_accuracy", 93.0, "PGD-20, eps 4/255", eps_over_255=4),
        metric("robust_accuracy", 90.0, "PGD-20, eps 8/255", eps_over_255=8),
        metric("robust_accuracy", 88.0, "AutoAttack, eps 8/255", eps_over_255=8),
        metric("robust_accuracy", 70.0, "PGD-20, eps 16/255", eps_over_255=16),
        {**metric("robust_accuracy", 1.0, "another ticket's", eps_over_255=8), "args": {"ticket": "r0.5"}},
    )
    add(tmp_path, "org/rst-a", {"rst": RST, "model-index": index(*metrics)})
    assert rst_hub.list_models() == [
        Listed("org/rst-a", "r0.05", "resnet18", 0.05, 1234, "digits (scanned)", 97.5, 88.0, "AutoAttack, eps 8/255")
    ]


def test_a_rows_clean_accuracy_is_of_the_images_that_were_attacked_or_of_the_most(tmp_path):
    cleans = [metric("accuracy", value, "clean", samples=n) for value, n in ((66.0, 100), (65.0, 500), (65.7, 1000))]
    attacked = metric("robust_accuracy", 36.4, "worst", samples=500, eps_over_255=8)
    elsewhere = metric("robust_accuracy", 36.4, "worst", samples=200, eps_over_255=8)
    add(tmp_path, "org/rst-a", {"rst": RST, "model-index": index(*cleans, attacked)})
    add(tmp_path, "org/rst-b", {"rst": RST, "model-index": index(*cleans, elsewhere)})
    add(tmp_path, "org/rst-c", {"rst": RST, "model-index": index(*cleans)})
    found = {row.repo: (row.clean_accuracy, row.robust_accuracy) for row in rst_hub.list_models()}
    assert found == {"org/rst-a": (65.0, 36.4), "org/rst-b": (65.7, 36.4), "org/rst-c": (65.7, None)}


def test_only_the_library_is_listed_by_author_name_and_number(tmp_path):
    for name in ("org/rst-a", "org/rst-b", "other/rst-c"):
        add(tmp_path, name, {"rst": RST})
    add(tmp_path, "org/bert", {"library_name": "transformers"})
    add(tmp_path, "org/rst-private", {"rst": RST}, private=True)

    def names(**options):
        return [row.repo for row in rst_hub.list_models(**options)]

    assert sorted(names()) == ["org/rst-a", "org/rst-b", "other/rst-c"]
    assert names(author="other") == ["other/rst-c"]
    assert names(search="rst-b") == ["org/rst-b"]
    assert len(names(limit=2)) == 2
    assert "org/rst-private" in names(token="hf_reader")


def test_more_than_one_page_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_server, "PAGE", 2)
    for number in range(5):
        add(tmp_path, f"org/rst-{number}", {"rst": RST})
    assert len(rst_hub.list_models()) == 5
    assert len(rst_hub.list_models(limit=3)) == 3


def test_a_card_of_nonsense_hides_no_other(tmp_path):
    nonsense = (
        {"rst": "x"},
        {"rst": {"tickets": 5}},
        {"rst": {"tickets": [5, {"name": ["a"], "remaining_ratio": "0.1", "bytes": True}]}},
        {"rst": RST, "model-index": "text"},
        {"rst": RST, "model-index": [1, {"results": ["a", {"metrics": [3, {"type": "accuracy", "args": 4}]}]}]},
        {"rst": RST, "model-index": index(metric("robust_accuracy", "high", "x", eps_over_255=[1]))},
        {"rst": RST, "model-index": index(metric("robust_accuracy", 10**30, "x", eps_over_255=8))},
        {"tags": [{"a": 1}]},
        {"rst": {"tickets": [{}]}, "model-index": [{"results": [{"metrics": [{"type": "accuracy", "value": 1}]}]}]},
    )
    for number, card in enumerate(nonsense):
        add(tmp_path, f"org/rst-{number}", card)
    add(tmp_path, "org/rst-good", {"rst": RST, "model-index": index(metric("accuracy", 50.0, "clean"))})
    rows = rst_hub.list_models()
    assert {row.repo for row in rows} == {f"org/rst-{number}" for number in range(9)} | {"org/rst-good"}
    assert [row.clean_accuracy for row in rows if row.repo == "org/rst-good"] == [50.0]
    assert all(row.robust_accuracy is None for row in rows)
    json.dumps([vars(row) for row in rows], allow_nan=False)


def test_a_hub_that_does_not_answer_is_an_error(tmp_path):
    FAULTS.append(Fault("GET", "/api/models", 500, times=9))
    with pytest.raises(HubError, match="cannot be listed"):
        rst_hub.list_models()
    assert near_names("org/rst-a") == ""


def test_near_names_are_those_of_tickets(tmp_path):
    add(tmp_path, "org/rst-resnet101-imagenet", {"rst": RST})
    add(tmp_path, "org/rst-resnet101-imagenot", {"library_name": "other"})
    with pytest.raises(HubError, match=r"Did you mean org/rst-resnet101-imagenet\?"):
        rst_hub.from_pretrained("org/rst-resnet101-imagnet")


def test_what_is_published_is_listed_with_its_searchs_numbers(tmp_path):
    popup = make_popup()
    attack = {"name": "pgd", "norm": "Linf", "eps_over_255": 8.0, "steps": 20, "step_size_over_255": 2, "restarts": 1}
    provenance = {
        "dataset": {"name": "digits"},
        "command": "recipes/search.py",
        "settings": {"dataset": "digits"},
        "results": {
            "split": "test",
            "samples": 500,
            "clean_accuracy": 99.0,
            "robust_accuracy": 91.0,
            "attack": {**attack, "seed": 0, "keep": "best"},
        },
    }
    folder = rst_hub.Ticket.draw(popup, provenance=provenance).save(tmp_path / "t")
    rst_hub.push_to_hub(folder, "org/rst-t", token="hf_writer")
    (row,) = rst_hub.list_models()
    assert (row.repo, row.architecture, row.dataset) == ("org/rst-t", "test_resnet", "digits")
    assert (row.clean_accuracy, row.robust_accuracy) == (99.0, 91.0)
    assert "eps 8/255" in row.robust_against
