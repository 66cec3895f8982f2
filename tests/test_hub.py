import pytest
import timm
import torch
from conftest import make_popup
from hub_server import REQUESTS, add_commit

import rst_hub
from rst_hub.errors import ArchitectureError, SettingsError, TicketError
from rst_hub.hub import fetch_all


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
    for ratio in (0.05, 0.1):
        rst_hub.Ticket.draw(make_popup(remaining_ratio=ratio)).save(tmp_path / "set")
    weight = rst_hub.from_pretrained(tmp_path / "set", ticket="r0.05").state_dict()["layer4.0.conv1.weight"]
    assert float((weight != 0).float().mean()) == pytest.approx(0.05, abs=1e-3)


def test_features_only_gives_timms_feature_maps(folder):
    features = rst_hub.from_pretrained(folder, features_only=True)
    x = torch.rand(2, 3, 64, 64)
    expected = rst_hub.from_pretrained(folder).forward_intermediates(x, intermediates_only=True)
    assert [maps.shape[1] for maps in features(x)] == features.feature_info.channels()
    assert all(torch.equal(one, other) for one, other in zip(features(x), expected, strict=True))
    assert not features.training
    assert tuple(timm.data.resolve_model_data_config(features)["input_size"]) == (3, 32, 32)
    two = rst_hub.from_pretrained(folder, features_only=True, out_indices=(1, 3))
    assert all(torch.equal(one, expected[i]) for one, i in zip(two(x), (1, 3), strict=True))
    last = rst_hub.from_pretrained(folder, features_only=True, out_indices=2)
    assert all(torch.equal(one, other) for one, other in zip(last(x), expected[-2:], strict=True))
    with pytest.raises(ArchitectureError, match="cannot build test_resnet"):
        rst_hub.from_pretrained(folder, features_only=True, out_indices=(1, 99))
    with pytest.raises(SettingsError, match="goes with features_only"):
        rst_hub.from_pretrained(folder, out_indices=(1, 3))


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(TicketError, match="neither a ticket folder here nor a repository"):
        rst_hub.from_pretrained(tmp_path / "absent")


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """Return the name and the two commits of a repository: first one ticket, then two."""
    folder = tmp_path_factory.mktemp("repo") / "tickets"
    commits = []
    for ratio in (0.05, 0.1):
        rst_hub.Ticket.draw(make_popup(remaining_ratio=ratio)).save(folder)
        commits.append(add_commit("org/rst-test", folder))
    return folder, *commits


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_repository_gives_what_its_folder_gives(repo):
    folder, first, second = repo
    expected = rst_hub.from_pretrained(folder, ticket="r0.1")
    REQUESTS.clear()
    assert same(rst_hub.from_pretrained("org/rst-test", ticket="r0.1"), expected)
    assert sorted(request for request in REQUESTS if request.startswith("GET")) == [
        f"GET /org/rst-test/resolve/{second}/ticket-r0.1.safetensors",
        "GET /org/rst-test/resolve/main/config.json",
    ]
    for name in ("hf://org/rst-test", f"org/rst-test@{second}"):
        assert same(rst_hub.from_pretrained(name, ticket="r0.1"), expected)
    assert same(
        rst_hub.from_pretrained("org/rst-test", revision=first), rst_hub.from_pretrained(folder, ticket="r0.05")
    )


def test_what_is_cached_is_not_asked_for_again(repo):
    _, _, second = repo
    rst_hub.from_pretrained("org/rst-test", ticket="r0.1")
    for arguments, requests in (
        ({"local_files_only": True}, 0),
        ({"revision": second}, 0),
        ({}, 1),
        ({"force_download": True}, 4),
    ):
        REQUESTS.clear()
        rst_hub.from_pretrained("org/rst-test", ticket="r0.1", **arguments)
        assert len(REQUESTS) == requests, (arguments, REQUESTS)


def test_timm_loads_it_by_its_hub_name(repo):
    expected = rst_hub.from_pretrained("org/rst-test", ticket="r0.1")
    model = timm.create_model("hf-hub:org/rst-test", pretrained=True, ticket="r0.1")
    assert same(model, expected)
    assert type(model) is type(expected)
    assert timm.data.resolve_model_data_config(model) == timm.data.resolve_model_data_config(expected)
    features = timm.create_model("hf-hub:org/rst-test", pretrained=True, ticket="r0.1", features_only=True)
    assert same(features, rst_hub.from_pretrained("org/rst-test", ticket="r0.1", features_only=True))
    _, first, _ = repo
    old = timm.create_model(f"hf-hub:org/rst-test@{first}", pretrained=True)
    assert same(old, rst_hub.from_pretrained("org/rst-test", revision=first))


def test_what_the_hub_cannot_give_is_an_error(repo, tmp_path):
    (tmp_path / "README.md").write_text("not a ticket")
    add_commit("org/other", tmp_path)
    cases = [
        ("org/absent", {}, "no such repository"),
        ("org/rst-test", {"revision": "v9"}, "has no revision v9"),
        ("org/other", {}, "no whole ticket repository"),
        ("org/rst-test", {}, "choose one of r0.05, r0.1"),
        ("org/rst-test", {"cache_dir": tmp_path / "cache", "local_files_only": True}, "not in the cache"),
        ("org/rst..test", {}, "cannot be downloaded"),
        ("rst-test", {}, "neither a ticket folder"),
    ]
    for name, arguments, message in cases:
        with pytest.raises(TicketError, match=message):
            rst_hub.from_pretrained(name, **arguments)
    for name in ("a" * 5000, "o/" + "a" * 5000):
        with pytest.raises(TicketError):
            rst_hub.from_pretrained(name)
    for name in (None, 5, b"org/name"):
        with pytest.raises(SettingsError, match="neither the path of a folder"):
            rst_hub.from_pretrained(name)
    with pytest.raises(TicketError, match="cannot be downloaded"):
        rst_hub.from_pretrained("org/rst-test", ticket="r0.1", token="a\nb")
    with pytest.raises(SettingsError, match="two revisions"):
        rst_hub.from_pretrained("org/rst-test@main", revision="v2")


def test_a_robustbench_model_takes_pixels_and_gives_logits(folder):
    model = rst_hub.robustbench_model(folder)
    plain, x = rst_hub.from_pretrained(folder), torch.rand(4, 3, 32, 32)
    assert torch.equal(model(x), plain((x - 0.3) / 0.3))
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    leaf = x.clone().requires_grad_()
    model(leaf).sum().backward()
    assert bool(leaf.grad.any())
    with pytest.raises(SettingsError, match="features"):
        rst_hub.robustbench_model(folder, features_only=True)


def test_all_tickets_of_a_repository_are_fetched_at_one_commit(tmp_path):
    for ratio in (0.05, 0.1):
        rst_hub.Ticket.draw(make_popup(remaining_ratio=ratio)).save(tmp_path / "set")
    commit = add_commit("org/rst-set", tmp_path / "set")
    folder, names = fetch_all("org/rst-set")
    assert names == ["r0.05", "r0.1"]
    assert folder.name == commit
    assert all(rst_hub.Ticket.load(folder, name).name == name for name in names)
    assert fetch_all(tmp_path / "set") == (tmp_path / "set", names)
