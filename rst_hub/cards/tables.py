"""The tables of a card: measured accuracies, those of dense networks, and those of other seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .facts import circumstances_of, command_of, commands_of, facts_of
from .gathered import (
    Folder,
    of_set,
    of_ticket,
    over_seeds,
    rank,
    rank_in_set,
)
from .measured import Measured, Result
from .wording import (
    budget,
    listed,
    plain,
)


@dataclass(frozen=True)
class Table:
    """Rows of text on one network, and the runs that measured them, by number from 1 on.

    ``trained`` is what trained a dense network and by which command, where that is recorded.
    """

    title: str
    rows: tuple[tuple[str, ...], ...]
    runs: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()
    trained: tuple[str, str] | None = None


@dataclass(frozen=True)
class SeedsTable:
    """Accuracies of one network's search with several seeds; and of the others seed, circumstances and commands."""

    title: str
    seeds: tuple[int, ...]
    rows: tuple[tuple[str, ...], ...]
    others: tuple[tuple[int, str, tuple[str, ...]], ...]


def table_of(folder: Folder, title: str, runs: Sequence[Result], required: Sequence[str]) -> Table:
    """Return the table of one network: clean, PGD-20, AutoAttack and the worst case first; what is missing is said.

    Of an R2S the worst case by who knows the members comes first, and next to it the paper's protocol.
    """
    words = {"clean": "clean", "pgd20": "PGD-20", "autoattack": "AutoAttack (standard)"}
    together = any(row.is_set for run in runs for row in run.rows)

    def order(line: tuple[str, Measured | None, int]) -> tuple[Any, ...]:
        name, row, _ = line
        place = rank_in_set(name, row) if together else rank(name)
        return (place, row is not None and row.norm != "Linf", (row.eps or 0) if row else 0)

    lines: list[tuple[str, Measured | None, int]] = [
        (row.name, row, number) for number, run in enumerate(runs, 1) for row in run.rows
    ]
    lines += [(name, None, 0) for name in required if name not in {line[0] for line in lines}]
    rows = []
    for name, row, number in sorted(lines, key=order):
        if row is None:
            rows.append((words[name], "", "not measured", "", "", ""))
            continue
        found = "not recorded" if row.interval is None else f"{row.interval[0]:.2f} to {row.interval[1]:.2f}"
        what = row.words + (f" ({row.remark})" if row.remark else "")
        what += f", {row.of}" if row.is_set and row.of != "R2S" else ""
        limits = "not attacked" if row.name == "clean" else budget(row.norm, row.eps)
        rows.append((what, limits, f"{row.accuracy:.2f}", found, f"{row.samples:,}", str(number)))
    warnings = [line for run in runs for found in listed(run.said, "attacks") for line in listed(found, "warnings")]
    ran = tuple((circumstances_of(folder, run), command_of(run.said)) for run in runs)
    return Table(plain(title), tuple(rows), ran, tuple(dict.fromkeys(plain(line) for line in warnings)))


def dense_table(folder: Folder, run: Result) -> Table:
    """Return the table of a dense network, with what is recorded of its training."""
    table = table_of(folder, f"Dense network {run.rows[0].of}", [run], required=())
    origin = next(iter(listed(run.said, "origins")), None)
    if not isinstance(origin, dict) or not isinstance(origin.get("settings"), dict):
        return table
    facts = facts_of(folder, origin, learned="all weights")
    told = "; ".join(f"{what}: {how}" for what, how in facts.items() if what not in ("Mask", "Versions"))
    return replace(table, trained=(told, command_of(origin)))


def seeds_tables(folder: Folder) -> list[SeedsTable]:
    """Return a table of every network that the same search found with other seeds too."""
    tables = []
    for one in [of_set(folder), *(of_ticket(folder, entry) for entry in folder.entries)]:
        found = [(row, over_seeds(folder, run, row)) for run in one for row in run.rows]
        found = [(row, by_seed) for row, by_seed in found if by_seed]
        if not found:
            continue
        whose = found[0][0]
        seeds = sorted({seed for _, by_seed in found for seed in by_seed})
        found.sort(key=lambda one: rank_in_set(one[0].name, one[0]) if one[0].is_set else rank(one[0].name))
        rows = [
            (
                row.words,
                "not attacked" if row.name == "clean" else budget(row.norm, row.eps),
                *(f"{by_seed[seed].accuracy:.2f}" if seed in by_seed else "not measured" for seed in seeds),
                mean_of(by_seed) if len(by_seed) == len(seeds) else "",
                f"{row.samples:,}",
            )
            for row, by_seed in found
        ]
        told = [
            (seed, circumstances_of(folder, run), commands_of(run))
            for seed, _, run in folder.other_seeds
            if run.rows[0].of == whose.of
        ]
        title = whose.of if whose.is_set else f"Ticket {whose.of}"
        tables.append(SeedsTable(f"{plain(title)}: {len(seeds)} seeds", tuple(seeds), tuple(rows), tuple(told)))
    return tables


def mean_of(by_seed: Mapping[int, Measured]) -> str:
    """Return the mean accuracy over seeds, in percent, as text."""
    return f"{math.fsum(row.accuracy for row in by_seed.values()) / len(by_seed):.2f}"
