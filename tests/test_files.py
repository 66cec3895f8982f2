import pytest

from rst_hub.files import new_folder, write_file


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
