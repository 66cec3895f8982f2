import dataclasses
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from conftest import ENVIRONMENT
from PIL import Image

import rst_hub
from rst_hub.data.augment import AUGMENTATIONS, _random_crop
from rst_hub.data.images import Decoder, load_images
from rst_hub.data.loader import channel_statistics, evaluation_batches, split_off, training_batches
from rst_hub.data.order import permutation
from rst_hub.errors import DataError, SettingsError


def folder_of(tmp_path, columns, features, name="set", splits=("train", "test")):
    """Write a parquet data set, laid out as on the Hub, and return its folder."""
    for split in splits:
        dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        (tmp_path / name / "data").mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(str(tmp_path / name / "data" / f"{split}-00000-of-00001.parquet"))
    return str(tmp_path / name)


def picture(value=100, size=(12, 12), mode="RGB"):
    return Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).convert(mode)


def some_images(count=40, size=12):
    pixels = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    from rst_hub.data.images import Images

    return Images(pixels, torch.arange(count) % 4, tuple("abcd"))


def test_digits_are_the_default_and_split_for_good():
    train, test = load_images("digits", "train"), load_images("digits", "test")
    assert train.rows.shape == (1297, 3, 32, 32)
    assert test.rows.shape == (500, 3, 32, 32)
    assert train.rows.dtype == torch.uint8
    assert train.classes == tuple("0123456789")
    both = torch.cat([train.rows, test.rows]).flatten(1)
    assert len(both.unique(dim=0)) > 1780  # a digit that is in both halves is one that the data set holds twice
    assert test.labels[:12].tolist() == load_images("digits", "test", image_size=8).labels[:12].tolist()
    assert load_images("digits", "test", image_size=8).rows.shape == (500, 3, 8, 8)


def test_the_names_of_the_room_are_public(image_folder):
    images = rst_hub.data.load_images(image_folder, "train", image_size=16)  # a Path will do
    assert isinstance(images, rst_hub.data.Images)
    assert images.rows.shape == (36, 3, 16, 16)
    options = {"augment": "crop", "image_size": 16, "seed": 0, "epoch": 0}
    for pixels, labels in rst_hub.data.training_batches(images, 9, **options):
        assert (pixels.shape, pixels.dtype, labels.shape, labels.dtype) == (
            (9, 3, 16, 16),
            torch.float32,
            (9,),
            torch.int64,
        )
    batches = list(rst_hub.data.evaluation_batches(images, 10, image_size=8))
    assert [(number, len(pixels), len(labels)) for number, pixels, labels in batches] == [
        (0, 10, 10),
        (1, 10, 10),
        (2, 10, 10),
        (3, 6, 6),
    ]
    assert torch.equal(torch.cat([labels for *_, labels in batches]), images.labels)
    rooms = ("attacks", "cards", "data", "evaluation", "hub", "masks", "networks", "runs", "tickets")
    assert [getattr(rst_hub, room).__name__ for room in rooms] == [f"rst_hub.{room}" for room in rooms]
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        rst_hub.absent  # noqa: B018


def test_sizes_that_no_batch_has_are_refused():
    images, options, refused = some_images(), {"augment": "none", "seed": 0, "epoch": 0}, 0
    for arguments, message in (
        ({"batch_size": 0}, "batch_size=0: give a whole number from 1"),
        ({"batch_size": -4}, "batch_size=-4"),
        ({"batch_size": 2.5}, r"batch_size=2\.5"),
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": "12"}, "image_size='12'"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\): give \(rank, processes\)"),
        ({"shard": (0, 0)}, "shard="),
        ({"shard": (-1, 2)}, "shard="),
    ):
        given = {"batch_size": 4, "image_size": 12, **arguments}
        for batches in (training_batches(images, **given, **options), evaluation_batches(images, **given)):
            with pytest.raises(SettingsError, match=message):
                next(batches)
            refused += 1
    assert refused == 16
    for size in (0, -1, 1.5, "32", True):
        with pytest.raises(DataError, match="image_size="):
            load_images("digits", "train", image_size=size)


def test_a_repr_is_a_line(tmp_path, image_folder):
    assert repr(load_images("digits", "train")) == "Images(1,297 of 10 classes, split='train', 3x32x32)"
    images = load_images(str(image_folder), "test", skip_broken=True)
    assert repr(images) == "Images(12 of 3 classes, split='test', 3x12x12)"
    encoded = dataclasses.replace(images, rows=images.encoded)
    assert repr(encoded) == "Images(12 of 3 classes, split='test', decoded when asked)"


def test_an_image_folder_is_read(image_folder):
    train, test = (load_images(str(image_folder), split) for split in ("train", "test"))
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert train.rows.shape == (36, 3, 12, 12)
    assert test.labels.bincount().tolist() == [4, 4, 4]
    coloured = [i for i in range(36) if not torch.equal(train.rows[i, 0], train.rows[i, 1])]
    assert len(coloured) == 33  # three are grey, and RGB all the same
    brightest = train.rows[coloured].float().mean((2, 3)).argmax(1)
    assert torch.equal(brightest, train.labels[coloured])


def test_columns_are_found_by_their_type(tmp_path):
    columns = {"id": [7, 8], "photo": [picture(10), picture(200)], "kind": [1, 0]}
    features = {
        "id": datasets.Value("string"),
        "photo": datasets.Image(),
        "kind": datasets.ClassLabel(names=["x", "y"]),
    }
    columns["id"] = ["7", "8"]
    images = load_images(folder_of(tmp_path, columns, features), "train")
    assert images.labels.tolist() == [1, 0]
    assert images.classes == ("x", "y")
    assert images.rows[:, 0, 0, 0].tolist() == [10, 200]


def test_integer_labels_without_names_will_do(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    images = load_images(folder_of(tmp_path, {"image": [picture()] * 3, "label": [2, 0, 1]}, features), "test")
    assert images.classes == ("0", "1", "2")


def test_a_validation_split_serves_as_test(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["x"])}
    folder = folder_of(tmp_path, {"image": [picture()], "label": [0]}, features, splits=("train", "validation"))
    assert len(load_images(folder, "test")) == 1
    assert load_images(folder, "test").split == "validation"
    secret = datasets.Dataset.from_dict({"image": [picture()] * 3, "label": [-1] * 3}, datasets.Features(features))
    secret.to_parquet(f"{folder}/data/test-00000-of-00001.parquet")
    assert load_images(folder, "test").split == "validation"  # a test split without labels is of no use
    only = folder_of(tmp_path, {"image": [picture()], "label": [0]}, features, "only", splits=("train",))
    with pytest.raises(DataError, match="has the splits train, and none for test"):
        load_images(only, "test")


def test_what_is_no_labelled_image_data_set_is_refused(tmp_path):
    label, image = datasets.ClassLabel(names=["x", "y"]), datasets.Image()
    text = datasets.Value("string")
    cases = {
        "no image column among text, label": ({"text": ["a"], "label": [0]}, {"text": text, "label": label}),
        "no label column among image, text": ({"image": [picture()], "text": ["a"]}, {"image": image, "text": text}),
        "several label columns: choose one of fine, coarse": (
            {"image": [picture()], "fine": [0], "coarse": [1]},
            {"image": image, "fine": label, "coarse": label},
        ),
        "several image columns": (
            {"a": [picture()], "b": [picture()], "label": [0]},
            {"a": image, "b": image, "label": label},
        ),
        "a label of split train is missing": (
            {"image": [picture()] * 2, "label": [0, None]},
            {"image": image, "label": label},
        ),
        "holds no image": ({"image": [None], "label": [0]}, {"image": image, "label": label}),
    }
    number, whole = datasets.Value("float64"), datasets.Value("int64")
    cases |= {
        "no label column": ({"image": [picture()], "label": [0.7]}, {"image": image, "label": number}),
        "'id' .* reaches 30000000": ({"image": [picture()], "id": [30_000_000]}, {"image": image, "id": whole}),
        "floating-point pixels": (
            {"image": [Image.fromarray(np.ones((4, 4), np.float32))], "label": [0]},
            {"image": image, "label": label},
        ),
        "cannot be decoded": (
            {"image": [{"bytes": b"GIF?", "path": None}], "label": [0]},
            {"image": image, "label": label},
        ),
    }
    for index, (message, (columns, features)) in enumerate(cases.items()):
        with pytest.raises(DataError, match=message):
            load_images(folder_of(tmp_path, columns, features, f"set{index}"), "train")
    assert index == 9
    chosen = folder_of(tmp_path, {"image": [picture()], "label": [0.7]}, {"image": image, "label": number}, "chosen")
    with pytest.raises(DataError, match="holds no class labels"):
        load_images(chosen, "train", label_column="label")
    several = folder_of(tmp_path, *cases["several label columns: choose one of fine, coarse"], "several")
    assert load_images(several, "train", label_column="coarse").labels.tolist() == [1]
    with pytest.raises(DataError, match=r"no column 'coars'\. Did you mean coarse"):
        load_images(several, "train", label_column="coars")


def test_names_that_lead_nowhere_are_refused(tmp_path):
    for name in ("cifar", "/no/such/folder", "a/b/c", "./x"):
        with pytest.raises(DataError, match="neither a folder here"):
            load_images(name, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        load_images(str(tmp_path / "empty"), "train")


def test_sizes_and_modes(tmp_path):
    grey16 = Image.fromarray((np.arange(144).reshape(12, 12) * 400).astype(np.uint16))
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["x"])}
    columns = {
        "image": [picture(50, (30, 20)), picture(60, mode="L"), picture(70, mode="RGBA"), grey16],
        "label": [0] * 4,
    }
    folder = folder_of(tmp_path, columns, features)
    native = load_images(folder, "train")
    assert isinstance(native.rows, Decoder)  # of different sizes
    assert [tuple(native.rows[i].shape) for i in range(4)] == [(3, 20, 30), (3, 12, 12), (3, 12, 12), (3, 12, 12)]
    assert (int(native.rows[3].min()), int(native.rows[3].max())) == (0, 223)  # 57200 / 257
    resized = load_images(folder, "train", image_size=8)
    assert resized.rows.shape == (4, 3, 8, 8)
    assert resized.rows[:3, 0, 0, 0].tolist() == [50, 60, 70]
    x, y = next(training_batches(native, 4, augment="imagenet", image_size=8, seed=0, epoch=0))
    assert x.shape == (4, 3, 8, 8)
    assert y.tolist() == [0] * 4


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_processes_share_the_very_batches_of_one(augment):
    images = some_images()
    whole = list(training_batches(images, 12, augment=augment, image_size=12, seed=3, epoch=1))
    assert len(whole) == 3
    for processes in (2, 3, 4):
        parts = [
            list(training_batches(images, 12, augment=augment, image_size=12, seed=3, epoch=1, shard=(rank, processes)))
            for rank in range(processes)
        ]
        for step, (x, y) in enumerate(whole):
            for rank in range(processes):
                assert torch.equal(parts[rank][step][0], x[rank::processes])
                assert torch.equal(parts[rank][step][1], y[rank::processes])
        evaluated = [
            b
            for rank in range(processes)
            for b in evaluation_batches(images, 7, image_size=12, shard=(rank, processes))
        ]
        evaluated.sort(key=lambda batch: batch[0])
        assert torch.equal(torch.cat([y for _, _, y in evaluated]), images.labels)
        assert torch.equal(torch.cat([x for _, x, _ in evaluated]), images.rows.float() / 255)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("augment", [augment for augment in AUGMENTATIONS if augment != "imagenet"])
def test_a_gpu_makes_the_very_pixels_of_a_cpu(augment):
    images = some_images(256)
    there = images.to(torch.device("cuda"))
    assert there.rows.is_cuda
    settings = {"augment": augment, "image_size": 12, "seed": 3, "epoch": 1}
    batches = [list(training_batches(each, 64, **settings)) for each in (images, there)]
    assert len(batches[0]) == len(batches[1]) == 4
    for (x, y), (x_there, y_there) in zip(*batches, strict=True):
        assert x_there.is_cuda
        assert torch.equal(x, x_there.cpu())
        assert torch.equal(y, y_there.cpu())


def test_images_that_are_decoded_when_asked_stay_where_they_are(tmp_path):
    images = load_images(
        folder_of(
            tmp_path,
            {"image": [picture(size=(i + 5, 8)) for i in range(4)], "label": [0] * 4},
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["x"])},
        ),
        "train",
    )
    assert images.to(torch.device("meta")) is images
    moved = some_images().to(torch.device("meta"))
    assert (moved.rows.device.type, moved.labels.device.type, moved.classes) == ("meta", "meta", tuple("abcd"))


def test_every_epoch_has_its_own_order_and_every_sample_comes_once():
    images = some_images(48)
    epochs = [
        torch.cat([x for x, _ in training_batches(images, 12, augment="none", image_size=12, seed=0, epoch=e)])
        for e in (0, 1)
    ]
    assert not torch.equal(*epochs)
    for epoch in epochs:
        assert len(epoch) == 48
        assert torch.equal(
            epoch.flatten(1).sum(1).sort().values, (images.rows.float() / 255).flatten(1).sum(1).sort().values
        )


def test_skipped_batches_do_not_change_the_others():
    images = some_images()
    whole = list(training_batches(images, 12, augment="cifar", image_size=12, seed=0, epoch=0))
    rest = list(training_batches(images, 12, augment="cifar", image_size=12, seed=0, epoch=0, skip=2))
    assert len(rest) == 1
    assert torch.equal(rest[0][0], whole[2][0])


def test_crops_are_those_of_a_plain_loop():
    x = torch.rand(50, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    down, right = torch.rand(2, 50, generator=torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(x, [4] * 4)
    tops, lefts = (down * 9).long(), (right * 9).long()
    expected = torch.stack(
        [padded[i, :, top : top + 10, left : left + 10] for i, (top, left) in enumerate(zip(tops, lefts, strict=True))]
    )
    assert torch.equal(_random_crop(x, down, right), expected)
    assert {int(tops.min()), int(tops.max())} == {0, 8}


def test_augmentations_do_what_they_say():
    images = some_images(400)
    drawn = {a: next(training_batches(images, 400, augment=a, image_size=12, seed=0, epoch=0)) for a in AUGMENTATIONS}
    plain = drawn["none"][0]
    assert torch.equal(drawn["cifar"][1], drawn["none"][1])
    crop, cifar = drawn["crop"][0], drawn["cifar"][0]
    flipped = (cifar != crop).flatten(1).any(1)
    assert 150 < int(flipped.sum()) < 250
    assert torch.equal(cifar[flipped], crop[flipped].flip(3))
    assert 0 < int((crop == plain).flatten(1).all(1).sum()) < 20  # one offset in 81 is none
    assert drawn["imagenet"][0].shape == plain.shape
    with pytest.raises(SettingsError, match="Did you mean cifar"):
        next(training_batches(images, 4, augment="cifr", image_size=12, seed=0, epoch=0))
    with pytest.raises(DataError, match="batch of 401"):
        next(training_batches(images, 401, augment="none", image_size=12, seed=0, epoch=0))


def test_held_out_images_are_apart_and_chosen_by_the_seed():
    images = some_images(40)
    rest, held = split_off(images, 10, seed=0)
    assert (len(rest), len(held)) == (30, 10)
    sums = torch.cat([rest.rows, held.rows]).flatten(1).long().sum(1)
    assert torch.equal(sums.sort().values, images.rows.flatten(1).long().sum(1).sort().values)
    assert torch.equal(split_off(images, 10, seed=0)[1].rows, held.rows)
    assert not torch.equal(split_off(images, 10, seed=1)[1].rows, held.rows)
    for count in (0, 40, 41):
        with pytest.raises(DataError, match="hold out"):
            split_off(images, count, seed=0)


def test_orders_are_the_same_on_every_machine():
    assert permutation("order", 0, 0, 10).tolist() == [6, 4, 5, 8, 0, 3, 2, 1, 7, 9]
    assert sorted(permutation("order", 5, 3, 1000).tolist()) == list(range(1000))


def test_channel_statistics():
    images = some_images(60)
    mean, std = channel_statistics(images)
    pixels = images.rows.double().transpose(0, 1).flatten(1) / 255
    assert mean == pytest.approx(pixels.mean(1).tolist(), abs=6e-4)
    assert std == pytest.approx(pixels.std(1).tolist(), abs=6e-4)


def test_digits_need_no_datasets_library():
    program = (
        "import sys; sys.modules['datasets'] = None; from rst_hub.data.images import load_images;"
        "print(len(load_images('digits', 'test')))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert run.stdout.strip() == "500"
