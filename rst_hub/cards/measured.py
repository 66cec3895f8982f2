"""Measured and Result: one number with all it must carry, and the words for its attack."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..attacks.names import NAMES
from .values import as_size, as_text
from .wording import plain

KNOWS_ALL, DRAWS_ONE = "all members, expectation over them", "one member drawn at random"
KNOWS_ENSEMBLE = "all members, their ensemble"
"""What the attacker of an R2S does, in the words of paper.json."""

ALL, ENSEMBLE = "all members", "their ensemble"
"""What an R2S's examples are crafted on if not on one ticket; no ticket's name has a space."""

ALL_RIGHT, BASELINE = "all members right", "baseline"
"""What a number beside an R2S's accuracies is: it must not be taken for one of them."""

RESERVED = ("clean", "worst")
"""What rows that are no attack's are named."""

ON_ENSEMBLE = ("logit_ensemble", "probability_ensemble", "autoattack", "autoattack_rand")
_ONE_LOSS = ("pgd", "margin", "cw_linf", "fgsm", "fgsm_rs")
_STEPPING = {
    "pgd": "PGD-{}",
    "margin": "PGD-{} on the margin",
    "cw_linf": "CW-Linf, {} steps",
    "logit_ensemble": "PGD-{} on the mean logits",
    "probability_ensemble": "PGD-{} on the mean probabilities",
    "margin_sum": "margin sum, {} steps",
    "arc": "ARC, {} steps",
}


@dataclass(frozen=True)
class Measured:
    """One accuracy in percent: of what, after which attack, on how many samples.

    ``of`` is a ticket's name, "R2S" or a dense network's label, ``members`` the tickets in it; ``name`` is "clean",
    "worst" or the attack's name, ``words`` the same for a reader; ``attacker`` what the attacker of an R2S does.
    ``beside`` is :data:`ALL_RIGHT` or :data:`BASELINE` for what is no accuracy of an R2S, but stands beside it.
    """

    of: str
    members: tuple[str, ...]
    name: str
    words: str
    accuracy: float
    interval: tuple[float, float] | None
    samples: int
    norm: str | None = None
    eps: float | None = None
    settings: Mapping[str, Any] | None = None
    attacker: str | None = None
    remark: str = ""
    beside: str = ""

    @property
    def is_set(self) -> bool:
        """Whether this is of several tickets, an R2S."""
        return len(self.members) > 1


@dataclass(frozen=True)
class Result:
    """A checked file of results/: its bytes, what it says, and the accuracies in it.

    ``kind`` is "ticket", "r2s", "dense" or "transfer"; or "search", for what a ticket's provenance says. ``seed`` is
    that of the random network where it is not the folder's: the same search was made with another seed.
    """

    kind: str
    rows: tuple[Measured, ...]
    dataset: str
    split: str
    said: Mapping[str, Any]
    content: bytes = b""
    seed: int | None = None


def remark_of(found: Mapping[str, Any]) -> str:
    """Return what an attack without a budget says besides."""
    distance = as_size(found.get("median_l2_of_broken"))
    return "" if distance is None else f"median L2 distance of the broken {distance:.2f}"


def in_words(attack: Mapping[str, Any]) -> str:
    """Return an attack's name for a reader, with what tells it from others of its kind."""
    fixed = {"fgsm": "FGSM", "fgsm_rs": "FGSM-RS", "cw_l2": "CW-L2", "autoattack": "AutoAttack (standard)"}
    name = as_text(attack["name"])
    kind = kind_of(name)
    steps, restarts, queries = (attack.get(key) for key in ("steps", "restarts", "max_queries"))
    if name in fixed:
        return fixed[name]
    if name == "autoattack_rand":
        return "AutoAttack (rand)"
    if kind in _STEPPING and isinstance(steps, int):
        several = isinstance(restarts, int) and restarts > 1
        return _STEPPING[kind].format(steps) + (f", {restarts} restarts" if several else "")
    if kind in ("bandits", "square") and isinstance(queries, int):
        return f"{kind.capitalize()}, {queries:,} queries"
    return plain(name, 60)


def kind_of(name: str) -> str:
    """Return an attack's name without its numbers."""
    return name.rstrip("0123456789x").rstrip("0123456789")


KINDS = [kind_of(name) for name in NAMES]


def crafted_words(attack: Mapping[str, Any], on: str) -> str:
    """Return an attack on an R2S for a reader."""
    words, kind = in_words(attack), kind_of(as_text(attack["name"]))
    if on not in (ALL, ENSEMBLE):
        return f"{words} on each member alone"
    if on == ENSEMBLE:
        return f"{words} on the ensemble"
    return f"{words}, gradients of all members (EOT)" if kind in _ONE_LOSS else words
