import json
import traceback

import hub_server
import pytest
import yaml
from conftest import make_popup
from hub_server import FAULTS, Fault, add_commit

import rst_hub
from rst_hub.errors import HubError, SettingsError
from rst_hub.hub.listing import Listed, hub_api, near_names
from rst_hub.hub.loading import load_tickets, look
from rst_hub.hub.push import plan_push, push_to_hub


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


def takers(folder):
    """Return everything that takes a token, each as a function of it."""
    ask = {"force_download": True}
    return {
        "from_pretrained": lambda token: rst_hub.from_pretrained("org/rst-secret", token=token, **ask),
        "r2s_from_pretrained": lambda token: rst_hub.r2s_from_pretrained("org/rst-secret", token=token, **ask),
        "robustbench_model": lambda token: rst_hub.robustbench_model("org/rst-secret", token=token, **ask),
        "load_tickets": lambda token: load_tickets("org/rst-secret", token=token, **ask),
        "look": lambda token: look("org/rst-secret", token=token, **ask),
        "list_models": lambda token: rst_hub.list_models(token=token)[0],
        "near_names": lambda token: near_names("org/rst-secrets", token),
        "push_to_hub": lambda token: push_to_hub(folder, "org/rst-secret", token=token),
        "plan_push": lambda token: plan_push(folder, "org/rst-secret", token=token),
        "hub_api": lambda token: hub_api(token).model_info("org/rst-secret"),
    }


def shown(error):
    """Return all that a traceback prints."""
    return "".join(traceback.format_exception(error))


def test_a_token_may_have_blanks_around_it_and_none_is_ever_printed(folder, tmp_path, monkeypatch):
    push_to_hub(folder, "org/rst-secret", token="hf_writer", private=True)
    every = takers(folder)
    for call in every.values():
        for token in ("hf_writer\n", " hf_writer ", "\thf_writer\r\n"):
            assert call(token)
    refused = (
        "hf_qqq\nhf_qqq",
        "hf_qqq qqq",
        "hf_qqq\x00",
        "hf_qqq\x1b[2J",
        "hf_qqq\u00e9",
        "hf_qqq\u2028q",
        "\udcffqqq",
    )
    tried = 0
    for name, call in every.items():
        for token in refused:
            with pytest.raises(SettingsError, match=r"the given token has \d+ characters") as refusal:
                call(token)
            assert "qqq" not in shown(refusal.value), name
            tried += 1
        with pytest.raises(SettingsError, match="token is of type bytes"):
            call(b"hf_qqq")
    assert tried == len(every) * len(refused) == 70
    # an empty one is none at all: the environment's is sent, and nothing where there is none
    monkeypatch.setenv("HF_TOKEN", "hf_reader\n")
    assert [bool(call("")) for call in every.values()] == [True] * 10
    monkeypatch.setenv("HF_TOKEN", "")
    for token in ("", "  ", "\n", None):
        with pytest.raises(HubError, match="or it is private"):
            rst_hub.from_pretrained("org/rst-secret", token=token, cache_dir=tmp_path / "cache")
    assert rst_hub.list_models(token="\n") == []


def test_a_token_that_the_hub_does_not_know_is_said_to_be_that_with_what_to_do(folder, monkeypatch):
    push_to_hub(folder, "org/rst-secret", token="hf_writer", private=True)
    calls = takers(folder)
    del calls["near_names"], calls["hub_api"]  # one says nothing where the Hub does not tell, one is the client itself
    advice = "(token, HF_TOKEN or the login), the Hub does not know it"
    calls["not afresh"] = lambda token: rst_hub.from_pretrained("org/rst-secret", token=token)
    tried = 0
    for token in ("hf_forgotten", None):  # given, or of the environment
        if token is None:
            monkeypatch.setenv("HF_TOKEN", "hf_forgotten")
        for name, call in calls.items():
            with pytest.raises(HubError) as refusal:
                call(token)
            assert advice in str(refusal.value), name
            assert "log in (hf auth login) or give a token" in str(refusal.value), name
            assert "hf_forgotten" not in shown(refusal.value), name
            tried += 1
    assert tried == 18
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="it is private: check the name, or give a token"):  # 401 as well
        calls["from_pretrained"](False)  # downloaded afresh
    with pytest.raises(HubError, match="has no revision absent: check the name"):
        rst_hub.from_pretrained("org/rst-secret", revision="absent", token="hf_writer", force_download=True)


def test_a_token_of_the_environment_that_cannot_be_one_is_refused_without_showing_it(folder, monkeypatch):
    push_to_hub(folder, "org/rst-secret", token="hf_writer", private=True)
    tried = 0
    for token in ("hf_qqq qqq", "hf_qqq\u00e9", "hf_qqq\x07"):
        monkeypatch.setenv("HF_TOKEN", token)
        for name, call in takers(folder).items():
            with pytest.raises(SettingsError, match="the token of HF_TOKEN or of the login") as refusal:
                call(None)
            assert "qqq" not in shown(refusal.value), name
            tried += 1
        assert rst_hub.list_models(token=False) == []  # which sends none
    assert tried == 30


def test_what_a_proxy_repeats_of_a_token_is_not_passed_on(folder):
    token = "hf_writer"
    push_to_hub(folder, "org/rst-secret", token=token, private=True)
    tried = 0
    others = ("near_names", "hub_api")  # which fails silently, and is the Hub's client itself
    for name, call in takers(folder).items():
        if name in others:
            continue
        for method in ("GET", "HEAD", "POST"):
            FAULTS.append(Fault(method, "", "echo", times=20))
        with pytest.raises(HubError) as refusal:
            call(token)
        FAULTS.clear()
        assert "Bad header: Authorization: (token)" in str(refusal.value), name
        assert "hf_writer" not in shown(refusal.value), name
        tried += 1
    assert tried == 8
