import os

import pytest

from rst_hub.files import is_snapshot, new_folder, read_inside, strict_json, write_file


def test_a_file_is_replaced_whole_and_nothing_lies_beside_it(tmp_path):
    write_file(tmp_path / "a", b"old")
    write_file(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]


def test_a_folder_appears_whole(tmp_path):
    (tmp_path / "made" / "empty").mkdir(parents=True)
    for name in ("deep/er", "made/empty"):
        with new_folder(tmp_path / name) as beside:
            (beside / "a").write_text("a")
            assert not (tmp_path / name / "a").exists()
        assert [path.name for path in (tmp_path / name).iterdir()] == ["a"]
        assert [path.name for path in (tmp_path / name).parent.iterdir()] == [(tmp_path / name).name]


def test_a_folder_that_fails_half_way_never_appears(tmp_path):
    def fail():
        with new_folder(tmp_path / "b") as beside:
            (beside / "a").write_text("a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("mine")
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "b"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["b", "mine"]


def test_strict_json_reads_what_every_reader_reads_alike():
    assert strict_json(b'{"a": [1, 2.5, "\xc3\xa9", null, true]}') == {"a": [1, 2.5, "\u00e9", None, True]}
    refused = {
        "a key twice": b'{"a": 1, "a": 1}',
        "a key twice inside": b'[{"b": {"a": 1, "a": 2}}]',
        "NaN": b"[NaN]",
        "infinity": b"[-Infinity]",
        "a float beyond float64": b"[1e999]",
        "a lone surrogate": b'["\\ud800"]',
        "a byte-order mark": b"\xef\xbb\xbf{}",
        "no UTF-8": b'["\xff"]',
        "many lists": b"[" + b"[]," * 100_000 + b"[]]",
        "many keys": b"{" + b",".join(b'"%d":1' % n for n in range(200_001)) + b"}",
        "more behind it": b"{} {}",
    }
    for content in refused.values():
        with pytest.raises(ValueError):  # noqa: PT011  (of many messages)
            strict_json(content)
    assert len(refused) == 11


def test_read_inside_reads_regular_files_of_the_folder_alone(tmp_path):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.write_bytes(b"secret")
    (folder / "file").write_bytes(b"12345")
    (folder / "inner").symlink_to(folder / "file")
    (folder / "outer").symlink_to(outside)
    os.mkfifo(folder / "fifo")
    assert read_inside(folder, "file", 5) == read_inside(folder, "inner", 5) == b"12345"
    for name, limit, message in (
        ("file", 4, "too large"),
        ("outer", 99, "outside of its folder"),
        ("../outside", 99, "outside of its folder"),
        ("fifo", 99, "no file"),
        ("absent", 99, "no file"),
    ):
        with pytest.raises(ValueError, match=message):
            read_inside(folder, name, limit)


def test_only_a_snapshot_may_link_to_the_caches_blobs(tmp_path):
    for name, allowed in (("models--org--x", True), ("other", False)):
        snapshot = tmp_path / name / "snapshots" / "0123"
        blobs = tmp_path / name / "blobs"
        for path in (snapshot, blobs):
            path.mkdir(parents=True)
        (blobs / "abc").write_bytes(b"x")
        (snapshot / "file").symlink_to(blobs / "abc")
        assert is_snapshot(snapshot) is allowed
        if allowed:
            assert read_inside(snapshot, "file", 9) == b"x"
        else:
            with pytest.raises(ValueError, match="outside"):
                read_inside(snapshot, "file", 9)
