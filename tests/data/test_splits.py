import json
import os
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pytest
from conftest import ENVIRONMENT
from PIL import Image

from rst_hub.data.images import fingerprint, load_images, name_of
from rst_hub.errors import DataError


def picture(value):
    return Image.fromarray(np.full((6, 6, 3), value, np.uint8))


def table(path, columns, **features):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": [picture(v) for v in columns.pop("image")], **columns}
    types = datasets.Features({"image": datasets.Image(), **features})
    datasets.Dataset.from_dict(columns, features=types).to_parquet(str(path))
    return path


def values(images):
    return images.rows[:, 0, 0, 0].tolist()


WHOLE, TEXT = datasets.Value("int64"), datasets.Value("string")


def test_classes_without_names_are_those_of_all_splits(tmp_path):
    table(tmp_path / "train.parquet", {"image": range(4), "label": [1, 2, 5, 2]}, label=WHOLE)
    table(tmp_path / "test.parquet", {"image": [8, 9], "label": [1, 9]}, label=WHOLE)
    train, test = (load_images(str(tmp_path), split) for split in ("train", "test"))
    assert train.classes == test.classes == ("1", "2", "5", "9")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 1], [0, 3])
    booleans = tmp_path / "booleans"
    table(booleans / "train.parquet", {"image": range(2), "label": [True, True]}, label=datasets.Value("bool"))
    table(booleans / "test.parquet", {"image": range(2), "label": [False, True]}, label=datasets.Value("bool"))
    assert load_images(str(booleans), "train").labels.tolist() == [1, 1]


def test_texts_are_labels(tmp_path):
    columns = {"image": range(4), "animal": ["dog", "cat", "dog", "cat"]}
    table(tmp_path / "data" / "train-00000-of-00001.parquet", dict(columns), animal=TEXT)
    table(tmp_path / "data" / "test-00000-of-00001.parquet", {"image": [9], "animal": ["emu"]}, animal=TEXT)
    train = load_images(str(tmp_path), "train")
    assert (train.classes, train.labels.tolist()) == (("cat", "dog", "emu"), [1, 0, 1, 0])
    assert load_images(str(tmp_path), "test").labels.tolist() == [2]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_metadata_file_says_the_labels(tmp_path, kind):
    for split, names in (("train", ["dog", "cat", "dog"]), ("test", ["cat"])):
        folder = tmp_path / "my[12] train set" / split
        folder.mkdir(parents=True)
        for i in range(len(names)):
            picture(10 + i).save(folder / f"{i}.png")
        rows = [{"file_name": f"{i}.png", "label": name} for i, name in enumerate(names)]
        if kind == "csv":
            text = "\n".join(["file_name,label", *(f"{row['file_name']},{row['label']}" for row in rows)])
        else:
            text = "\n".join(json.dumps(row) for row in rows)
        (folder / f"metadata.{kind}").write_text(text + "\n")
    train, test = (load_images(str(tmp_path / "my[12] train set"), split) for split in ("train", "test"))
    assert (train.classes, train.labels.tolist(), values(train)) == (("cat", "dog"), [1, 0, 1], [10, 11, 12])
    assert test.labels.tolist() == [0]


def described(folder, names):
    """Write images of these names, and one metadata.jsonl above them that labels all of them by turns."""
    lines = []
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / name)
        lines.append(json.dumps({"file_name": name, "label": "cat" if number % 2 else "dog"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_images_own_name_is_no_split(tmp_path):
    described(tmp_path, [f"images/{word}_{i}.png" for word in ("test", "val", "train-test") for i in range(4)])
    train, test = (load_images(str(tmp_path), split) for split in ("train", "test"))
    assert sorted(values(train) + values(test)) == list(range(12))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_metadata_file_above_two_splits_is_refused(tmp_path):
    described(tmp_path, [f"{split}/{i}.png" for split in ("train", "test") for i in range(4)])
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"no metadata file among the images of split test: .*into its own folder"):
            load_images(str(tmp_path), split)


def test_which_column_holds_the_labels(tmp_path):
    again = ["a", "b", "a", "b"]
    cases = {
        "called": ({"width": [1, 2, 3, 4], "label": again}, {"width": WHOLE, "label": TEXT}, [0, 1, 0, 1]),
        "ids": ({"id": ["w", "x", "y", "z"], "kind": again}, {"id": TEXT, "kind": TEXT}, [0, 1, 0, 1]),
        "class": ({"class": [3, 3, 4, 4], "text": again}, {"class": WHOLE, "text": TEXT}, [0, 0, 1, 1]),
    }
    for name, (columns, features, expected) in cases.items():
        table(tmp_path / name / "train.parquet", {"image": range(4), **columns}, **features)
        table(tmp_path / name / "test.parquet", {"image": range(4), **columns}, **features)
        assert load_images(str(tmp_path / name), "train").labels.tolist() == expected, name
    assert len(cases) == 3
    unclear = {"image": range(4), "width": [1, 1, 2, 2], "kind": again}
    table(tmp_path / "unclear" / "train.parquet", unclear, width=WHOLE, kind=TEXT)
    with pytest.raises(DataError, match="several label columns: choose one of width, kind by --label-column"):
        load_images(str(tmp_path / "unclear"), "train")
    assert load_images(str(tmp_path / "unclear"), "train", label_column="kind").classes == ("a", "b")


def test_a_missing_text_is_a_missing_label(tmp_path):
    table(tmp_path / "train.parquet", {"image": range(4), "label": ["a", None, "a", " "]}, label=TEXT)
    with pytest.raises(DataError, match="a label of split train is missing"):
        load_images(str(tmp_path), "train")


def test_splits_that_number_their_classes_differently_are_refused(tmp_path):
    for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        label = datasets.ClassLabel(names=names)
        table(tmp_path / f"{split}.parquet", {"image": range(4), "label": [0, 1, 0, 1]}, label=label)
    with pytest.raises(DataError, match=r"name the classes of 'label' differently .*'cat'"):
        load_images(str(tmp_path), "train")
    table(
        tmp_path / "test.parquet", {"image": [1], "label": [0]}, label=datasets.ClassLabel(names=["cat", "dog", "emu"])
    )
    with pytest.raises(DataError, match=r"differently .*[23] and [23] of them"):
        load_images(str(tmp_path), "train")


def test_what_a_metadata_file_leaves_out_or_lacks_is_said(tmp_path):
    for i in range(5):
        (tmp_path / "train").mkdir(exist_ok=True)
        picture(i).save(tmp_path / "train" / f"{i}.png")
    lines = [f"{i}.png,{number}" for i, number in enumerate((3, 4, 3))]
    (tmp_path / "train" / "metadata.csv").write_text("\n".join(["file_name,label", *lines]) + "\n")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    images = load_images(str(tmp_path), "train")
    assert (images.classes, len(images)) == (("3", "4"), 3)
    assert images.notes == (f"{tmp_path}, split train: 3 rows; left out 2 images that metadata.csv has no line of",)
    for split in ("train", "test"):
        (tmp_path / split / "metadata.csv").write_text("\n".join(["file_name,label", *lines[:2], "2.png,"]) + "\n")
    with pytest.raises(DataError, match="fractions, or whole numbers of which one is missing"):
        load_images(str(tmp_path), "train")


def test_tables_belong_to_the_split_of_their_folder_or_name(tmp_path):
    names = {
        "a/train/0000.parquet": "train",
        "b/my-test-set/train-00000-of-00002.parquet": "train",
        "c/images.parquet": "train",
        "d/x_validation.parquet": "test",
        "e/Test.parquet": "test",
    }
    for number, (name, split) in enumerate(names.items()):
        folder = tmp_path / name.split("/")[0]
        table(tmp_path / name, {"image": [number] * 10, "label": ["u", "v"] * 5}, label=TEXT)
        assert 0 < len(load_images(str(folder), split)) <= 10, name
    assert number == 4
    for name in ("train-test.parquet", "test/x.parquet"):
        table(tmp_path / "both" / name, {"image": [0], "label": ["u"]}, label=TEXT)
    with pytest.raises(DataError, match=r"train-test\.parquet is called after two splits, train and test: rename it"):
        load_images(str(tmp_path / "both"), "train")


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_table_that_is_linked_into_another_split_is_refused(tmp_path, link):
    for split in ("train", "test"):
        table(tmp_path / split / "0.parquet", {"image": [1, 2], "label": ["u", "v"]}, label=TEXT)
    link(tmp_path / "train" / "0.parquet", tmp_path / "test" / "1.parquet")
    with pytest.raises(DataError, match=r"parquet is in two splits, (train and test|test and train)"):
        load_images(str(tmp_path), "test")


def test_a_table_below_a_path_with_brackets_is_read(tmp_path):
    for folder, value in (("set[12]", 5), ("set1", 9)):
        for split in ("train", "test"):
            table(tmp_path / folder / f"{split}.parquet", {"image": [value] * 2, "label": ["u", "v"]}, label=TEXT)
    assert values(load_images(str(tmp_path / "set[12]"), "train")) == [5, 5]


def test_a_readme_that_describes_the_files_is_obeyed(tmp_path):
    folder = tmp_path / "described"
    for name, value in (("one", 1), ("two", 2)):
        table(folder / f"{name}.parquet", {"image": [value] * 2, "label": [0, 1]}, label=WHOLE)
    front = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    split = "  - split: {}\n    path: {}.parquet\n"
    (folder / "README.md").write_text(front + split.format("train", "two") + split.format("test", "one") + "---\n")
    assert values(load_images(str(folder), "train")) == [2, 2]
    assert values(load_images(str(folder), "test")) == [1, 1]
    (folder / "README.md").write_text(front + split.format("train", "two") + split.format("test", "two") + "---\n")
    with pytest.raises(DataError, match=r"two.parquet is in two splits, train and test: say which files"):
        load_images(str(folder), "train")
    bracketed = folder.rename(tmp_path / "described[1]")
    with pytest.raises(DataError, match="has a name that would be read as a pattern: rename it"):
        load_images(str(bracketed), "train")


def test_what_the_datasets_library_saved_is_read(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    rows = datasets.Dataset.from_dict({"image": [picture(v) for v in range(4)], "label": [0, 1, 0, 1]}, features)
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(str(tmp_path / "saved"))
    assert values(load_images(str(tmp_path / "saved"), "train")) == [0, 1, 2, 3]
    assert load_images(str(tmp_path / "saved"), "test").labels.tolist() == [1]


def test_a_cache_that_cannot_be_written_is_blamed_itself(tmp_path):
    table(tmp_path / "set" / "train.parquet", {"image": range(4), "label": ["u", "v"] * 2}, label=TEXT)
    (tmp_path / "file").write_text("")
    program = f"from rst_hub.data.images import load_images; load_images({str(tmp_path / 'set')!r}, 'train')"
    environment = {**ENVIRONMENT, "HF_DATASETS_CACHE": str(tmp_path / "file" / "cache")}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    said = run.stderr.strip().splitlines()[-1]
    assert said.startswith(
        f"rst_hub.errors.DataError: the cache of data sets, {tmp_path / 'file' / 'cache'}, cannot be"
    )
    assert said.endswith("set HF_HOME or HF_DATASETS_CACHE to a folder that can be, with room for the data")


def test_a_data_sets_name_is_taken_in_one_way(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    monkeypatch.setenv("HOME", str(tmp_path))
    for spelling in (".", "./", str(tmp_path / "photos"), "../photos/", "~/photos", "../photos/../photos"):
        assert name_of(spelling) == "photos", spelling
    assert name_of("org/name") == "org/name"
    assert name_of("digits") == "digits"
    with pytest.raises(DataError, match="has no name to stand beside its numbers: give one by --dataset-name"):
        name_of(os.sep)


def test_the_home_folder_is_known(tmp_path, monkeypatch):
    table(tmp_path / "set" / "train.parquet", {"image": range(10), "label": ["u", "v"] * 5}, label=TEXT)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_images("~/set", "train")) == 8
    with pytest.raises(DataError, match="neither a folder here"):
        load_images("~/nothing", "train")


def test_a_fingerprint_is_of_the_data_wherever_they_lie(tmp_path):
    columns = {"image": range(4), "label": ["u", "v"] * 2}
    for name in ("one", "two", "other"):
        for split in ("train", "test"):
            table(tmp_path / name / f"{split}.parquet", dict(columns), label=TEXT)
    one, two = (fingerprint(load_images(str(tmp_path / name), "train")) for name in ("one", "two"))
    assert one == two
    changed = {"pixels": ([0, 1, 2, 9], ["u", "v"] * 2), "labels": (range(4), ["v", "u"] * 2)}
    for image, label in changed.values():
        table(tmp_path / "other" / "train.parquet", {"image": image, "label": label}, label=TEXT)
        assert fingerprint(load_images(str(tmp_path / "other"), "train")) != one
    assert fingerprint(load_images("digits", "train")) != fingerprint(load_images("digits", "train", image_size=8))
