import pytest
from ticket_results import network, put, result, section, text_of, transfer

from rst_hub.card import render, write_card
from rst_hub.errors import SettingsError, TicketError
from rst_hub.results import read_results


def test_results_of_other_tickets_are_refused(folder, pair, tmp_path):
    foreign = [
        result("ticket", network(folder)),
        result("ticket", {**network(pair, ["r0.1"]), "tickets": [{**network(pair)["tickets"][0], "name": "r0.2"}]}),
        result("r2s", {**network(pair), "tickets": [network(pair)["tickets"][0], network(folder)["tickets"][0]]}),
        transfer(folder),
    ]
    stale = transfer(pair)
    stale["networks"][1]["tickets"][0]["sha256"] = "0" * 64
    foreign.append(stale)
    for said in foreign:
        with pytest.raises(TicketError, match="measured on another ticket"):
            write_card(pair, [put(tmp_path / "a.json", said)])
    assert sorted(path.name for path in pair.iterdir()) == [
        "config.json",
        "ticket-r0.05.safetensors",
        "ticket-r0.1.safetensors",
    ]
    (pair / "results").mkdir()
    put(pair / "results" / "a.json", foreign[0])
    with pytest.raises(TicketError, match=r"a\.json: measured on another ticket 'r0\.1'"):
        render(pair)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", "magic"),
        ("clean", {"accuracy": 101.0, "interval_95": [1, 2], "samples": 3}),
        ("clean", {"accuracy": float("nan"), "interval_95": [1, 2], "samples": 3}),
        ("clean", {"accuracy": 50.0, "interval_95": [1], "samples": 3}),
        ("attacks", [{"key": "x"}]),
        ("dataset", {"name": 3, "split": "test"}),
        ("flags", None),
        ("worst_case", "none"),
        ("network", {"tickets": []}),
        ("rows", "crafted on"),
    ],
)
def test_what_is_no_result_is_refused(folder, tmp_path, key, value):
    said = {**result("ticket", network(folder)), key: value}
    with pytest.raises(TicketError, match=r"a\.json is no result of recipes/benchmark\.py"):
        write_card(folder, [put(tmp_path / "a.json", said)])


def test_a_resumed_result_takes_the_place_of_its_former_self(folder, tmp_path):
    first = put(tmp_path / "a.json", result("ticket", network(folder), ("pgd20",)))
    more = put(tmp_path / "b.json", result("ticket", network(folder), ("pgd20", "fgsm")))
    other = put(tmp_path / "c.json", result("ticket", network(folder), ("pgd20",), clean=650))
    write_card(folder, [first])
    write_card(folder, [more])
    assert list(read_results(folder)) == ["ticket-r0.1-cifar10-Linf-n1000.json"]
    assert (folder / "results" / "ticket-r0.1-cifar10-Linf-n1000.json").read_bytes() == more.read_bytes()
    write_card(folder, [other])
    assert len(read_results(folder)) == 2
    own = section(text_of(folder), "Ticket r0.1")
    assert "Run 1:" in own
    assert "Run 2:" in own
    assert "| 65.00 |" in own
    assert "| 70.00 |" in own


@pytest.mark.parametrize(
    ("about", "named"),
    [
        ({"licence": "mit"}, r"the key 'licence' is not known\. Did you mean license"),
        ({"license": 3}, "license is '3'"),
        ({"repo_id": "no-organisation"}, "repo_id"),
        ({"repo_id": "../x/y"}, "repo_id"),
        ({"dataset": "cifar10"}, "dataset is 'cifar10'"),
        ({"dataset": {"notes": "x"}}, "the key 'notes' is not known"),
        ({"dataset": {"note": ["x"]}}, "note"),
        ({"notes": "one"}, "notes is 'one'"),
        ({"notes": [1]}, "notes"),
        ({"base_model": "a b/c"}, "base_model"),
        ([], "card.json is"),
    ],
)
def test_a_wrong_card_json_is_refused_by_its_key(folder, about, named):
    put(folder / "card.json", about)
    with pytest.raises(SettingsError, match=named):
        render(folder)
    (folder / "card.json").unlink()
    if isinstance(about, dict):
        with pytest.raises(SettingsError, match=named):
            write_card(folder, about=about)
    assert not (folder / "README.md").exists()
