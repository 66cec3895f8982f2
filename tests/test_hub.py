import pytest
import timm
import torch

import rst_hub
from rst_hub.errors import TicketError


def test_a_folder_gives_a_plain_timm_model(folder, ticket):
    model = rst_hub.from_pretrained(folder)
    assert type(model) is type(timm.create_model("test_resnet"))
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(v, ticket.model().state_dict()[k]) for k, v in model.state_dict().items())
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_timm_knows_the_input_and_the_labels(folder):
    model = rst_hub.from_pretrained(str(folder))
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config["input_size"]) == (3, 32, 32)
    assert list(config["mean"]) == list(config["std"]) == [0.3, 0.3, 0.3]
    assert model.pretrained_cfg["label_names"] == list("0123456789")


def test_one_of_several_is_chosen_by_name(tmp_path):
    from conftest import make_popup

    for ratio in (0.05, 0.1):
        rst_hub.Ticket.draw(make_popup(remaining_ratio=ratio)).save(tmp_path / "set")
    weight = rst_hub.from_pretrained(tmp_path / "set", ticket="r0.05").state_dict()["layer4.0.conv1.weight"]
    assert float((weight != 0).float().mean()) == pytest.approx(0.05, abs=1e-3)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(TicketError, match="is not a folder here"):
        rst_hub.from_pretrained(tmp_path / "absent")
