"""All that a card is made of: the tickets of a folder, their sizes, and what was measured of each and of their R2S."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..tickets.config import layer_ratios_of, read_config
from ..tickets.ticket import Ticket
from .about import read_about
from .measured import ALL_RIGHT, BASELINE, DRAWS_ONE, Measured, Result
from .own import LIFTS
from .results import read_results, searched_result
from .rows import outcomes_of
from .wording import and_last, in_percent, look, or_unknown, plain

_FIRST = ("clean", "pgd20", "autoattack", "worst")
"""What a table begins with, and a picture must not leave out."""


@dataclass(frozen=True)
class Size:
    """Bytes of one ticket: its file, the dense state dict, its masks, and the Shannon bound of those."""

    name: str
    file: int
    dense: int
    masks: int
    bound: float


@dataclass(frozen=True)
class Folder:
    """All that a card is made of."""

    name: str
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    results: Mapping[str, Result]
    sizes: tuple[Size, ...]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The tickets, as config.json lists them."""
        return list(self.config["rst"]["tickets"])

    @property
    def own(self) -> list[Result]:
        """The results that are not of other seeds."""
        return [result for result in self.results.values() if result.seed is None]

    @property
    def other_seeds(self) -> list[tuple[int, str, Result]]:
        """Seed, file and result of the same search with other seeds, in this order."""
        found = [(run.seed, name, run) for name, run in self.results.items() if run.seed is not None]
        return sorted(found, key=lambda one: one[:2])

    @property
    def dataset(self) -> dict[str, Any]:
        """What card.json says of the data set: its id, and a note on it."""
        return self.about.get("dataset") or {}

    def data(self, name: str) -> str:
        """Return a data set's name with the note of card.json, which stands beside every number."""
        note = self.dataset.get("note")
        return f"{plain(name, 100)} ({plain(note)})" if note else plain(name, 100)


def gather(folder: Path, config: Mapping[str, Any], about: Mapping[str, Any], results: Mapping[str, Result]) -> Folder:
    """Return what a card is made of; raise SettingsError if a note would stand for several data sets."""
    names = sorted({result.dataset for result in results.values()})
    if len(names) > 1 and any((about.get("dataset") or {}).values()):
        raise SettingsError(
            f"card.json says which data set the numbers are of, but the results are of {len(names)}: "
            f"{', '.join(plain(name, 60) for name in names)}. Remove the others, or card.json's dataset"
        )
    sizes = tuple(_size_of(folder, entry) for entry in config["rst"]["tickets"])
    name = str(about["repo_id"]).partition("/")[2] if about.get("repo_id") else folder.resolve().name
    gathered = Folder(name, config, about, _told_apart(dict(sorted(results.items()))), sizes)
    _check_seeds(gathered)
    return gathered


def _told_apart(results: Mapping[str, Result]) -> dict[str, Result]:
    """Return the results, in which two dense networks of one label are called by the digests of their states too.

    The same training on another machine gives another network; its rows must not be read as those of the first.
    """
    networks = {(result.rows[0].of, _state_of(result)) for result in results.values() if result.kind == "dense"}
    of_label = Counter(label for label, _ in networks)
    told_apart = dict(results)
    for name, result in results.items():
        if result.kind == "dense" and of_label[result.rows[0].of] > 1:
            rows = (replace(row, of=f"{row.of} (state {_state_of(result)})") for row in result.rows)
            told_apart[name] = replace(result, rows=tuple(rows))
    return told_apart


def _state_of(dense: Result) -> str:
    """Return the first digits of the digest of a dense network's state dict."""
    return plain(dense.said["network"].get("state_digest") or "unknown")[:8]


def read_folder(path: Path) -> Folder:
    """Return what lies in a ticket folder."""
    return gather(path, read_config(path), read_about(path), read_results(path))


def _check_seeds(folder: Folder) -> None:
    """Raise SettingsError if two results are of different tickets of one seed, or one is beside no result of ours."""
    found: dict[tuple[int, str], tuple[str, str]] = {}
    for seed, name, result in folder.other_seeds:
        for ticket in result.said["network"]["tickets"]:
            sha256, other = found.setdefault((seed, ticket["name"]), (ticket["sha256"], name))
            if sha256 != ticket["sha256"]:
                raise SettingsError(
                    f"results/{other} and results/{name} are of two tickets {plain(ticket['name'], 80)} of seed "
                    f"{seed}: remove one of them"
                )
        if not any(_same_in(result, run, row) for run in folder.own for row in run.rows):
            raise SettingsError(
                f"results/{name} is of seed {seed}, and nothing of the folder's own tickets was measured like "
                "it: measure these with the same attacks and samples first"
            )


def _size_of(folder: Path, entry: Mapping[str, Any]) -> Size:
    ticket = Ticket.load(folder, entry["name"])
    content = (folder / ticket.file).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    spans = [value["data_offsets"] for key, value in header.items() if key.startswith("mask.")]
    weights = sum(math.prod(spec.shape) * 4 for spec in ticket.seeded.values())
    rest = sum(tensor.numel() * tensor.element_size() for tensor in ticket.state.values())
    return Size(
        name=ticket.name,
        file=len(content),
        dense=weights + rest,
        masks=sum(end - start for start, end in spans),
        bound=sum(shannon_bits(mask.numel(), int(mask.sum())) for mask in ticket.masks.values()) / 8,
    )


def shannon_bits(size: int, kept: int) -> float:
    """Return log2 of the number of masks of ``size`` weights that keep ``kept``: no code of them all is shorter."""
    return (math.lgamma(size + 1) - math.lgamma(kept + 1) - math.lgamma(size - kept + 1)) / math.log(2)


def shares_of(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return which shares of what these tickets keep, for a reader."""
    shares = and_last([in_percent(entry["remaining_ratio"]) for entry in entries])
    uniform = all(layer_ratios_of(entry) == "uniform" for entry in entries)
    return f"{shares} of {'each layer' if uniform else 'the network'}'s weights"


def lifts_of(origin: Mapping[str, Any]) -> list[str]:
    """Return what a search or training had that the paper's has not, for a reader."""
    said = look(origin, "settings")
    settings = said if isinstance(said, dict) else {}
    loss = settings.get("loss")
    words = {
        "loss": f"TRADES with beta {or_unknown(settings.get('trades_beta'))}"
        if loss == "trades"
        else f"the objective {or_unknown(loss)}",
        "ema": f"an average of decay {or_unknown(settings.get('ema'))} of what is learned",
        "climb": f"the gradient taken uphill by {or_unknown(settings.get('climb'))} of the norm (AWP, S2AP)",
        "layer_ratios": "layer-wise ratios by the Erdos-Renyi kernel",
    }
    return [words[key] for key, without in LIFTS.items() if settings.get(key, without) != without]


def runs_of(folder: Folder, kind: str, members: tuple[str, ...] | None = None) -> list[Result]:
    """Return the results of a kind, of these tickets if given, Linf and most samples first; none of other seeds."""
    found = [result for result in folder.own if result.kind == kind and result.rows]
    found.sort(key=lambda run: (all(row.norm != "Linf" for row in run.rows), -run.rows[0].samples))
    return [result for result in found if members is None or result.rows[0].members == members]


def of_ticket(folder: Folder, entry: Mapping[str, Any]) -> list[Result]:
    """Return what was measured of a ticket; its search's own numbers only where none else is of as many images."""
    runs = _without_repeats(runs_of(folder, "ticket", (entry["name"],)))
    searched = searched_result(entry)
    if searched is None:
        return runs
    new = tuple(
        own
        for own in searched.rows
        if all(
            own.samples > row.samples
            for run in runs
            for row in run.rows
            if (row.name, row.norm, row.eps) == (own.name, own.norm, own.eps)
        )
    )
    return [*runs, replace(searched, rows=new)] if new else runs


def over_seeds(folder: Folder, run: Result, row: Measured) -> dict[int, Measured]:
    """Return by seed, the folder's first, what the same search found with other seeds: the same attack and samples.

    With the folder's seed alone there is nothing beside ``row``, and {} comes back; nor is there for what stands beside
    an R2S's own accuracies, among which the best ticket is another one for every seed.
    """
    found = {folder.config["rst"]["init"]["seed"]: row}
    for seed, _, other in () if row.beside else folder.other_seeds:
        if same := _same_in(other, run, row):
            found.setdefault(seed, same)
    return found if len(found) > 1 else {}


def _same_in(other: Result, run: Result, row: Measured) -> Measured | None:
    """Return what another result has of the same measurement as ``row`` of ``run``."""
    if _measured_on(other) != _measured_on(run):
        return None
    return next((one for one in other.rows if _alike(one) == _alike(row)), None)


def _measured_on(run: Result) -> list[Any]:
    return [run.kind, *(run.said.get(key) for key in ("dataset", "images", "precision"))]


def _alike(row: Measured) -> Measured:
    """Return what two rows must have in common to be the same measurement of two networks."""
    return replace(row, accuracy=0.0, interval=None, remark="", settings=outcomes_of(row.settings))


def of_set(folder: Folder) -> list[Result]:
    """Return what was measured of all tickets as an R2S, first against an attacker who knows them."""
    runs = [*runs_of(folder, "r2s"), *runs_of(folder, "transfer")]
    return _without_repeats(runs) if len(folder.entries) > 1 else []


def _without_repeats(runs: Sequence[Result]) -> list[Result]:
    """Return the runs without what an earlier one found too: each run measures the clean accuracy anew."""
    seen: list[Any] = []
    kept = []
    for run in runs:
        new = [row for row in run.rows if _said(run, row) not in seen]
        seen += [_said(run, row) for row in new]
        kept.append(replace(run, rows=tuple(new)))
    return [run for run in kept if run.rows]


def _said(run: Result, row: Measured) -> tuple[Measured, Any]:
    return replace(row, interval=None), run.said["dataset"]  # which follows from the rest, and a matrix may lack it


def all_measured(folder: Folder) -> list[tuple[Result, Measured]]:
    """Return every accuracy of the folder's tickets and of their R2S, without what stands beside the latter."""
    runs = [*of_set(folder), *(run for entry in folder.entries for run in of_ticket(folder, entry))]
    return [(run, row) for run in runs for row in run.rows if not row.beside]


def rank(name: str) -> int:
    """Return the place of an attack in a table or picture."""
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def rank_in_set(name: str, row: Measured | None) -> int:
    """Return the place in the table of an R2S: first who knows its members, in the worst case, then the paper.

    A row that is missing is None.
    """
    groups = (
        name == "clean",
        row is not None and name == "worst" and not row.beside,
        row is not None and row.attacker == DRAWS_ONE,
        row is None or not row.beside,
        row is not None and row.beside == ALL_RIGHT,
        row is not None and row.beside == BASELINE,
    )
    return groups.index(True)
