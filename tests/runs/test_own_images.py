"""A search on one's own images, as somebody does it who has not read the README."""

import importlib
import json
import shutil

import numpy as np
import pytest
from conftest import run_recipe
from PIL import Image

import rst_hub
from rst_hub.errors import DataError, RstHubError, SettingsError
from rst_hub.runs import naming as naming
from rst_hub.runs import parsing as parsing
from rst_hub.runs import settings as settings
from rst_hub.tickets.digests import digest

search_recipe = importlib.import_module("rst_hub.runs.search")
train_recipe = importlib.import_module("rst_hub.runs.train")

TINY = ("--model", "test_resnet", "--attack", "fgsm", "--schedule", "constant", "--remaining-ratio", "0.3")


def make_photos(root, per_class=75):
    """Write a folder of three class folders of noisy JPEGs of mixed sizes."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog", "heron")):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            height, width = rng.integers(40, 90, 2)
            pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
            pixels[..., number] += 120
            Image.fromarray(pixels).save(root / name / f"{i}.jpg")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("own") / "my_photos", 20)


def run(recipe, *arguments):
    recipe.main([str(argument) for argument in arguments])


def bits(folder):
    ticket = rst_hub.Ticket.load(folder / "ticket")
    return digest(ticket.masks, ticket.masks), digest(ticket.state, ticket.state)


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_folder_of_class_folders_is_all_that_a_search_needs(tmp_path):
    make_photos(tmp_path / "my_photos")
    process = run_recipe("search.py", "--dataset", "my_photos", *TINY, "--epochs", "1", cwd=tmp_path)
    for said in (
        "my_photos: 225 images of 3 classes",
        "45 of its 225 images, a fifth of each class, are the test split; seed 0 chooses them",
        "each is resized to 32 x 32",
        "--holdout is 36, a fifth of 180 training images",
        "--batch-size is 32, so that 144 images make 4 steps an epoch",
        "144 training, 36 held-out and 45 test images of 32 x 32, 3 classes",
    ):
        assert process.stdout.count(said) == 1, said
    (run_folder,) = (tmp_path / "runs").iterdir()
    ticket = rst_hub.Ticket.load(run_folder / "ticket")
    assert ticket.provenance["dataset"] == {"name": "my_photos", "training_samples": 144, "heldout_samples": 36}
    assert ticket.provenance["settings"]["holdout"] == 36
    assert ticket.provenance["results"]["split"] == "test (a fifth of all)"
    assert ticket.pretrained_cfg["label_names"] == ["cat", "dog", "heron"]
    found = run_recipe(
        "benchmark.py",
        *("--ticket", run_folder / "ticket", "--dataset", "my_photos", "--attacks", "pgd1", "--flag-samples", "0"),
        cwd=tmp_path,
    )
    assert "45 test images of my_photos" in found.stdout  # the same fifth


def test_a_single_class_is_refused_as_such(tmp_path):
    make_photos(tmp_path / "photos", 10)
    for name in ("dog", "heron"):
        shutil.rmtree(tmp_path / "photos" / name)
    with pytest.raises(DataError, match="all images are of one class, cat: a network tells two or more apart"):
        run(search_recipe, *TINY, "--dataset", tmp_path / "photos", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_data_are_no_continuation(photos, tmp_path):
    data = shutil.copytree(photos, tmp_path / "data")
    arguments = (*TINY, "--batch-size", "16", "--output", tmp_path / "run")
    run(search_recipe, *arguments, "--dataset", data, "--epochs", "1")

    def resumed(dataset):
        with pytest.raises(RstHubError) as caught:
            run(search_recipe, *arguments, "--dataset", dataset, "--epochs", "1", "--resume")
        return str(caught.value)

    fewer = shutil.copytree(data, tmp_path / "fewer")
    for i in range(5):  # so that the default hold-out is another one too
        (fewer / "heron" / f"{i}.jpg").unlink()
    assert "was begun with other data: the training and test images" in resumed(fewer)
    ended = "so this search has ended"
    assert ended in resumed(data)
    assert ended in resumed(shutil.copytree(data, tmp_path / "elsewhere"))
    one, other = data / "cat" / "3.jpg", data / "dog" / "3.jpg"
    before = one.read_bytes()

    def darkened():
        Image.fromarray(np.asarray(Image.open(one)) // 2).save(one)

    def exchanged():
        one.write_bytes(other.read_bytes())
        other.write_bytes(before)

    changes = (darkened, exchanged, lambda: shutil.copy(one, data / "cat" / "99.jpg"), one.unlink)
    for change in changes:
        kept = {path: path.read_bytes() for path in data.rglob("*.jpg")}
        change()
        assert "was begun with other data: the training" in resumed(data)
        for path in data.rglob("*.jpg"):
            path.unlink()
        for path, content in kept.items():
            path.write_bytes(content)
        assert ended in resumed(data)
    assert len(changes) == 4


def test_a_set_that_is_half_done_goes_on_with_the_same_data_only(photos, tmp_path):
    data = shutil.copytree(photos, tmp_path / "data")
    arguments = (*TINY[:-2], "--remaining-ratios", "0.3,0.2", "--batch-size", "16", "--dataset", data, "--epochs", "1")
    run(search_recipe, *arguments, "--output", tmp_path / "set")
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "set", half, ignore=shutil.ignore_patterns("ticket", "r0.2"))
    rst_hub.Ticket.load(tmp_path / "set" / "ticket", "r0.3").save(half / "ticket")
    (data / "cat" / "3.jpg").unlink()
    with pytest.raises(SettingsError, match="was begun with other data"):
        run(search_recipe, *arguments, "--output", half, "--resume")
    assert not (half / "r0.2").exists()


@pytest.mark.usefixtures("_own_precision")
@pytest.mark.parametrize("recipe", [search_recipe, train_recipe])
def test_a_finished_run_can_be_made_longer(photos, tmp_path, recipe):
    own = TINY if recipe is search_recipe else TINY[:-2]
    arguments = (*own, "--dataset", photos, "--batch-size", "16")
    run(recipe, *arguments, "--output", tmp_path / "whole", "--epochs", "3")
    run(recipe, *arguments, "--output", tmp_path / "longer", "--epochs", "2")
    run(recipe, *arguments, "--output", tmp_path / "longer", "--epochs", "3", "--resume")
    assert metrics(tmp_path / "longer") == metrics(tmp_path / "whole")
    name = "ticket" if recipe is search_recipe else "model"
    assert (tmp_path / "longer" / f"{name}-2-epochs").is_dir()
    if recipe is search_recipe:
        assert bits(tmp_path / "longer") == bits(tmp_path / "whole")
        assert rst_hub.Ticket.load(tmp_path / "longer" / "ticket").provenance["settings"]["epochs"] == 3
    else:
        states = [(tmp_path / folder / "model" / "model.safetensors").read_bytes() for folder in ("longer", "whole")]
        assert states[0] == states[1]
    with pytest.raises(SettingsError, match="has ended: choose another --output"):
        run(recipe, *arguments, "--output", tmp_path / "longer", "--epochs", "3", "--resume")
    with pytest.raises(SettingsError, match="epochs was 3, is 2; a run can be made longer, not shorter"):
        run(recipe, *arguments, "--output", tmp_path / "longer", "--epochs", "2", "--resume")


def test_a_schedule_that_hangs_on_the_epochs_says_why_it_cannot_go_on(photos, tmp_path):
    arguments = (*TINY, "--dataset", photos, "--batch-size", "16", "--output", tmp_path / "run")
    run(search_recipe, *arguments, "--schedule", "step", "--epochs", "2")
    with pytest.raises(
        SettingsError, match=r"the step schedule's rates depend on the number of epochs: epoch 2 had 0\.01"
    ):
        run(search_recipe, *arguments, "--schedule", "step", "--epochs", "4", "--resume")


def test_folders_are_named_after_all_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def name(*more):
        given = parsing.parse(settings.SearchSettings, ["--dataset", "a/photos", *more], "")
        return naming.default_name("search", given)

    different = [
        ("--epochs", "3"),
        ("--image-size", "64"),
        ("--optimizer", "adamw"),
        ("--distribution", "kaiming_normal"),
        ("--max-steps", "3"),
        ("--dataset", "b/photos"),
        ("--remaining-ratio", "0.0500001"),
        ("--holdout", "7"),
        ("--compile",),
        ("--lr", "0.3"),
        ("--remaining-ratios", "0.05"),  # a set of one
        (),
    ]
    assert len({name(*more) for more in different}) == len(different) == 12
    assert name() == name("--output", "x") == name("--resume")
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    for here in (".", "./", "../photos"):
        assert name("--dataset", here).startswith("search-preact_resnet18-photos-pgd-"), here
    assert naming.default_name("search", parsing.parse(settings.SearchSettings, [], "")) == (
        "search-resnet10t-digits-fgsm-rs-eps8-r0.1-s0"
    )


def test_a_run_is_found_again_by_its_settings(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = (*TINY, "--dataset", photos, "--batch-size", "16", "--epochs", "1")
    run(search_recipe, *arguments, "--max-steps", "1")
    (folder,) = (tmp_path / "runs").iterdir()
    run(search_recipe, *arguments, "--resume")  # a trial goes on, and what it found is kept beside
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]
    assert rst_hub.Ticket.load(folder / "ticket-1-steps").provenance["optimizer_steps"] == 1
    assert rst_hub.Ticket.load(folder / "ticket").provenance["optimizer_steps"] == 2
    run(search_recipe, *arguments[:-1], "2", "--resume")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]
    assert len(metrics(folder)) == 2
    with pytest.raises(SettingsError, match="so this search has ended"):
        run(search_recipe, *arguments[:-1], "2", "--resume")


def test_all_wrong_settings_are_reported_at_once(tmp_path):
    with pytest.raises(SettingsError) as caught:
        parsing.parse(settings.SearchSettings, ["--epoch", "3", "--lr", "fast", "--eps", "-1", "--attack", "pdg"], "")
    for number, said in enumerate(
        ("'--epoch' is not known. Did you mean --epochs", "--attack: invalid choice: 'pdg'"), 1
    ):
        assert said in str(caught.value), number
    assert "invalid float value: 'fast'" in str(caught.value)
    assert "--eps -1.0: give 0 or more" in str(caught.value)
    assert str(caught.value).startswith("4 things are wrong: (1) ")
    (tmp_path / "row.toml").write_text('epoch = 3\nlr = "fast"\nseed = -1\n')
    with pytest.raises(SettingsError, match=r"^3 things are wrong: .*'epoch' is not known.*lr = 'fast'.*--seed -1"):
        parsing.parse(settings.SearchSettings, ["--config", str(tmp_path / "row.toml")], "")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text('{"recipe": "search", "precision": "no", "settings": {}}')
    with pytest.raises(SettingsError, match=r"^2 things are wrong: .*no architecture 'resnet81'.*already holds a run"):
        run(search_recipe, "--model", "resnet81", "--output", tmp_path / "run")


def test_paths_are_what_a_shell_would_have_made_of_them(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    parsed = parsing.parse(settings.SearchSettings, ["--dataset=~/my_photos", "--output=~/run"], "")
    assert (parsed.dataset, parsed.output) == (str(photos), str(photos.parent / "run"))
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfepochs = 3\n")  # as an editor on Windows writes it
    assert parsing.parse(settings.SearchSettings, ["--config", str(tmp_path / "bom.toml")], "").epochs == 3
    both = parsing.parse(settings.TransferSettings, ["--tickets=~/a,~/b,org/c"], "")
    assert both.tickets == f"{photos.parent}/a,{photos.parent}/b,org/c"


def test_a_data_sets_name_stands_beside_every_number(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    arguments = (*TINY, "--batch-size", "16", "--epochs", "1", "--dataset", ".")
    run(search_recipe, *arguments, "--output", tmp_path / "one")
    assert rst_hub.Ticket.load(tmp_path / "one" / "ticket").provenance["dataset"]["name"] == "my_photos"
    run(search_recipe, *arguments, "--output", tmp_path / "two", "--dataset-name", "birds and pets")
    provenance = rst_hub.Ticket.load(tmp_path / "two" / "ticket").provenance
    assert (provenance["dataset"]["name"], provenance["settings"]["dataset"]) == ("birds and pets", "birds and pets")
    with pytest.raises(SettingsError, match="--dataset-name ' ': give a name"):
        run(search_recipe, *arguments, "--output", tmp_path / "three", "--dataset-name", " ")
    with pytest.raises(RstHubError, match="has no name to stand beside its numbers"):
        run(search_recipe, *arguments[:-1], "/", "--output", tmp_path / "three")
    assert not (tmp_path / "three").exists()


def test_broken_pictures_stop_a_search_or_are_left_out_of_it(photos, tmp_path):
    data = shutil.copytree(photos, tmp_path / "data")
    (data / "cat" / "broken.jpg").write_bytes((data / "cat" / "0.jpg").read_bytes()[:200])
    arguments = (*TINY, "--batch-size", "16", "--epochs", "1", "--dataset", data, "--output", tmp_path / "run")
    with pytest.raises(DataError, match=r"data/cat/broken.jpg cannot be decoded .*--skip-broken"):
        run(search_recipe, *arguments)
    assert not (tmp_path / "run").exists()
    run(search_recipe, *arguments, "--skip-broken")
    assert rst_hub.Ticket.load(tmp_path / "run" / "ticket").provenance["dataset"]["left_out"] == 1


@pytest.mark.parametrize("recipe", [search_recipe, train_recipe])
def test_a_class_whose_name_no_ticket_can_carry_is_refused_before_anything_is_written(recipe, tmp_path):
    make_photos(tmp_path / "photos", 10)
    (tmp_path / "photos" / "dog").rename(tmp_path / "photos" / "dog\nor puppy")
    refused = r"class 1 is named 'dog\\nor puppy', with a line break .* rename it in the data set"
    arguments = TINY if recipe is search_recipe else TINY[:-2]
    with pytest.raises(DataError, match=refused):
        run(recipe, *arguments, "--dataset", tmp_path / "photos", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_without_a_training_image_is_refused(photos, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(photos, tmp_path / "data" / split)
    shutil.rmtree(tmp_path / "data" / "train" / "dog")
    with pytest.raises(DataError, match="the test images have the classes dog, of which there is no training image"):
        run(search_recipe, *TINY, "--dataset", tmp_path / "data", "--output", tmp_path / "run")
