import os
import shutil
import subprocess
import sys

import hub_server
import huggingface_hub
import pytest
import timm
import torch
from conftest import ENVIRONMENT, make_popup
from hub_server import FAULTS, LEAKED, REPOS, REQUESTS, USER_AGENTS, Fault, add_commit

import rst_hub
from rst_hub.errors import ArchitectureError, HubError, IntegrityError, SettingsError, TicketError
from rst_hub.hub.loading import load_tickets, look
from rst_hub.tickets.digests import digest


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


def test_a_model_is_placed_after_it_was_compared_on_the_cpu(folder, ticket):
    exact, x, cast = ticket.state_dict(), torch.rand(2, 3, 32, 32), 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for device in (None, "cpu", torch.device("cpu")):
            model = rst_hub.from_pretrained(folder, dtype=dtype, device=device)
            expected = {key: v.to(dtype) if v.is_floating_point() else v for key, v in exact.items()}
            assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
            assert {value.dtype for value in model.parameters()} == {dtype}
            cast += 1
        assert model(x.to(dtype)).dtype == dtype
        pixels = rst_hub.robustbench_model(folder, dtype=dtype)
        assert pixels(x).shape == (2, 10)
    assert cast == 12
    features = rst_hub.from_pretrained(folder, features_only=True, dtype=torch.bfloat16)
    assert {maps.dtype for maps in features(x.bfloat16())} == {torch.bfloat16}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_goes_to_a_gpu(folder):
    x, there = torch.rand(2, 3, 32, 32), torch.device("cuda", torch.cuda.current_device())
    expected = rst_hub.from_pretrained(folder)(x)
    for device in ("cuda", 0, torch.device("cuda")):
        model = rst_hub.from_pretrained(folder, device=device)
        assert {value.device for value in model.state_dict().values()} == {there}
        assert torch.allclose(model(x.cuda()).cpu(), expected, atol=1e-2)
    new = rst_hub.from_pretrained(folder, num_classes=3, device="cuda", dtype=torch.bfloat16)
    assert new(x.cuda().bfloat16()).shape == (2, 3)
    for materialised in (False, True):
        r2s = rst_hub.r2s_from_pretrained(folder, device="cuda", dtype=torch.float16, materialised=materialised)
        assert r2s(x.cuda().half()).dtype == torch.float16
    pool = rst_hub.TicketPool()
    on_cpu = rst_hub.r2s_from_pretrained(folder, pool=pool)
    with pytest.raises(SettingsError, match="the pool's weights are on cpu"):
        rst_hub.r2s_from_pretrained(folder, pool=pool, device="cuda")
    assert torch.allclose(on_cpu(x), expected, atol=1e-4)
    on_cpu.to("cuda")
    assert pool.device == there
    assert rst_hub.r2s_from_pretrained(folder, pool=pool, device="cuda")(x.cuda()).device == there


def test_an_r2s_is_placed_too(folder, ticket):
    x = torch.rand(2, 3, 32, 32)
    whole = ticket.model().bfloat16()(x.bfloat16())
    for materialised in (False, True):
        r2s = rst_hub.r2s_from_pretrained(folder, dtype=torch.bfloat16, device="cpu", materialised=materialised)
        assert torch.equal(r2s(x.bfloat16()), whole)
    pool = rst_hub.TicketPool()
    assert pool.device is None
    rst_hub.r2s_from_pretrained(folder, pool=pool, device="cpu", dtype=torch.float16)
    assert pool.device == torch.device("cpu")
    exact = rst_hub.r2s_from_pretrained(folder, pool=pool)  # another model of the pool keeps its own precision
    assert torch.equal(exact(x), ticket.model()(x))


def test_a_device_or_dtype_that_will_not_do_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    refused = 0
    for load in (rst_hub.from_pretrained, rst_hub.r2s_from_pretrained, rst_hub.robustbench_model):
        for arguments, message in (
            ({"device": "gpu"}, "device='gpu' cannot be used here"),
            ({"device": "cuda:99"}, "device='cuda:99' cannot be used here"),
            ({"device": "meta"}, "holds no values"),
            ({"device": True}, "device=True: give a name"),
            ({"device": 1.5}, "device=1.5: give a name"),
            ({"dtype": "float16"}, "dtype='float16': give one of torch.float32, torch.bfloat16"),
            ({"dtype": torch.int8}, "dtype=torch.int8: give"),
            ({"dtype": torch.complex64}, "dtype=torch.complex64: give"),
        ):
            with pytest.raises(SettingsError, match=message):
                load(tmp_path / "absent", **arguments)
            refused += 1
    assert refused == 24


def test_half_precision_that_cannot_hold_a_statistic_is_refused(tmp_path):
    popup = make_popup()
    name = next(name for name, _ in popup.model.named_buffers() if name.endswith("running_var"))
    with torch.no_grad():
        popup.model.get_buffer(name)[0] = 1e6
    folder = rst_hub.Ticket.draw(popup).save(tmp_path / "ticket")
    for load in (rst_hub.from_pretrained, rst_hub.r2s_from_pretrained):
        with pytest.raises(SettingsError, match=r"float16 cannot hold .*running_var.*give torch\.bfloat16"):
            load(folder, dtype=torch.float16)
        assert load(folder, dtype=torch.bfloat16)(torch.rand(2, 3, 32, 32).bfloat16()).isfinite().all()


@pytest.mark.parametrize(("architecture", "kwargs"), [("test_resnet", {}), ("test_vit", {"img_size": 32})])
def test_num_classes_gives_a_new_classifier_as_timm_does(tmp_path, architecture, kwargs):
    drawn = rst_hub.Ticket.draw(make_popup(architecture, drop_rate=0.5, **kwargs))
    folder, x = drawn.save(tmp_path / "ticket"), torch.rand(2, 3, 32, 32)
    torch.manual_seed(1)
    model = rst_hub.from_pretrained(folder, num_classes=3)
    classifier = timm.create_model(architecture).pretrained_cfg["classifier"]
    torch.manual_seed(1)
    again = rst_hub.from_pretrained(folder, num_classes=3)
    assert same(model, again)  # timm's draw, from torch's seed
    assert model(x).shape == (2, 3)
    assert (model.num_classes, model.pretrained_cfg["num_classes"]) == (3, 3)
    assert "label_names" not in model.pretrained_cfg
    assert not any(module.training for module in model.modules())
    own, kept = drawn.state_dict(), 0
    for key, value in model.state_dict().items():
        if not key.startswith(f"{classifier}."):
            assert torch.equal(value, own[key])
            kept += 1
    assert kept == len(own) - 2
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert same(rst_hub.from_pretrained(folder, num_classes=10), drawn.model())
    assert same(rst_hub.from_pretrained(folder, num_classes=None), drawn.model())
    assert rst_hub.from_pretrained(folder, num_classes=0)(x).ndim == 2
    with torch.device("meta"):  # whatever torch makes by default
        assert {value.device.type for value in rst_hub.from_pretrained(folder, num_classes=3).parameters()} == {"cpu"}
    assert rst_hub.from_pretrained(folder, num_classes=3, dtype=torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    for wrong in (-1, 1.5, "3", True):
        with pytest.raises(ArchitectureError, match="num_classes"):
            rst_hub.from_pretrained(folder, num_classes=wrong)
    with pytest.raises(SettingsError, match="a features_only model has no classifier"):
        rst_hub.from_pretrained(folder, num_classes=3, features_only=True)


def test_a_file_of_a_ticket_folder_is_not_asked_the_hub_for(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    REQUESTS.clear()
    for name in ("config.json", "ticket-r0.1.safetensors"):
        for given in (f"{folder.name}/{name}", folder / name):
            with pytest.raises(TicketError, match=f"{name} is a file: give its folder"):
                rst_hub.from_pretrained(given)
    assert REQUESTS == []


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
        ({"force_download": True}, 5),
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
        ("org/rst..test", {}, "neither a ticket folder"),
        ("./absent", {}, "neither a ticket folder"),
        ("rst-test", {}, "neither a ticket folder"),
        ("https://huggingface.co/org/rst-test", {}, "without the Hub's address"),
    ]
    for name, arguments, message in cases:
        with pytest.raises((TicketError, HubError), match=message):
            rst_hub.from_pretrained(name, **arguments)
    for name in ("a" * 5000, "o/" + "a" * 5000):
        with pytest.raises(TicketError):
            rst_hub.from_pretrained(name)
    for name in (None, 5, b"org/name"):
        with pytest.raises(SettingsError, match="neither the path of a folder"):
            rst_hub.from_pretrained(name)
    with pytest.raises(SettingsError, match="the given token has 3 characters"):
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
    folder, tickets = load_tickets("org/rst-set")
    assert [ticket.name for ticket in tickets] == ["r0.05", "r0.1"]
    assert folder.name == commit
    assert load_tickets(tmp_path / "set")[0] == tmp_path / "set"
    assert [ticket.name for ticket in load_tickets("org/rst-set", ["r0.1"])[1]] == ["r0.1"]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def cached(cache, name):
    (found,) = cache.glob(f"models--*/snapshots/*/{name}")
    return found.resolve()


def test_a_ticket_is_chosen_by_its_remaining_ratio(repo):
    folder, _, _ = repo
    for where in (folder, "org/rst-test"):
        assert same(
            rst_hub.from_pretrained(where, remaining_ratio=0.05), rst_hub.from_pretrained(folder, ticket="r0.05")
        )
    with pytest.raises(TicketError, match=r"no ticket of remaining ratio 0\.2\. Known: \[0\.05, 0\.1\]"):
        rst_hub.from_pretrained("org/rst-test", remaining_ratio=0.2)
    with pytest.raises(TicketError, match=r"no ticket 'r0\.1'"):
        rst_hub.from_pretrained("org/rst-test", ticket="r0.1", remaining_ratio=0.05)
    with pytest.raises(TicketError, match=r"'r0\.1' of remaining ratio 0\.05, its own is 0\.1: give its name"):
        rst_hub.Ticket.load(folder, "r0.1", remaining_ratio=0.05)
    assert rst_hub.Ticket.load(folder, "r0.1", remaining_ratio=0.1).name == "r0.1"
    assert rst_hub.Ticket.load(folder, remaining_ratio=0.05).name == "r0.05"
    with pytest.raises(TicketError, match=r"no ticket of remaining ratio 0\.2\. Known: \[0\.05, 0\.1\]"):
        rst_hub.Ticket.load(folder, remaining_ratio=0.2)


def test_a_ticket_comes_from_a_folder_or_the_hub_by_its_own_class(repo, cache):
    folder, first, _ = repo
    expected = rst_hub.Ticket.load(folder, "r0.1")
    loaded = [
        rst_hub.Ticket.from_pretrained(folder, "r0.1"),
        rst_hub.Ticket.from_pretrained(str(folder), remaining_ratio=0.1),
        rst_hub.Ticket.from_pretrained("org/rst-test", "r0.1"),
        rst_hub.Ticket.from_pretrained("hf://org/rst-test", remaining_ratio=0.1),
        rst_hub.Ticket.from_pretrained("org/rst-test", name="r0.1", local_files_only=True),
    ]
    for ticket in loaded:
        assert type(ticket) is rst_hub.Ticket
        assert (ticket.name, ticket.weights_digest) == ("r0.1", expected.weights_digest)
        assert list(ticket.masks) == list(expected.masks)
        assert all(torch.equal(mask, expected.masks[name]) for name, mask in ticket.masks.items())
    assert len(loaded) == 5
    assert rst_hub.Ticket.from_pretrained("org/rst-test", revision=first).name == "r0.05"  # there it is the only one
    with pytest.raises(TicketError, match=r"holds 2 tickets: choose one of r0\.05, r0\.1"):
        rst_hub.Ticket.from_pretrained("org/rst-test")
    with pytest.raises(HubError, match="org/absent"):
        rst_hub.Ticket.from_pretrained("org/absent")
    with pytest.raises(SettingsError, match="two revisions"):
        rst_hub.Ticket.from_pretrained(f"org/rst-test@{first}", revision="main")


def test_an_r2s_of_a_repository_has_its_tickets_of_one_commit(repo):
    folder, _, _ = repo
    generator = torch.Generator().manual_seed(0)
    r2s = rst_hub.r2s_from_pretrained("org/rst-test", generator=generator)
    assert r2s.names == ("r0.05", "r0.1")
    whole = rst_hub.r2s_from_pretrained("org/rst-test", materialised=True, probabilities=[0.9, 0.1], per="batch")
    assert (whole.probabilities, whole.per) == ((0.9, 0.1), "batch")
    x, compared = torch.rand(3, 3, 32, 32), 0
    for j, name in enumerate(r2s.names):
        alone = rst_hub.from_pretrained(folder, ticket=name)
        assert same(whole.members[j], alone)
        with torch.no_grad():
            compared += torch.equal(r2s.logits_of(x, j), alone(x))
    assert compared == 2
    assert r2s(x).shape == (3, 10)
    pool = rst_hub.TicketPool()
    rst_hub.r2s_from_pretrained(folder, pool=pool, tickets=["r0.1"])
    before = pool.nbytes
    rst_hub.r2s_from_pretrained(folder, pool=pool, tickets=["r0.05"])
    assert pool.nbytes == before > 0
    assert rst_hub.r2s_from_pretrained(folder, tickets=["r0.1"]).names == ("r0.1",)
    with pytest.raises(TicketError, match="no ticket 'x'"):
        rst_hub.r2s_from_pretrained("org/rst-test", tickets=["x"])
    with pytest.raises(SettingsError, match="list of names"):
        rst_hub.r2s_from_pretrained("org/rst-test", tickets="r0.1")


def test_the_user_agent_names_the_library(repo, cache):
    USER_AGENTS.clear()
    rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
    assert len(USER_AGENTS) == 6
    assert all(f"rst-hub/{rst_hub.__version__}" in agent for agent in USER_AGENTS)


@pytest.mark.parametrize("name", ["config.json", "ticket-r0.1.safetensors"])
def test_a_flipped_byte_in_the_cache_is_downloaded_anew_and_at_the_hub_refused(repo, cache, name):
    expected = rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
    path = cached(cache, name)
    whole = path.read_bytes()
    found = 0
    for position in range(1, len(whole), len(whole) // 12):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises((TicketError, ArchitectureError)):
            rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache, local_files_only=True)
        assert same(rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache), expected)
        assert path.read_bytes() == whole
        found += 1
    assert found >= 12
    path.write_bytes(bytes(damaged))
    FAULTS.append(Fault("GET", name, "flip", times=9))
    if name == "config.json":
        for _ in range(2):  # not the owner's fault, also when it is the same damage twice
            with pytest.raises(IntegrityError, match="A fresh download is damaged too"):
                rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
    else:
        message = r"ticket-r0\.1\.safetensors: it is not the file .* SHA-256 [0-9a-f]{64} found, [0-9a-f]{64} expected"
        REQUESTS.clear()
        with pytest.raises(IntegrityError, match=message):
            rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
        assert sum(request.startswith("GET") and name in request for request in REQUESTS) == 1
    FAULTS.clear()
    assert same(rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache), expected)


@pytest.mark.parametrize("name", ["config.json", "ticket-r0.1.safetensors"])
def test_a_git_lfs_pointer_in_the_cache_is_replaced_and_at_the_hub_the_owners(repo, tmp_path, cache, name):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
    expected = rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
    cached(cache, name).write_bytes(pointer)
    with pytest.raises(IntegrityError, match=r"git-lfs's pointer to it.*without local_files_only") as caught:
        rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache, local_files_only=True)
    assert "git lfs pull" not in str(caught.value)
    assert same(rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache), expected)
    shutil.copytree(repo[0], tmp_path / "cloned")
    (tmp_path / "cloned" / name).write_bytes(pointer)
    add_commit("org/rst-pointer", tmp_path / "cloned")
    with pytest.raises(IntegrityError, match=r"git-lfs's pointer to it.*tell its owner") as caught:
        rst_hub.from_pretrained("org/rst-pointer", ticket="r0.1", cache_dir=cache)
    assert "git lfs pull" not in str(caught.value)


def test_a_download_that_breaks_off_is_an_error_or_goes_on(repo, cache):
    for number, kind in enumerate(("truncate", "drop", 500)):
        FAULTS.append(Fault("GET", "ticket-r0.1", kind))
        try:
            rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache / str(number))
        except HubError as error:
            assert "cannot be downloaded" in str(error)  # noqa: PT017  (versions of the client differ in what they retry)
        FAULTS.clear()
        rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache / str(number))
    FAULTS.append(Fault("GET", "ticket-r0.1", 429))
    rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache / "429")
    assert not FAULTS


def test_what_is_too_large_for_its_architecture_is_not_downloaded(repo, tmp_path, cache):
    folder, _, _ = repo
    for name, size, limit in (("config.json", 5 * 2**20, "4,194,304"), ("ticket-r0.1.safetensors", 2**24, "")):
        large = tmp_path / name.partition(".")[0]
        shutil.copytree(folder, large)
        with (large / name).open("ab") as file:
            file.truncate(size)
        add_commit(f"org/{large.name}", large)
        REQUESTS.clear()
        with pytest.raises(TicketError, match=f"{size:,} bytes, more than a ticket's can have .{limit}"):
            rst_hub.from_pretrained(f"org/{large.name}", ticket="r0.1", cache_dir=cache)
        assert not any(request.startswith("GET") and name in request for request in REQUESTS)


def test_a_large_file_comes_from_another_host_without_the_token(repo, cache, monkeypatch):
    monkeypatch.setattr(hub_server, "REDIRECT", True)
    LEAKED.clear()
    rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache, token="hf_reader")
    assert LEAKED == []


def test_branches_tags_and_offline_by_name(repo, cache, monkeypatch):
    folder, first, second = repo
    REPOS["org/rst-test"].tags["v1"] = first
    REPOS["org/rst-test"].branches["dev/x"] = first
    old = rst_hub.from_pretrained(folder, ticket="r0.05")
    for revision in ("v1", "dev/x", first):
        assert same(rst_hub.from_pretrained("org/rst-test", revision=revision, cache_dir=cache), old)
        assert same(rst_hub.from_pretrained(f"org/rst-test@{revision}", cache_dir=cache, local_files_only=True), old)
    for revision in ("../../x", "a..b", "-x", "x" * 300, "a b"):
        with pytest.raises((SettingsError, TicketError), match=r"revision|neither a ticket folder"):
            rst_hub.from_pretrained("org/rst-test", revision=revision, cache_dir=cache)
    assert second not in {path.name for path in cache.glob("models--*/snapshots/*")}
    # a branch that moved while both commits are in the cache: offline, the newer one is meant
    rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
    REPOS["org/rst-test"].branches["dev/x"] = second
    rst_hub.from_pretrained("org/rst-test", ticket="r0.1", revision="dev/x", cache_dir=cache)
    rst_hub.from_pretrained("org/rst-test", ticket="r0.1", revision="dev/x", cache_dir=cache, local_files_only=True)


def test_two_processes_at_once_on_a_cold_cache_both_load(repo, cache):
    program = (
        "import sys, rst_hub; from rst_hub.tickets.digests import digest; print('ready', flush=True);"
        "sys.stdin.readline();"
        "s = rst_hub.from_pretrained('org/rst-test', ticket='r0.1', cache_dir=sys.argv[1]).state_dict();"
        "print(digest(s, s))"
    )
    FAULTS.append(Fault("GET", "ticket-r0.1", "slow", times=2))
    command = [sys.executable, "-c", program, str(cache)]
    environment = {**ENVIRONMENT, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120) for process in processes]
    FAULTS.clear()
    state = rst_hub.from_pretrained(repo[0], ticket="r0.1").state_dict()
    assert [answer[0].strip() for answer in answers] == [digest(state, state)] * 2, answers


def test_look_downloads_no_ticket(repo, cache):
    folder, _, _ = repo
    REQUESTS.clear()
    config, sizes = look("org/rst-test", cache_dir=cache)
    assert not any("safetensors" in request for request in REQUESTS)
    assert (config, sizes) == look(folder)
    assert sizes == {path.name: path.stat().st_size for path in folder.glob("ticket-*")}
    assert look("org/rst-test", cache_dir=cache, local_files_only=True) == (config, {})


def test_an_ordinary_models_repository_is_said_to_be_one(tmp_path, cache):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    add_commit("org/bert", tmp_path / "bert")
    REQUESTS.clear()
    with pytest.raises(TicketError, match="another kind of model's"):
        rst_hub.from_pretrained("org/bert", cache_dir=cache)
    assert sum(request.startswith("GET") for request in REQUESTS) == 1


def test_a_missing_repository_with_nothing_near_names_none(cache):
    with pytest.raises(HubError) as refusal:
        rst_hub.from_pretrained("nobody/xyz", cache_dir=cache)
    assert str(refusal.value).endswith(("give a token.", "No known name is near it."))


def test_a_folder_has_no_revisions(repo):
    with pytest.raises(SettingsError, match="without revisions"):
        rst_hub.from_pretrained(repo[0], ticket="r0.1", revision="main")


def test_a_snapshot_in_the_cache_is_a_folder_too(repo, cache, monkeypatch):
    expected = rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
    (snapshot,) = cache.glob("models--*/snapshots/*")
    assert same(rst_hub.from_pretrained(snapshot, ticket="r0.1"), expected)
    monkeypatch.chdir(snapshot)
    assert same(rst_hub.from_pretrained(".", ticket="r0.1"), expected)


def test_look_needs_no_hub_for_what_is_cached(repo, cache, monkeypatch):
    config, _ = look("org/rst-test", cache_dir=cache)
    FAULTS.extend([Fault("HEAD", "", "drop", times=50), Fault("GET", "", "drop", times=50)])
    found = look("org/rst-test", revision=repo[2], cache_dir=cache)
    FAULTS.clear()
    assert found == (config, {})


def test_a_ticket_in_the_store_of_all_repositories_loads(repo, cache):
    """With Xet, newer clients keep a large file once for all repositories: blobs/<ETag> is a link as well."""
    expected = rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
    blob = cached(cache, "ticket-r0.1.safetensors")
    store = cache / "blobs" / "ab" / ("ab" * 32)
    store.parent.mkdir(parents=True)
    blob.rename(store)
    blob.symlink_to(store)
    for options in ({}, {"local_files_only": True}):
        assert same(rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache, **options), expected)
    damaged = bytearray(store.read_bytes())
    damaged[-1] ^= 1
    store.write_bytes(bytes(damaged))
    assert same(rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache), expected)


def test_one_request_also_for_a_cache_by_a_relative_path_or_a_link(repo, cache, monkeypatch):
    (cache / "real").mkdir(parents=True)
    (cache / "link").symlink_to(cache / "real")
    monkeypatch.chdir(cache)
    for path in ("relative", cache / "link"):
        rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=path)
        REQUESTS.clear()
        rst_hub.from_pretrained("org/rst-test/", ticket="r0.1", cache_dir=path)
        assert len(REQUESTS) == 1, path


@pytest.fixture(params=["no links here", "HF_HUB_DISABLE_SYMLINKS"])
def without_links(request, monkeypatch):
    """A disk that has no links, as Windows', or a client that is told to make none: files lie in the snapshot."""

    def refuse(*arguments, **options):
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_SYMLINKS_WARNING", True)
    if request.param == "no links here":
        monkeypatch.setattr(os, "symlink", refuse)
    elif hasattr(huggingface_hub.constants, "HF_HUB_DISABLE_SYMLINKS"):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_SYMLINKS", True)
    else:
        pytest.skip("this huggingface_hub has no such setting")


@pytest.mark.parametrize("name", ["config.json", "ticket-r0.1.safetensors"])
def test_a_damaged_file_in_a_cache_without_links_is_replaced(repo, cache, without_links, name):
    expected = rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
    path = cached(cache, name)
    assert path.parent.name == repo[2]  # it lies in the snapshot itself
    whole, tried = path.read_bytes(), 0
    flipped = [bytearray(whole) for _ in range(12)]
    for number, content in enumerate(flipped):
        content[1 + number * (len(whole) // 12)] ^= 1
    for content in (*map(bytes, flipped), whole[:100], whole[:-2], b""):
        path.write_bytes(content)
        with pytest.raises((TicketError, ArchitectureError)) as refusal:
            rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache, local_files_only=True)
        if isinstance(refusal.value, IntegrityError):
            assert "load it once without local_files_only" in str(refusal.value)
        assert path.read_bytes() == content
        assert same(rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache), expected)
        assert path.read_bytes() == whole
        tried += 1
    assert tried == 15
    path.write_bytes(bytes(flipped[5]))
    rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache, force_download=True)
    assert path.read_bytes() == whole
    assert sorted(one.name for one in path.parent.iterdir()) == ["config.json", "ticket-r0.1.safetensors"]


def test_without_links_the_owner_is_named_only_where_the_fresh_file_is_the_same(repo, tmp_path, cache, without_links):
    wrong = tmp_path / "wrong"
    shutil.copytree(repo[0], wrong)
    ticket = wrong / "ticket-r0.1.safetensors"
    ticket.write_bytes(ticket.read_bytes()[:-1] + b"?")
    add_commit("org/wrong", wrong)
    for _ in range(2):
        with pytest.raises(IntegrityError, match="A fresh download changed nothing: tell its owner"):
            rst_hub.from_pretrained("org/wrong", ticket="r0.1", cache_dir=cache)
    rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
    path = next(cache.glob(f"models--org--rst-test/snapshots/*/{ticket.name}"))
    path.write_bytes(b"damaged")
    FAULTS.append(Fault("GET", ticket.name, "flip", times=9))
    with pytest.raises(IntegrityError, match="A fresh download is damaged too"):
        rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
    FAULTS.clear()
    path.write_bytes(b"damaged")
    FAULTS.append(Fault("GET", ticket.name, 403, times=9))
    with pytest.raises(IntegrityError, match="A fresh download failed"):
        rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
    FAULTS.clear()
    assert path.read_bytes() == b"damaged"  # what was there is put back where nothing came in its place
    assert [one for one in path.parent.iterdir() if one.name.startswith(".")] == []


def test_without_links_a_users_mistake_costs_one_small_download_and_stays_what_it_is(repo, cache, without_links):
    rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
    REQUESTS.clear()
    with pytest.raises(TicketError, match=r"no ticket 'r0\.3'") as refusal:
        rst_hub.from_pretrained("org/rst-test", ticket="r0.3", cache_dir=cache)
    assert not isinstance(refusal.value, IntegrityError)
    assert [request for request in REQUESTS if request.startswith("GET")] == [
        f"GET /org/rst-test/resolve/{repo[2]}/config.json"
    ]
    FAULTS.extend([Fault("GET", "", "drop", times=50), Fault("HEAD", "", "drop", times=50)])
    with pytest.raises(TicketError, match=r"no ticket 'r0\.3'"):
        rst_hub.from_pretrained("org/rst-test", revision=repo[2], ticket="r0.3", cache_dir=cache)
    FAULTS.clear()
    names = {path.name for path in cache.glob("models--org--rst-test/snapshots/*/*")}
    assert names == {"config.json", "ticket-r0.1.safetensors"}


def test_a_link_in_a_cache_that_now_has_none_is_replaced_too(repo, cache, monkeypatch):
    expected = rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache)
    path = cached(cache, "ticket-r0.1.safetensors")
    path.write_bytes(b"damaged")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_SYMLINKS", True, raising=False)
    assert same(rst_hub.from_pretrained("org/rst-test", ticket="r0.1", cache_dir=cache), expected)
