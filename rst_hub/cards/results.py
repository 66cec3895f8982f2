"""What stands beside tickets in their folder, checked: card.json, and the results of the recipes in results/.

All of it is taken for a stranger's text. A result must have been measured on the very tickets that lie there, or on
those that the same search found with another seed.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RstHubError, TicketError
from ..files import check_listable, read_inside, reading, strict_json
from ..tickets.config import read_config
from .about import MAX_RESULT_BYTES
from .measured import Measured, Result, in_words
from .rows import outcomes_of, read_benchmark, read_transfer
from .values import MALFORMED, as_count, as_norm, as_percent, as_size, as_text, wilson


def read_results(folder: str | Path) -> dict[str, Result]:
    """Return the files of results/ by name, each checked to be of this folder's tickets.

    Raises:
        TicketError: one cannot be read, or was measured on another ticket.
    """
    folder = Path(folder)
    config = read_config(folder)
    with reading(folder):
        check_listable(folder / "results")
        paths = sorted((folder / "results").glob("[!.]*.json"))
    return {path.name: read_result(path, path, config) for path in paths}


def read_result(path: Path, named: Path, config: Mapping[str, Any]) -> Result:
    """Return one checked result; ``named`` is what an error calls it."""
    try:
        with reading(named):
            content = read_inside(path.parent, path.name, MAX_RESULT_BYTES)
        said = strict_json(content)
        read = read_transfer if "rows" in said else read_benchmark
        return read(said, content, config)
    except RstHubError as error:
        raise type(error)(str(error) if str(named) in str(error) else f"{named}: {error}") from error
    except MALFORMED as error:
        raise TicketError(
            f"{named} is no result of recipes/benchmark.py or recipes/transfer.py ({type(error).__name__}: "
            f"{str(error)[:200]}): give one, or remove it"
        ) from error


def searched_result(entry: Mapping[str, Any]) -> Result | None:
    """Return what the search itself measured of a ticket on the test images, if its provenance says so."""
    try:
        origin = entry["provenance"]
        found, data = origin["results"], origin["dataset"]
        attack, count = dict(found["attack"]), as_count(found["samples"])
        clean, robust = as_percent(found["clean_accuracy"]), as_percent(found["robust_accuracy"])
        attack["name"] = f"{as_text(attack['name'])}{as_count(attack['steps'])}"
        whose: dict[str, Any] = {"of": entry["name"], "members": (entry["name"],), "samples": count}
        limits = {"norm": as_norm(attack["norm"]), "eps": as_size(attack["eps_over_255"]), "settings": attack}
        named = {"name": attack["name"], "words": in_words(attack)}
        rows = (
            Measured(accuracy=clean, interval=wilson(clean, count), name="clean", words="clean", **whose),
            Measured(accuracy=robust, interval=wilson(robust, count), **named, **whose, **limits),
        )
        return Result("search", rows, as_text(data["name"]), as_text(found["split"]), origin)
    except MALFORMED:
        return None


def place(result: Result, placed: Mapping[str, Result]) -> str:
    """Return the name for a new result: that of one whose numbers it holds too, or a new one."""
    for name, other in placed.items():
        if _numbers(other) <= _numbers(result):
            return name
    said = result.said
    if result.kind == "transfer":
        parts = ["transfer", said["attack"]["name"], result.dataset, said["attack"]["norm"]]
        parts += [f"eps{said['attack']['eps_over_255']}"]
    else:
        parts = [result.kind, *([result.rows[0].of] if result.kind != "r2s" else []), result.dataset]
        parts += sorted({row.norm for row in result.rows if row.norm and row.eps is not None})
    parts += [] if result.seed is None else [f"s{result.seed}"]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([*map(str, parts), f"n{said['dataset']['samples']}"]))[:150]
    names = [f"{stem}{suffix}.json" for suffix in ("", *(f"-{i}" for i in range(2, len(placed) + 3)))]
    return next(name for name in names if name not in placed)


def _numbers(result: Result) -> set[str]:
    """Return what a result says of what, in a form that can be compared."""
    said = result.said
    on = [result.kind, said.get("network", said.get("networks")), said["dataset"], said.get("images"), said.get("seed")]
    if result.kind == "transfer":
        found = [(said["attack"], protocol, matrix) for protocol, matrix in said["accuracy"].items()]
    else:
        found = [(row.name, outcomes_of(row.settings), row.accuracy) for row in result.rows if row.name != "worst"]
    return {json.dumps([on, one], sort_keys=True) for one in found}
