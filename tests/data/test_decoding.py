import datasets
import numpy as np
import pytest
import torch
from odd_pictures import GREY, SIDE, make_odd_pictures
from PIL import Image

from rst_hub.data.decoding import Decoder, broken_rows, common_size, decode_all, digest_of
from rst_hub.data.images import load_images
from rst_hub.errors import DataError


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Return (a data set of one class with the odd pictures, what is right for each)."""
    root = tmp_path_factory.mktemp("odd")
    outcome = make_odd_pictures(root / "train" / "odd")
    for name in ("plain", "simple"):
        (root / "train" / name).mkdir()
        for i in range(5):
            Image.new("RGB", (SIDE, SIDE), (GREY, GREY, GREY)).save(root / "train" / name / f"{i}.png")
    return root, outcome


def decoder(paths, size=None):
    rows = datasets.Dataset.from_dict({"image": [str(path) for path in paths]})
    return Decoder(rows.cast_column("image", datasets.Image(decode=False)), "image", datasets.Image(), size)


def test_each_odd_picture_has_its_right_outcome(odd):
    root, outcome = odd
    read = refused = 0
    for name, message in outcome.items():
        rows = decoder([root / "train" / "odd" / name], size=SIDE)
        if message is None:
            pixels = rows[0]
            assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, SIDE, SIDE)), name
            assert bool(((pixels.int() - GREY).abs() <= 1).all()), name
            read += 1
        else:
            with pytest.raises(DataError, match=message) as caught:
                rows[0]
            assert str(caught.value).startswith(str(root / "train" / "odd" / name)), name
            refused += 1
    assert (read, refused) == (17, 11)
    assert decoder([root / "train" / "odd" / "turned.jpg"]).extent(0) == (60, 20)  # upright, as the camera says


def test_broken_pictures_end_a_load_by_their_names(odd):
    root, outcome = odd
    broken = [name for name, message in outcome.items() if message is not None]
    with pytest.raises(DataError, match=r"In all \d+ of 30 images cannot be decoded: .*; \.\.\.$") as caught:
        load_images(str(root), "train", image_size=SIDE)  # of 38, 8 are to test on
    assert sum(f"/{name}" in str(caught.value) for name in broken) == 6


def test_broken_pictures_are_left_out_counted_and_listed(odd):
    root, outcome = odd
    broken = [name for name, message in outcome.items() if message is not None]
    images = load_images(str(root), "train", image_size=SIDE, skip_broken=True)
    assert images.classes == ("odd", "plain", "simple")
    assert len(images) == 30 - images.skipped
    test = load_images(str(root), "test", image_size=SIDE, skip_broken=True)
    assert images.skipped + test.skipped == len(broken)
    assert f"left out {images.skipped} of {len(images) + images.skipped} images" in "\n".join(images.notes)
    notes = "\n".join((*images.notes, *test.notes))
    assert sum(f"{name} " in notes for name in broken) == len(broken)
    assert "--skip-broken" not in notes


def test_a_split_without_a_whole_image_is_refused(tmp_path):
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for i in range(5):
            (tmp_path / kind / f"{i}.png").write_bytes(b"no")
    with pytest.raises(DataError, match="no image of split train can be decoded"):
        load_images(str(tmp_path), "train", skip_broken=True)


def test_rows_of_a_table_are_named_by_their_place(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    image = Image.new("RGB", (SIDE, SIDE))
    rows = {"image": [image, {"bytes": b"GIF?", "path": "my/cat.png"}, image], "label": [0, 1, 0]}
    for split in ("train", "test"):
        (tmp_path / "set").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "set" / f"{split}.parquet"))
    with pytest.raises(DataError, match=r"^row 1 of column 'image' \(my/cat.png\) cannot be decoded"):
        load_images(str(tmp_path / "set"), "train")
    kept = load_images(str(tmp_path / "set"), "train", skip_broken=True)
    assert kept.labels.tolist() == [0, 0]
    assert "no image is left of y" in kept.notes
    assert kept.rows.shape == (2, 3, SIDE, SIDE)


def test_images_of_several_sizes_stay_encoded(tmp_path):
    paths = []
    for i, size in enumerate([(12, 12), (12, 12), (20, 10)]):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", size).save(paths[-1])
    assert decode_all(decoder(paths[:2]), progress=False).shape == (2, 3, 12, 12)
    assert isinstance(decode_all(decoder(paths), progress=False), Decoder)
    assert decode_all(decoder(paths, size=8), progress=False).shape == (3, 3, 8, 8)
    assert broken_rows(decoder(paths), progress=False) == {}
    assert common_size([(12, 12)] * 3) == 12
    assert common_size([(12, 12), (12, 11)]) is None


def test_a_digest_is_of_bytes_and_order_and_of_no_path(tmp_path, monkeypatch):
    paths = []
    for i in range(40):
        paths.append(tmp_path / "a" / f"{i:02}.bmp")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(paths[-1])
    whole = digest_of(decoder(paths))
    elsewhere = [path.rename(tmp_path / f"x{i:02}.bmp") for i, path in enumerate(paths)]
    assert digest_of(decoder(elsewhere)) == whole
    assert digest_of(decoder(elsewhere[::-1])) != whole
    assert digest_of(decoder(elsewhere[:-1])) != whole
    Image.fromarray(np.full((4, 4, 3), 99, np.uint8)).save(elsewhere[33])  # as many bytes
    assert digest_of(decoder(elsewhere)) != whole
    monkeypatch.setattr("rst_hub.data.decoding._HASHED_BYTES", 100)  # as for a set of many gigabytes
    monkeypatch.setattr("rst_hub.data.decoding._SAMPLED", 4)
    large = digest_of(decoder(elsewhere))
    Image.fromarray(np.full((4, 5, 3), 99, np.uint8)).save(elsewhere[33])  # another size, not in the sample
    assert digest_of(decoder(elsewhere)) != large
