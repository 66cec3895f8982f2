import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from ticket_results import network, put, result, transfer

from rst_hub.card import render, write_card
from rst_hub.errors import SettingsError
from rst_hub.pictures import PICTURES, picture_digest


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
    assert len(digests) == 3
    text = again["README.md"].decode()
    assert "| 45.00 | not recorded |" in text
    assert "| 50.00 | not recorded |" in text
    assert "**R2S against an attacker who knows its members: not measured.**" in text  # these attackers know one
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
