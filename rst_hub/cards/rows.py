"""Rows of a card from the result files of benchmark.py and transfer.py, checked against each other."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..attacks.names import ADAPTIVE
from .measured import (
    ALL,
    ALL_RIGHT,
    BASELINE,
    DRAWS_ONE,
    ENSEMBLE,
    KINDS,
    KNOWS_ALL,
    KNOWS_ENSEMBLE,
    ON_ENSEMBLE,
    RESERVED,
    Measured,
    Result,
    crafted_words,
    in_words,
    kind_of,
    remark_of,
)
from .own import check_own, other_seed, own_networks
from .values import as_count, as_norm, as_percent, as_size, as_text
from .wording import and_last, plain

_ROUNDING = 0.01
"""Points by which two numbers that must be equal may differ."""


def read_benchmark(said: dict[str, Any], content: bytes, config: Mapping[str, Any]) -> Result:
    """Return the rows of a results.json; raise ValueError or the like for what benchmark.py does not write."""
    kind, network = said["kind"], said["network"]
    if kind not in ("ticket", "r2s", "dense"):
        raise ValueError(f"it is of the kind {kind!r}")
    names: tuple[str, ...] = ()
    seed = None
    if kind != "dense":
        seed = other_seed(said, config)
        if seed is None:
            check_own(network["tickets"], config)
        names = tuple(ticket["name"] for ticket in network["tickets"])
    if (kind == "ticket") != (len(names) == 1) or (kind == "r2s") != (len(names) > 1):
        raise ValueError(f"a {kind} has {len(names)} tickets")
    if kind == "r2s":
        everything = len(names) == len(config["rst"]["tickets"])
        rows = _rows_of_set(said, "R2S" if everything else f"R2S of {', '.join(names)}", names)
    else:
        rows = _rows_of_one(said, names[0] if names else as_text(network["source"]), names)
    if as_count(said["dataset"]["samples"]) != rows[0].samples:
        raise ValueError(f"it has {rows[0].samples} samples of a data set of {said['dataset']['samples']}")
    for check in said["flags"]["checks"]:
        as_text(check["check"]), as_text(check["found"]), {True: "", False: "", None: ""}[check["passed"]]
    dataset = said["dataset"]
    return Result(kind, tuple(rows), as_text(dataset["name"]), as_text(dataset["split"]), said, content, seed)


def _rows_of_one(said: Mapping[str, Any], of: str, names: tuple[str, ...]) -> list[Measured]:
    """Return the accuracies of a ticket or a dense network."""
    whose: dict[str, Any] = {"of": of, "members": names}
    rows = [_measured(said["clean"], name="clean", words="clean", **whose)]
    for found in said["attacks"]:
        attack = _attack(found["attack"])
        rows.append(_measured(found, words=in_words(attack), remark=remark_of(found), **_under(attack), **whose))
    called = {found["key"]: in_words(found["attack"]) for found in said["attacks"]}
    for found in said["worst_case"]:
        attacks = _in_order(found["attacks"], said["attacks"])
        worst = {**_under({**found, "name": "worst"}), "settings": {"of": attacks}}
        words = [called.get(key, plain(key, 60)) for key in attacks]
        several = and_last(words) if len(words) < 5 else f"{len(words)} attacks: {and_last(words)}"
        row = _measured(found, words=f"worst of {several}", **worst, **whose)
        rows += [row] if len(attacks) > 1 else []  # that of one attack is the attack's own row again
    return rows


def _in_order(keys: Sequence[Any], attacks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of a worst case's attacks in one order, whatever that of the run: a resumed one has another.

    With them and the words made of them, the same worst case of two runs is known for the same.
    """
    said = {found["key"]: (found.get("crafted_on", ALL), kind_of(found["attack"]["name"])) for found in attacks}

    def by_kind(key: str) -> tuple[int, int, str]:
        on, kind = said.get(key, (ALL, ""))
        together = (ALL, ENSEMBLE)
        return (
            together.index(on) if on in together else len(together),
            KINDS.index(kind) if kind in KINDS else len(KINDS),
            key,
        )

    return sorted(map(as_text, keys), key=by_kind)


def _rows_of_set(said: Mapping[str, Any], of: str, names: tuple[str, ...]) -> list[Measured]:
    """Return the accuracies of an R2S, and what stands beside them."""
    whose: dict[str, Any] = {"of": of, "members": names}
    attacks: dict[str, Measured] = {}
    listed = {}
    for found in said["attacks"]:
        attack, on, key = _attack(found["attack"]), found["crafted_on"], as_text(found["key"])
        if on not in (ALL, ENSEMBLE, *names) or key in attacks:
            raise ValueError(f"its attack {key[:80]!r} is there twice, or is crafted on {str(on)[:80]!r}")
        knows = KNOWS_ENSEMBLE if on == ENSEMBLE or kind_of(attack["name"]) in ON_ENSEMBLE else KNOWS_ALL
        what = {**_under(attack), "words": crafted_words(attack, on), "remark": remark_of(found)}
        attacks[key] = _expected(found, names, attacker=DRAWS_ONE if on in names else knows, **what, **whose)
        listed[key] = found
    rows = [_expected(said["clean"], names, name="clean", words="clean", **whose)]
    for found in said["worst_case"]:
        keys = _in_order(found["attacks"], said["attacks"])
        rows += _worst_rows(found, {key: attacks[key] for key in keys}, names, whose)
        _check_worst(found, [listed[key] for key in found["attacks"]], names)
    for found in said["protocols"]:
        low, high = (as_percent(value) for value in found["interval_95"])
        what = {**whose, "interval": (low, high), "samples": as_count(found["samples"])}
        cells = [cell for row in _matrix(found["matrix"], len(names)) for cell in row]
        row = _drawn(_attack(found["attack"]), found["protocol"], cells, **what)
        if found["tickets"] != list(names) or abs(row.accuracy - as_percent(found["accuracy"])) > _ROUNDING:
            raise ValueError("its matrix is of other tickets, or has another mean than is said")
        rows.append(row)
    known = [row for row in attacks.values() if row.attacker != DRAWS_ONE]  # the others are in a matrix's mean
    return [*rows, *known]


def _worst_rows(
    found: Mapping[str, Any], under: Mapping[str, Measured], names: tuple[str, ...], whose: dict[str, Any]
) -> list[Measured]:
    """Return what one leaves who knows an R2S's members, and beside it all members right and the two baselines."""
    what = {**_under({**found, "name": "worst"}), "settings": {"of": list(under)}, "attacker": KNOWS_ALL, **whose}
    called = "; ".join(dict.fromkeys(row.words for row in under.values()))
    words = f"worst of {len(under)} attacks that know all members ({called})"
    alone, best = _of_tickets(found, names), found["best_ticket"]
    same = f"worst of the same {len(under)} attacks"
    rows = [
        _measured(found, words=words, **what),
        _measured(found["all_members"], words=f"all members right, {same}", beside=ALL_RIGHT, **what),
        _measured(
            best,
            words=f"baseline: {best['name']}, the best single ticket, {same}",
            beside=BASELINE,
            **what,
        ),
        _measured(found["ensemble"], words=f"baseline: the ensemble of all, {same}", beside=BASELINE, **what),
    ]
    others = [row for row in under.values() if (row.norm, row.eps) != (rows[0].norm, rows[0].eps) or _is_stopped(row)]
    lowest = min(row.accuracy for row in under.values())
    if others:
        raise ValueError(f"its worst case is of {others[0].words[:80]!r} too, which has another budget or stops early")
    if rows[1].accuracy > rows[0].accuracy + _ROUNDING or rows[0].accuracy > lowest + _ROUNDING:
        raise ValueError("its worst case is above one of its attacks, or below all members right")
    if abs(alone[best["name"]] - rows[2].accuracy) > _ROUNDING or rows[2].accuracy < max(alone.values()) - _ROUNDING:
        raise ValueError(f"{best['name'][:80]!r} is not its best ticket")
    return rows


def _check_worst(found: Mapping[str, Any], under: Sequence[Mapping[str, Any]], names: tuple[str, ...]) -> None:
    """Raise ValueError unless an R2S had every adaptive attack, and no baseline is above what one of them leaves."""
    on_all = {kind_of(row["attack"]["name"]) for row in under if row["crafted_on"] == ALL}
    lacking = [kind for kind in map(kind_of, ADAPTIVE) if kind not in on_all]
    if lacking:
        raise ValueError(f"its worst case lacks {and_last(lacking)} on all members")
    lowest = {name: min(as_percent(row["tickets"][name]) for row in under) for name in names}
    ensemble = min(as_percent(row["ensemble"]) for row in under)
    above = [name for name, value in _of_tickets(found, names).items() if value > lowest[name] + _ROUNDING]
    above += [ENSEMBLE] if as_percent(found["ensemble"]["accuracy"]) > ensemble + _ROUNDING else []
    if above:
        raise ValueError(f"its worst case of {above[0][:80]!r} is above what one of its attacks leaves")


def _is_stopped(row: Measured) -> bool:
    return (row.settings or {}).get("keep") == "first"


def _expected(found: Mapping[str, Any], names: tuple[str, ...], **what: Any) -> Measured:
    """Return the accuracy of an R2S: the mean over its tickets, which are checked."""
    row, alone, ensemble = _measured(found, **what), _of_tickets(found, names), as_percent(found["ensemble"])
    mean, lowest = math.fsum(alone.values()) / len(alone), min(alone.values())
    if abs(row.accuracy - mean) > _ROUNDING or as_percent(found["all_members"]) > lowest + _ROUNDING:
        raise ValueError(f"{row.accuracy} is not the mean over its tickets ({ensemble} of their ensemble)")
    return row


def _of_tickets(found: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    if sorted(found["tickets"]) != sorted(names):
        raise ValueError(f"it has accuracies of {str(found['tickets'])[:80]}, not of its tickets")
    return {name: as_percent(found["tickets"][name]) for name in names}


def _drawn(attack: Mapping[str, Any], protocol: Any, cells: Sequence[float], **what: Any) -> Measured:
    """Return what is left where attacker and defender draw a member each: the mean of a matrix."""
    if protocol not in ("full", "paper"):
        raise ValueError(f"it has a protocol {str(protocol)[:20]!r}")
    stopped = {"keep": "first"} if protocol == "paper" else {}
    words = f"the paper's protocol (attacker and defender each draw a member): {in_words(attack)}"
    words += ", stopped once it fools that member (the paper's code)" if stopped else ""
    under = {**_under(attack), "settings": {**attack, **stopped, "protocol": protocol}}
    mean = round(math.fsum(cells) / len(cells), 4)
    return Measured(words=words, accuracy=mean, attacker=DRAWS_ONE, **under, **what)


def _matrix(value: Any, count: int) -> list[list[float]]:
    rows = [[as_percent(cell) for cell in row] for row in value]
    if [len(row) for row in rows] != [count] * count:
        raise ValueError(f"it has a matrix that is not one of {count} networks")
    return rows


def _attack(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of an attack; its name must not be that of a row that is none."""
    attack = dict(said)
    if as_text(attack["name"]) in RESERVED:
        raise ValueError(f"it has an attack named {attack['name']!r}")
    return attack


def _under(attack: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row under attack has beside its accuracy and words."""
    eps = as_size(attack["eps_over_255"])
    return {"name": as_text(attack["name"]), "norm": as_norm(attack["norm"]), "eps": eps, "settings": attack}


def read_transfer(said: dict[str, Any], content: bytes, config: Mapping[str, Any]) -> Result:
    """Read matrices; the mean of one of all tickets is what an attacker leaves of their R2S who draws one member."""
    own = own_networks(said["networks"], config)
    attack, dataset, count = _attack(said["attack"]), said["dataset"], len(said["networks"])
    names = tuple(entry["name"] for entry in config["rst"]["tickets"])
    what: dict[str, Any] = {"of": "R2S", "members": names, "samples": as_count(dataset["samples"]), "interval": None}
    for network in said["networks"]:
        as_text(network["label"])
    rows = []
    for protocol, matrix in said["accuracy"].items():
        values = _matrix(matrix, count)
        cells = [values[i][j] for i in own.values() for j in own.values()]
        row = _drawn(attack, protocol, cells, **what)
        rows += [row] if len(names) > 1 and set(own) == set(names) else []
    if not said["accuracy"]:
        raise ValueError("it has no matrix")
    return Result("transfer", tuple(rows), as_text(dataset["name"]), as_text(dataset["split"]), said, content)


def _measured(found: Mapping[str, Any], **what: Any) -> Measured:
    low, high = (as_percent(value) for value in found["interval_95"])
    return Measured(
        accuracy=as_percent(found["accuracy"]), interval=(low, high), samples=as_count(found["samples"]), **what
    )


def outcomes_of(settings: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return settings that are equal where outcomes are.

    "enough" leaves what "best" does, for less work; the mean over members' losses was once the only average, unsaid.
    """
    if settings is None:
        return None
    said = {key: value for key, value in settings.items() if (key, value) != ("average", "loss")}
    return {**said, "keep": "best"} if said.get("keep") == "enough" else said
