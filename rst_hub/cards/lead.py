"""A card's first sentences: the lowest accuracies, and how they compare."""

from typing import Any

from .gathered import (
    Folder,
    of_ticket,
    over_seeds,
    rank,
    runs_of,
)
from .measured import DRAWS_ONE, Measured, Result
from .tables import mean_of
from .wording import (
    and_last,
    budget,
)


def lead_of(folder: Folder) -> list[str]:
    """Return a sentence for each accuracy that a card leads with, each budget's on the most samples first."""
    leading = _leading(folder)
    most: dict[tuple[Any, ...], tuple[Result, Measured]] = {}
    for run, row in leading:
        most.setdefault((row.of, row.norm, row.eps), (run, row))
    return [
        _sentence(folder, run, row) + _easier_or_harder(run, row, *most[row.of, row.norm, row.eps])
        for run, row in leading
    ]


def _leading(folder: Folder) -> list[tuple[Result, Measured]]:
    """Return the lowest accuracy of a ticket at each budget; of an R2S each worst case by who knows it.

    A number on few samples is no lead over one on many, be it lower or higher: each number of samples has its own.
    """
    alone = len(folder.entries) == 1
    runs = of_ticket(folder, folder.entries[0]) if alone else runs_of(folder, "r2s")
    runs = [run for run in runs if run.kind != "search"] or runs  # whose one attack is no lead beside several
    measured = [(run, row) for run in runs for row in run.rows if row.eps and not row.beside]
    measured = [(run, row) for run, row in measured if alone or row.name == "worst"]
    measured.sort(key=lambda one: (one[1].norm, one[1].eps, -one[1].samples, one[1].accuracy, one[1].name != "worst"))
    lowest: dict[tuple[Any, ...], tuple[Result, Measured]] = {}
    for run, row in measured:
        lowest.setdefault((row.of, row.norm, row.eps, row.samples), (run, row))
    return list(lowest.values())


def _sentence(folder: Folder, run: Result, row: Measured) -> str:
    low, high = row.interval or (0.0, 100.0)
    how = f"in the {row.words}" if row.name == "worst" else f"under {row.words}"
    if row.name == "worst" and row.is_set:  # the table has their names
        attacks = (row.settings or {})["of"]
        without = "" if any(key.startswith("autoattack") for key in attacks) else ", none of them AutoAttack"
        how = f"in the worst of {len(attacks)} attacks{without}"
    spread = ""
    if seeds := over_seeds(folder, run, row):
        found = [one.accuracy for one in seeds.values()]
        names = and_last([str(seed) for seed in sorted(seeds)])
        spread = f"; over seeds {names} {mean_of(seeds)}% on average, {min(found):.2f} to {max(found):.2f}"
    return (
        f"{row.accuracy:.2f}% ({low:.2f} to {high:.2f}) {how}, {budget(row.norm, row.eps)}, {row.samples:,} samples of "
        f"{folder.data(run.dataset)}" + ("" if row.of == "R2S" or not row.is_set else f", {row.of}") + spread
    )


def _easier_or_harder(run: Result, row: Measured, most: Result, on_most: Measured) -> str:
    """Return what one attack leaves of these samples and of the most that were measured: few may be easier ones."""
    if row.samples == on_most.samples:
        return ""

    def comparable(one: Measured) -> bool:
        return (one.norm, one.eps) == (row.norm, row.eps) and one.name != "worst" and one.attacker != DRAWS_ONE

    found = {one.words: one for one in most.rows if comparable(one)}
    both = [(one, found[one.words]) for one in run.rows if comparable(one) and one.words in found]
    if not both:
        return ""
    here, there = min(both, key=lambda pair: rank(pair[0].name))
    return (
        f"; of these samples {here.words} leaves {here.accuracy:.2f}%, of those {there.samples:,} {there.accuracy:.2f}%"
    )
