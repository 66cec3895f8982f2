"""The zoo as a table: what the cards of model_cards/ have measured, and what recipes/zoo/ would search and nobody has.

    python benchmarks/zoo.py           prints it, as it stands in docs/results/zoo.md; a test compares the two

An accuracy stands with its number of samples; of several the one on the most is shown. A worst case is the lowest of
all attacks of a run on each sample. Linf, at the budget that the ticket was searched with.
"""

import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from rst_hub.cards.gathered import Folder, of_set, of_ticket, read_folder, runs_of
from rst_hub.cards.measured import DRAWS_ONE, Measured, Result
from rst_hub.cards.wording import human, in_percent, look
from rst_hub.console import print_anything
from rst_hub.runs.parsing import parse
from rst_hub.runs.settings import SearchSettings, ratios_of

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("docs/results/zoo.md")
UP = "../../"  # from the page to the root
HEAD = ("ticket", "kept", "bytes", "eps", "clean", "PGD-20", "worst case", "worst case, AutoAttack in it")


def main() -> int:
    """Print the table."""
    print_anything()
    print(table(ROOT))
    return 0


def table(root: Path, up: str = UP) -> str:
    """Return the table in Markdown, of the folders and plans under ``root``; ``up`` leads its links to the root."""
    folders = sorted(path.parent for path in (root / "model_cards").glob("*/config.json"))
    rows = [HEAD, ("---",) * len(HEAD)]
    for path in folders:
        folder = read_folder(path)
        link = f"[{path.name}]({up}model_cards/{path.name})"
        if len(folder.entries) > 1:
            rows.append((f"{link}, all as one R2S", *of_the_set(folder)))
        for entry in folder.entries:
            name = link if len(folder.entries) == 1 else f"... its ticket {entry['name']} alone"
            rows.append((name, *of_one(folder, entry)))
        rows += of_the_dense(folder)
    for path in sorted((root / "recipes" / "zoo").glob("rst-*.toml")):
        if root / "model_cards" / path.stem not in folders:
            planned = parse(SearchSettings, ["--config", str(path)], "")
            kept = ", ".join(map(in_percent, ratios_of(planned)))
            missing = ("not measured",) * 4
            rows.append((f"[{path.stem}]({up}recipes/zoo/{path.name})", kept, "", f"{planned.eps:g}", *missing))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def of_one(folder: Folder, entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of one ticket."""
    size = next(size for size in folder.sizes if size.name == entry["name"])
    kept = in_percent(entry["remaining_ratio"])
    return (kept, human(size.file), *accuracies(of_ticket(folder, entry), {searched_eps(entry)}))


def of_the_set(folder: Folder) -> tuple[str, ...]:
    """Return the cells of all tickets as one R2S, against attackers who know them."""
    size, eps = sum(size.file for size in folder.sizes), {searched_eps(entry) for entry in folder.entries}
    return (f"{len(folder.entries)} ratios", human(size), *accuracies(of_set(folder), eps))


def of_the_dense(folder: Folder) -> list[tuple[str, ...]]:
    """Return a row for every dense network that was measured beside the tickets."""
    eps = {searched_eps(entry) for entry in folder.entries}
    by_name: dict[str, list[Result]] = {}
    for run in runs_of(folder, "dense"):
        by_name.setdefault(run.rows[0].of, []).append(run)
    return [(f"... dense network {name}", "all", "", *accuracies(runs, eps)) for name, runs in by_name.items()]


def searched_eps(entry: Mapping[str, Any]) -> float:
    """Return the budget of a ticket's search, in units of 1/255."""
    return float(look(entry["provenance"], "settings", "eps"))


def accuracies(runs: Iterable[Result], budgets: Collection[float]) -> tuple[str, ...]:
    """Return the budget, clean and robust accuracies, at the budgets that were searched with: one, or nothing is.

    AutoAttack takes so long that it is often run on fewer images, which may be easier ones than all: what PGD-20 leaves
    of the same is said beside it. Of an R2S the worst case alone counts: AutoAttack has no way to attack several
    networks that one is drawn of, only their ensemble and each of them.
    """
    found = [[row for row in run.rows if not row.beside and row.attacker != DRAWS_ONE] for run in runs]
    attacked = [[row for row in rows if row.norm == "Linf" and {row.eps} == set(budgets)] for rows in found]
    clean, pgd20, worst = (
        min((row for rows in which for row in rows if row.name == name), key=on_most, default=None)
        for which, name in ((found, "clean"), (attacked, "pgd20"), (attacked, "worst"))
    )
    with_autoattack = min((row for rows in attacked for row in rows if has_autoattack(row)), key=on_most, default=None)
    of_the_same = [row for rows in attacked if with_autoattack in rows for row in rows if row.name == "pgd20"]
    same = min(of_the_same, key=on_most, default=None)
    beside = "" if same is None or same is pgd20 else f"; PGD-20: {same.accuracy:.1f}"
    eps = " or ".join(f"{eps:g}" for eps in sorted(budgets))
    return (eps, cell(clean), cell(pgd20), cell(worst), cell(with_autoattack, beside))


def on_most(row: Measured) -> tuple[float, float]:
    """Put the accuracy on the most samples first, and the lower of two."""
    return -row.samples, row.accuracy


def has_autoattack(row: Measured) -> bool:
    """Say whether AutoAttack is among the attacks of a worst case, or is the only one."""
    if row.name == "worst":
        return any(key.startswith("autoattack") for key in (row.settings or {})["of"])
    return row.name == "autoattack" and not row.is_set


def cell(row: Measured | None, beside: str = "") -> str:
    """Return an accuracy with its number of samples; or that there is none."""
    return "not measured" if row is None else f"{row.accuracy:.1f} ({row.samples:,}{beside})"


if __name__ == "__main__":
    sys.exit(main())
