import copy
import json

import pytest

from rst_hub import Init
from rst_hub.errors import TicketError
from rst_hub.tickets.config import choose_entry, new_config, read_config, ticket_file, to_json


def test_what_timm_reads_says_the_same_as_the_rst_part():
    config = new_config("resnet18", {"num_classes": 3}, Init(5, "kaiming_normal"), {"mean": (0.5,)})
    assert config["architecture"] == "rst"
    assert config["model_args"] == {"base": "resnet18", "seed": 5, "distribution": "kaiming_normal", "num_classes": 3}
    assert config["pretrained_cfg"] == {"mean": [0.5]}
    assert json.loads(to_json(config)) == config


def edits():
    def at(*path, value=None, delete=False):
        def change(config):
            for key in path[:-1]:
                config = config[key]
            if delete:
                del config[path[-1]]
            else:
                config[path[-1]] = value

        return change

    entry = ("rst", "tickets", 0)
    changes = {f"no {key}": at(key, delete=True) for key in ("architecture", "model_args", "pretrained_cfg", "rst")}
    rst = ("format_version", "architecture", "timm_kwargs", "init", "tickets")
    changes |= {f"no rst.{key}": at("rst", key, delete=True) for key in rst}
    fields = ("name", "remaining_ratio", "pattern", "file", "sha256", "weights_digest", "kept", "provenance")
    changes |= {f"no {key}": at(*entry, key, delete=True) for key in fields}
    return changes | {
        "version 0": at("rst", "format_version", value=0),
        "version text": at("rst", "format_version", value="1"),
        "seed": at("rst", "init", "seed", value=-1),
        "distribution": at("rst", "init", "distribution", value="cauchy"),
        "generator": at("rst", "init", "generator", value="mt19937"),
        "architecture number": at("rst", "architecture", value=3),
        "architecture differs": at("model_args", "base", value="resnet50"),
        "timm would load another": at("architecture", value="resnet18"),
        "seed differs": at("model_args", "seed", value=1),
        "more arguments": at("model_args", "checkpoint_path", value="/etc/passwd"),
        "tickets empty": at("rst", "tickets", value=[]),
        "tickets no list": at("rst", "tickets", value={"a": 1}),
        "entry no object": at(*entry, value=7),
        "file above": at(*entry, "file", value="../../secret"),
        "file absolute": at(*entry, "file", value="/etc/passwd"),
        "name and file above": at(*entry, value={"name": "../a", "file": "ticket-../a.safetensors"}),
        "ratio 0": at(*entry, "remaining_ratio", value=0),
        "ratio text": at(*entry, "remaining_ratio", value="0.1"),
        "pattern": at(*entry, "pattern", value="__import__"),
        "layer ratios": at(*entry, "layer_ratios", value="magic"),
        "checksum short": at(*entry, "sha256", value="abc"),
        "checksum number": at(*entry, "weights_digest", value=7),
        "kept text": at(*entry, "kept", value="7"),
        "provenance list": at(*entry, "provenance", value=[]),
        "input list": at("pretrained_cfg", value=[]),
        "no object": lambda config: config.clear(),
    }


def test_every_edit_of_a_config_is_refused(folder):
    path = folder / "config.json"
    good = json.loads(path.read_text())
    assert read_config(folder) == good
    assert len(edits()) == 43
    for name, change in edits().items():
        config = copy.deepcopy(good)
        change(config)
        path.write_text(json.dumps(config))
        try:
            read_config(folder)
        except TicketError as error:
            assert "config.json" in str(error)  # noqa: PT017  (so that a failure names the edit)
        else:
            pytest.fail(f"not refused: {name}")


def test_two_tickets_of_one_name_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["rst"]["tickets"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TicketError, match="one name"):
        read_config(folder)


def test_text_that_is_no_config_is_refused(folder, tmp_path):
    for text in ("", "[", "null", "3", "[]", '"a"', "[" * 100_000, "\x00", '{"rst": {"format_version": null}}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(TicketError, match=r"config\.json is not a ticket's config"):
            read_config(folder)
    (folder / "config.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(TicketError, match="not a ticket's config"):
        read_config(folder)
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**25)
    with pytest.raises(TicketError, match="too large"):
        read_config(folder)
    with pytest.raises(TicketError, match="not a folder"):
        read_config(tmp_path / "absent")


def test_a_newer_version_is_refused_by_its_number_whatever_else_it_holds(folder):
    (folder / "config.json").write_text(json.dumps({"rst": {"format_version": 2, "new": "layout"}}))
    with pytest.raises(TicketError, match="format version 2; this rst-hub reads up to 1: upgrade"):
        read_config(folder)


def test_a_foreign_ticket_file_is_named(folder):
    (folder / "README.md").write_text("a card is welcome")
    read_config(folder)
    (folder / ticket_file("r0.9")).write_bytes(b"stranger")
    with pytest.raises(TicketError, match=r"ticket-r0\.9\.safetensors is not listed"):
        read_config(folder)


def test_the_only_ticket_needs_no_name(folder):
    config = read_config(folder)
    assert choose_entry(folder, config, None) == choose_entry(folder, config, "r0.1")
