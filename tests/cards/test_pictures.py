import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from ticket_results import network, put, result, transfer

from rst_hub.cards.card import render, write_card
from rst_hub.cards.gathered import gather
from rst_hub.cards.pictures import PICTURES, picture_digest, to_draw
from rst_hub.cards.results import read_result
from rst_hub.errors import SettingsError
from rst_hub.tickets.config import read_config

ALONE = ("r0.05", "r0.1")


def test_pictures_carry_the_digest_of_their_numbers(pair, tmp_path):
    pytest.importorskip("matplotlib")
    each = [
        result("ticket", network(pair, [name]), eps=(4, 8), clean=clean)
        for name, clean in (("r0.05", 600), ("r0.1", 700))
    ]
    dense = result("dense", {"source": "natural $x$", "architecture": "ResNet"}, eps=(8,))
    files = [put(tmp_path / f"{i}.json", said) for i, said in enumerate([*each, dense, transfer(pair)])]
    write_card(pair, files, {"dataset": {"note": "JPEG"}})
    again = render(pair)
    assert set(again) == {"README.md", *PICTURES}
    digests = set()
    for name in PICTURES:
        digest = picture_digest((pair / name).read_bytes())
        assert digest == picture_digest(again[name])
        assert f"]({name})" in again["README.md"].decode()
        digests.add(digest)
        with Image.open(pair / name) as image:
            assert image.mode == "P"
            assert len((pair / name).read_bytes()) < image.width * image.height / 10
    assert len(digests) == 3
    text = again["README.md"].decode()
    assert "| 45.00 | not recorded |" in text
    assert "| 50.00 | not recorded |" in text
    assert "**R2S against attackers who know all its members: not measured.**" in text  # these attackers know one
    # Another number, another picture; none to draw, none there.
    each[0]["attacks"][0]["accuracy"] += 1
    put(pair / "results" / "ticket-r0.05-cifar10-Linf-n1000.json", each[0])
    changed = render(pair)
    same = [name for name in PICTURES if picture_digest(changed[name]) == picture_digest(again[name])]
    assert same == ["transfer.png"]
    for path in (pair / "results").iterdir():
        path.unlink()
    write_card(pair)
    assert not list(pair.glob("*.png"))
    with pytest.raises(SettingsError, match="no picture"):
        picture_digest(b"text")


def test_an_r2s_is_drawn_with_its_worst_case_and_nothing_that_stands_beside_it(pair, tmp_path):
    said = result("r2s", network(pair), ("pgd20", "square100"), (4, 8), clean=800)
    put(tmp_path / "r2s.json", said)
    each = [put(tmp_path / f"{name}.json", result("ticket", network(pair, [name]), eps=(4, 8))) for name in ALONE]
    folder = gather(
        pair, read_config(pair), {}, {"a.json": read_result(tmp_path / "r2s.json", pair, read_config(pair))}
    )
    drawn = to_draw(folder)
    lines = {(line["network"], line["attack"]): line["accuracy"] for line in drawn["robust_accuracy.png"]["series"]}
    worst = [said["clean"]["accuracy"], *(one["accuracy"] for one in said["worst_case"])]
    assert lines.pop(("R2S", "worst of 9 attacks that know all members")) == worst
    assert lines.pop(("R2S", "PGD-20, gradients of all members (EOT)"))[0] == worst[0]
    assert set(lines) == {("R2S", "PGD-20 on the ensemble"), ("R2S", "PGD-20 on the mean logits")}
    assert set(drawn) == {"robust_accuracy.png", "transfer.png"}
    matrices = drawn["transfer.png"]["matrices"]
    assert [(one["protocol"], one["accuracy"]) for one in matrices] == [
        ({"full": "full attack", "paper": "paper protocol"}[one["protocol"]], one["matrix"])
        for one in said["protocols"]
    ]
    assert len(matrices) == 4
    assert matrices[0]["labels"] == list(ALONE)
    results = {path.name: read_result(path, path, read_config(pair)) for path in (tmp_path / "r2s.json", *each)}
    series = to_draw(gather(pair, read_config(pair), {}, results))["robust_accuracy.png"]["series"]
    shown = {(line["network"], line["attack"]) for line in series}
    assert {("R2S", "worst of 9 attacks that know all members"), ("r0.05", "PGD-20"), ("r0.1", "PGD-20")} <= shown


def test_dense_networks_are_told_apart_and_drawn_where_the_ticket_is(folder, tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    two = ("pgd20", "margin20")
    put(tmp_path / "ticket.json", result("ticket", network(folder), attacks=two, eps=(4, 8)))
    put(tmp_path / "few.json", result("ticket", network(folder), attacks=(*two, "square100"), eps=(8,)))
    for name in ("adversarial", "natural"):
        about = {"source": name, "architecture": "ResNet"}
        put(tmp_path / f"{name}.json", result("dense", about, attacks=(*two, "square100"), eps=(8,)))
        put(tmp_path / f"{name}-each.json", result("dense", about, attacks=two, eps=(4, 8)))
    drawn, save = [], figure.savefig
    monkeypatch.setattr(
        figure, "savefig", lambda self, *given, **also: drawn.append(self) or save(self, *given, **also)
    )
    write_card(folder, sorted(tmp_path.glob("*.json")))
    (axes,) = drawn[0].axes
    styles = {}
    for line in axes.lines:
        who, _, attack = line.get_label().partition(", ")
        styles.setdefault(who, set()).add(line.get_linestyle())
        assert "Square" not in attack  # at one eps: a point of the ticket, no line
    assert styles == {"r0.1": {"-"}, "dense adversarial": {"--"}, "dense natural": {":"}}
    assert len(axes.lines) == 6


def test_matplotlib_is_asked_for_only_where_there_is_something_to_draw(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    write_card(folder, [put(tmp_path / "a.json", result("ticket", network(folder)))])
    with pytest.raises(SettingsError, match=r'pip install "rst-hub\[plots\]"'):
        write_card(folder, [put(tmp_path / "b.json", result("ticket", network(folder), eps=(4, 8)))])


def test_a_picture_of_the_same_numbers_stays_as_it_is(folder, tmp_path):
    about = network(folder)
    put(tmp_path / "one.json", result("ticket", about, attacks=("pgd20",), eps=(4, 8)))
    write_card(folder, [tmp_path / "one.json"])
    path = folder / "robust_accuracy.png"
    with Image.open(path) as image:  # the same numbers, in other bytes
        info = PngInfo()
        info.add_text("Description", image.info["Description"])
        image.resize((20, 20)).save(path, pnginfo=info)
    other = path.read_bytes()
    assert path not in write_card(folder)
    assert path.read_bytes() == other
    put(tmp_path / "two.json", result("ticket", about, attacks=("pgd20",), eps=(4, 8, 16)))
    assert path in write_card(folder, [tmp_path / "two.json"])
    assert path.read_bytes() != other
