"""What a model knows of its images and labels, and what a ticket of it says."""

import json
import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import rst_hub
from rst_hub import EdgePopup, Init, PixelModel, Ticket, create_model, describe_input, from_pretrained
from rst_hub.errors import ArchitectureError, SettingsError
from rst_hub.networks.build import build_model
from rst_hub.networks.inputs import UndescribedInputWarning

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
LABELS = ["ant", "bee", "cat"]
INPUT = {"image_size": 32, "mean": MEAN, "std": STD, "label_names": LABELS}


def drawn(model, init=None):
    return Ticket.draw(EdgePopup(model, init or Init(0), 0.3))


def test_a_ticket_of_ones_own_loop_prepares_images_as_the_loop_did(tmp_path):
    model = create_model("resnet10t", Init(0), **INPUT)
    ticket = drawn(model)
    loaded = from_pretrained(ticket.save(tmp_path / "t"))
    config = timm.data.resolve_model_data_config(loaded)
    assert (config["input_size"][-2:], config["crop_pct"], config["interpolation"]) in (
        ([32, 32], 1.0, "bilinear"),
        ((32, 32), 1.0, "bilinear"),
    )
    assert (list(config["mean"]), list(config["std"])) == (list(MEAN), list(STD))
    assert loaded.pretrained_cfg["label_names"] == LABELS
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    prepared = timm.data.create_transform(**config)(Image.fromarray(pixels)).unsqueeze(0)
    plain = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0) / 255
    with torch.no_grad():
        assert torch.allclose(loaded(prepared), PixelModel(model.eval())(plain), atol=1e-4)


def test_described_at_once_or_later_is_the_same_to_the_byte(tmp_path):
    later = create_model("test_resnet", Init(0), num_classes=3)
    describe_input(later, 32, MEAN, STD, LABELS)
    in_parts = create_model("test_resnet", Init(0), num_classes=3, image_size=32)
    describe_input(in_parts, label_names=LABELS)
    describe_input(in_parts, mean=np.array(MEAN), std=torch.tensor(STD, dtype=torch.float64))
    models = (create_model("test_resnet", Init(0), **INPUT), later, in_parts)
    files = [(drawn(m).save(tmp_path / str(n)) / "config.json").read_bytes() for n, m in enumerate(models)]
    assert len(set(files)) == 1
    assert json.loads(files[0])["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert rst_hub.describe_input is describe_input


@pytest.mark.parametrize("missing", [*INPUT, "all"])
def test_a_draw_names_what_nobody_described_and_what_to_call(missing):
    given = {} if missing == "all" else {key: value for key, value in INPUT.items() if key != missing}
    model = create_model("resnet10t", Init(0), **{"num_classes": 3, **given})
    words = {
        "image_size": "images of 3 x 176 x 176 (channels, height, width)",
        "mean": "their mean [0.485, 0.456, 0.406]",
        "std": "their standard deviation [0.229, 0.224, 0.225]",
        "label_names": "classes without names, numbered",
    }
    with pytest.warns(UndescribedInputWarning) as caught:
        ticket = drawn(model)
    (message,) = [str(warning.message) for warning in caught]
    assert caught[0].filename == __file__
    absent = list(INPUT) if missing == "all" else [missing]
    assert [key for key, said in words.items() if said in message] == absent
    assert f"describe_input(model, {', '.join(f'{key}=...' for key in absent)})" in message
    assert ticket.pretrained_cfg["num_classes"] == 3  # drawn all the same
    describe_input(model, **{key: INPUT[key] for key in absent})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(model)


def test_values_that_are_timms_own_may_be_meant():
    own = create_model("resnet10t", Init(0), num_classes=3).pretrained_cfg
    drawn(create_model("resnet10t", Init(0), image_size=176, mean=own["mean"], std=own["std"], label_names=LABELS))
    by_hand = create_model("resnet10t", Init(0), num_classes=3)
    cfg = {**by_hand.pretrained_cfg, "input_size": [3, 32, 32], "mean": [0.0] * 3, "std": [1.0] * 3}
    by_hand.pretrained_cfg = {**cfg, "label_names": LABELS}  # as those who know timm do it
    assert drawn(by_hand).pretrained_cfg["input_size"] == [3, 32, 32]
    encoder = create_model("test_resnet", Init(0), num_classes=0, image_size=32, mean=MEAN, std=STD)
    assert "label_names" not in drawn(encoder).pretrained_cfg  # it has none to be named


def test_parts_leave_the_rest_as_it_is():
    model = create_model("resnet10t", Init(0), num_classes=3)
    own = dict(model.pretrained_cfg)
    describe_input(model, mean=MEAN)
    assert model.pretrained_cfg == {**own, "mean": list(MEAN)}
    describe_input(model, 64)
    sized = {"input_size": [3, 64, 64], "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
    assert model.pretrained_cfg == {**own, "mean": list(MEAN), **sized}
    describe_input(model)
    describe_input(model, label_names=tuple(LABELS))
    assert model.pretrained_cfg["label_names"] == LABELS
    assert model.default_cfg == model.pretrained_cfg
    dense = build_model("test_resnet", {"num_classes": 3})  # timm's own
    describe_input(dense, std=STD)
    assert (dense.pretrained_cfg["std"], list(dense.pretrained_cfg["input_size"])) == (list(STD), [3, 160, 160])


def test_an_image_size_reaches_architectures_that_need_to_know_it(tmp_path):
    for name, size in (("test_vit", 32), ("swin_tiny_patch4_window7_224", 64)):
        model = create_model(name, Init(0), **{**INPUT, "image_size": size})
        assert model.rst_source.timm_kwargs == {"num_classes": 3, "img_size": size}
        assert model.pretrained_cfg["input_size"] == [3, size, size]
    loaded = from_pretrained(drawn(create_model("test_vit", Init(0), **INPUT)).save(tmp_path / "vit"))
    assert loaded(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    for agreeing in (32, (32, 32), [32, 32]):
        assert create_model("test_vit", Init(0), **INPUT, img_size=agreeing).pretrained_cfg["input_size"] == [3, 32, 32]
    for other in (64, (32, 64)):
        with pytest.raises(SettingsError, match="image_size=32 and img_size"):
            create_model("test_vit", Init(0), **INPUT, img_size=other)
    assert create_model("test_resnet", Init(0), **INPUT).rst_source.timm_kwargs == {"num_classes": 3}


def test_timms_own_img_size_says_the_size_too():
    said = 0
    for size in (32, (32, 32), [32, 48], 160):
        model = create_model("test_vit", Init(0), img_size=size, mean=MEAN, std=STD, label_names=LABELS)
        ticket = drawn(model)  # where a warning is an error
        assert ticket.pretrained_cfg["input_size"] == model.pretrained_cfg["input_size"]
        said += 1
    assert said == 4
    with pytest.warns(UndescribedInputWarning) as caught:
        drawn(create_model("test_vit", Init(0), img_size=32, num_classes=3))
    assert "3 x 32 x 32" not in str(caught[0].message)
    assert "describe_input(model, mean=..., std=..., label_names=...)" in str(caught[0].message)
    with pytest.warns(UndescribedInputWarning, match="images of 3 x 160 x 160"):
        drawn(create_model("test_vit", Init(0), mean=MEAN, std=STD, label_names=LABELS))


def test_a_network_of_one_size_is_not_described_by_another():
    made = create_model("test_vit", Init(0), num_classes=3)
    own = dict(made.pretrained_cfg)
    with pytest.raises(ArchitectureError, match=r"image_size=32, but this .* 160 x 160.*give image_size to"):
        describe_input(made, **INPUT)
    assert made.pretrained_cfg == own
    describe_input(made, **{**INPUT, "image_size": 160})
    assert made.pretrained_cfg["input_size"] == [3, 160, 160]
    describe_input(create_model("test_vit", Init(0), num_classes=3, img_size=32), **INPUT)


def test_only_timms_models_are_described():
    for other in (torch.nn.Linear(2, 2), "resnet10t", None):
        with pytest.raises(ArchitectureError, match="has no pretrained_cfg: give one of timm's"):
            describe_input(other, **INPUT)


def test_label_names_count_the_classes():
    assert create_model("test_resnet", Init(0), label_names=LABELS).num_classes == 3
    assert create_model("test_resnet", Init(0), label_names=LABELS, num_classes=3).num_classes == 3
    for classes in (0, 4):
        with pytest.raises(ArchitectureError, match=f"3 classes were given for a model of {classes}"):
            create_model("test_resnet", Init(0), label_names=LABELS, num_classes=classes)
    assert create_model("test_resnet", Init(0), label_names=[], num_classes=0).num_classes == 0
    with pytest.raises(SettingsError, match="label_names is empty"):
        create_model("test_resnet", Init(0), label_names=[])
    with pytest.raises(ArchitectureError, match="num_classes='3'"):
        create_model("test_resnet", Init(0), label_names=LABELS, num_classes="3")


REFUSED = {
    "image_size": (0, -32, 5000, 32.0, "32", True, (32, 32)),
    "mean": (
        0.5,
        (),
        "abc",
        (0.1, "x", 0.3),
        (125.3, 123.0, 113.9),
        (-0.1, 0, 0),
        (float("nan"),) * 3,
        {"r": 1},
        [[1]],
    ),
    "std": (0.5, (0.0, 0.1, 0.1), (63.0, 62.1, 66.7), (float("inf"),) * 3, [None]),
    "label_names": ("abc", {"a", "b", "c"}, {0: "a"}, [0, 1, 2], 3, ["a", None, "c"], iter(LABELS)),
    "label_names, that are two of one name,": (list("aba"), ["", "", "x"], ["ant"] * 3, ("a", "b", "b")),
    "label_names, that a line cannot hold,": (
        ["a\nb", "c", "d"],
        ["a", "b", "c\r"],
        ["a", "b\x1b[2J", "c"],
        ["a", "b", "\ud800"],
        ["a", "b\u2028", "c"],
        ["\t", "b", "c"],
        ["a\x00", "b", "c"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_description_is_refused_before_anything_is_built(name, monkeypatch):
    refused_values, (name, *_) = REFUSED[name], name.split(",")
    model = create_model("test_resnet", Init(0), num_classes=3)
    own, refused = dict(model.pretrained_cfg), 0
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("it was built"))
    for value in refused_values:
        with pytest.raises(SettingsError, match=name):
            describe_input(model, **{name: value})
        with pytest.raises(SettingsError, match=name):
            create_model("test_resnet", Init(0), num_classes=3, **{name: value})
        refused += 1
    assert refused == len(refused_values) >= 4
    assert model.pretrained_cfg == own


def test_names_in_any_script_stay_as_they_are_and_what_is_wrong_with_others_is_said(tmp_path):
    names = ["caf\u00e9\u00a0au lait", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f52c"]
    model = create_model("test_resnet", Init(0), **{**INPUT, "label_names": names})
    assert from_pretrained(drawn(model).save(tmp_path / "t")).pretrained_cfg["label_names"] == names
    with pytest.raises(SettingsError, match="'b' is there twice, as classes 1 and 2"):
        describe_input(model, label_names=["a", "b", "b"])
    with pytest.raises(SettingsError, match=r"class 1 is named 'a\\nb', with a line break or a control character"):
        describe_input(model, label_names=["x", "a\nb", "c"])


@pytest.mark.parametrize("names", [["a", "a", "b"], ["a\n", "b", "c"]])
def test_a_published_ticket_of_odd_names_still_loads(tmp_path, names):
    model = create_model("test_resnet", Init(0), **INPUT)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": names}  # as before they were refused
    folder = drawn(model).save(tmp_path / "t")
    loaded = from_pretrained(folder)
    assert loaded.pretrained_cfg["label_names"] == names
    source = {"source": "local-dir", "file": str(folder)}
    for overlay in ({"label_names": names}, {"crop_pct": 0.9}):
        again = timm.create_model("rst", pretrained=True, pretrained_cfg=source, pretrained_cfg_overlay=overlay)
        assert list(again.pretrained_cfg["label_names"]) == names
    overlay = {"label_names": ["z", "z", "y"]}
    with pytest.raises(ArchitectureError, match="pretrained_cfg_overlay says label_names"):
        timm.create_model("rst", pretrained=True, pretrained_cfg=source, pretrained_cfg_overlay=overlay)


def test_channels_are_the_models():
    for name in ("mean", "std"):
        with pytest.raises(ArchitectureError, match="1 channels, and the model takes images of 3: in_chans"):
            create_model("test_resnet", Init(0), num_classes=3, **{name: (0.5,)})
    with pytest.raises(SettingsError, match="one number for each channel in both"):
        describe_input(create_model("test_resnet", Init(0)), mean=(0.5,), std=STD)
    grey = create_model("test_resnet", Init(0), in_chans=1, image_size=32, mean=[0.5], std=[0.5], label_names=LABELS)
    assert grey.pretrained_cfg["input_size"] == [1, 32, 32]
    grey.pretrained_cfg = {**grey.pretrained_cfg, "input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(ArchitectureError, match="takes images of 1 channels"):
        drawn(grey)
