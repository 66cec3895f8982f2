import pytest
import torch
from PIL import Image

from rst_hub.data.images import Images, load_images
from rst_hub.errors import SettingsError
from rst_hub.runs import fitting as fitting
from rst_hub.runs import settings as settings


def photos(folder, sizes, per_class=10):
    """Write class folders of pictures of these sizes, (width, height), one after another."""
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True)
        for i in range(per_class):
            Image.new("RGB", sizes[i % len(sizes)]).save(folder / kind / f"{i}.png")
    return [load_images(str(folder), split) for split in ("train", "test")]


def chosen(model, train, test, **more):
    return fitting.at_one_size(settings.SearchSettings(model=model, **more), train, test)


def test_the_size_is_the_architectures_or_what_most_images_reach(tmp_path):
    large = photos(tmp_path / "large", [(300, 260), (400, 500), (270, 300)])
    mixed = photos(tmp_path / "mixed", [(120, 100), (130, 140), (200, 110), (16, 16), (100, 110)])
    cases = {
        ("resnet50", "large"): 224,
        ("preact_resnet18", "large"): 32,  # a network for CIFAR
        ("resnet50", "mixed"): 96,  # a fifth of them are smaller
        ("vit_tiny_patch16_224", "mixed"): 224,  # the size of its tables is fixed
        ("test_vit", "large"): 160,
    }
    for (model, which), expected in cases.items():
        side, train, test, notes = chosen(model, *(large if which == "large" else mixed))
        assert side == expected, model
        assert train.rows.shape == (16, 3, side, side)
        assert test.rows.shape == (4, 3, side, side)
        assert f"each is resized to {side} x {side} and keeps" in notes[0]
    assert len(cases) == 5
    assert chosen("resnet50", *mixed)[3][0].startswith("the images are of 16 x 16 to 200 x 110 pixels")


def test_squares_of_one_size_and_a_size_that_was_chosen_stay(tmp_path):
    squares = photos(tmp_path / "squares", [(48, 48)])
    side, train, _, notes = chosen("resnet50", *squares)
    assert (side, train is squares[0], notes) == (48, True, [])
    assert chosen("resnet50", *squares, image_size=40)[::3] == (40, [])
    wide = photos(tmp_path / "wide", [(64, 48)])  # of one size, and no squares
    assert chosen("resnet50", *wide)[0] == 32
    cropped = chosen("resnet50", *wide, augment="imagenet")
    assert (cropped[0], cropped[1] is wide[0], cropped[2].rows.shape) == (32, True, (4, 3, 32, 32))


def test_defaults_give_way_to_few_images_and_say_so():
    def fit(images, parts=1, **given):
        found, notes = fitting.fitted(settings.SearchSettings(**given), images, parts)
        return found.holdout, found.batch_size, len(notes)

    assert fit(50_000) == (1000, 256, 0)
    assert fit(9_469) == (1000, 256, 0)
    assert fit(3_000) == (600, 256, 1)
    assert fit(180) == (36, 32, 2)
    assert fit(180, parts=6) == (36, 30, 2)
    assert fit(50_000, parts=3) == (1000, 255, 1)  # unequal parts would weigh their images unequally
    assert fit(50_000, parts=300) == (1000, 300, 1)
    assert fit(10) == (2, 2, 2)
    assert fit(180, holdout=20, batch_size=100) == (20, 100, 0)  # what was chosen is never changed
    _, notes = fitting.fitted(settings.SearchSettings(), 180, 1)
    assert notes == [
        "--holdout is 36, a fifth of 180 training images, and not 1000",
        "--batch-size is 32, so that 144 images make 4 steps an epoch, and not 256",
    ]


def test_what_was_chosen_and_does_not_fit_is_refused_at_once():
    with pytest.raises(SettingsError, match="cannot hold out 180 of 180 training images"):
        fitting.fitted(settings.SearchSettings(holdout=180), 180, 1)
    with pytest.raises(
        SettingsError, match=r"2 things are wrong: .*hold out 500 .*--batch-size 4000 is more than the 180"
    ):
        fitting.fitted(settings.SearchSettings(holdout=500, batch_size=4000), 180, 1)
    with pytest.raises(SettingsError, match="--batch-size 170 is more than the 160 training images"):
        fitting.fitted(settings.SearchSettings(holdout=20, batch_size=170), 180, 1)


def test_images_by_hand_cannot_be_resized():
    images = Images(torch.zeros(20, 3, 8, 9, dtype=torch.uint8), torch.zeros(20).long(), ("a",))
    with pytest.raises(Exception, match="not from a data set: resize their rows"):
        chosen("resnet50", images, images)
