"""A ticket folder's config.json: written, read and checked field by field, so that its readers need not doubt it.

The ``rst`` part is the format: architecture and its arguments, the seed, and one entry a ticket. What stands beside it
is the same in the words that timm uses for its own config.json. Each ticket's file holds the digest of what this file
says of it, so that neither can be edited without the other.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, RstHubError, SettingsError, TicketError, nearest, printable
from ..files import check_listable, read_inside, reading, strict_json
from ..masks.patterns import LAYER_RATIOS, PATTERNS, check_remaining_ratio
from ..networks.weights import GENERATOR, Init

FORMAT_VERSION = 1
TICKET_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
"""A letter first: some reader of YAML takes anything else for a number."""
MAX_CONFIG_BYTES = 4 * 2**20
"""Some ten times what 20,000 class names take."""


def new_config(
    architecture: str, timm_kwargs: Mapping[str, Any], init: Init, pretrained_cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the config.json of a folder without tickets."""
    rst = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "timm_kwargs": dict(timm_kwargs),
        "init": {"seed": init.seed, "distribution": init.distribution, "generator": GENERATOR},
        "tickets": [],
    }
    config = {
        "architecture": "rst",
        "num_classes": pretrained_cfg.get("num_classes"),
        "model_args": _model_args(rst),
        "pretrained_cfg": dict(pretrained_cfg),
        "rst": rst,
    }
    return json.loads(to_json(config))


def config_digest(config: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of all that config.json says of one ticket but for its file's own SHA-256."""
    said = {key: config["rst"][key] for key in ("architecture", "timm_kwargs", "init")}
    said["pretrained_cfg"] = config["pretrained_cfg"]
    said["ticket"] = {key: value for key, value in entry.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def ticket_file(name: str) -> str:
    """Return the name of a ticket's file."""
    return f"ticket-{name}.safetensors"


def layer_ratios_of(entry: Mapping[str, Any]) -> str:
    """Return how a ticket shares its remaining ratio among layers, which is said only where it is not "uniform"."""
    return entry.get("layer_ratios", "uniform")


def to_json(config: Mapping[str, Any]) -> bytes:
    """Return config.json's bytes.

    Raises:
        SettingsError: something in it (the provenance, that is) is not JSON that :func:`read_config` would read.
    """
    try:
        content = (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()
        strict_json(content)
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingsError(f"the provenance of a ticket must be JSON without NaN and infinity: {error}") from error
    if len(content) > MAX_CONFIG_BYTES:
        raise SettingsError(f"config.json would have {len(content):,} bytes, {MAX_CONFIG_BYTES:,} are the most")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """Return a ticket folder's config.json.

    Raises:
        IntegrityError: config.json is not of this format: damaged, edited, or not a ticket's at all.
        TicketError: the folder or the file is missing, of a newer version, or does not list a file that lies there.
    """
    path = folder / "config.json"
    with reading(folder):
        if not folder.is_dir():
            raise TicketError(f"{folder} is not a folder: give one that holds a ticket's config.json")
        if not path.exists():
            raise TicketError(f"{folder} holds no config.json, so it is no ticket folder: choose another folder")
    try:
        with reading(path):
            content = read_inside(folder, "config.json", MAX_CONFIG_BYTES)
        config = strict_json(content)
        if isinstance(config, dict) and "rst" not in config:
            raise TicketError(f"{path} is another kind of model's: it has no rst part. Choose a folder of tickets")
        newer = config["rst"]["format_version"]
        if type(newer) is not int or newer <= FORMAT_VERSION:
            _check_network(config)
            _check_entries(config["rst"]["tickets"])
    except TicketError:
        raise
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
        RstHubError,
    ) as error:
        reason = f"{type(error).__name__}: {printable(error, 500)}"
        raise IntegrityError(
            f"{path} is not a ticket's config ({reason}): if the folder is a ticket's at all, fetch it anew"
        ) from error
    if newer > FORMAT_VERSION:
        raise TicketError(
            f"{path} is of ticket format version {newer}; this rst-hub reads up to {FORMAT_VERSION}: upgrade rst-hub"
        )
    with reading(folder):
        check_listable(folder)
    listed = {entry["file"] for entry in config["rst"]["tickets"]}
    foreign = sorted(found.name for found in folder.glob("ticket-*.safetensors") if found.name not in listed)
    if foreign:
        raise TicketError(f"{folder}/{printable(foreign[0])} is not listed in config.json: remove the foreign file")
    return config


def choose_entry(
    folder: Path | str, config: Mapping[str, Any], name: str | None, remaining_ratio: float | None = None
) -> dict[str, Any]:
    """Return the entry of one ticket, by its name or remaining ratio; neither is needed where there is only one.

    Raises:
        TicketError: there is no such ticket, or several.
    """
    entries = config["rst"]["tickets"]
    if remaining_ratio is not None:
        ratios = sorted({entry["remaining_ratio"] for entry in entries})
        of_name = [entry["remaining_ratio"] for entry in entries if entry["name"] == name]
        entries = [entry for entry in entries if entry["remaining_ratio"] == remaining_ratio]
        if not entries:
            raise TicketError(f"{folder} holds no ticket of remaining ratio {remaining_ratio!r}. Known: {ratios[:50]}")
        if of_name and remaining_ratio not in of_name:
            raise TicketError(
                f"{folder} holds no ticket {name!r} of remaining ratio {remaining_ratio!r}, its own is {of_name[0]!r}: "
                "give its name or a ratio, not both"
            )
    names = [entry["name"] for entry in entries]
    if name is None and len(entries) == 1:
        return entries[0]
    if name is None:
        shown = ", ".join(names[:20]) + ("" if len(names) <= 20 else ", ...")
        raise TicketError(f"{folder} holds {len(names)} tickets: choose one of {shown}")
    if name not in names:
        raise TicketError(f"{folder} holds no ticket {name!r}. {nearest(str(name), names)}")
    return entries[names.index(name)]


def add_entry(folder: Path, config: dict[str, Any], entry: dict[str, Any], present: Mapping[str, Any] | None) -> None:
    """Add ``entry`` to ``config``, behind those of ``present``, the folder's config of the same random network.

    Raises:
        TicketError: ``present`` is of another network, input or labels, or has another ticket of this name.
    """
    others = []
    if present is not None:
        for key in ("architecture", "timm_kwargs", "init"):
            here, new = present["rst"][key], config["rst"][key]
            if here != new:
                raise TicketError(f"{folder} holds tickets of {key} {here}, not {new}: save to another folder")
        if present["pretrained_cfg"] != config["pretrained_cfg"]:
            raise TicketError(f"{folder} holds tickets of another input or other labels: save to another folder")
        others = [other for other in present["rst"]["tickets"] if other["name"] != entry["name"]]
        same = [other for other in present["rst"]["tickets"] if other["name"] == entry["name"]]
        # one without its file is of a save that died before it wrote it
        if same and same[0]["sha256"] != entry["sha256"] and (folder / same[0]["file"]).exists():
            raise TicketError(f"{folder} already holds another ticket {entry['name']}: save to another folder or name")
    config["rst"]["tickets"] = [*others, entry]


def _model_args(rst: Mapping[str, Any]) -> dict[str, Any]:
    init = {key: rst["init"][key] for key in ("seed", "distribution")}
    return {**rst["timm_kwargs"], "base": rst["architecture"], **init}


def _alike(one: Any, other: Any) -> bool:
    """Say whether two values are the same JSON; to Python, 10, 10.0 and (for 1) true are equal too."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _check_network(config: Mapping[str, Any]) -> None:
    rst = config["rst"]
    if type(rst["format_version"]) is not int or rst["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format_version {rst['format_version']!r}")
    Init(rst["init"]["seed"], rst["init"]["distribution"])
    if rst["init"]["generator"] != GENERATOR:
        raise ValueError(f"weights of another generator, {rst['init']['generator']!r}")
    if not isinstance(rst["architecture"], str) or not isinstance(rst["timm_kwargs"], dict):
        raise ValueError("its architecture is not a name with arguments")
    if not isinstance(config["pretrained_cfg"], dict):
        raise ValueError("its pretrained_cfg is not an object")
    for_timm = {key: config[key] for key in ("architecture", "model_args", "num_classes")}
    classes = config["pretrained_cfg"].get("num_classes")
    if not _alike(for_timm, {"architecture": "rst", "model_args": _model_args(rst), "num_classes": classes}):
        raise ValueError("its architecture, model_args and num_classes for timm disagree with its other parts")


def _check_entries(entries: list[dict[str, Any]]) -> None:
    if not isinstance(entries, list) or not 1 <= len(entries) <= 1000:
        raise ValueError("it lists no tickets")
    for entry in entries:
        name = entry["name"]
        if not TICKET_NAME.fullmatch(name) or entry["file"] != ticket_file(name):
            raise ValueError(f"ticket {name!r} has the file {entry['file']!r}")
        check_remaining_ratio(entry["remaining_ratio"])
        if entry["pattern"] not in PATTERNS:
            raise ValueError(f"ticket {name} has the pattern {entry['pattern']!r}")
        if layer_ratios_of(entry) not in LAYER_RATIOS:
            raise ValueError(f"ticket {name} has the layer ratios {entry['layer_ratios']!r}")
        if not all(re.fullmatch(r"[0-9a-f]{64}", entry[key]) for key in ("sha256", "weights_digest")):
            raise ValueError(f"ticket {name} has a checksum that is no SHA-256")
        if type(entry["kept"]) is not int or not isinstance(entry["provenance"], dict):
            raise ValueError(f"ticket {name} has a wrong kept count or provenance")
    if len({entry["name"] for entry in entries}) != len(entries):
        raise ValueError("two of its tickets have one name")
