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

    arguments = {**json.loads((folder / "config.json").read_text())["model_args"], **kwargs}
    cfg = {"source": "local-dir", "file": str(folder)}
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
