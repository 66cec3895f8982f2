import os

import numpy as np
import pytest
from PIL import Image

from rst_hub.data.folders import ALL, class_folders, image_suffixes, visible_files
from rst_hub.data.images import fingerprint, load_images
from rst_hub.errors import DataError


def put(path, value=0):
    """Write a small picture, or what else its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(np.full((6, 6, 3), value, np.uint8)).save(path)
    else:
        path.write_bytes(b"something else")


def values(images):
    return images.rows[:, 0, 0, 0].tolist()


@pytest.fixture
def vehicles(tmp_path):
    """Return a folder with a class that is called like a split: train/bus 10-12, train/train 20-22, test/... 30, 40."""
    for i in range(3):
        put(tmp_path / "D" / "train" / "bus" / f"{i}.png", 10 + i)
        put(tmp_path / "D" / "train" / "train" / f"{i}.png", 20 + i)
    put(tmp_path / "D" / "test" / "bus" / "0.png", 30)
    put(tmp_path / "D" / "test" / "train" / "0.png", 40)
    return tmp_path / "D"


def test_a_class_called_train_is_a_class(vehicles):
    train, test = (load_images(str(vehicles), split) for split in ("train", "test"))
    assert train.classes == test.classes == ("bus", "train")
    assert (values(train), train.labels.tolist()) == ([10, 11, 12, 20, 21, 22], [0, 0, 0, 1, 1, 1])
    assert (values(test), test.labels.tolist()) == ([30, 40], [0, 1])
    assert train.notes == (f"{vehicles / 'train'}: 6 images of 2 classes",)


@pytest.mark.parametrize("name", ["set[12]", "set*", "set?", "train", "my test data", "validation-train", "données"])
def test_the_folders_own_path_is_no_pattern_and_no_split(vehicles, tmp_path, name):
    neighbour = tmp_path / "set1"
    for split in ("train", "test"):
        for kind in ("bus", "train"):
            put(neighbour / split / kind / "9.png", 99)
    here = vehicles.rename(tmp_path / name)
    assert values(load_images(str(here), "train")) == [10, 11, 12, 20, 21, 22]
    assert values(load_images(str(here), "test")) == [30, 40]


def test_images_without_class_folders_are_refused_in_words_that_fit(tmp_path):
    for split in ("train", "test"):
        put(tmp_path / split / "0.png")
    with pytest.raises(DataError, match=r"holds images in test, train, but no class folders: put the images"):
        load_images(str(tmp_path), "train")
    put(tmp_path / "flat" / "0.png")
    with pytest.raises(DataError, match="it has no class folders"):
        load_images(str(tmp_path / "flat"), "train")


def test_no_class_and_no_file_vanishes_without_a_word(vehicles):
    put(vehicles / "train" / "bus" / "notes.txt")
    put(vehicles / "train" / "bus" / "extra.svg")
    put(vehicles / "train" / "index.html")
    (vehicles / "train" / "tram").mkdir()
    put(vehicles / "spare" / "tram" / "0.png")
    put(vehicles / ".hidden" / "bus" / "0.png")
    put(vehicles / "__MACOSX" / "bus" / "0.png")
    notes = load_images(str(vehicles), "train").notes
    assert notes == (
        f"{vehicles / 'train'}: 6 images of 2 classes",
        f"{vehicles / 'train'}: left out 3 files that are no images (.html: 1, .svg: 1, .txt: 1)",
        f"{vehicles / 'train'}: left out tram, which hold nothing",
        f"{vehicles}: left out spare, which are in no split",
    )
    put(vehicles / "train" / "tram" / "0.svg")
    put(vehicles / "train" / "tram" / "1.raw")
    with pytest.raises(DataError, match=r"train/tram has no image that can be read \(.svg: 1, .raw: 1\)"):
        load_images(str(vehicles), "test")  # whichever split is asked for: the classes are those of all
    assert ".avif" in image_suffixes() or Image.__version__ < "11.3"


def test_images_in_the_wrong_depth_are_refused(vehicles):
    put(vehicles / "train" / "bus" / "red" / "0.png")
    with pytest.raises(
        DataError, match=r"bus/red/0.png lies in a folder inside of the class folder .* or give .*train/bus itself"
    ):
        load_images(str(vehicles), "train")
    os.remove(vehicles / "train" / "bus" / "red" / "0.png")
    put(vehicles / "train" / "stray.png")
    with pytest.raises(DataError, match=r"train/stray.png lies outside of the class folders"):
        load_images(str(vehicles), "train")


def test_a_file_in_two_splits_is_refused(vehicles):
    os.symlink(vehicles / "train" / "bus" / "1.png", vehicles / "test" / "bus" / "1.png")
    with pytest.raises(DataError, match="are one file in two splits"):
        load_images(str(vehicles), "train")
    os.remove(vehicles / "test" / "bus" / "1.png")
    os.link(vehicles / "train" / "bus" / "1.png", vehicles / "test" / "bus" / "1.png")
    with pytest.raises(DataError, match="are one file in two splits"):
        load_images(str(vehicles), "train")


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_file_that_a_split_of_ours_could_tear_apart_is_refused(tmp_path, link):
    for i in range(10):
        put(tmp_path / "cat" / f"{i}.png", i)
        put(tmp_path / "dog" / f"{i}.png", 100 + i)
    link(tmp_path / "cat" / "0.png", tmp_path / "cat" / "again.png")
    with pytest.raises(DataError, match=r"cat/0.png and .*cat/again.png are one file: remove one of them"):
        load_images(str(tmp_path), "train")


def test_a_file_in_two_classes_is_refused(vehicles):
    os.link(vehicles / "train" / "bus" / "1.png", vehicles / "train" / "train" / "9.png")
    with pytest.raises(DataError, match=r"bus/1.png and .*train/9.png are one file in two classes"):
        load_images(str(vehicles), "train")


def test_an_image_may_be_linked_again_within_a_class_of_a_split(vehicles):
    os.link(vehicles / "train" / "bus" / "1.png", vehicles / "train" / "bus" / "9.png")
    assert values(load_images(str(vehicles), "train")) == [10, 11, 12, 11, 20, 21, 22]


def test_a_class_whose_name_begins_with_underscores_is_a_class(tmp_path):
    for name in ("__other__", "_background_", "cat"):
        for i in range(5):
            put(tmp_path / name / f"{i}.png", i)
    put(tmp_path / "__MACOSX" / "cat" / "0.png")
    assert load_images(str(tmp_path), "train").classes == ("__other__", "_background_", "cat")


def test_runs_beside_the_class_folders_are_no_class(tmp_path):
    for name in ("cat", "dog"):
        for i in range(5):
            put(tmp_path / name / f"{i}.png", i)
    put(tmp_path / "runs" / "search-x" / "settings.json")
    put(tmp_path / "runs" / "search-x" / "ticket" / "config.json")
    put(tmp_path / "runs" / "transfer-x" / "transfer.png")
    images = load_images(str(tmp_path), "train")
    assert images.classes == ("cat", "dog")
    assert images.notes[1] == f"{tmp_path}: left out runs, which holds runs of recipes"


def test_links_are_followed_and_dead_ones_named(vehicles, tmp_path):
    (vehicles / "train" / "bus").rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", vehicles / "train" / "bus")
    assert values(load_images(str(vehicles), "train")) == [10, 11, 12, 20, 21, 22]
    os.symlink(tmp_path / "nothing", vehicles / "train" / "bus" / "dead.png")
    with pytest.raises(DataError, match=r"dead.png cannot be read \(No such file"):
        load_images(str(vehicles), "train")
    left = load_images(str(vehicles), "train", skip_broken=True)
    assert (values(left), left.skipped) == ([10, 11, 12, 20, 21, 22], 1)


def test_a_name_that_no_ticket_can_hold_is_refused_before_the_search(vehicles):
    try:
        put(vehicles / "train" / "caf\udce9" / "0.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(DataError, match=r"caf\? has a name that is not UTF-8: rename it"):
        load_images(str(vehicles), "train")


@pytest.mark.skipif(os.name == "nt", reason="names on Windows are Unicode")
@pytest.mark.parametrize("name", ["D/cat/0\udcff.png", "D\udcff/cat/0.png"])
def test_a_path_that_is_not_utf_8_is_refused_by_name(tmp_path, name):
    path = tmp_path / name
    try:
        path.parent.mkdir(parents=True)
    except OSError:
        pytest.skip("this file system takes no such name")
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"\?.* is not UTF-8: rename it"):
        load_images(str(path.parent.parent), "train")


def test_a_folder_that_cannot_be_read_is_named(vehicles, monkeypatch):
    def scandir(path):
        if str(path).endswith("bus"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"bus cannot be read \(Permission denied\): check its permissions"):
        load_images(str(vehicles), "train")


def test_class_folders_alone_are_split_the_same_way_each_time(tmp_path):
    for number, name in enumerate(("train", "bus", "tram")):  # a class may be called like a split here, too
        for i in range(10 + number):
            put(tmp_path / name / f"{i}.png", 20 * number + i)
    (tmp_path / "README.md").write_text("# My pictures\n")
    train, test = (load_images(str(tmp_path), split) for split in ("train", "test"))
    assert train.classes == test.classes == ("bus", "train", "tram")
    assert sorted(values(train) + values(test)) == sorted([*range(10), *range(20, 31), *range(40, 52)])
    assert test.labels.bincount().tolist() == [2, 2, 2]
    assert train.labels.bincount().tolist() == [9, 8, 10]
    assert values(test) == [25, 26, 3, 9, 43, 45]
    assert (train.split, test.split) == ("train", "test (a fifth of all)")
    said = "6 of its 33 images, a fifth of each class, are the test split; seed 0 chooses them"
    assert train.notes[-1] == test.notes[-1] == f"the data set has one split: {said}"
    assert fingerprint(load_images(str(tmp_path), "test")) == fingerprint(test)
    only = load_images(str(tmp_path), "train", image_size=4)
    assert fingerprint(only) == fingerprint(train)  # of the files, whatever is made of them


def test_a_folder_with_train_alone_is_split_too(vehicles):
    for split in ("test", "train"):
        assert class_folders(vehicles)[split].files
    (vehicles / "test").rename(vehicles.parent / "away")
    assert list(class_folders(vehicles)) == ["train"]
    test = load_images(str(vehicles), "test")
    assert (len(test), test.split) == (2, "test (a fifth of train)")
    assert sorted(values(test) + values(load_images(str(vehicles), "train"))) == [10, 11, 12, 20, 21, 22]
    assert list(class_folders(vehicles / "train")) == [ALL]


def test_splits_that_nothing_is_taken_from_are_named(vehicles):
    for split in ("val", "training"):
        put(vehicles / split / "bus" / "0.png")
    for split in ("train", "test"):
        assert load_images(str(vehicles), split).notes[-1] == f"{vehicles}: left out the splits training, val"


def test_names_of_splits_may_begin_with_a_capital(vehicles):
    (vehicles / "train").rename(vehicles / "Training")
    (vehicles / "test").rename(vehicles / "VAL")
    assert len(load_images(str(vehicles), "train")) == 6
    assert load_images(str(vehicles), "test").split == "VAL"


def test_a_readme_about_columns_does_not_make_a_table_of_class_folders(vehicles):
    (vehicles / "README.md").write_text("---\ndataset_info:\n  features: []\n---\n")
    assert len(load_images(str(vehicles), "train")) == 6


def test_hidden_files_are_not_listed(vehicles):
    put(vehicles / "train" / "bus" / ".thumb.png")
    put(vehicles / "train" / ".ipynb_checkpoints" / "0.png")
    assert len(list(visible_files(vehicles))) == 8
    assert len(load_images(str(vehicles), "train")) == 6
