"""What an R2S is measured by: attackers who know its members, the one who draws a member, and the baselines.

A row of an R2S has what an attack leaves of every ticket and of their ensemble. Its accuracy is the mean over the
tickets, which is the exact expectation over what is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..attacks.common import Model
from ..attacks.common import Victim as Attacked
from ..attacks.names import NamedAttack
from ..cards.measured import ALL, ENSEMBLE
from ..evaluation.accuracy import percent
from .targets import Victim, accuracy, decoded, encoded


@dataclass(frozen=True)
class Crafting:
    """An attack and what it is crafted on; of an R2S with a name: :data:`ALL`, :data:`ENSEMBLE` or a ticket's."""

    attack: NamedAttack
    model: Attacked
    on: str | None = None


def judges_of(victim: Victim) -> list[Model] | None:
    """Return who answers the examples: of an R2S its members, and last their ensemble; else the network itself."""
    return [*victim.members, _ensemble(victim.members)] if victim.kind == "r2s" else None


def _ensemble(members: Sequence[Model]) -> Model:
    """Return the logarithm of the members' mean class probabilities, as AutoAttack gets it."""

    def mean_probability(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([member(x).log_softmax(1) for member in members]).logsumexp(0)

    return mean_probability


def on_all(victim: Victim, attack: NamedAttack) -> Crafting:
    """Return an attack on the whole of a victim; AutoAttack, or a user's own, takes the ensemble for an R2S."""
    if attack.source_sha256 is not None and victim.kind == "r2s":  # written for one model
        return Crafting(attack, _ensemble(victim.members), ENSEMBLE)
    whole = ENSEMBLE if attack.name.startswith("autoattack") else ALL
    return Crafting(attack, victim.model, whole if victim.kind == "r2s" else None)


def on_ensemble(victim: Victim, planned: Mapping[str, Crafting]) -> dict[str, Crafting]:
    """Return PGD-20 crafted on the ensemble as one model: on a list of members it keeps what fools most of them.

    A key begins with an attack and its budget, or ends with a ticket's name: none of those is one of these.
    """
    whole = _ensemble(victim.members)
    return {
        key.replace("-eps", "-on-ensemble-eps", 1): replace(crafting, model=whole, on=ENSEMBLE)
        for key, crafting in planned.items()
        if crafting.attack.name == "pgd20"
    }


def on_each(victim: Victim, planned: Mapping[str, Crafting]) -> dict[str, Crafting]:
    """Return PGD-20, whole and stopped early, its margin and AutoAttack where planned, crafted on each member alone."""
    found = {}
    for key, crafting in planned.items():
        for name, member in zip(victim.names, victim.members, strict=True):
            alone = replace(crafting, model=member, on=name)
            if crafting.attack.name in ("pgd20", "margin20", "autoattack"):
                found[f"{key}-on-{name}"] = alone
            if crafting.attack.name == "pgd20":
                found[f"{key}-stopped-on-{name}"] = replace(alone, attack=crafting.attack.keeping("first"))
    return found


def of_judges(names: Sequence[str], each: torch.Tensor) -> dict[str, Any]:
    """Return what is left of each ticket, of all at once, and of their ensemble, (tickets + 1, N), for JSON."""
    return {
        "all_members": percent(each[:-1].amin(0)),
        "tickets": {name: percent(right) for name, right in zip(names, each, strict=False)},
        "ensemble": percent(each[-1]),
        "outcomes": {name: encoded(right) for name, right in zip((*names, ENSEMBLE), each, strict=True)},
    }


def drawn(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what is left where the attacker draws a member to craft on, and the defender one to answer (the paper).

    Both draws are uniform: the accuracy is the mean of a matrix, crafted on rows, tested on columns.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["crafted_on"] in names:
            groups.setdefault(row["key"].removesuffix(f"-on-{row['crafted_on']}"), []).append(row)
    return [
        {
            "key": f"{key}-drawn",
            "attack": alone[0]["attack"],
            "protocol": "paper" if _is_stopped(alone[0]) else "full",
            **accuracy(torch.stack([_each(row)[:-1] for row in alone]).mean((0, 1))),
            "tickets": list(names),
            "matrix": [[row["tickets"][name] for name in names] for row in alone],
        }
        for key, alone in groups.items()
    ]


def worst_of(
    norm: str, budget: float, names: Sequence[str], clean: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what one leaves who knows the members, and picks the worst of a budget's rows for each sample.

    Who knows them can craft on one of them too. Beside it stand a ticket alone and the ensemble, under the same rows.
    """
    counted = [row for row in rows if not _is_stopped(row)]
    each = torch.stack([_each(row) for row in (clean, *counted)])  # (rows, tickets + 1, N)
    members, alone = each[:, :-1], each.amin(0)
    expected, every = members.mean(1).amin(0), members.amin((0, 1))
    best = max(range(len(names)), key=lambda i: percent(alone[i]))
    return {
        "norm": norm,
        "eps_over_255": budget,
        "attacks": [row["key"] for row in counted],
        **accuracy(expected),
        "all_members": accuracy(every),
        "best_ticket": {"name": names[best], **accuracy(alone[best])},
        "ensemble": accuracy(alone[-1]),
        "tickets": {name: percent(right) for name, right in zip(names, alone, strict=False)},
        "outcomes": encoded(expected),
    }


def in_words(worst: Mapping[str, Any]) -> list[str]:
    """Return lines on a worst case and what it is compared with."""
    best = worst["best_ticket"]
    told = {
        f"worst case at eps {worst['eps_over_255']:g}/255, {worst['norm']}, by who knows the members": worst,
        "of it: all members right": worst["all_members"],
        f"beside it: ticket {best['name']} alone, the best one": best,
        "beside it: the ensemble": worst["ensemble"],
    }
    return [f"{found['accuracy']:6.2f} %  {words}" for words, found in told.items()]


def _each(row: Mapping[str, Any]) -> torch.Tensor:
    return torch.stack([decoded(right) for right in row["outcomes"].values()])


def _is_stopped(row: Mapping[str, Any]) -> bool:
    return row["attack"].get("keep") == "first" if "attack" in row else False
