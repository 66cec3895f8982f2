"""The card: a ticket folder's README.md and pictures, made of what lies in the folder and of nothing else.

Beside the tickets a folder may hold ``card.json``, what no file can measure, written by a person, and ``results/``,
what recipes/benchmark.py and recipes/transfer.py wrote, unchanged. ``card_template.md`` is the page.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from ..errors import SettingsError
from ..files import check_fetched, given_path, reading, write_files
from ..tickets.config import read_config
from .about import check_about, read_about
from .facts import commands_used, flags_of, search_facts
from .gathered import (
    Folder,
    gather,
    of_set,
    of_ticket,
    read_folder,
    runs_of,
    shares_of,
)
from .lead import lead_of
from .metadata import base_models, metadata
from .paper import compared, paper
from .pictures import DRAW, PICTURES, picture_digest, to_draw
from .results import place, read_result, read_results, searched_result
from .tables import dense_table, seeds_tables, table_of
from .wording import (
    Verbatim,
    and_last,
    code,
    escaped,
    fenced,
    human,
    plain,
)

_SIGNED = re.compile(r"(?P<text>.*\n)<!-- rst-hub: .* SHA-256 of all above: (?P<sha256>[0-9a-f]{64}) -->\n?", re.DOTALL)


def render(folder: str | Path) -> dict[str, bytes]:
    """Return README.md and the pictures of a ticket folder by their names; the same folder gives the same README.md.

    Raises:
        TicketError: the folder, a ticket or a result cannot be read, or a result was measured on another ticket.
        SettingsError: card.json is wrong, or there is something to draw and no matplotlib.
    """
    return _rendered(read_folder(given_path(folder)))


def write_card(
    folder: str | Path, results: Iterable[str | Path] = (), about: Mapping[str, Any] | None = None
) -> list[Path]:
    """Add results and what a person says to a ticket folder, render its card, and write all of it; return the paths.

    Args:
        folder: a ticket folder.
        results: files of recipes/benchmark.py or recipes/transfer.py, copied into ``results/``. One that holds all of
            an earlier one's numbers, as a resumed run's does, takes its place.
        about: keys of card.json; they replace those that it has.

    Raises:
        TicketError: as for :func:`render`.
        SettingsError: as for :func:`render`; or README.md is not as it was rendered, or cannot be written.
    """
    folder = given_path(folder)
    config = read_config(folder)
    with reading(folder, SettingsError):
        _check_untouched(folder / "README.md")
    said = {**read_about(folder), **(about or {})}
    check_about(said)
    present = read_results(folder)
    placed = dict(present)
    for path in map(given_path, results):
        result = read_result(path.resolve(), path, config)
        placed[place(result, placed)] = result
    contents = {folder / "results" / name: placed[name].content for name in placed if placed[name] != present.get(name)}
    if about is not None:
        contents[folder / "card.json"] = (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode()
    rendered = _rendered(gather(folder, config, said, placed))
    # another matplotlib draws the same numbers in other bytes: such a picture stays as it is
    new = {name: content for name, content in rendered.items() if not _is_drawn(folder / name, content)}
    contents |= {folder / name: content for name, content in sorted(new.items(), reverse=True)}
    try:
        if placed:
            (folder / "results").mkdir(exist_ok=True)
        write_files(contents)
        for name in DRAW:
            if name not in rendered:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error}") from error
    return list(contents)


def _is_drawn(path: Path, picture: bytes) -> bool:
    """Say whether this file is a picture of the same numbers as ``picture``."""
    if path.name not in DRAW or not path.is_file():
        return False
    try:
        return picture_digest(path.read_bytes()) == picture_digest(picture)
    except (SettingsError, OSError):
        return False


def is_rendered(text: str) -> bool:
    """Say whether a README.md is as it was rendered: its last line has the SHA-256 of all above it."""
    found = _SIGNED.fullmatch(text.replace("\r\n", "\n"))
    return found is not None and hashlib.sha256(found["text"].encode()).hexdigest() == found["sha256"]


def _check_untouched(path: Path) -> None:
    """Raise SettingsError for a README.md that somebody wrote or edited: it is not ours to overwrite."""
    if not path.exists():
        return
    check_fetched(path)
    try:
        ours = is_rendered(path.read_text(encoding="utf-8"))
    except ValueError:
        ours = False
    if not ours:
        raise SettingsError(
            f"{path} was written or edited by hand: move what you need of it into card.json's notes, then delete it or "
            "move it elsewhere, and write the card again"
        )


def _rendered(folder: Folder) -> dict[str, bytes]:
    drawn = {name: DRAW[name](data) for name, data in to_draw(folder).items()}
    environment = jinja2.Environment(
        finalize=escaped, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"code": code, "fenced": fenced, "human": human, "verbatim": Verbatim}
    template = resources.files(__package__).joinpath("card_template.md").read_text(encoding="utf-8")
    body = environment.from_string(template).render(**_page(folder), pictures=list(drawn))
    text = f"---\n{metadata(folder).to_yaml()}\n---\n\n{body.strip()}\n\n"
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    last = f"<!-- rst-hub: made from the files beside it; edit card.json instead. SHA-256 of all above: {sha256} -->\n"
    return {"README.md": (text + last).encode(), **drawn}


def _page(folder: Folder) -> dict[str, Any]:
    """Return what the template names."""
    rst, entries, about = folder.config["rst"], folder.entries, folder.about
    cfg = folder.config["pretrained_cfg"]
    always = ("clean", "pgd20", "autoattack")
    together = table_of(folder, "R2S, all tickets together", of_set(folder), always)
    tables = [] if len(entries) == 1 else [together]
    for entry in entries:
        title = f"Ticket {entry['name']}: {shares_of([entry])}"
        tables.append(table_of(folder, title, of_ticket(folder, entry), always))
    dense = [dense_table(folder, run) for run in runs_of(folder, "dense")]
    here = f"model_cards/{plain(folder.name)}"  # where such folders lie, in a clone
    names = [result.dataset for result in folder.results.values()]
    names += [searched.dataset for searched in map(searched_result, entries) if searched]
    return {
        "name": folder.name,
        "architecture": rst["architecture"],
        "arguments": ", ".join(f"{key}={value}" for key, value in rst["timm_kwargs"].items()),
        "seed": rst["init"]["seed"],
        "distribution": rst["init"]["distribution"],
        "entries": entries,
        "shares": shares_of(entries),
        "download": sum(size.file for size in folder.sizes) / len(entries),
        "input": " x ".join(str(side) for side in cfg.get("input_size", ("unknown",))),
        "classes": folder.config.get("num_classes"),
        "data": and_last([folder.data(name) for name in dict.fromkeys(names)]) or "no recorded data set",
        "lead": lead_of(folder),
        "tables": [table for table in tables if table.rows],
        "seeds": seeds_tables(folder),
        "dense": dense,
        "where": Verbatim(json.dumps(about.get("repo_id") or here, ensure_ascii=False)),
        "timm_where": Verbatim(
            json.dumps(
                f"hf-hub:{about['repo_id']}" if about.get("repo_id") else f"local-dir:{here}", ensure_ascii=False
            )
        ),
        "ticket": Verbatim(json.dumps(entries[0]["name"])),
        "sizes": folder.sizes,
        "facts": search_facts(folder),
        "commands": commands_used(entries),
        "flags": flags_of(folder),
        "compared": compared(folder),
        "notes": about.get("notes") or [],
        "license": about.get("license"),
        "base_model": base_models(folder),
        "paper": paper(),
        "picture_titles": PICTURES,
    }
