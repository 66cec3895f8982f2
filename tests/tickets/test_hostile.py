"""Folders that somebody made to hurt whoever loads them: each is refused, soon, in little memory, and touches nothing.

Each folder is a valid ticket but for one thing: whoever forged it brought every checksum and digest in line again.
"""

import copy
import gc
import gzip
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import hostile_worker
import numpy as np
import pytest
import timm
import torch
from conftest import ENVIRONMENT, make_popup

import rst_hub.tickets.ticket as ticket_module
from rst_hub import Init, Ticket
from rst_hub.masks.packed import PackedMasks, encode_mask
from rst_hub.networks.build import state_layout
from rst_hub.networks.weights import SeededTensor
from rst_hub.tickets.config import config_digest

SECONDS, MEGABYTES, HANGS, LONGEST_MESSAGE = 2, 200, 6, 4000
RESNET, VIT = "test_resnet", "test_vit"
NO_SUM = "0" * 64
SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
DTYPES = {"F64": torch.float64, "I64": torch.int64, "F32": torch.float32, "I32": torch.int32, "F16": torch.float16}
HAS_LOCAL_DIR = hasattr(timm.models._hub, "load_model_config_from_path")


class Folder:
    """A ticket's folder in parts: change some, and ``write`` brings its checksums and digests in line."""

    def __init__(self, good):
        self.config = json.loads((good / "config.json").read_text())
        content = (good / self.entry["file"]).read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        self.metadata = json.loads(header.pop("__metadata__")["rst"])
        self.tensors = {
            name: [spec["dtype"], spec["shape"], content[end:][slice(*spec["data_offsets"])]]
            for name, spec in header.items()
        }
        self.more_metadata = {}
        self.config_text = self.metadata_text = self.header_text = lambda text: text
        self.header = self.content = self.config_bytes = lambda value: value
        self.written = False

    def at(self, path):
        """Return a copy that will be written to ``path``/folder, beside ``path``/outside."""
        new = copy.deepcopy(self)
        new.folder, new.outside, new.marker = path / "folder", path / "outside", path / "marker"
        new.outside.mkdir(parents=True)
        new.folder.mkdir()
        (new.outside / "secret").write_text("nothing")
        return new

    @property
    def entry(self):
        return self.config["rst"]["tickets"][0]

    @property
    def seeded(self):
        return self.metadata["seeded"]

    @property
    def path(self):
        return self.folder / "ticket-r0.1.safetensors"

    def network(self, architecture=RESNET, **arguments):
        """Name another architecture, or more arguments, in both places."""
        rst = self.config["rst"]
        rst["architecture"] = architecture
        rst["timm_kwargs"].update(arguments)
        self.seed()

    def seed(self, **init):
        """Say another seed, distribution or generator, in both places."""
        rst = self.config["rst"]
        rst["init"].update(init)
        network = {key: rst["init"][key] for key in ("seed", "distribution")}
        self.config["model_args"] = {**rst["timm_kwargs"], "base": rst["architecture"], **network}

    def redraw(self):
        """Count the kept weights, make the weights, and write down their digest."""
        init = Init(self.config["rst"]["init"]["seed"], self.config["rst"]["init"]["distribution"])
        made, specs = {}, {}
        self.entry["kept"] = 0
        for name, (shape, scale) in self.seeded.items():
            masked = f"mask.{name}" in self.tensors
            specs[name] = SeededTensor(name, tuple(shape), float(scale), masked)
            with np.errstate(all="ignore"):
                made[name] = init._made(specs[name])  # a hostile writer is not held back by the checks
            if masked:
                mask = self.decoded(name)
                made[name] = made[name].where(mask.view(made[name].shape), torch.zeros(()))
                self.entry["kept"] += int(mask.sum())
        self.entry["weights_digest"] = ticket_module.weights_digest(made, specs)

    def decoded(self, name):
        """Return one of the masks, flat."""
        codes, shapes = {name: self.tensors[f"mask.{name}"][2]}, {name: (math.prod(self.seeded[name][0]),)}
        return PackedMasks.decoded(codes, shapes)[name]

    def mask(self, name, code):
        self.tensors[f"mask.{name}"] = ["U8", [len(code)], code]

    def write(self):
        """Write config.json and the ticket's file."""
        self.written = True
        self.entry["sha256"] = NO_SUM
        text = self.config_text(json.dumps(self.config))
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(3000)
        try:
            read = json.loads(text)
            self.metadata["config"] = config_digest(read, read["rst"]["tickets"][0])
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            pass  # a reader cannot know the digest either
        finally:
            sys.setrecursionlimit(limit)
        content = self.content(self.safetensors())
        if content is not None:
            self.path.write_bytes(content)
            text = text.replace(NO_SUM, hashlib.sha256(content).hexdigest(), 1)
        (self.folder / "config.json").write_bytes(self.config_bytes(text.encode("utf-8", "surrogatepass")))

    def safetensors(self):
        metadata = self.metadata_text(json.dumps(self.metadata, separators=(",", ":")))
        header, data = {"__metadata__": {"rst": metadata, **self.more_metadata}}, []
        for name in sorted(self.tensors, key=lambda name: (-SIZES.get(self.tensors[name][0], 1), name)):
            dtype, shape, content = self.tensors[name]
            start = sum(map(len, data))
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(content)]}
            data.append(content)
        text = self.header_text(json.dumps(self.header(header), separators=(",", ":"))).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + b"".join(data)


CASES = {}


@dataclass
class Case:
    make: Any
    message: str | None = None
    base: str = RESNET
    route: str = "ours"
    may_load: bool = False
    slow: bool = False


def case(name, message=None, base=RESNET, route="ours", may_load=False, slow=False):
    """Register a function that makes a folder hostile; ``message`` is in the refusal's text, where it must be that one.

    What ``may_load`` holds to the same bounds, loaded or refused.
    """

    def register(make):
        assert name not in CASES, name
        CASES[name] = Case(make, message, base, route, may_load, slow)
        return make

    return register


def cases(name, values, message=None, quick=2, **options):
    """Register a function once for each of several values, by what they are called; the first ones are quick tests."""

    def register(make):
        for number, (key, value) in enumerate(values.items()):
            called = message(key) if callable(message) else message
            register_one = case(f"{name}: {key}", called, slow=number >= quick, **options)
            register_one(lambda f, key=key, value=value: make(f, key, value))
        return make

    return register


def called(*values):
    shown = [value if isinstance(value, str) else repr(value) for value in values]
    return {name[:40].encode("unicode_escape").decode(): value for name, value in zip(shown, values, strict=True)}


# ---- config.json: the network -------------------------------------------------------------------------------------

LIVE_WIRES = {
    "checkpoint_path": "OUTSIDE/model.pth",
    "pretrained": True,
    "pretrained_cfg": {"url": "http://127.0.0.1:9/model.pth", "file": "OUTSIDE/model.pth", "custom_load": True},
    "pretrained_cfg_overlay": {"file": "OUTSIDE/model.pth"},
    "pretrained_strict": False,
    "pretrained_filter_fn": "os.system",
    "cache_dir": "OUTSIDE",
    "features_only": True,
    "scriptable": True,
    "exportable": True,
    "no_jit": True,
    "out_indices": [0],
    "act_layer": "hard_swish",
    "norm_layer": "layernorm",
    "weight_init": "skip",
    "kwargs_filter": [],
    "device": "cuda",
    "dtype": "float64",
    "block_args": {},
    "seed": 7,
    "base": "resnet18",
    "__class__": "x",
    "": 1,
}


@cases("timm argument", LIVE_WIRES, base=VIT, quick=2)
def live_wire(f, key, value):
    text = json.dumps(value).replace("OUTSIDE", str(f.outside))
    bring_pickle(f, f.outside / "model.pth")
    f.network(VIT, **{key: json.loads(text)})


def bring_pickle(f, path):
    """Write a pickle that makes the marker when it is unpickled."""
    torch.save(Bomb(f.marker), path)


class Bomb:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@cases("num_classes", called(True, 10.0, 1e9, 10**9, -1, "10", [10]), "num_classes")
def num_classes(f, _, value):
    f.network(num_classes=value)


@cases("in_chans", called(10**9, 0, -3, 3.0, True, "3"))
def in_chans(f, _, value):
    f.network(in_chans=value)


SHAPES = called(10**9, -32, 32.0, [32, 32, 32], [32, 10**9], True, "32", 0, [32], [], [32, -32], [32, 32.0], {"h": 32})


@cases("img_size", SHAPES, "img_size", base=VIT, quick=2)
def img_size(f, _, value):
    f.network(VIT, img_size=value)


RATES = called(1.0, float("nan"), "0.1", True, -0.1, 2, [0.1], None, float("inf"))


@cases("drop_rate", RATES, quick=2)
def drop_rate(f, _, value):
    f.network(drop_rate=value)


@cases("drop_path_rate", RATES, quick=2)
def drop_path_rate(f, _, value):
    f.network(drop_path_rate=value)


@cases("global_pool", called("evil", 1, ["avg"]), "global_pool")
def global_pool(f, _, value):
    f.network(global_pool=value)


NAMES = (
    *("hf-hub:evil/x", "hf_hub:evil/x@main", "local-dir:/etc", "local-dir:FOLDER", "rst", "../x", "resnet18.a1_in1k"),
    *(
        "no_such_network",
        "t\u0435st_resnet",
        "test_resnet\u200b",
        "test_resnet\0",
        "test_resnet\x1b[2J",
        "\ud800",
        None,
    ),
    *([], "/etc/passwd", "test_resnet.", "", " test_resnet", "test_resnet\n", "\uff54est_resnet", "timm/test_resnet"),
    *("file:///etc/passwd", "https://example.org/x", "TEST_RESNET", 1, True, ["test_resnet"], {}),
)


@cases("architecture", called(*NAMES), quick=4)
def architecture(f, _, value):
    f.network(value.replace("FOLDER", str(f.folder)) if isinstance(value, str) else value)


LONG = {"x": "x" * 2**20, "_": "resnet_" * 2**17, ":": ":" * 2**20, "a.b": "a" + ".b" * 2**19}


@cases("architecture of a megabyte", LONG)
def long_architecture(f, _, value):
    f.network(value)


@cases("seed", called(-1, 2**64, True, 1.5, 10**4000, "0", 0.0, None, [0]), quick=2)
def seed(f, _, value):
    f.seed(seed=value)


@cases("distribution", called("cauchy", None, ["kaiming_normal"]))
def distribution(f, _, value):
    f.seed(distribution=value)


@cases("generator", called("mt19937", None, "x" * 2**20))
def generator(f, _, value):
    f.seed(generator=value)


MODEL_ARGS = {
    "another base": {"base": "resnet18"},
    "another seed": {"seed": 1},
    "another distribution": {"distribution": "kaiming_normal"},
    "pretrained": {"pretrained": True},
    "checkpoint_path": {"checkpoint_path": "/etc/passwd"},
    "a ticket": {"ticket": "r0.1"},
    "true for 1": {"num_classes": 10.0},
}


@cases("model_args", MODEL_ARGS, "model_args")
def model_args(f, _, more):
    f.config["model_args"].update(more)


@cases("model_args", called([], None, "x", {}))
def no_model_args(f, _, value):
    f.config["model_args"] = value


@cases("timm's architecture", called("resnet18", "hf-hub:evil/x", None, ["rst"]))
def timm_architecture(f, _, value):
    f.config["architecture"] = value


@case("num_classes for timm disagrees")
def timm_classes(f):
    f.config["num_classes"] = 1000


@cases("format_version", called(2, True, 1.0, "1", 2**70, None, 0, -1, [1], {}, 1e999), quick=2)
def format_version(f, _, value):
    f.config["rst"]["format_version"] = value


@cases("without", {key: key for key in ("rst", "architecture", "model_args", "pretrained_cfg", "num_classes")})
def without(f, key, _):
    entry = f.entry  # what is left names the file still
    del f.config[key]
    if key == "rst":
        f.config["tickets"] = [entry]
        f.__class__ = OfNoRst


class OfNoRst(Folder):
    entry = property(lambda self: self.config["tickets"][0])


@cases("without rst's", {key: key for key in ("format_version", "architecture", "timm_kwargs", "init")})
def without_part(f, key, _):
    del f.config["rst"][key]


# ---- config.json: the input ---------------------------------------------------------------------------------------

INPUTS = {
    "url": "http://127.0.0.1:9/model.pth",
    "file": "OUTSIDE/model.pth",
    "hf_hub_id": "evil/x",
    "hf_hub_filename": "../../model.pth",
    "source": "local-dir",
    "custom_load": True,
    "state_dict": {"x": 1},
    "tag": "a1_in1k",
    "architecture": "resnet18",
    "__class__": "x",
}


@cases("pretrained_cfg", INPUTS, lambda key: key)
def pretrained_cfg(f, key, value):
    bring_pickle(f, f.outside / "model.pth")
    f.config["pretrained_cfg"][key] = json.loads(json.dumps(value).replace("OUTSIDE", str(f.outside)))


INPUT_VALUES = {
    "means of 1,000 channels": {"input_size": [1000, 32, 32], "mean": [0.5] * 1000, "std": [0.5] * 1000},
    "one mean": {"mean": [0.5]},
    "means that are no numbers": {"mean": ["0.5"] * 3},
    "means that are true": {"mean": [True] * 3},
    "means beyond float": {"mean": [10**400] * 3},
    "std 0": {"std": [0.0] * 3},
    "std -1": {"std": [-1.0] * 3},
    "std nan": {"std": [float("nan")] * 3},
    "std inf": {"std": [float("inf")] * 3},
    "crop_pct nan": {"crop_pct": float("nan")},
    "crop_pct 0": {"crop_pct": 0},
    "input_size huge": {"input_size": [3, 10**9, 10**9]},
    "input_size of other channels": {"input_size": [1, 32, 32]},
    "input_size of one number": {"input_size": 32},
    "num_classes of another model": {"num_classes": 11},
    "num_classes true": {"num_classes": True},
    "nine labels": {"label_names": list("012345678")},
    "a million labels": {"label_names": ["x"] * 10**6},
    "labels that are no text": {"label_names": list(range(10))},
    "labels of half a character": {"label_names": ["\ud800"] * 10},
    "one text of labels": {"label_names": "0123456789"},
    "interpolation": {"interpolation": "__import__('os')"},
    "interpolation unhashable": {"interpolation": ["bilinear"]},
    "fixed_input_size": {"fixed_input_size": 1},
    "first_conv": {"first_conv": {"x": 1}},
}


@cases("input", INPUT_VALUES)
def input_value(f, _, values):
    f.config["pretrained_cfg"].update(copy.deepcopy(values))
    f.config["num_classes"] = f.config["pretrained_cfg"]["num_classes"]


@cases("pretrained_cfg is", called([], None, "x", 1))
def no_input(f, _, value):
    f.config["pretrained_cfg"] = value


# ---- config.json: as JSON -----------------------------------------------------------------------------------------

DOUBLE = {
    "architecture": ('"architecture": "rst"', '"architecture": "resnet18", "architecture": "rst"'),
    "rst": ('"rst": {', '"rst": {"format_version": 1, "architecture": "resnet18"}, "rst": {'),
    "rst's architecture": (
        '"architecture": "test_resnet"',
        '"architecture": "resnet18", "architecture": "test_resnet"',
    ),
    "seed": ('"init": {', '"init": {"seed": 7, '),
    "file": ('"file": ', '"file": "../outside/secret", "file": '),
    "sha256": ('"sha256": ', f'"sha256": "{"f" * 64}", "sha256": '),
    "weights_digest": ('"weights_digest": ', f'"weights_digest": "{"f" * 64}", "weights_digest": '),
    "kept": ('"kept": ', '"kept": 1, "kept": '),
    "escaped": ('"model_args": ', '"model_\\u0061rgs": {"pretrained": true}, "model_args": '),
    "in pretrained_cfg": ('"mean": ', '"mean": [0.0, 0.0, 0.0], "mean": '),
    "in the provenance": ('"provenance": {', '"provenance": {"a": 1, "a": 2, '),
    "of one value": ('"architecture": "rst"', '"architecture": "rst", "architecture": "rst"'),
}


@cases("twice", DOUBLE, quick=3)
def double(f, _, pair):
    f.config_text = partial(replaced, *pair)


def replaced(old, new, text):
    assert old in text, old
    return text.replace(old, new, 1)


NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "-" + "9" * 5000)


@cases("number in the provenance", called(*NUMBERS), quick=2)
def number(f, _, value):
    f.config_text = partial(replaced, '"provenance": {', f'"provenance": {{"x": {value}, ')


TEXTS = {
    "100,000 nested lists": '"x": ' + "[" * 100_000 + "]" * 100_000,
    "100,000 nested objects": '"x": ' + '{"":' * 100_000 + "1" + "}" * 100_000,
    "half a character": '"x": "\\ud800"',
    "half a character as a key": '"\\udfff": 1',
    "a character that must be escaped": '"x": "\n"',
    "a number with a zero in front": '"x": 007',
    "a comment": '/* x */ "x": 1',
}


@cases("provenance", TEXTS, quick=2)
def provenance_text(f, _, text):
    f.config_text = partial(replaced, '"provenance": {', f'"provenance": {{{text}, ')


DEPTHS = called(300, 980, 100, 500, 900, *range(960, 980, 2), *range(981, 1000), 2000, 5000, 9990)


@cases("provenance nested", DEPTHS, may_load=True, quick=2)
def nested(f, _, depth):
    f.config_text = partial(replaced, '"provenance": {', f'"provenance": {{"x": {"[" * depth}{"]" * depth}, ')


BYTES = {
    "a byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "UTF-16": lambda content: content.decode().encode("utf-16"),
    "UTF-32": lambda content: content.decode().encode("utf-32-le"),
    "no UTF-8": lambda content: content.replace(b'"versions"', b'"\xff": 1, "versions"'),
    "an overlong UTF-8": lambda content: content.replace(b'"versions"', b'"\xc0\xaf": 1, "versions"'),
    "a surrogate in UTF-8": lambda content: content.replace(b'"versions"', b'"\xed\xa0\x80": 1, "versions"'),
    "more behind it": lambda content: content + b"x",
    "another object behind it": lambda content: content + content,
    "a NUL behind it": lambda content: content + b"\0",
    "17 MB of spaces": lambda content: content + b" " * (17 * 2**20),
    "nothing": lambda content: b"",
    "null": lambda content: b"null",
    "a list": lambda content: b"[" + content + b"]",
    "a text": lambda content: json.dumps(content.decode()).encode(),
    "a pickle": lambda content: pickle.dumps(json.loads(content)),
    "cut": lambda content: content[:-2],
}


@cases("config.json is", BYTES, quick=3)
def config_bytes(f, _, change):
    f.config_bytes = change


def filled(unit, size=3_900_000):
    return f"[{','.join([unit] * (size // (len(unit) + 1)))}]"


TINY = {
    "deep lists": lambda: filled("[" * 90 + "]" * 90),
    "deep objects": lambda: filled('{"":' * 90 + "0" + "}" * 90),
    "keys": lambda: "{" + ",".join(f'"{number:x}":0' for number in range(360_000)) + "}",
    "lists": lambda: filled("[]"),
    "objects of one": lambda: filled('{"":0}'),
    "numbers": lambda: filled("0.5"),
    "texts": lambda: "[" + ",".join(f'"\U0001f600{number:x}"' for number in range(290_000)) + "]",
}


@cases("3.9 MB of", TINY, quick=2)
def tiny(f, _, text):
    f.config_text = partial(replaced, '"timm_kwargs": {', f'"timm_kwargs": {{"x": {text()}, ')


@cases("3.9 MB of provenance of", TINY, may_load=True, quick=2)
def tiny_provenance(f, _, text):
    f.config_text = partial(replaced, '"provenance": {', f'"provenance": {{"x": {text()}, ')


# ---- config.json: the tickets -------------------------------------------------------------------------------------


@case("9,999 tickets", "tickets")
def many_tickets(f):
    f.config["rst"]["tickets"] += [
        {**f.entry, "name": f"{i:060}", "file": f"ticket-{i:060}.safetensors", "provenance": {}} for i in range(9998)
    ]


@cases("tickets", called([], None, {}, [None]))
def no_tickets(f, _, value):
    f.write()
    f.config["rst"]["tickets"] = value
    (f.folder / "config.json").write_text(json.dumps(f.config))


@case("two tickets of one name", "name")
def two_of_one_name(f):
    f.config["rst"]["tickets"].append(dict(f.entry))


TICKET_NAMES = (
    *(
        "../../etc/passwd",
        "../outside/x",
        "/etc/passwd",
        "a/b",
        "r0.1\0",
        "r0.1\n",
        "\x1b[2Jr0.1",
        "x" * 2**20,
        "\ud800",
    ),
    *(None, "a\\b", "..", "", ".", "r0.1 ", "-r", "r0.1\u202e", "r\uff10.1", "x" * 65, "C:x", 1, ["r0.1"], {"x": 1}),
)


@cases("ticket's name", called(*TICKET_NAMES), quick=3)
def ticket_name(f, _, name):
    f.entry.update(name=name, file=f"ticket-{name}.safetensors")
    f.write()
    if isinstance(name, str) and not set(name) & {"\0", "\ud800"} and len(name) < 200 and not name.startswith("../../"):
        target = f.folder / f.entry["file"]
        target.parent.mkdir(parents=True, exist_ok=True)
        f.path.rename(target)


FILES = {
    "outside": "../outside/ticket-r0.1.safetensors",
    "absolute": "OUTSIDE/ticket-r0.1.safetensors",
    "in a folder": "more/ticket-r0.1.safetensors",
    "with a dot": "./ticket-r0.1.safetensors",
    "in itself": "../folder/ticket-r0.1.safetensors",
    "with NUL": "ticket-r0.1.safetensors\0",
    "with a line's end": "ticket-r0.1.safetensors\n",
    "another name": "model.safetensors",
    "a device": "/dev/zero",
    "a home": "~/ticket-r0.1.safetensors",
    "config.json": "config.json",
    "none": None,
    "a list": ["ticket-r0.1.safetensors"],
}


@cases("ticket's file", FILES)
def ticket_file(f, key, file):
    f.entry["file"] = file.replace("OUTSIDE", str(f.outside)) if isinstance(file, str) else file
    f.write()
    if key in ("outside", "absolute", "in a folder", "with a line's end", "another name"):
        target = f.folder / f.entry["file"]
        target.parent.mkdir(exist_ok=True)
        shutil.copy(f.path, target)
        f.path.unlink()


VALUES = {
    "remaining_ratio": (0, 1.5, float("nan"), "0.1", True, 1e-320, 10**400, -0.1, 2, None, [0.1], float("inf")),
    "kept": (1, -1, "1", 2**70, 0, True, 1.5, None, 10**4000),
    "pattern": ("row", ["element"], None, "", {}, "x" * 2**20),
    "layer_ratios": ("erk", "magic", ["erk"], None, {}, "x" * 2**20),
    "sha256": ("f" * 64, "f" * 64 + "\n", None, ["f" * 64], "", "f" * 63, "f" * 65, "\uff46" * 64, 1),
    "weights_digest": ("f" * 64, None, ["f" * 64], "", "f" * 64 + "\n", 1),
    "provenance": (None, [], "x"),
}
for key, values in VALUES.items():

    @cases(key, called(*values), quick=2)
    def entry_value(f, _, value, key=key):
        f.entry[key] = value
        if key != "sha256":
            return
        f.write()
        f.entry[key] = value
        (f.folder / "config.json").write_text(json.dumps(f.config))


@cases("in capitals", {"sha256": "sha256", "weights_digest": "weights_digest"})
def capitals(f, key, _):
    f.entry[key] = f.entry[key].upper()
    if key == "sha256":
        f.write()
        f.config["rst"]["tickets"][0][key] = hashlib.sha256(f.path.read_bytes()).hexdigest().upper()
        (f.folder / "config.json").write_text(json.dumps(f.config))


@cases("entry without", {key: key for key in ("name", "file", "remaining_ratio", "pattern", "weights_digest", "kept")})
def entry_without(f, key, _):
    del f.entry[key]


@case("kept is a float")
def kept_float(f):
    f.entry["kept"] = float(f.entry["kept"])


# ---- files that are no files --------------------------------------------------------------------------------------


def in_place_of(path, kind, outside):
    """Put something at ``path`` that is no plain file."""
    content = path.read_bytes()
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))
    elif kind == "a link outside":
        (outside / path.name).write_bytes(content)
        path.symlink_to(Path("..") / "outside" / path.name)
    elif kind == "an absolute link outside":
        (outside / path.name).write_bytes(content)
        path.symlink_to(outside / path.name)
    elif kind == "a link through a link":
        (outside / path.name).write_bytes(content)
        (path.parent / "more").symlink_to(outside, target_is_directory=True)
        path.symlink_to(Path("more") / path.name)
    else:
        path.symlink_to(kind.partition(" to ")[2])


NO_FILES = (
    *("a folder", "a FIFO", "a socket", "a link outside", "an absolute link outside", "a link through a link"),
    *("a link to /dev/zero", "a link to /proc/self/environ", "a link to /etc/hostname", "a link to nothing"),
    *("a link to /dev/stdin", "a link to /proc/self/mem", "a link to .", "a link to config.json", "a link to /dev/tty"),
    "a link to ticket-r0.1.safetensors",
)


@cases("config.json", called(*NO_FILES), quick=3)
def no_config(f, kind, _):
    f.write()
    in_place_of(f.folder / "config.json", kind, f.outside)


@cases("ticket", called(*NO_FILES), quick=3)
def no_ticket(f, kind, _):
    f.write()
    in_place_of(f.path, kind, f.outside)


@cases("a sparse file", {f"{size} MB": size for size in (210, 3000, 25, 1000, 10_000)}, quick=2)
def sparse(f, _, size):
    f.write()
    os.truncate(f.path, size * 10**6)


@case("config.json of 3 GB")
def sparse_config(f):
    f.write()
    os.truncate(f.folder / "config.json", 3 * 2**30)


@case("a ticket that is missing")
def missing(f):
    f.content = lambda content: None


@case("a ticket that is not listed", "not listed")
def foreign(f):
    f.write()
    shutil.copy(f.path, f.folder / "ticket-r0.2.safetensors")


@case("an unlisted ticket that is a FIFO", "not listed")
def foreign_fifo(f):
    f.write()
    os.mkfifo(f.folder / "ticket-\x1b[2J.safetensors")


@case("pickles and modules beside it", may_load=True)
def planted(f):
    f.write()
    for name in ("pytorch_model.bin", "model.pth", "open_clip_pytorch_model.bin", "model.ckpt"):
        bring_pickle(f, f.folder / name)
    for name in ("timm", "rst_hub", "torch", "sitecustomize", "conftest", "modeling", "configuration", "planted"):
        (f.folder / f"{name}.py").write_text(f"import os; os.mkdir({str(f.marker)!r})")
    (f.folder / "__init__.py").write_text(f"import os; os.mkdir({str(f.marker)!r})")


@case("more keys", may_load=True)
def more_keys(f):
    f.config.update(auto_map={"AutoModel": "modeling.Evil"}, custom_pipelines={}, trust_remote_code=True)
    f.config["rst"]["hook"] = f.entry["hook"] = "modeling.Evil"


# ---- the ticket's file: bytes -------------------------------------------------------------------------------------


def as_zip(content):
    import io

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("ticket-r0.1.safetensors", content)
    return packed.getvalue()


CONTENTS = {
    "nothing": lambda content: b"",
    "7 bytes": lambda content: content[:7],
    "a header of 2**63 bytes": lambda content: struct.pack("<Q", 2**63) + content[8:],
    "a header of 2**64 - 1 bytes": lambda content: struct.pack("<Q", 2**64 - 1) + content[8:],
    "a header beyond the file": lambda content: struct.pack("<Q", len(content) - 7) + content[8:],
    "a header of 0 bytes": lambda content: struct.pack("<Q", 0) + content[8:],
    "an empty header": lambda content: struct.pack("<Q", 2) + b"{}",
    "a file without its last byte": lambda content: content[:-1],
    "a byte more": lambda content: content + b"\0",
    "a megabyte more": lambda content: content + bytes(2**20),
    "a zip": as_zip,
    "a zip behind it": lambda content: content + as_zip(b"x"),
    "a gzip": lambda content: gzip.compress(content),
    "a pickle": lambda content: pickle.dumps(content),
    "200 MB of zeros": lambda content: bytes(200 * 2**20),
    "a header that is a list": lambda content: struct.pack("<Q", 2) + b"[]",
    "a header of UTF-16": lambda content: struct.pack("<Q", 6) + "{}".encode("utf-16"),
    "a header of 90 MB of spaces": lambda content: spread(content, lambda text: text + b" " * (90 * 2**20)),
    "a header of 3.9 MB of tensors": lambda content: spread(
        content,
        lambda text: (
            text.rstrip()[:-1]
            + b"".join(b',"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(60_000))
            + b"}"
        ),
    ),
    "a header of 3.9 MB of deep lists": lambda content: spread(
        content, lambda text: b'{"x":' + filled("[" * 90 + "]" * 90).encode() + b"," + text[1:]
    ),
    "a header of 100,000 nested lists": lambda content: spread(
        content, lambda text: b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"," + text[1:]
    ),
    "a header of 90 MB of lists": lambda content: spread(
        content, lambda text: b'{"x":[' + b"[]," * (30 * 2**20) + b"[]]," + text[1:]
    ),
    "half a header": lambda content: content[:1000],
    "the file twice": lambda content: content * 2,
    "a header of 90 MB of metadata": lambda content: spread(
        content, lambda text: text.replace(b'{"rst"', b'{"x":"' + b"x" * (90 * 2**20) + b'","rst"')
    ),
    "a header of 30 MB of tensors": lambda content: spread(
        content,
        lambda text: (
            text.rstrip()[:-1]
            + b"".join(b',"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(500_000))
            + b"}"
        ),
    ),
}


def spread(content, change):
    """Return a safetensors file with another header text."""
    end = 8 + int.from_bytes(content[:8], "little")
    text = change(content[8:end])
    return struct.pack("<Q", len(text)) + text + content[end:]


@cases("ticket is", CONTENTS, quick=6)
def ticket_bytes(f, _, change):
    f.content = change


@cases("ticket is a pickle of", {"today": True, "old": False})
def pickled(f, _, as_zip_file):
    path = f.outside / "model"
    torch.save(Bomb(f.marker), path, _use_new_zipfile_serialization=as_zip_file)
    content = path.read_bytes()
    path.unlink()
    f.content = lambda _: content


@cases("a flipped bit at", called(0, 9, 0.1, 0.5, -1), "SHA-256")
def flipped(f, _, where):
    f.write()
    content = bytearray(f.path.read_bytes())
    content[int(where * len(content)) if isinstance(where, float) else where] ^= 4
    f.path.write_bytes(content)


# ---- the ticket's file: header ------------------------------------------------------------------------------------


def overlap(header):
    header["state.bn1.running_mean"]["data_offsets"] = header["state.bn1.running_var"]["data_offsets"]


def same_place_for_all(header):
    for spec in header.values():
        if spec.get("shape") == [32]:
            spec["data_offsets"] = header["state.bn1.running_var"]["data_offsets"]


def spec(name="state.bn1.running_mean", **changes):
    def change(header):
        header[name].update(changes)

    return change


def more(name, **changes):
    def change(header):
        header[name] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0], **changes}

    return change


def metadata(value):
    def change(header):
        header["__metadata__"] = value

    return change


HEADERS = {
    "two tensors in one place": overlap,
    "many tensors in one place": same_place_for_all,
    "offsets in reverse": spec(data_offsets=[128, 0]),
    "negative offsets": spec(data_offsets=[-128, 0]),
    "offsets beyond the file": spec(data_offsets=[2**40, 2**40 + 128]),
    "offsets beyond 2**64": spec(data_offsets=[2**64, 2**64 + 128]),
    "offsets of floats": spec(data_offsets=[0.0, 128.0]),
    "offsets of texts": spec(data_offsets=["0", "128"]),
    "three offsets": spec(data_offsets=[0, 128, 256]),
    "a shape of more": spec(shape=[33]),
    "a shape of less": spec(shape=[31]),
    "a negative shape": spec(shape=[-32]),
    "two negative sides": spec(shape=[-8, -4]),
    "a shape beyond 2**64": spec(shape=[2**62, 32]),
    "a shape that overflows to 32": spec(shape=[2**59 + 1, 32]),
    "a shape of floats": spec(shape=[32.0]),
    "a shape of true": spec("state.fc.bias", shape=[10, True]),
    "a shape of 10,000 ones": spec("state.fc.bias", shape=[10] + [1] * 10_000),
    "an unknown dtype": spec(dtype="F33"),
    "a dtype that is a list": spec(dtype=["F32"]),
    "a mask of F8": spec("mask.fc.weight", dtype="F8_E4M3"),
    "a mask of F8_E8M0": spec("mask.fc.weight", dtype="F8_E8M0"),
    "a mask of BOOL": spec("mask.fc.weight", dtype="BOOL"),
    "a mask of I8": spec("mask.fc.weight", dtype="I8"),
    "a mask of two dimensions": lambda header: header["mask.fc.weight"]["shape"].insert(0, 1),
    "state of I32": spec(dtype="I32"),
    "state of U32": spec(dtype="U32"),
    "another field": spec(hook="os.system"),
    "a stray name": more("pickle"),
    "an empty name": more(""),
    "a mask of nothing": more("mask."),
    "state of nothing": more("state."),
    "a mask of a mask": more("mask.mask.fc.weight"),
    "a name with NUL": more("state.\0"),
    "a name with escapes": more("state.\x1b[2J\n"),
    "a name of a megabyte": more("state." + "x" * 2**20),
    "state of a seeded name": more("state.fc.weight"),
    "a mask of a name without seed": more("mask.fc.bias"),
    "no metadata": lambda header: header.pop("__metadata__"),
    "metadata without rst": metadata({"pt": "x"}),
    "metadata that is a text": metadata("x"),
    "metadata that is a list": metadata([]),
    "rst that is no JSON": metadata({"rst": "x"}),
    "rst that is a list": metadata({"rst": "[]"}),
    "rst that is no text": metadata({"rst": {}}),
    "rst of a pickle": metadata({"rst": "cos\nsystem\n(Vtrue\ntR."}),
}


@cases("header", HEADERS, quick=6)
def header_change(f, _, change):
    def changed(header):
        change(header)
        return header

    f.header = changed


def without_metadata(header):
    return {name: spec for name, spec in header.items() if name != "__metadata__"}


@case("header: a hole")
def hole(f):
    def changed(header):
        for spec in without_metadata(header).values():
            spec["data_offsets"] = [offset + 8 for offset in spec["data_offsets"]]
        return header

    f.header = changed
    f.content = lambda content: spread(content + bytes(8), lambda text: text)


SCALAR = '{"dtype":"F32","shape":[],"data_offsets":[0,4]}'


def again(text, name):
    return f'{text[:-1]},"{name}":{json.dumps(json.loads(text)[name])}}}'


DOUBLE_IN_HEADER = {
    "a tensor": lambda text: again(text, "mask.fc.weight"),
    "a tensor of another place": lambda text: f'{{"state.bn1.bias":{SCALAR},{text[1:]}',
    "an escaped tensor": lambda text: f'{{"\\u0073tate.bn1.bias":{SCALAR},{text[1:]}',
    "the metadata": lambda text: '{"__metadata__":{"rst":"{}"},' + text[1:],
    "the metadata behind": lambda text: again(text, "__metadata__"),
    "rst": lambda text: text.replace('{"rst":', '{"rst":"{}","rst":', 1),
    "a dtype": lambda text: text.replace('"dtype":', '"dtype":"F64","dtype":', 1),
    "a shape": lambda text: text.replace('"shape":', '"shape":[9],"shape":', 1),
}


@cases("header, twice", DOUBLE_IN_HEADER)
def double_in_header(f, _, change):
    f.header_text = change


DOUBLE_IN_METADATA = {
    "config": lambda text: text.replace('"config":', f'"config":"{"f" * 64}","config":', 1),
    "seeded": lambda text: text.replace('"seeded":', '"seeded":{},"seeded":', 1),
    "a tensor": lambda text: text.replace('"seeded":{', '"seeded":{"fc.weight":[[1],1.0],', 1),
}


@cases("metadata, twice", DOUBLE_IN_METADATA)
def double_in_metadata(f, _, change):
    f.metadata_text = change


METADATA = {
    "100,000 nested lists": '"x":' + "[" * 100_000 + "]" * 100_000,
    "NaN": '"x":NaN',
    "1e999": '"x":1e999',
    "5,000 digits": '"x":' + "1" * 5000,
    "a million lists": '"x":' + filled("[]", 3_000_000),
    "deep lists": '"x":' + filled("[" * 90 + "]" * 90, 3_900_000),
}


@cases("metadata of", METADATA)
def metadata_of(f, _, text):
    f.metadata_text = lambda good: "{" + text + "," + good[1:]


@case("more metadata", may_load=True)
def more_metadata(f):
    f.more_metadata = {"format": "pt", "hook": "os.system"}


# ---- the ticket's file: what the seed makes -----------------------------------------------------------------------

SCALES = called(float("nan"), float("inf"), 1e39, -1.0, True, "0.1", 10**400, 3.5e38, -0.0, -float("inf"), None, [0.1])


@cases("scale", SCALES)
def scale(f, _, value):
    f.seeded["fc.weight"][1] = value
    if isinstance(value, float | bool):
        f.redraw()


@cases("scale of nothing", called(0.0, 1e-60, 1), may_load=True)
def scale_of_nothing(f, _, value):
    f.seeded["fc.weight"][1] = value
    f.redraw()


@cases("a false scale", called(0.5, 3e38))
def false_scale(f, _, value):
    f.seeded["fc.weight"][1] = value


SIZES_OF = {
    "two negative sides": ("fc.weight", [-10, -96]),
    "a huge side": ("fc.weight", [10, 2**40]),
    "two huge sides": ("fc.weight", [10**7, 10**7]),
    "beyond 2**64": ("fc.weight", [2**64, 2**64]),
    "overflow to 960": ("fc.weight", [2**32, 2**32, 960]),
    "overflow to the same": ("fc.weight", [2**64 + 10, 96]),
    "floats": ("fc.weight", [10.0, 96.0]),
    "true for 1": ("layer3.0.conv1.weight", [48, 48, True, True]),
    "texts": ("fc.weight", ["10", "96"]),
    "a text": ("fc.weight", "10"),
    "an object": ("fc.weight", {"10": 1, "96": 2}),
    "a number": ("fc.weight", 960),
    "transposed": ("fc.weight", [96, 10]),
    "flat": ("fc.weight", [960]),
    "one more dimension": ("fc.weight", [10, 96, 1]),
    "nothing": ("fc.weight", [0]),
    "no dimension": ("fc.weight", []),
    "200,000 dimensions": ("fc.weight", [10, 96] + [1] * 200_000),
}


@cases("seeded", SIZES_OF, quick=3)
def seeded_shape(f, key, value):
    name, shape = value
    f.seeded[name][0] = shape
    if key in ("transposed", "flat", "one more dimension", "true for 1"):
        f.redraw()


SEEDED = {
    "a list": [],
    "none": None,
    "an entry of one": {"fc.weight": [[10, 96]]},
    "an entry of three": {"fc.weight": [[10, 96], 0.1, True]},
    "an entry of text": {"fc.weight": "ab"},
    "a stray entry": {"evil": [[10, 96], 0.1]},
    "a stray and huge entry": {"evil": [[2**20, 2**20], 0.1]},
    "a hundred thousand entries": {f"x{i:x}": [[1], 1.0] for i in range(100_000)},
}


@cases("seeded is", SEEDED)
def seeded_entries(f, _, value):
    if isinstance(value, dict):
        f.seeded.update(copy.deepcopy(value))
    else:
        f.metadata["seeded"] = value


@case("another seed's digest", "drawn with")
def another_seed(f):
    f.seed(seed=1)


@case("another distribution's digest", "drawn with")
def another_distribution(f):
    f.seed(distribution="kaiming_normal")


@case("a tensor without mask or state")
def without_tensor(f):
    del f.tensors["state.bn1.bias"]


@case("a mask less", "keep")
def without_mask(f):
    kept = f.entry["kept"]
    del f.tensors["mask.fc.weight"]
    f.redraw()
    f.entry["kept"] = kept


# Unclear: all is consistent, only nobody would draw such a ticket.


@case("a weight without its mask", may_load=True)
def table_for_weight(f):
    del f.tensors["mask.fc.weight"]
    f.redraw()


@case("a weight stored whole", may_load=True)
def stored_weight(f):
    del f.tensors["mask.fc.weight"], f.seeded["fc.weight"]
    f.tensors["state.fc.weight"] = ["F32", [10, 96], bytes(3840)]
    f.redraw()


@case("a mask of a batch norm's weight", may_load=True)
def masked_batch_norm(f):
    del f.tensors["state.bn1.weight"]
    f.seeded["bn1.weight"] = [[32], 1.0]
    f.mask("bn1.weight", encode_mask(torch.arange(32) < 4))
    f.redraw()


@case("state that is not a number", may_load=True)
def state_of_nan(f):
    f.tensors["state.bn1.running_var"][2] = struct.pack("<32f", *[float("nan")] * 32)


# ---- the ticket's file: state and masks ---------------------------------------------------------------------------

STATES = {
    "F64 of one value": ("bn1.weight", "F64", []),
    "F16 of the same shape": ("bn1.running_mean", "F16", [32]),
    "BF16 of the same shape": ("bn1.running_mean", "BF16", [32]),
    "F64 of the same shape": ("bn1.running_mean", "F64", [32]),
    "I64 of the same shape": ("bn1.running_mean", "I64", [32]),
    "I32 of one value": ("bn1.num_batches_tracked", "I32", []),
    "one value of shape 1": ("bn1.running_mean", "F32", [1]),
    "shape 1 for a scalar": ("bn1.num_batches_tracked", "I64", [1]),
    "more dimensions": ("bn1.running_mean", "F32", [32, 1]),
    "fewer values": ("bn1.running_mean", "F32", [16]),
    "a huge tensor": ("bn1.running_mean", "F32", [2**20]),
    "no values": ("bn1.running_mean", "F32", [0]),
}


@cases("state", STATES, quick=2)
def state(f, _, value):
    name, dtype, shape = value
    count = int(torch.tensor(shape).prod()) if shape else 1
    f.tensors[f"state.{name}"] = [dtype, shape, bytes(count * SIZES[dtype])]


def code(codec, parameter, kept, content):
    return struct.pack("<BBQ", codec, parameter, kept) + content


def deflated(content, **options):
    packer = zlib.compressobj(options.pop("level", 9), zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def deflate_bomb():
    """Return a raw deflate stream of 2 GiB of zeros, made of one block that is repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = bytes(2**24)
    first = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    last = packer.compress(block) + packer.flush()
    return first * 127 + last


def rice(mask, parameter, padding=0):
    """Return the Golomb-Rice code of a mask, with these bits behind its last."""
    places = [-1, *mask.reshape(-1).nonzero().flatten().tolist()]
    gaps = [place - before - 1 for before, place in pairwise(places)]
    unary = "".join("0" * (gap >> parameter) + "1" for gap in gaps)
    rest = "".join(str(gap >> bit & 1) for gap in gaps for bit in range(parameter))
    return code(2, parameter, len(gaps), packed(unary) + packed(rest, padding))


def packed(bits, padding=0):
    filled = bits + str(padding) * (-len(bits) % 8)
    return bytes(int(filled[i : i + 8][::-1], 2) for i in range(0, len(filled), 8))


ONES = torch.arange(960) % 10 == 0  # 96 of 960, as 0.1 has it
PACKED_ONES = packed("".join(str(int(bit)) for bit in ONES))
MASKS = {
    "nothing": b"",
    "9 bytes": bytes(9),
    "no code": code(0, 0, 96, b""),
    "codec 9": code(9, 0, 96, PACKED_ONES),
    "codec 255": code(255, 255, 96, PACKED_ONES),
    "a parameter for packed bits": code(0, 1, 96, PACKED_ONES),
    "packed bits, one byte short": code(0, 0, 96, PACKED_ONES[:-1]),
    "packed bits, one byte more": code(0, 0, 96, PACKED_ONES + b"\0"),
    "packed bits, another count": code(0, 0, 95, PACKED_ONES),
    "more kept than there are": code(0, 0, 961, PACKED_ONES),
    "2**64 - 1 kept": code(0, 0, 2**64 - 1, PACKED_ONES),
    "2**63 kept, Rice": code(2, 3, 2**63, PACKED_ONES[:60]),
    "deflate of 2 GB": code(1, 0, 96, deflate_bomb()),
    "deflate and more": code(1, 0, 96, deflated(PACKED_ONES) + b"\0"),
    "deflate twice": code(1, 0, 96, deflated(PACKED_ONES) * 2),
    "deflate cut": code(1, 0, 96, deflated(PACKED_ONES)[:-1]),
    "deflate of one byte more": code(1, 0, 96, deflated(PACKED_ONES + b"\0")),
    "deflate of one byte less": code(1, 0, 96, deflated(PACKED_ONES[:-1])),
    "deflate with a zlib header": code(1, 0, 96, zlib.compress(PACKED_ONES)),
    "a gzip": code(1, 0, 96, gzip.compress(PACKED_ONES)),
    "Rice with parameter 0": code(2, 0, 96, bytes(120)),
    "Rice with parameter 25": code(2, 25, 96, bytes(120)),
    "Rice with parameter 255": code(2, 255, 96, bytes(120)),
    "Rice of no end": code(2, 1, 96, bytes(120)),
    "Rice of one gap less": code(2, 3, 96, b"\xff" * 11 + b"\x7f" + bytes(36)),
    "Rice beyond the end": code(2, 4, 96, b"\xff" * 60),
    "Rice far beyond the end": code(2, 3, 96, b"\xff" * 11 + b"\x7f" + bytes(71) + b"\x80" + bytes(36)),
    "Rice and more": rice(ONES, 3) + b"\0",
    "Rice cut": rice(ONES, 3)[:-1],
}


@cases("mask", MASKS, quick=5)
def mask_code(f, _, content):
    f.mask("fc.weight", content)


@case("mask: padding bits", "padding")
def padding(f):
    f.mask("conv1.0.weight", rice(f.decoded("conv1.0.weight"), 3, padding=1))


@case("another code of a mask", may_load=True)
def other_code(f):
    f.mask("conv1.0.weight", rice(f.decoded("conv1.0.weight"), 3))
    f.mask("fc.weight", code(1, 0, 96, deflated(PACKED_ONES, level=0)))
    f.redraw()


COUNTS = {
    "all": torch.ones(960, dtype=torch.bool),
    "none": torch.zeros(960, dtype=torch.bool),
    "one more": ONES | (torch.arange(960) == 1),
}


@cases("mask that keeps", COUNTS)
def mask_count(f, _, mask):
    f.mask("fc.weight", encode_mask(mask))
    f.redraw()


@case("masks exchanged")
def exchanged(f):
    one, other = "mask.layer3.0.conv3.weight", "mask.layer3.0.downsample.1.weight"
    assert f.tensors[one] != f.tensors[other]
    f.tensors[one], f.tensors[other] = f.tensors[other], f.tensors[one]


# ---- huge networks in small files ---------------------------------------------------------------------------------

HUGE = (
    *("vit_giant_patch14_224", "tiny_vit_21m_512", "regnety_2560", "vgg19", "resnetv2_152x4_bit", "mvitv2_huge_cls"),
    *("eva02_enormous_patch14_clip_224", "vit_7b_patch16_dinov3", "swinv2_cr_giant_384", "resnetrs420", "regnety_1280"),
)
HUGE = tuple(name for name in HUGE if timm.is_model(name))


@cases("huge", called(*HUGE), quick=2)
def huge(f, name, _):
    f.network(name)


def as_drawn(f, name, remaining_ratio, **arguments):
    """Make the folder that of a whole network, of which each mask keeps hardly any weight."""
    f.network(name, **arguments)
    layout = state_layout(name, {"num_classes": 10, **arguments})
    dtypes = {dtype: key for key, dtype in DTYPES.items()}
    f.tensors.clear()
    f.seeded.clear()
    f.entry.update(remaining_ratio=remaining_ratio, kept=0)
    for key, (shape, dtype) in layout.items():
        if len(shape) < 2:
            f.tensors[f"state.{key}"] = [dtypes[dtype], [], bytes(SIZES[dtypes[dtype]])]
            continue
        f.seeded[key] = [list(shape), 0.01]
        f.mask(key, code(2, 24, 1, b"\x01\0\0\0"))
        f.entry["kept"] += 1


WHOLE = ("vit_giant_patch14_224", "resnetv2_152x4_bit", "eva02_enormous_patch14_clip_224", "regnety_1280", "vgg19")


@cases("huge and whole", {name: name for name in WHOLE if timm.is_model(name)}, quick=2)
def huge_and_whole(f, name, _):
    as_drawn(f, name, 1e-12)


@cases("huge, whole but for one tensor", {name: name for name in WHOLE if timm.is_model(name)}, quick=2)
def huge_and_nearly_whole(f, name, _):
    as_drawn(f, name, 1e-12)
    last = list(f.seeded)[-1]
    f.seeded[last][0] = f.seeded[last][0][::-1]


TABLES = {
    "a table of a huge image": ("vit_base_patch8_224", {"img_size": 1024}),
    "attention over a huge image": ("swin_large_patch4_window12_384", {"img_size": 1024}),
    "positions of a huge image": ("beit_base_patch16_224", {"img_size": 1024}),
    "positions of all pairs": ("coatnet_0_224", {"img_size": 1024}),
    "a wide and low image": ("maxvit_rmlp_base_rw_384", {"img_size": [32, 1024]}),
}


@cases("huge image", TABLES, quick=2)
def huge_image(f, _, value):
    name, arguments = value
    f.network(name, **arguments)


DIVISIONS = {
    "a low image": ("swinv2_cr_tiny_224", {"img_size": [1, 1024]}),
    "an image of one pixel": ("resmlp_12_224", {"img_size": 1}),
}


@cases("division by zero", DIVISIONS)
def division(f, _, value):
    name, arguments = value
    f.network(name, **arguments)


# ---- what a refusal shows -----------------------------------------------------------------------------------------

SHOWN = {"escapes": "\x1b[2J\x1b]0;x\x07\n", "a megabyte": "x" * 2**20}


@cases("timm's version of", SHOWN)
def shown_version(f, _, text):
    del f.tensors["state.bn1.bias"]
    f.entry["provenance"] = {"versions": {"timm": text}}


@cases("an input's key of", SHOWN)
def shown_key(f, _, text):
    f.config["pretrained_cfg"][text] = 1


@cases("an input's value of", SHOWN)
def shown_value(f, _, text):
    f.config["pretrained_cfg"]["interpolation"] = text


@cases("an argument's name of", SHOWN)
def shown_argument(f, _, text):
    f.network(**{text: 1})


@cases("a tensor's name of", SHOWN)
def shown_tensor(f, _, text):
    f.tensors[f"state.{text}"] = ["F32", [], bytes(4)]


@cases("a seeded name of", SHOWN)
def shown_seeded(f, _, text):
    f.seeded[text] = [[1], 1.0]


@case("format_version of 4,000 digits")
def shown_number(f):
    f.config["rst"]["format_version"] = 10**4000


# ---- through timm -------------------------------------------------------------------------------------------------

THROUGH_TIMM = {
    "cache_dir": {"cache_dir": "OUTSIDE"},
    "checkpoint_path": {"checkpoint_path": "OUTSIDE/model.pth"},
    "pretrained": {"pretrained": False},
    "pretrained_cfg": {"pretrained_cfg": {"file": "OUTSIDE/model.pth"}},
    "pretrained_cfg_overlay": {"pretrained_cfg_overlay": {"source": "hf-hub", "hf_hub_id": "evil/x"}},
    "pretrained_model_args": {"pretrained_model_args": {"x": 1}},
    "pretrained_strict": {"pretrained_strict": False},
    "ticket": {"ticket": "r0.1"},
    "ticket outside": {"ticket": "../outside/x"},
    "seed": {"seed": 1},
    "base": {"base": "resnet18"},
    "base of the Hub": {"base": "hf-hub:evil/x"},
    "features_only": {"features_only": True},
    "out_indices": {"out_indices": [0]},
    "scriptable": {"scriptable": True},
    "num_classes": {"num_classes": 3},
    "img_size": {"img_size": 10**9},
    "in_chans": {"in_chans": 10**9},
    "dynamic_img_size": {"dynamic_img_size": True},
    "act_layer": {"act_layer": "relu"},
}
if HAS_LOCAL_DIR:

    @cases("timm, model_args", THROUGH_TIMM, route="timm", quick=3)
    def through_timm(f, _, value):
        bring_pickle(f, f.outside / "model.pth")
        f.config["model_args"].update(json.loads(json.dumps(value).replace("OUTSIDE", str(f.outside))))

    @cases("timm, pretrained_cfg", INPUTS, route="timm", quick=2)
    def input_through_timm(f, key, value):
        pretrained_cfg(f, key, value)

    @cases("timm, argument", LIVE_WIRES, route="timm", base=VIT, quick=0)
    def live_wire_through_timm(f, key, value):
        live_wire(f, key, value)

    @cases("timm, network", called("local-dir:FOLDER", "hf-hub:evil/x", "rst", "vit_giant_patch14_224"), route="timm")
    def network_through_timm(f, _, value):
        architecture(f, None, value)

    @case("timm, a ticket outside", route="timm")
    def outside_through_timm(f):
        ticket_file(f, "outside", FILES["outside"])

    @case("timm, a link outside", route="timm")
    def link_through_timm(f):
        no_ticket(f, "a link outside", None)

    @case("timm, labels and classes of timm", route="timm")
    def classes_through_timm(f):
        f.config["num_classes"] = 10**6

    @case("timm, pickles and modules beside it", route="timm", may_load=True)
    def planted_through_timm(f):
        planted(f)


# ---- the harness, and the test of it ------------------------------------------------------------------------------


def faults(result, may_load=False, route="ours"):
    """Return what is wrong with how a load ended, as sentences."""
    found = [f"violation: {violation}" for violation in result["violations"]]
    if result["outcome"] == "raised":
        if route == "ours" and "rst_hub.errors.RstHubError" not in result["types"]:
            found.append(f"raises {result['types'][0]}: {result['message'][:200]}")
        if result["length"] > LONGEST_MESSAGE:
            found.append(f"a message of {result['length']:,} characters")
        if route == "ours" and not result["printable"]:
            found.append(f"a message that cannot be shown: {result['message'][:200]!r}")
    elif result["outcome"] != "loaded" or not may_load:
        found.append(f"not refused, but {result['outcome']}")
    if result["seconds"] >= SECONDS:  # CPU time of the quickest of three goes; waiting ends by HANGS
        found.append(f"{result['seconds']} s")
    if result["megabytes"] >= MEGABYTES:
        found.append(f"{result['megabytes']} MB")
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory, request):
    """Return what became of every folder: {name: result}; of the slow ones if any slow test was asked for."""
    slow = any(item.get_closest_marker("slow") for item in request.session.items)
    root = tmp_path_factory.mktemp("hostile")
    jobs, good = {}, {}
    for base, arguments in ((RESNET, {}), (VIT, {"img_size": 32})):
        popup = make_popup(base, **arguments)
        with torch.no_grad():  # batch-norm statistics, so that state has several values
            popup.model.train()(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        good[base] = Folder(Ticket.draw(popup, name="r0.1").save(root / base))
    made = {f"good {base}": Case(Folder.write, base=base) for base in good}
    made |= {f"redrawn {base}": Case(Folder.redraw, base=base) for base in good}
    made |= {"good, through timm": Case(Folder.write, route="timm")} if HAS_LOCAL_DIR else {}
    made |= {f"probe {probe}": Case(planted, route=probe) for probe in hostile_worker.PROBES}
    made |= {name: case for name, case in CASES.items() if slow or not case.slow}
    gc.disable()  # millions of small objects
    for number, (name, case) in enumerate(made.items()):
        folder = good[case.base].at(root / str(number))
        case.make(folder)
        if not folder.written:
            folder.write()
        places = {key: str(getattr(folder, key)) for key in ("folder", "outside", "marker")}
        timeout = 1 if case.route == "sleep" else HANGS
        jobs[name] = {"limit": SECONDS, "timeout": timeout, "route": case.route, **places}
    gc.enable()
    worker = subprocess.run(
        [sys.executable, "-B", hostile_worker.__file__, str(root / RESNET)],
        check=False,
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        # not offline, so that whatever asks a server is seen
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0"},
        timeout=300,
    )
    shutil.rmtree(root)
    if worker.returncode:
        pytest.fail(f"the harness ended with {worker.returncode}: {worker.stderr[-2000:]}")
    return json.loads(worker.stdout)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * case.slow) for name, case in CASES.items()]
)
def test_a_hostile_folder_is_refused(results, name):
    case, result = CASES[name], results[name]
    assert faults(result, case.may_load, case.route) == []
    if case.message and result["outcome"] == "raised":
        assert case.message in result["message"]


def test_there_are_enough_of_them(results):
    ours = {name for name, case in CASES.items() if case.route == "ours" and not case.may_load} & set(results)
    assert sum(faults(results[name]) == [] for name in ours) >= 50


def test_a_good_folder_loads_in_the_same_harness_and_would_not_pass_for_refused(results):
    good = {name: result for name, result in results.items() if name.startswith(("good", "redrawn"))}
    assert len(good) == 4 + HAS_LOCAL_DIR
    for result in good.values():
        assert faults(result, may_load=True) == []
        assert faults(result) == ["not refused, but loaded"]
        assert faults({**result, "seconds": 2.0}, may_load=True) == ["2.0 s"]


PROBED = {
    "allocate": r"3\d\d\.\d MB",
    "sleep": "hangs",
    "write": "violation: open for writing",
    "read": "violation: open .*outside/secret",
    "read in C": "violation: opens 'secret' outside",
    "connect": r"violation: socket\.",
    "unpickle": "violation: pickle.find_class",
    "import": "violation: exec of .*planted.py",
    "start": "violation: os.system",
    "die": "dies with status",
    "raise": "raises builtins.ValueError",
    "refuse at length": "a message of 10,004 characters",
    "refuse with escapes": "cannot be shown",
}


@pytest.mark.parametrize("probe", PROBED)
def test_the_harness_notices_what_no_load_may_do(results, probe):
    found = faults(results[f"probe {probe}"], may_load=True)
    assert re.search(PROBED[probe], "\n".join(found))
    assert set(PROBED) == set(hostile_worker.PROBES) - {"work"}


def test_the_harness_counts_seconds(results):
    assert 0.3 <= results["probe work"]["seconds"] < 1


@pytest.mark.parametrize(("goes", "seconds"), [([1.0], 1.0), ([3.0, 1.5], 1.5), ([3.0, 2.5, 2.6], 2.5)])
def test_a_job_over_its_time_is_tried_again_and_no_violation_is_forgotten(monkeypatch, goes, seconds):
    results = iter([{"seconds": time, "violations": [f"after {time} s"]} for time in goes])
    monkeypatch.setattr(hostile_worker, "watched", lambda job, readable: next(results))
    result = hostile_worker.quickest({"limit": SECONDS}, ())
    assert result == {"seconds": seconds, "violations": [f"after {time} s" for time in goes]}
    assert not list(results)
