import inspect

import pytest
import timm
import torch
from conftest import make_popup

import rst_hub
from rst_hub.errors import ArchitectureError, TicketError

HAS_LOCAL_DIR = "local-dir" in inspect.getsource(timm.models._factory)
"""timm before 1.0.16 or so has no 'local-dir:' names; there the entrypoint is called as newer ones call it."""


def through_timm(folder, pretrained=True, **kwargs):
    """Do what ``timm.create_model("local-dir:...")`` does."""
    if HAS_LOCAL_DIR:
        return timm.create_model(f"local-dir:{folder}", pretrained=pretrained, **kwargs)
    import json

    config = json.loads((folder / "config.json").read_text())
    arguments = {**config["model_args"], **kwargs}
    cfg = {**config["pretrained_cfg"], "source": "local-dir", "file": str(folder)}
    return timm.create_model("rst", pretrained=pretrained, pretrained_cfg=cfg, **arguments)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_timm_gives_the_model_that_from_pretrained_gives(folder):
    model, ours = through_timm(folder), rst_hub.from_pretrained(folder)
    assert type(model) is type(ours)
    assert same(model.state_dict(), ours.state_dict())
    assert timm.data.resolve_model_data_config(model) == timm.data.resolve_model_data_config(ours)


def test_one_of_several_tickets(tmp_path):
    for ratio in (0.05, 0.1):
        rst_hub.Ticket.draw(make_popup(remaining_ratio=ratio)).save(tmp_path / "set")
    model = through_timm(tmp_path / "set", ticket="r0.05")
    assert same(model.state_dict(), rst_hub.from_pretrained(tmp_path / "set", ticket="r0.05").state_dict())
    with pytest.raises(TicketError, match="choose one"):
        through_timm(tmp_path / "set")


def test_without_pretrained_it_is_the_dense_random_network(folder):
    dense = through_timm(folder, pretrained=False).state_dict()
    expected = rst_hub.create_model("test_resnet", rst_hub.Init(0), num_classes=10).state_dict()
    assert same(dense, expected)


def test_a_new_classifier_for_another_number_of_classes(folder):
    model = through_timm(folder, num_classes=3)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    assert model.pretrained_cfg["num_classes"] == 3
    ours = rst_hub.from_pretrained(folder).state_dict()
    kept = {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    assert all(torch.equal(value, ours[key]) for key, value in kept.items())


def test_features_only_through_timm(folder):
    features, ours = (through_timm(folder, features_only=True), rst_hub.from_pretrained(folder, features_only=True))
    assert same(features.state_dict(), ours.state_dict())
    two = through_timm(folder, features_only=True, out_indices=(0, 2))
    assert [maps.shape[1] for maps in two(torch.rand(1, 3, 64, 64))] == two.feature_info.channels()
    dense = through_timm(folder, pretrained=False, features_only=True).state_dict()
    whole = rst_hub.create_model("test_resnet", rst_hub.Init(0), num_classes=10).state_dict()
    assert torch.equal(
        dense["layer4_0.conv1.weight" if "layer4_0.conv1.weight" in dense else "layer4.0.conv1.weight"],
        whole["layer4.0.conv1.weight"],
    )


def test_arguments_that_say_what_the_ticket_is_are_taken(folder, tmp_path):
    ours = rst_hub.from_pretrained(folder).state_dict()
    for same_as in ({"in_chans": 3}, {"drop_rate": 0.0}, {"num_classes": 10}, {"seed": 0}, {"base": "test_resnet"}):
        assert same(through_timm(folder, **same_as).state_dict(), ours)
    vit = rst_hub.Ticket.draw(make_popup("test_vit", img_size=32)).save(tmp_path / "vit")
    for size in (32, (32, 32), [32, 32]):
        assert through_timm(vit, img_size=size).num_classes == 10
    for other in ({"img_size": 64}, {"seed": 3}, {"base": "test_resnet"}, {"distribution": "kaiming_normal"}):
        with pytest.raises(ArchitectureError, match="cannot be given"):
            through_timm(vit, **other)
    for wrong in ("x", -1):
        with pytest.raises(ArchitectureError, match="num_classes"):
            through_timm(vit, num_classes=wrong)


def test_what_it_cannot_do_is_an_error(folder):
    with pytest.raises(ArchitectureError, match="cannot be given"):
        through_timm(folder, in_chans=1)
    with pytest.raises(ArchitectureError, match="needs their base and seed"):
        timm.create_model("rst")
    with pytest.raises(ArchitectureError, match="hf-hub:org/name"):
        timm.create_model("rst", pretrained=True, base="test_resnet", seed=0)
    with pytest.raises(ArchitectureError):
        rst_hub.create_model("rst", rst_hub.Init(0))


def prepared(model):
    """Return how timm prepares a model's images."""
    config = timm.data.resolve_model_data_config(model)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


@pytest.mark.parametrize("arguments", [{}, {"pretrained": False}, {"features_only": True}])
def test_an_overlay_changes_how_images_are_prepared(folder, arguments):
    overlay = {"input_size": (3, 64, 64), "mean": (0.1, 0.2, 0.3), "std": [0.4, 0.5, 0.6], "interpolation": "bicubic"}
    model = through_timm(folder, pretrained_cfg_overlay={**overlay, "crop_pct": 0.9}, **arguments)
    found, plain = prepared(model), through_timm(folder, **arguments)
    assert (found["input_size"][-2:], found["mean"], found["std"]) == ([64, 64], [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert (found["interpolation"], found["crop_pct"]) == ("bicubic", 0.9)
    assert (prepared(plain)["input_size"][-2:], prepared(plain)["mean"]) == ([32, 32], [0.3, 0.3, 0.3])
    assert same(model.state_dict(), plain.state_dict())


def test_an_overlay_names_labels_also_those_of_a_new_classifier(folder):
    assert through_timm(folder, pretrained_cfg_overlay={"label_names": list("abcdefghij")}).pretrained_cfg[
        "label_names"
    ] == list("abcdefghij")
    three = through_timm(folder, num_classes=3, pretrained_cfg_overlay={"label_names": list("abc"), "num_classes": 3})
    assert three.pretrained_cfg["label_names"] == list("abc")
    with pytest.raises(ArchitectureError, match="3 classes were given for a model of 10"):
        through_timm(folder, pretrained_cfg_overlay={"label_names": list("abc")})
    with pytest.raises(ArchitectureError, match="no labels"):
        through_timm(folder, features_only=True, pretrained_cfg_overlay={"label_names": list("abcdefghij")})


def test_an_overlay_that_would_be_false_or_of_other_weights_is_refused(folder, tmp_path):
    vit = rst_hub.Ticket.draw(make_popup("test_vit", img_size=32)).save(tmp_path / "vit")
    refused = {
        "file='/x.bin'": (folder, {"file": "/x.bin"}),
        "hf_hub_id": (folder, {"hf_hub_id": "other/model"}),
        "custom_load": (folder, {"custom_load": True}),
        "num_classes": (folder, {"num_classes": 3}),
        "first_conv": (folder, {"first_conv": "stem"}),
        "pool_size": (folder, {"pool_size": (7, 7)}),
        r"takes \[3, 32, 32\] only": (vit, {"input_size": (3, 64, 64)}),
        r"input_size=\[1, 32, 32\]": (folder, {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}),
        "std": (folder, {"std": (0, 1, 1)}),
        "entry mean": (folder, {"mean": torch.tensor([0.1, 0.2, 0.3])}),
        "give a dict": (folder, "in1k"),
    }
    for match, (of, overlay) in refused.items():
        with pytest.raises(ArchitectureError, match=match.partition("=")[0] if "'" in match else match):
            through_timm(of, pretrained_cfg_overlay=overlay)
    with pytest.raises(ArchitectureError, match="takes \\[3, 32, 32\\] only"):
        through_timm(vit, pretrained=False, pretrained_cfg_overlay={"input_size": (3, 64, 64)})
    own = {"input_size": (3, 32, 32), "num_classes": 10, "fixed_input_size": False}
    assert same(through_timm(folder, pretrained_cfg_overlay=own).state_dict(), through_timm(folder).state_dict())


def test_an_overlay_of_pixels_up_to_255_is_refused_as_create_model_does(folder, tmp_path):
    refused = 0
    for overlay in (
        {"mean": (123, 116, 103), "std": (58, 57, 57)},
        {"mean": (123.7, 116.3, 103.5)},
        {"std": [58.4, 57.1, 57.4]},
        {"mean": (-0.1, 0.5, 0.5)},
    ):
        for arguments in ({}, {"pretrained": False}, {"features_only": True}):
            with pytest.raises(ArchitectureError, match=r"pretrained_cfg_overlay says (mean|std)=.* to 1, as pixels"):
                through_timm(folder, pretrained_cfg_overlay=overlay, **arguments)
            refused += 1
    assert refused == 12
    edge = {"mean": (0, 1, 0.5), "std": (1, 1, 1)}
    assert prepared(through_timm(folder, pretrained_cfg_overlay=edge))["std"] == [1, 1, 1]
    popup = make_popup()
    popup.model.pretrained_cfg = {**popup.model.pretrained_cfg, "mean": [0.5] * 3, "std": [58.0, 57.0, 57.0]}
    published = rst_hub.Ticket.draw(popup).save(tmp_path / "published")  # as one may have been
    for overlay in (None, {"mean": (0.1, 0.2, 0.3)}, {"std": (58, 57, 57)}):
        assert prepared(through_timm(published, pretrained_cfg_overlay=overlay))["std"] == [58, 57, 57]


def called(folder, **kwargs):
    """Call the entrypoint as timm does for a folder, with all that a caller can add there."""
    kwargs["pretrained_cfg"] = {"source": "local-dir", "file": str(folder), **kwargs.get("pretrained_cfg", {})}
    return timm.create_model("rst", pretrained=True, **kwargs)


def test_what_timm_is_told_of_a_ticket_is_compared_with_it(folder):
    ours = rst_hub.from_pretrained(folder).state_dict()
    agreeing = {"base": "test_resnet", "seed": 0, "num_classes": 10, "in_chans": 3}
    assert same(called(folder, pretrained_model_args=agreeing).state_dict(), ours)
    assert same(called(folder, pretrained_cfg={"mean": (0.3, 0.3, 0.3)}).state_dict(), ours)
    for false in ({"seed": 1}, {"in_chans": 1}, {"num_classes": 3}, {"base": "test_vit"}, {"x": 1}):
        with pytest.raises(ArchitectureError, match="pretrained_model_args says"):
            called(folder, pretrained_model_args=false)
    for false in ({"mean": (0.5, 0.5, 0.5)}, {"input_size": (3, 64, 64)}, {"num_classes": 3}):
        with pytest.raises(ArchitectureError, match="give pretrained_cfg_overlay"):
            called(folder, pretrained_cfg=false)
    for nothing in ("in1k", {"source": "local-dir"}, {"source": "hf-hub"}, {"url": "http://127.0.0.1/x"}):
        with pytest.raises(ArchitectureError, match=r"give a dict|hf-hub:org/name"):
            timm.create_model("rst", pretrained=True, pretrained_cfg=nothing)
    for moved in ({"device": "cpu"}, {"dtype": torch.float32}):
        with pytest.raises(ArchitectureError, match=r"move the model with \.to"):
            called(folder, **moved)


def test_the_dense_network_has_the_tickets_input(folder, tmp_path):
    dense = through_timm(folder, pretrained=False)
    assert prepared(dense) == prepared(rst_hub.from_pretrained(folder))
    assert dense.pretrained_cfg["label_names"] == list("0123456789")
    other = through_timm(folder, pretrained=False, num_classes=3)
    assert (other.pretrained_cfg["num_classes"], "label_names" in other.pretrained_cfg) == (3, False)
    assert prepared(other)["mean"] == [0.3, 0.3, 0.3]
    grey = through_timm(folder, pretrained=False, in_chans=1)
    assert (grey.pretrained_cfg["input_size"], grey.pretrained_cfg["mean"]) == ([1, 160, 160], [0.5])
    vit = rst_hub.Ticket.draw(make_popup("test_vit", img_size=32)).save(tmp_path / "vit")
    larger = through_timm(vit, pretrained=False, img_size=64)
    assert (larger.pretrained_cfg["input_size"], larger.pretrained_cfg["mean"]) == ([3, 64, 64], [0.3, 0.3, 0.3])


def test_what_timm_does_itself_it_still_does(folder, tmp_path):
    other = rst_hub.create_model("test_resnet", rst_hub.Init(1), num_classes=10)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    loaded = through_timm(folder, checkpoint_path=str(tmp_path / "other.pth"), cache_dir=str(tmp_path))
    assert same(loaded.state_dict(), other.state_dict())
    for flag in ("exportable", "scriptable", "no_jit"):
        assert same(through_timm(folder, **{flag: True}).state_dict(), rst_hub.from_pretrained(folder).state_dict())
    seen = []
    build = timm.models.model_entrypoint("test_resnet")

    def watched(*arguments, **kwargs):
        seen.append((timm.layers.is_exportable(), timm.layers.is_scriptable()))
        return build(*arguments, **kwargs)

    entrypoints = timm.models._registry._model_entrypoints
    entrypoints["test_resnet"] = watched
    try:
        through_timm(folder, exportable=True)
        through_timm(folder, scriptable=True)
    finally:
        entrypoints["test_resnet"] = build
    assert (seen[0], seen[-1]) == ((True, False), (False, True))
