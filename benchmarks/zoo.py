"""The zoo as a table: what the cards of model_cards/ have measured, and what recipes/zoo/ would search and nobody has.

    python benchmarks/zoo.py           prints it; the README's table is this one, which a test compares

An accuracy stands with its number of samples. Of several the one on the most samples is shown, of AutoAttack and the
worst case the lowest. Linf, at the budget that the ticket was searched with.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "recipes"))

from settings import SearchSettings, parse, ratios_of

from rst_hub.config import read_config
from rst_hub.gathered import Folder, gather, of_set, of_ticket
from rst_hub.results import Measured, Result, read_about, read_results
from rst_hub.wording import human, look

ROOT = Path(__file__).resolve().parent.parent
HEAD = ("ticket", "kept", "bytes", "eps", "clean", "PGD-20", "AutoAttack", "worst of all attacks")


def main() -> int:
    """Print the table."""
    print(table(ROOT))
    return 0


def table(root: Path) -> str:
    """Return the table in Markdown, of the folders and plans under ``root``."""
    folders = sorted(path.parent for path in (root / "model_cards").glob("*/config.json"))
    rows = [HEAD, ("---",) * len(HEAD)]
    for path in folders:
        folder = gather(path, read_config(path), read_about(path), read_results(path))
        link = f"[{path.name}](model_cards/{path.name})"
        if len(folder.entries) > 1:
            rows.append((f"{link}, all as one R2S", *of_the_set(folder)))
        for entry in folder.entries:
            name = link if len(folder.entries) == 1 else f"... its ticket {entry['name']} alone"
            rows.append((name, *of_one(folder, entry["name"])))
    for path in sorted((root / "recipes" / "zoo").glob("rst-*.toml")):
        if root / "model_cards" / path.stem not in folders:
            planned = parse(SearchSettings, ["--config", str(path)], "")
            kept = ", ".join(f"{100 * ratio:.3g}%" for ratio in ratios_of(planned))
            missing = ("not measured",) * 4
            rows.append((f"[{path.stem}](recipes/zoo/{path.name})", kept, "", f"{planned.eps:g}", *missing))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def of_one(folder: Folder, name: str) -> tuple[str, ...]:
    """Return the cells of one ticket."""
    (entry,) = (entry for entry in folder.entries if entry["name"] == name)
    eps = searched_eps(entry)
    found = [(run, row) for run in of_ticket(folder, entry) for row in run.rows]
    size = next(size for size in folder.sizes if size.name == name)
    return (
        f"{100 * entry['remaining_ratio']:.3g}%",
        human(size.file),
        f"{eps:g}",
        on_most(found, lambda row: row.name == "clean"),
        on_most(found, lambda row: (row.name, row.norm, row.eps) == ("pgd20", "Linf", eps)),
        lowest(found, lambda row: (row.name, row.norm, row.eps) == ("autoattack", "Linf", eps)),
        lowest(found, lambda row: (row.name, row.norm, row.eps) == ("worst", "Linf", eps)),
    )


def of_the_set(folder: Folder) -> tuple[str, ...]:
    """Return the cells of all tickets as one R2S, against attackers who know them."""
    eps = {searched_eps(entry) for entry in folder.entries}
    found = [(run, row) for run in of_set(folder) for row in run.rows if not row.beside]

    def under(*names: str) -> Callable[[Measured], bool]:
        return lambda row: row.name in names and row.norm == "Linf" and {row.eps} == eps and row.attacker in KNOWING

    return (
        f"{len(folder.entries)} ratios",
        human(sum(size.file for size in folder.sizes)),
        " or ".join(f"{one:g}" for one in sorted(eps)),
        on_most(found, lambda row: row.name == "clean"),
        on_most(found, under("pgd20")),
        lowest(found, under("autoattack")),
        lowest(found, under("worst")),
    )


KNOWING = ("all members, expectation over them", "all members, their ensemble")


def searched_eps(entry: Mapping[str, Any]) -> float:
    """Return the budget of a ticket's search, in pixels over 255."""
    return float(look(entry["provenance"], "settings", "eps"))


def on_most(found: Iterable[tuple[Result, Measured]], wanted: Callable[[Measured], bool]) -> str:
    """Return the wanted accuracy on the most samples, the lower of two."""
    return cell([row for _, row in found if wanted(row)], lambda row: (-row.samples, row.accuracy))


def lowest(found: Iterable[tuple[Result, Measured]], wanted: Callable[[Measured], bool]) -> str:
    """Return the lowest of the wanted accuracies."""
    return cell([row for _, row in found if wanted(row)], lambda row: (row.accuracy, -row.samples))


def cell(rows: Sequence[Measured], order: Callable[[Measured], tuple[float, float]]) -> str:
    """Return the first of these rows in that order, with its number of samples; or that there is none."""
    if not rows:
        return "not measured"
    row = min(rows, key=order)
    return f"{row.accuracy:.1f} ({row.samples:,})"


if __name__ == "__main__":
    sys.exit(main())
