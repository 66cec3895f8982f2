import dataclasses
import hashlib
import json
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from conftest import ENVIRONMENT, ROOT, make_popup

from rst_hub import R2S, EdgePopup, Init, PixelModel, Ticket, TicketPool, create_model, describe_input, from_pretrained
from rst_hub.errors import ArchitectureError, SettingsError, TicketError
from rst_hub.masks.packed import encode_mask
from rst_hub.networks.inputs import UndescribedInputWarning
from rst_hub.networks.weights import DISTRIBUTIONS, SeededTensor, Ternary
from rst_hub.tickets.config import config_digest
from rst_hub.tickets.digests import digest, weights_digest

GOLDEN = ROOT / "tests" / "golden"
GOLDEN_DIGESTS = {
    ("resnet", "r0.1"): "bd54e31651b5feec51abe4f1aa2d819b6a93cdb3370a36208d2fec9d9f27b924",
    ("resnet", "r0.3"): "19c93a60f5abfafda010cfd733f40b8b5c69b972e8da1c58a8f01e81e644b4ca",
    ("vit", "normal"): "e3fe895e63a82b8bde9034cc281d863d42918da18b06049c7eea5c7be594799c",
}


def equal(one, other):
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


def test_saved_and_loaded_is_bit_for_bit_the_searched_model(tmp_path):
    checked = 0
    for architecture, kwargs in (("test_resnet", {}), ("test_vit", {"img_size": 32}), ("test_nfnet", {})):
        for distribution in DISTRIBUTIONS:
            popup = make_popup(architecture, Init(2**63, distribution), 0.07, **kwargs)
            folder = Ticket.draw(popup).save(tmp_path / f"{architecture}-{distribution}")
            loaded = Ticket.load(folder).model()
            assert equal(popup.model.state_dict(), loaded.state_dict())
            assert not loaded.training
            assert type(loaded) is type(popup.model)
            checked += 1
    assert checked == 12


def test_models_of_a_ticket_share_nothing_with_it_or_each_other():
    ticket = Ticket.draw(make_popup())
    before, one, other = ticket.state_dict(), ticket.model().train(), ticket.model()
    optimizer = torch.optim.SGD(one.parameters(), 0.1)
    one(torch.rand(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    changed = [key for key, value in one.state_dict().items() if not torch.equal(value, before[key])]
    assert len(changed) > 60  # parameters and batch-norm statistics
    assert equal(other.state_dict(), before)
    assert equal(ticket.state_dict(), before)


def test_it_loads_on_the_cpu_whatever_torch_makes_by_default(ticket, folder):
    with torch.device("meta"):
        model = from_pretrained(folder)
    assert equal(model.state_dict(), ticket.state_dict())
    try:
        torch.set_default_dtype(torch.float64)
        model = from_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    assert equal(model.state_dict(), ticket.state_dict())


def test_it_loads_the_same_in_a_new_process_with_another_random_state(ticket, folder):
    program = (
        "import sys, torch; torch.manual_seed(99); import rst_hub; from rst_hub.tickets.digests import digest;"
        "s = rst_hub.from_pretrained(sys.argv[1]).state_dict(); print(digest(s, s))"
    )
    command = [sys.executable, "-c", program, str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT).stdout.strip()
    state = ticket.model().state_dict()
    assert found == digest(state, state)


def test_the_search_goes_on_from_a_model_in_any_layout_or_mode():
    popup = make_popup()
    popup.model.to(memory_format=torch.channels_last).train()
    drawn = Ticket.draw(popup)
    assert equal(drawn.state_dict(), popup.model.state_dict())
    assert popup.model.training


def test_the_file_is_what_the_module_says(ticket, folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "rst"
    rst = config["rst"]
    assert rst["format_version"] == 1
    assert rst["architecture"] == "test_resnet"
    assert rst["init"] == {"seed": 0, "distribution": "signed_kaiming_constant", "generator": "philox4x64-10"}
    (entry,) = rst["tickets"]
    content = (folder / "ticket-r0.1.safetensors").read_bytes()
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    tensors = safetensors.torch.load(content)
    masks = {name for name in tensors if name.startswith("mask.")}
    state = {name for name in tensors if name.startswith("state.")}
    assert masks | state == set(tensors)
    names = {name.partition(".")[2] for name in tensors}
    assert names == set(ticket.model().state_dict())
    assert tensors["state.bn1.weight"].shape == ()  # a constant, as one value
    assert tensors["state.bn1.running_mean"].shape == ticket.state["bn1.running_mean"].shape
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    seeded = json.loads(header["__metadata__"]["rst"])["seeded"]
    assert {f"mask.{name}" for name in seeded} == masks


@pytest.mark.parametrize(("architecture", "kwargs"), [("test_resnet", {}), ("test_vit", {"img_size": 32})])
def test_masks_state_and_seeded_are_in_the_order_of_the_layers(tmp_path, architecture, kwargs):
    popup = make_popup(architecture, **kwargs)
    drawn = Ticket.draw(popup)
    loaded = Ticket.load(drawn.save(tmp_path / "ticket"))
    order, compared = list(popup.model.state_dict()), 0
    for one in (drawn, loaded, Ticket.load(loaded.save(tmp_path / "again"))):
        for held in (one.masks, one.seeded, one.state):
            assert list(held) == [name for name in order if name in held]
            compared += len(held) > 2
        assert list(one.masks) == list(popup.masks())
        assert {*one.seeded, *one.state} == set(order)
    assert compared == 9
    assert (tmp_path / "ticket" / drawn.file).read_bytes() == (tmp_path / "again" / drawn.file).read_bytes()


def test_a_golden_ticket_is_written_again_byte_by_byte(tmp_path):
    for network, name in GOLDEN_DIGESTS:
        ticket = Ticket.load(GOLDEN / network, name)
        folder = ticket.save(tmp_path / network)
        assert (folder / ticket.file).read_bytes() == (GOLDEN / network / ticket.file).read_bytes()
    assert len(GOLDEN_DIGESTS) == 3


def test_a_repr_is_a_line_however_large_the_network_and_its_labels():
    model = create_model("resnet18", Init(0), label_names=[f"class {i}" for i in range(1000)])
    describe_input(model, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    popup = EdgePopup(model, Init(0), 0.05)
    ticket = Ticket.draw(popup, provenance={"history": [{"epoch": epoch} for epoch in range(1000)]})
    pool = TicketPool()
    shown = {
        "ticket": repr(ticket),
        "masks": repr(ticket.masks),
        "popup": repr(popup),
        "source": repr(model.rst_source),
        "empty pool": repr(TicketPool()),
        "R2S": repr(R2S([ticket], pool=pool)),
        "pool": repr(pool),
        "pixels": repr(PixelModel(model)),
        "pixels of an R2S": repr(PixelModel(R2S([ticket]))),
    }
    assert shown["ticket"] == (
        "Ticket(name='r0.05', architecture='resnet18', timm_kwargs={'num_classes': 1000}, "
        "init=Init(seed=0, distribution='signed_kaiming_constant'), remaining_ratio=0.05, pattern='element', "
        "masks=PackedMasks(21 masks of 11,678,912 weights), layer_ratios='uniform')"
    )
    assert shown["masks"] == "PackedMasks(21 masks of 11,678,912 weights)"
    assert shown["popup"] == (
        "EdgePopup(ResNet, Init(seed=0, distribution='signed_kaiming_constant'), remaining_ratio=0.05, "
        "pattern='element', score_seed=0, layer_ratios='uniform': keeps 583,956 of 11,678,912 weights in 21 layers)"
    )
    assert shown["empty pool"] == "TicketPool(no tickets yet)"
    assert shown["R2S"] == "R2S(ResNet, names=r0.05, per='sample')"
    assert re.fullmatch(
        r"TicketPool\(resnet18, seed 0, signed_kaiming_constant: 21 shared tensors of [0-9,]+ bytes\)", shown["pool"]
    )
    half = "tensor([0.5000, 0.5000, 0.5000])"
    assert shown["pixels"] == f"PixelModel(ResNet, mean={half}, std={half})"
    assert shown["pixels of an R2S"] == f"PixelModel(R2S, mean={half}, std={half})"
    assert {name: text for name, text in shown.items() if len(text) > 300 or "\n" in text} == {}
    assert len(repr(PixelModel(model).to("meta"))) < 300  # what no values are of has a repr too


def test_a_folder_holds_several_tickets_of_one_network(tmp_path):
    for ratio in (0.05, 0.1):
        Ticket.draw(make_popup(remaining_ratio=ratio)).save(tmp_path / "set")
    names = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert names == ["config.json", "ticket-r0.05.safetensors", "ticket-r0.1.safetensors"]
    assert Ticket.load(tmp_path / "set", "r0.05").remaining_ratio == 0.05
    with pytest.raises(TicketError, match=r"holds 2 tickets: choose one of r0.05, r0.1"):
        Ticket.load(tmp_path / "set")
    with pytest.raises(TicketError, match=r"no ticket 'r0.5'. Did you mean r0.05"):
        Ticket.load(tmp_path / "set", "r0.5")


def test_saving_the_same_again_changes_nothing_and_another_is_refused(ticket, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    ticket.save(folder)
    strangers = {
        "another ticket r0.1": Ticket.draw(make_popup(), name="r0.1"),
        "tickets of init": Ticket.draw(make_popup(init=Init(1))),
        "tickets of architecture": Ticket.draw(make_popup("test_nfnet")),
        "tickets of timm_kwargs": Ticket.draw(make_popup(global_pool="max")),
        "another input": dataclasses.replace(ticket, pretrained_cfg={**ticket.pretrained_cfg, "mean": [0.0] * 3}),
    }
    for message, stranger in strangers.items():
        with pytest.raises(TicketError, match=message):
            stranger.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_holds_something_else_is_left_alone(ticket, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("chapter 1")
    (tmp_path / "file").write_text("a file")
    for name, message in (("mine", "holds no config.json"), ("file", "not a folder")):
        with pytest.raises(TicketError, match=message):
            ticket.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "thesis.tex"]
    (tmp_path / "empty").mkdir()
    ticket.save(tmp_path / "empty")
    Ticket.load(tmp_path / "empty").verify()


@pytest.mark.parametrize("dying_at", [1, 2])
def test_a_save_that_dies_half_way_leaves_what_was_there(ticket, folder, tmp_path, monkeypatch, dying_at):
    from rst_hub import files

    replace, calls = files.os.replace, []

    def die(source, target):
        calls.append(target)
        if len(calls) == dying_at:
            raise KeyboardInterrupt
        replace(source, target)

    other = Ticket.draw(make_popup(remaining_ratio=0.2))
    monkeypatch.setattr(files.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        ticket.save(tmp_path / "new")
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        other.save(folder)
    monkeypatch.setattr(files.os, "replace", replace)
    assert [path.name for path in tmp_path.iterdir()] == ["ticket"]
    Ticket.load(folder, "r0.1").verify()
    with pytest.raises(TicketError, match=r"no ticket|missing"):
        Ticket.load(folder, "r0.2")
    other.save(folder)
    Ticket.load(folder, "r0.2").verify()
    assert len(list(folder.iterdir())) == 3


def rewrite(folder, change=lambda tensors, seeded: None, edit=lambda config: None, **entry):
    """Change a ticket's folder and bring all its checksums in line, as a hostile writer would."""
    path = folder / "ticket-r0.1.safetensors"
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors, metadata = safetensors.torch.load(content), json.loads(header["__metadata__"]["rst"])
    change(tensors, metadata["seeded"])
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    config["rst"]["tickets"][0].update(entry)
    metadata["config"] = config_digest(config, config["rst"]["tickets"][0])
    content = safetensors.torch.save(tensors, {"rst": json.dumps(metadata)})
    path.write_bytes(content)
    config["rst"]["tickets"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))


def rename(tensors, seeded):
    tensors["state.bn1x.bias"] = tensors.pop("state.bn1.bias")


def reshape(tensors, seeded):
    tensors["state.bn1.running_var"] = torch.ones(5)


def retype(tensors, seeded):
    tensors["state.bn1.running_var"] = tensors["state.bn1.running_var"].double()


def huge(tensors, seeded):
    seeded["fc.weight"][0] = [10**7, 10**7]


def unmask(tensors, seeded):
    del tensors["mask.fc.weight"]


def scale(tensors, seeded):
    seeded["fc.weight"][1] *= 2


def infinite(tensors, seeded):
    seeded["fc.weight"][1] = float("inf")


def enormous(tensors, seeded):
    seeded["fc.weight"][1] = 10**400


def float_shape(tensors, seeded):
    seeded["fc.weight"][0] = [10.0, 96.0]


def more_kept(tensors, seeded):
    mask = torch.ones(960, dtype=torch.bool)
    tensors["mask.fc.weight"] = torch.frombuffer(bytearray(encode_mask(mask)), dtype=torch.uint8)


def stray(tensors, seeded):
    tensors["pickle"] = torch.zeros(1)


def other_mask(tensors, seeded):
    tensors["mask.fc.weight"] = tensors["mask.layer1.0.conv1.weight"].clone()


def float_mask(tensors, seeded):
    tensors["mask.fc.weight"] = tensors["mask.fc.weight"].float()


EDITS = {
    "bn1.bias: absent here": rename,
    r"running_var: \[5\]": reshape,
    "running_var: .* float64": retype,
    r"fc.weight: \[10000000": huge,
    "its masks keep .* config.json says": unmask,
    "those it was drawn with": scale,
    "Infinity is no number": infinite,
    "and scale 1000000": enormous,
    r"shape \[10.0": float_shape,
    "masks keep": more_kept,
    "'pickle'": stray,
    "its masks keep 37990": other_mask,
    "dtype U8": float_mask,
}


@pytest.mark.parametrize("message", EDITS)
def test_a_file_of_a_hostile_writer_is_refused(folder, message):
    rewrite(folder, EDITS[message])
    with pytest.raises(TicketError, match=message):
        from_pretrained(folder)


def test_a_rewritten_file_without_a_change_still_loads(folder):
    rewrite(folder)
    from_pretrained(folder)


def test_a_missing_truncated_edited_or_exchanged_file_is_named(ticket, folder, tmp_path):
    path = folder / ticket.file
    whole = path.read_bytes()
    other = Ticket.draw(make_popup(init=Init(9))).save(tmp_path / "other") / ticket.file
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (whole[:-1], whole[:100], b"", bytes(flipped), other.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(TicketError, match=r"ticket-r0.1.safetensors: it is not the file that config.json lists"):
            from_pretrained(folder)
    path.unlink()
    with pytest.raises(TicketError, match=r"ticket-r0.1.safetensors: it is missing"):
        from_pretrained(folder)


def test_bytes_that_are_no_safetensors_are_refused(folder):
    for content in (b"", b"\x80\x04K\x01.", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"{}"):
        (folder / "ticket-r0.1.safetensors").write_bytes(content)
        config = json.loads((folder / "config.json").read_text())
        config["rst"]["tickets"][0]["sha256"] = hashlib.sha256(content).hexdigest()
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(TicketError, match="it is not a ticket"):
            from_pretrained(folder)


def test_a_wrong_kept_count_is_refused(folder):
    rewrite(folder, kept=1)
    with pytest.raises(TicketError, match=r"config\.json says 1"):
        from_pretrained(folder)


def test_a_ticket_says_which_timm_it_was_drawn_with():
    popup = make_popup()
    assert Ticket.draw(popup).provenance == {"versions": {"timm": timm.__version__}}
    assert Ticket.draw(popup, provenance={"seed": 1}).provenance["versions"] == {"timm": timm.__version__}
    own = {"versions": {"timm": "0.9"}}
    assert Ticket.draw(popup, provenance=own).provenance == own


def test_a_layer_that_timm_renamed_is_named_with_both_versions(folder):
    def rename(tensors, seeded):
        tensors["mask.classifier.weight"] = tensors.pop("mask.fc.weight")
        seeded["classifier.weight"] = seeded.pop("fc.weight")

    rewrite(folder, rename, provenance={"versions": {"timm": "0.9.0"}})
    with pytest.raises(TicketError, match=r"fc.weight: absent here, \[10, 96\] float32 in timm.* Install timm 0.9.0"):
        from_pretrained(folder)


def test_an_unknown_architecture_and_argument_are_refused(folder):
    cases = (
        ("test_resnett", {}, "Did you mean test_resnet"),
        ("hf-hub:org/name", {}, "no architecture"),
        ("test_resnet", {"checkpoint_path": "/etc/passwd"}, "checkpoint_path"),
        ("test_resnet", {"num_classes": 10**9}, "num_classes"),
        ("test_resnet", {"seed": 7}, "'seed' cannot go into a ticket"),
        ("test_resnet", {"architecture": "resnet18"}, "'architecture' cannot go"),
        ("test_resnet", {"num_classes": [10]}, "num_classes"),
    )
    for architecture, kwargs, message in cases:

        def edit(config, architecture=architecture, kwargs=kwargs):
            config["rst"].update(architecture=architecture, timm_kwargs=kwargs)
            network = {"base": architecture, "seed": 0, "distribution": "signed_kaiming_constant"}
            config["model_args"] = {**kwargs, **network}

        rewrite(folder, edit=edit)
        with pytest.raises(ArchitectureError, match=message):
            from_pretrained(folder)


def test_a_hostile_input_description_is_refused(folder):
    good = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    changes = (
        {"url": "http://127.0.0.1/x"},
        {"mean": [0.5]},
        {"mean": [10**400] * 3},
        {"std": [float("inf")] * 3},
        {"std": [0.0] * 3},
        {"input_size": [1, 32, 32]},
        {"num_classes": 11},
        {"label_names": ["a"]},
        {"interpolation": ["bilinear"]},
    )
    for change in changes:
        rewrite(folder, edit=lambda config, change=change: config.update(pretrained_cfg={**good, **change}))
        with pytest.raises((ArchitectureError, TicketError), match=r"pretrained_cfg|channels|classes|Infinity"):
            from_pretrained(folder)
    rewrite(folder, edit=lambda config: config.update(pretrained_cfg=good))
    from_pretrained(folder)


def test_whatever_is_edited_in_config_json_is_noticed(folder):
    path = folder / "config.json"
    good = path.read_text()
    edits = {
        '"interpolation": "bilinear"': '"interpolation": "bicubic"',
        '"remaining_ratio": 0.1': '"remaining_ratio": 0.2',
        '"timm": "1.0.31"': '"timm": "1.0.32"',
        '"label_names": [': '"label_names": ["ten",',
    }
    for old, new in edits.items():
        assert good.count(old) == 1, old
        path.write_text(good.replace(old, new))
        with pytest.raises(TicketError, match=r"config\.json says something else"):
            from_pretrained(folder)
    path.write_text(good.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(TicketError, match=r"config\.json says something else"):
        from_pretrained(folder)


def test_what_is_drawn_can_be_loaded_whatever_its_arguments(tmp_path):
    drawn = 0
    for kwargs in ({}, {"num_classes": 7}, {"num_classes": 0}, {"in_chans": 1}, {"in_chans": 5, "num_classes": 2}):
        model = create_model("test_resnet", Init(0), **kwargs)
        with pytest.warns(UndescribedInputWarning):
            folder = Ticket.draw(EdgePopup(model, Init(0), 0.1)).save(tmp_path / str(drawn))
        loaded = from_pretrained(folder)
        assert equal(loaded.state_dict(), model.state_dict())
        x = torch.rand(1, kwargs.get("in_chans", 3), 32, 32)
        assert PixelModel(loaded)(x).shape[1] == (kwargs.get("num_classes", 1000) or 96)
        drawn += 1
    assert drawn == 5


def test_a_model_that_was_changed_is_not_drawn():
    halved, moved, gone = make_popup(), make_popup("test_vit", img_size=32), make_popup()
    halved.model.half()
    with torch.no_grad():
        moved.model.pos_embed.add_(1)
        gone.scores["fc.weight"].fill_(float("nan"))
    for popup in (halved, moved, gone):
        with pytest.raises(SettingsError, match="no longer what create_model made"):
            Ticket.draw(popup)


def test_a_provenance_that_is_not_json_leaves_the_folder_as_it_was(ticket, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    deep = []
    for _ in range(100_000):
        deep = [deep]
    refused = ({"accuracy": float("nan")}, {"model": object()}, {"a": "\ud800"}, {1: "a", "1": "b"}, {"a": deep})
    for provenance in (*refused, {"long": "x" * 5_000_000}, {"many": [[] for _ in range(100_001)]}):
        bad = dataclasses.replace(Ticket.draw(make_popup(remaining_ratio=0.2)), provenance=provenance)
        with pytest.raises(SettingsError, match=r"must be JSON|config\.json would have"):
            bad.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_an_error(ticket, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TicketError, match="cannot be written"):
        ticket.save(tmp_path / "file" / "ticket")


def test_only_a_created_model_and_a_plain_name_can_be_drawn():
    popup = make_popup()
    for name in ("", "../r0.1", "a b", "-x", "x" * 65, "r0.1\n"):
        with pytest.raises(SettingsError, match="ticket name"):
            Ticket.draw(popup, name=name)
    popup.init = Init(1)
    with pytest.raises(SettingsError, match="create_model"):
        Ticket.draw(popup)
    del popup.model.rst_source
    with pytest.raises(SettingsError, match="create_model"):
        Ticket.draw(popup)


def test_golden_tickets_load_for_ever():
    loaded = 0
    for (folder, name), expected in GOLDEN_DIGESTS.items():
        state = from_pretrained(GOLDEN / folder, ticket=name).state_dict()
        assert digest(state, state) == expected
        loaded += 1
    assert loaded == 3


@pytest.mark.parametrize(
    ("masked", "block", "expected"),  # bits in blocks of 32 x 64 words of 64 bits, floats of 32 x 512
    [
        (True, 131_072, "cc26eb268e12a3f05644b8f174ae6ca9c8f77972bb0ec68b7a5396ec151b1af0"),
        (False, 32_768, "403c73eb63c82a26d8f5e959b38521bc3b57307666e2fbf71e776f72ef89f510"),
    ],
)
def test_the_weights_digest_sees_every_change_and_nothing_else(masked, block, expected):
    size = 70_000 if block == 32_768 else 280_000  # more than two blocks, and a rest

    def of(tensor, name="w"):
        spec = SeededTensor(name, tuple(tensor.shape), 0.25, masked)
        return weights_digest({name: tensor, "other": torch.zeros(3)}, {name: spec})

    signs = torch.arange(size) % 7 % 2
    weights = (signs.float() * 2 - 1) * 0.25
    whole = of(weights)
    assert whole == expected  # part of the format
    assert of(weights.view(7, -1).t().contiguous().t().reshape(-1)) == whole
    changed = 0
    for position in (0, 1, 1023, 1024, block - 1, block, 2 * block - 1, 2 * block, size - 1):
        for change in (torch.neg, torch.zeros_like, lambda value: torch.nextafter(value, torch.ones(()))):
            other = weights.clone()
            other[position] = change(other[position])
            assert of(other) != whole
            changed += 1
    for one, two in ((0, 1), (0, 1024), (3, block), (1024, block + 7_000), (2 * block, 2 * block + 1), (5, size - 1)):
        for value in (0.25, 0.5):
            other = weights.clone()
            other[one], other[two] = value, -value
            swapped = other.clone()
            swapped[one], swapped[two] = -value, value
            assert of(swapped) != of(other)
            changed += 1
    assert changed == 39
    assert of(weights.view(-1, 100)) != whole
    assert of(weights, "v") != whole
    assert of(weights.double()) != whole


def test_the_digest_is_of_the_values_though_a_load_takes_it_of_their_bits():
    ticket = Ticket.draw(make_popup("test_resnet", Init(0), 0.3))
    state, sha, summed = ticket.state_dict(), hashlib.sha256(), 0
    for name, spec in sorted(ticket.seeded.items()):
        assert set(state[name].unique().tolist()) == {-spec.scale, 0.0, spec.scale}
        sha.update(f"{name}\0ternary\0{spec.shape}\0{spec.scale!r}\0".encode())
        for sign in (state[name] > 0, state[name] < 0):
            bits = np.packbits(sign.reshape(-1).numpy(), bitorder="little").tobytes()
            blocks, rest = divmod(len(bits), 16384)
            words = np.frombuffer(bits, "<u8", 2048 * blocks).reshape(blocks, 32, 64)
            for part in (words.sum(axis=1), words.sum(axis=2), np.frombuffer(bits[len(bits) - rest :], np.uint8)):
                sha.update(part.tobytes())
            summed += blocks
    assert summed >= 2
    assert sha.hexdigest() == ticket.weights_digest == weights_digest(state, ticket.seeded)


def test_verify_sees_values_that_are_not_what_their_bits_say(monkeypatch):
    ticket = Ticket.draw(make_popup("test_resnet", Init(0), 0.3))
    made = Ternary.tensor
    monkeypatch.setattr(Ternary, "tensor", lambda bits: made(bits).neg())
    with pytest.raises(TicketError, match="was drawn with"):
        ticket.verify()


def test_a_ticket_of_the_erdos_renyi_kernel_loads_and_cannot_be_called_uniform(tmp_path):
    popup = make_popup()
    erk = EdgePopup(popup.model, popup.init, 0.1, layer_ratios="erk")
    folder = Ticket.draw(erk).save(tmp_path / "erk")
    loaded = Ticket.load(folder)
    assert loaded.layer_ratios == "erk"
    assert loaded.kept == sum(erk.kept.values())
    shares = {name: float(mask.float().mean()) for name, mask in loaded.masks.items()}
    assert max(shares.values()) > 2 * min(shares.values())
    assert all(torch.equal(mask, loaded.masks[name]) for name, mask in erk.masks().items())
    assert len(shares) > 10
    loaded.verify()
    config = json.loads((folder / "config.json").read_text())
    del config["rst"]["tickets"][0]["layer_ratios"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TicketError, match="says something else of it"):
        Ticket.load(folder)
