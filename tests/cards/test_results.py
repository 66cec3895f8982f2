import json

import pytest
from ticket_results import network, put, result, section, text_of, transfer

from rst_hub.attacks.names import ADAPTIVE
from rst_hub.cards.card import render, write_card
from rst_hub.cards.results import read_result, read_results
from rst_hub.errors import SettingsError, TicketError
from rst_hub.tickets.config import read_config


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


def reversed_attacks(said):
    """Return a result as a run leaves it that made the attacks in the other order."""
    again = {**said, "attacks": said["attacks"][::-1]}
    return {**again, "worst_case": [{**found, "attacks": found["attacks"][::-1]} for found in said["worst_case"]]}


def test_a_worst_case_is_the_same_in_whatever_order_its_attacks_were_made(folder, pair, tmp_path):
    """An attack that --resume adds is the last in the file."""
    alone = result("ticket", network(folder), ("autoattack", "square1000", "margin20", "pgd20"), (8,))
    together = result("r2s", network(pair), ("pgd20",), (8,))
    worst = []
    for path, said in ((folder, alone), (pair, together)):
        for one in (said, reversed_attacks(said)):
            rows = read_result(put(tmp_path / "a.json", one), tmp_path / "a.json", read_config(path)).rows
            worst.append([row for row in rows if row.name == "worst"])
    assert [len(rows) for rows in worst] == [1, 1, 4, 4]
    assert worst[0] == worst[1]
    assert worst[2] == worst[3]
    assert worst[0][0].words == "worst of PGD-20, PGD-20 on the margin, Square, 1,000 queries and AutoAttack (standard)"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", "magic"),
        ("clean", {"accuracy": 101.0, "interval_95": [1, 2], "samples": 3}),
        ("clean", {"accuracy": float("nan"), "interval_95": [1, 2], "samples": 3}),
        ("clean", {"accuracy": 50.0, "interval_95": [1], "samples": 3}),
        ("attacks", [{"key": "x"}]),
        ("dataset", {"name": 3, "split": "test"}),
        ("dataset", {"name": "cifar10", "split": "test"}),
        ("dataset", {"name": "cifar10", "split": "test", "samples": "many"}),
        ("dataset", {"name": "cifar10", "split": "test", "samples": 999}),  # not those of the clean accuracy
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


def r2s_result(pair):
    return result("r2s", network(pair), ("pgd20", "cw_l2"), (8,))


def at(said, *keys):
    for key in keys:
        said = said[key]
    return said


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("clean",), "tickets", {"r0.05": 70.0}),
        (("clean",), "tickets", {"r0.05": 70.0, "r0.2": 69.3}),
        (("clean",), "tickets", ["r0.05", "r0.1"]),
        (("clean",), "tickets", {"r0.05": 70.0, "r0.1": float("nan")}),
        (("clean",), "ensemble", 101.0),
        (("clean",), "all_members", 69.9),  # more than the worse ticket has
        (("attacks", 0), "accuracy", 70.0),  # not the mean over the tickets
        (("attacks", 0), "accuracy", float("nan")),
        (("attacks", 0), "crafted_on", "r0.2"),
        (("attacks", 0), "crafted_on", ["r0.05"]),
        (("attacks", 0), "crafted_on", None),
        (("attacks", 0), "key", "arc20-eps8"),  # there twice
        (("attacks", 0), "ensemble", None),
        (("attacks", -1), "tickets", {"r0.05": 1.0, "r0.1": 2.0}),
        (("protocols", 0), "matrix", [[50.0, 50.0]]),
        (("protocols", 0), "matrix", [[50.0, 50.0], [50.0]]),
        (("protocols", 0), "matrix", [[50.0, 50.0], [50.0, -1]]),
        (("protocols", 0), "matrix", [[50.0, 50.0], [50.0, "50"]]),
        (("protocols", 0), "matrix", [[99.0, 99.0], [99.0, 99.0]]),  # not the mean that is said
        (("protocols", 0), "matrix", None),
        (("protocols", 0), "protocol", "best"),
        (("protocols", 0), "protocol", ["full"]),
        (("protocols", 0), "tickets", ["r0.1", "r0.05"]),
        (("protocols", 0), "attack", {"name": "pgd20"}),
        (("protocols", 0), "interval_95", None),
        ((), "protocols", None),
        ((), "worst_case", [{}]),
        (("worst_case", 0), "attacks", []),
        (("worst_case", 0), "attacks", ["pgd20-eps9"]),
        (("worst_case", 0), "attacks", ["pgd20-eps8", "pgd20-eps8-stopped-on-r0.1"]),
        (("worst_case", 0), "attacks", ["pgd20-eps8", "cw_l2"]),
        (("worst_case", 0), "eps_over_255", 16),
        (("worst_case", 0), "norm", "L2"),
        (("worst_case", 0), "accuracy", 69.0),  # above its attacks
        (("worst_case", 0), "accuracy", 1.0),  # below all members right
        (("worst_case", 0, "all_members"), "accuracy", 100.5),
        (("worst_case", 0), "best_ticket", {"name": "r0.05"}),
        (("worst_case", 0, "best_ticket"), "name", "r0.2"),
        (("worst_case", 0, "best_ticket"), "name", "r0.1"),  # the worse one
        (("worst_case", 0, "best_ticket"), "accuracy", 99.0),
        (("worst_case", 0), "ensemble", 60.0),
        (("worst_case", 0, "ensemble"), "accuracy", 69.0),  # above what its attacks leave of it
        (("worst_case", 0), "tickets", {"r0.05": 59.0, "r0.1": 59.0}),
        (("worst_case", 0, "ensemble"), "samples", 0),
    ],
)
def test_a_forged_result_of_an_r2s_is_refused(pair, tmp_path, path, key, value):
    said = r2s_result(pair)
    assert at(said, *path)[key] != value
    at(said, *path)[key] = value
    with pytest.raises(TicketError, match=r"a\.json is no result of recipes/benchmark\.py"):
        write_card(pair, [put(tmp_path / "a.json", said)])
    assert not (pair / "README.md").exists()


@pytest.mark.parametrize("kind", ["ticket", "r2s", "transfer"])
@pytest.mark.parametrize("name", ["worst", "clean"])
def test_an_attack_that_is_called_like_another_row_is_refused(folder, pair, tmp_path, kind, name):
    said = {"ticket": lambda: result("ticket", network(folder)), "r2s": lambda: r2s_result(pair)}.get(
        kind, lambda: transfer(pair)
    )()
    where = folder if kind == "ticket" else pair
    write_card(where, [put(tmp_path / "a.json", said)])
    if kind == "r2s":
        said["protocols"][0]["attack"]["name"] = name
        with pytest.raises(TicketError, match="no result of"):
            read_result(put(tmp_path / "b.json", said), tmp_path / "b.json", read_config(where))
        said = r2s_result(pair)
    attack = said["attack"] if kind == "transfer" else said["attacks"][-1]["attack"]
    attack["name"] = name
    with pytest.raises(TicketError, match="no result of"):
        read_result(put(tmp_path / "c.json", said), tmp_path / "c.json", read_config(where))


@pytest.mark.parametrize("missing", [*ADAPTIVE, "crafted on all"])
def test_a_worst_case_of_an_r2s_without_an_adaptive_attack_is_refused(pair, tmp_path, missing):
    said = r2s_result(pair)
    (worst,) = said["worst_case"]
    if missing == "crafted on all":
        said["attacks"][0]["crafted_on"] = "their ensemble"
        missing = "pgd20"
    else:
        worst["attacks"].remove(f"{missing}-eps8")
    kind = missing.removesuffix("20")
    with pytest.raises(TicketError, match=rf"a\.json is no result .* lacks {kind} on all members"):
        write_card(pair, [put(tmp_path / "a.json", said)])


@pytest.mark.parametrize("key", ["tickets", "ensemble", "all_members", "crafted_on", "key", "attack", "interval_95"])
def test_a_result_of_an_r2s_that_lacks_a_key_is_refused(pair, tmp_path, key):
    said = r2s_result(pair)
    del said["attacks"][0][key]
    with pytest.raises(TicketError, match=r"a\.json is no result of recipes/benchmark\.py"):
        write_card(pair, [put(tmp_path / "a.json", said)])


def test_a_result_of_an_r2s_is_read_as_it_was_written(pair, tmp_path):
    said = result("r2s", network(pair), ("pgd20", "autoattack"), (4, 8), "L2")
    write_card(pair, [put(tmp_path / "a.json", said)])
    ((name, read),) = read_results(pair).items()
    assert name == "r2s-cifar10-L2-n1000.json"
    worst = [row for row in read.rows if row.name == "worst" and not row.beside]
    assert [row.accuracy for row in worst] == [one["accuracy"] for one in said["worst_case"]]
    assert [row.beside for row in read.rows if row.beside] == ["all members right", "baseline", "baseline"] * 2
    assert [row.accuracy for row in read.rows if row.beside == "baseline"] == [
        one[key]["accuracy"] for one in said["worst_case"] for key in ("best_ticket", "ensemble")
    ]
    drawn = [row for row in read.rows if row.attacker == "one member drawn at random"]
    assert [row.accuracy for row in drawn] == [pytest.approx(one["accuracy"]) for one in said["protocols"]]
    assert [row.settings.get("keep") for row in drawn] == ["best", "first"] * 2 + [None] * 2
    ensembles = [(row.name, row.words) for row in read.rows if row.attacker == "all members, their ensemble"]
    names = ("logit_ensemble20", "probability_ensemble20", "autoattack", "pgd20")
    assert [name for name, _ in ensembles] == [name for name in names for _ in (4, 8)]
    assert ensembles[-1][1] == "PGD-20 on the ensemble"
    more = result("r2s", network(pair), ("pgd20", "autoattack", "square100"), (4, 8), "L2")
    assert len(more["attacks"]) == len(said["attacks"]) + 2
    more["attacks"] = [*said["attacks"], *[row for row in more["attacks"] if row["key"].startswith("square")]]
    more["protocols"] = said["protocols"]
    write_card(pair, [put(tmp_path / "b.json", more)])  # a resumed run, with more attacks and other worst cases
    assert list(read_results(pair)) == [name]


def test_a_resumed_result_takes_the_place_of_its_former_self(folder, tmp_path):
    first = put(tmp_path / "a.json", result("ticket", network(folder), ("pgd20",)))
    more = put(tmp_path / "b.json", result("ticket", network(folder), ("pgd20", "fgsm")))
    other = put(tmp_path / "c.json", result("ticket", network(folder), ("pgd20",), clean=650))
    write_card(folder, [first])
    write_card(folder, [more])
    assert list(read_results(folder)) == ["ticket-r0.1-cifar10-Linf-n1000.json"]
    assert (folder / "results" / "ticket-r0.1-cifar10-Linf-n1000.json").read_bytes() == more.read_bytes()
    for row in (again := json.loads(more.read_text()))["attacks"]:
        row["attack"] |= {"keep": "enough"} if "keep" in row["attack"] else {}
    write_card(folder, [put(tmp_path / "d.json", again)])  # the same outcomes, found with less work
    assert list(read_results(folder)) == ["ticket-r0.1-cifar10-Linf-n1000.json"]
    averages = [row["attack"].pop("average") for row in again["attacks"] if "average" in row["attack"]]
    assert averages == ["loss"]
    write_card(folder, [put(tmp_path / "d.json", again)])  # as it was written before there was more than one average
    assert list(read_results(folder)) == ["ticket-r0.1-cifar10-Linf-n1000.json"]
    write_card(folder, [put(tmp_path / "e.json", json.loads(more.read_text()))])
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
