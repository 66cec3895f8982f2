"""What stands beside tickets in their folder, checked: card.json, and the results of the recipes in results/.

All of it is taken for a stranger's text. A result must have been measured on the very tickets that lie there, or on
those that the same search found with another seed.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .attacks import NORMS
from .config import read_config
from .errors import RstHubError, SettingsError, TicketError, nearest
from .evaluate import interval
from .files import check_listable, read_inside, reading, strict_json
from .suite import ADAPTIVE, NAMES
from .wording import and_last, look, plain

KNOWS_ALL, DRAWS_ONE = "all members, expectation over them", "one member drawn at random"
KNOWS_ENSEMBLE = "all members, their ensemble"
"""What the attacker of an R2S does, in the words of paper.json."""

ALL, ENSEMBLE = "all members", "their ensemble"
"""What an R2S's examples are crafted on if not on one ticket; no ticket's name has a space."""

ALL_RIGHT, BASELINE = "all members right", "baseline"
"""What a number beside an R2S's accuracies is: it must not be taken for one of them."""

_RESERVED = ("clean", "worst")
"""What rows that are no attack's are named."""

_ON_ENSEMBLE = ("logit_ensemble", "probability_ensemble", "autoattack", "autoattack_rand")
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

REPOSITORY = re.compile(r"(?=.{3,96}$)(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", re.ASCII)
"""The Hub's rule for org/name: no part begins or ends with "-" or ".", and neither stands twice in a row."""

_ABOUT: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "repo_id": ("a name on the Hub, org/name", lambda v: _is_repository(v)),
    "license": ("a text, as apache-2.0", lambda v: _is_text(v)),
    "dataset": ("an object with the keys id and note", lambda v: isinstance(v, Mapping)),
    "notes": ("a list of texts", lambda v: isinstance(v, list) and all(_is_text(note) for note in v)),
    "base_model": ("a name on the Hub, org/name", lambda v: _is_repository(v)),
}
"""The keys of card.json, all optional, and what they must be."""

_ABOUT_DATASET: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "id": ("a data set's name on the Hub, as org/name", lambda v: _is_repository(v) or _is_repository(f"any/{v}")),
    "note": ("a text, as 'JPEG-recompressed'", lambda v: _is_text(v)),
}

_ROUNDING = 0.01
"""Points by which two numbers that must be equal may differ."""

_MAX_ABOUT_BYTES, _MAX_RESULT_BYTES = 2**20, 64 * 2**20

_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, OSError)


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


def read_about(folder: str | Path) -> dict[str, Any]:
    """Return card.json, checked; {} where there is none.

    Raises:
        SettingsError: it is no JSON object, has a key that is not known, or a value of the wrong type.
    """
    path = Path(folder) / "card.json"
    with reading(path, SettingsError):
        if not path.exists():
            return {}
    try:
        with reading(path, SettingsError):
            content = read_inside(path.parent, path.name, _MAX_ABOUT_BYTES)
        about = strict_json(content)
    except _MALFORMED as error:
        raise SettingsError(f"{path} cannot be read as JSON ({str(error)[:300]}): correct or delete it") from error
    try:
        check_about(about)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    return dict(about)


def check_about(about: Any) -> None:
    """Raise SettingsError, naming the key, unless this is what card.json may hold."""
    _check_keys(about, _ABOUT, "card.json")
    _check_keys(about.get("dataset") or {}, _ABOUT_DATASET, "card.json's dataset")


def _check_keys(given: Any, known: Mapping[str, tuple[str, Callable[[Any], bool]]], where: str) -> None:
    if not isinstance(given, Mapping):
        raise SettingsError(f"{where} is {str(given)[:100]!r}: it must be an object with the keys {', '.join(known)}")
    for key, value in given.items():
        if key not in known:
            raise SettingsError(f"{where}: the key {str(key)[:100]!r} is not known. {nearest(str(key), known)}")
        form, fits = known[key]
        if value is not None and not fits(value):
            raise SettingsError(f"{where}: {key} is {str(value)[:100]!r}, but must be {form}")


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
            content = read_inside(path.parent, path.name, _MAX_RESULT_BYTES)
        said = strict_json(content)
        read = _read_transfer if "rows" in said else _read_benchmark
        return read(said, content, config)
    except RstHubError as error:
        raise type(error)(str(error) if str(named) in str(error) else f"{named}: {error}") from error
    except _MALFORMED as error:
        raise TicketError(
            f"{named} is no result of recipes/benchmark.py or recipes/transfer.py ({type(error).__name__}: "
            f"{str(error)[:200]}): give one, or remove it"
        ) from error


def _read_benchmark(said: dict[str, Any], content: bytes, config: Mapping[str, Any]) -> Result:
    kind, network = said["kind"], said["network"]
    if kind not in ("ticket", "r2s", "dense"):
        raise ValueError(f"it is of the kind {kind!r}")
    names: tuple[str, ...] = ()
    seed = None
    if kind != "dense":
        seed = _other_seed(said, config)
        if seed is None:
            _check_own(network["tickets"], config)
        names = tuple(ticket["name"] for ticket in network["tickets"])
    if (kind == "ticket") != (len(names) == 1) or (kind == "r2s") != (len(names) > 1):
        raise ValueError(f"a {kind} has {len(names)} tickets")
    if kind == "r2s":
        everything = len(names) == len(config["rst"]["tickets"])
        rows = _rows_of_set(said, "R2S" if everything else f"R2S of {', '.join(names)}", names)
    else:
        rows = _rows_of_one(said, names[0] if names else _text(network["source"]), names)
    if _count(said["dataset"]["samples"]) != rows[0].samples:
        raise ValueError(f"it has {rows[0].samples} samples of a data set of {said['dataset']['samples']}")
    for check in said["flags"]["checks"]:
        _text(check["check"]), _text(check["found"]), {True: "", False: "", None: ""}[check["passed"]]
    dataset = said["dataset"]
    return Result(kind, tuple(rows), _text(dataset["name"]), _text(dataset["split"]), said, content, seed)


def _rows_of_one(said: Mapping[str, Any], of: str, names: tuple[str, ...]) -> list[Measured]:
    """Return the accuracies of a ticket or a dense network."""
    whose: dict[str, Any] = {"of": of, "members": names}
    rows = [_measured(said["clean"], name="clean", words="clean", **whose)]
    for found in said["attacks"]:
        attack = _attack(found["attack"])
        rows.append(_measured(found, words=in_words(attack), remark=_remark(found), **_under(attack), **whose))
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
    said = {found["key"]: (found.get("crafted_on", ALL), _kind(found["attack"]["name"])) for found in attacks}

    def by_kind(key: str) -> tuple[int, int, str]:
        on, kind = said.get(key, (ALL, ""))
        together = (ALL, ENSEMBLE)
        return (
            together.index(on) if on in together else len(together),
            _KINDS.index(kind) if kind in _KINDS else len(_KINDS),
            key,
        )

    return sorted(map(_text, keys), key=by_kind)


def _rows_of_set(said: Mapping[str, Any], of: str, names: tuple[str, ...]) -> list[Measured]:
    """Return the accuracies of an R2S, and what stands beside them."""
    whose: dict[str, Any] = {"of": of, "members": names}
    attacks: dict[str, Measured] = {}
    listed = {}
    for found in said["attacks"]:
        attack, on, key = _attack(found["attack"]), found["crafted_on"], _text(found["key"])
        if on not in (ALL, ENSEMBLE, *names) or key in attacks:
            raise ValueError(f"its attack {key[:80]!r} is there twice, or is crafted on {str(on)[:80]!r}")
        knows = KNOWS_ENSEMBLE if on == ENSEMBLE or _kind(attack["name"]) in _ON_ENSEMBLE else KNOWS_ALL
        what = {**_under(attack), "words": _crafted_words(attack, on), "remark": _remark(found)}
        attacks[key] = _expected(found, names, attacker=DRAWS_ONE if on in names else knows, **what, **whose)
        listed[key] = found
    rows = [_expected(said["clean"], names, name="clean", words="clean", **whose)]
    for found in said["worst_case"]:
        keys = _in_order(found["attacks"], said["attacks"])
        rows += _worst_rows(found, {key: attacks[key] for key in keys}, names, whose)
        _check_worst(found, [listed[key] for key in found["attacks"]], names)
    for found in said["protocols"]:
        low, high = (_percent(value) for value in found["interval_95"])
        what = {**whose, "interval": (low, high), "samples": _count(found["samples"])}
        cells = [cell for row in _matrix(found["matrix"], len(names)) for cell in row]
        row = _drawn(_attack(found["attack"]), found["protocol"], cells, **what)
        if found["tickets"] != list(names) or abs(row.accuracy - _percent(found["accuracy"])) > _ROUNDING:
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
    on_all = {_kind(row["attack"]["name"]) for row in under if row["crafted_on"] == ALL}
    lacking = [kind for kind in map(_kind, ADAPTIVE) if kind not in on_all]
    if lacking:
        raise ValueError(f"its worst case lacks {and_last(lacking)} on all members")
    lowest = {name: min(_percent(row["tickets"][name]) for row in under) for name in names}
    ensemble = min(_percent(row["ensemble"]) for row in under)
    above = [name for name, value in _of_tickets(found, names).items() if value > lowest[name] + _ROUNDING]
    above += [ENSEMBLE] if _percent(found["ensemble"]["accuracy"]) > ensemble + _ROUNDING else []
    if above:
        raise ValueError(f"its worst case of {above[0][:80]!r} is above what one of its attacks leaves")


def _is_stopped(row: Measured) -> bool:
    return (row.settings or {}).get("keep") == "first"


def _expected(found: Mapping[str, Any], names: tuple[str, ...], **what: Any) -> Measured:
    """Return the accuracy of an R2S: the mean over its tickets, which are checked."""
    row, alone, ensemble = _measured(found, **what), _of_tickets(found, names), _percent(found["ensemble"])
    mean, lowest = math.fsum(alone.values()) / len(alone), min(alone.values())
    if abs(row.accuracy - mean) > _ROUNDING or _percent(found["all_members"]) > lowest + _ROUNDING:
        raise ValueError(f"{row.accuracy} is not the mean over its tickets ({ensemble} of their ensemble)")
    return row


def _of_tickets(found: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    if sorted(found["tickets"]) != sorted(names):
        raise ValueError(f"it has accuracies of {str(found['tickets'])[:80]}, not of its tickets")
    return {name: _percent(found["tickets"][name]) for name in names}


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
    rows = [[_percent(cell) for cell in row] for row in value]
    if [len(row) for row in rows] != [count] * count:
        raise ValueError(f"it has a matrix that is not one of {count} networks")
    return rows


def _attack(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of an attack; its name must not be that of a row that is none."""
    attack = dict(said)
    if _text(attack["name"]) in _RESERVED:
        raise ValueError(f"it has an attack named {attack['name']!r}")
    return attack


def _under(attack: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row under attack has beside its accuracy and words."""
    eps = _size(attack["eps_over_255"])
    return {"name": _text(attack["name"]), "norm": _norm(attack["norm"]), "eps": eps, "settings": attack}


def _read_transfer(said: dict[str, Any], content: bytes, config: Mapping[str, Any]) -> Result:
    """Read matrices; the mean of one of all tickets is what an attacker leaves of their R2S who draws one member."""
    own = _own_networks(said["networks"], config)
    attack, dataset, count = _attack(said["attack"]), said["dataset"], len(said["networks"])
    names = tuple(entry["name"] for entry in config["rst"]["tickets"])
    what: dict[str, Any] = {"of": "R2S", "members": names, "samples": _count(dataset["samples"]), "interval": None}
    for network in said["networks"]:
        _text(network["label"])
    rows = []
    for protocol, matrix in said["accuracy"].items():
        values = _matrix(matrix, count)
        cells = [values[i][j] for i in own.values() for j in own.values()]
        row = _drawn(attack, protocol, cells, **what)
        rows += [row] if len(names) > 1 and set(own) == set(names) else []
    if not said["accuracy"]:
        raise ValueError("it has no matrix")
    return Result("transfer", tuple(rows), _text(dataset["name"]), _text(dataset["split"]), said, content)


def _check_own(tickets: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> None:
    sha256 = {entry["name"]: entry["sha256"] for entry in config["rst"]["tickets"]}
    if not tickets:
        raise ValueError("it names no ticket")
    for ticket in tickets:
        if sha256.get(_text(ticket["name"])) != ticket["sha256"]:
            raise TicketError(
                f"measured on another ticket {plain(ticket['name'], 80)!r} (SHA-256 {str(ticket['sha256'])[:16]}...); "
                f"here are {', '.join(f'{name} {digest[:16]}...' for name, digest in sha256.items())}: measure again"
            )


def _other_seed(said: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    """Return the seed of the random network if it is another than the folder's; all else must be the same.

    Raises:
        TicketError: the search was another one, and not only with another seed.
    """
    network, rst = said["network"], config["rst"]
    seed, own = network["init"]["seed"], {entry["name"]: entry for entry in rst["tickets"]}
    if seed == rst["init"]["seed"] or not network["tickets"]:
        return None
    if type(seed) is not int or not 0 <= seed < 2**64:
        raise ValueError(f"its seed is {str(seed)[:50]!r}")
    origins = said.get("origins") or [None] * len(network["tickets"])
    for ticket, origin in zip(network["tickets"], origins, strict=True):
        entry = own.get(_text(ticket["name"]))
        if entry is None:
            raise TicketError(f"measured with seed {seed} on a ticket {plain(ticket['name'], 80)!r}, which is not here")
        here, there = _search_of(rst, entry, entry["provenance"]), _search_of(network, ticket, origin)
        other = [key for key in {**here, **there} if here.get(key) != there.get(key)]
        if other or "attack" not in here:
            key = other[0] if other else "settings"
            raise TicketError(
                f"measured on a ticket of another search: {key} is {str(here.get(key))[:80]!r} here and "
                f"{str(there.get(key))[:80]!r} there. Give results of the same search with other seeds, or leave it out"
            )
    return seed


LIFTS = {"loss": "cross_entropy", "ema": 0.0, "climb": 0.0, "layer_ratios": "uniform"}
"""Settings of what goes beyond the paper, as they are where a search has none of it or is older than they are."""

_OF_ANOTHER_RUN = ("seed", "score_seed", "test_samples", "eval_batch_size", "compile")
"""Settings that may differ where it is the same search with another seed."""


def _search_of(network: Mapping[str, Any], ticket: Mapping[str, Any], origin: Any) -> dict[str, Any]:
    """Return what made a ticket, but for its seeds and how it was measured; without settings if none are recorded."""
    found = {key: network[key] for key in ("architecture", "timm_kwargs")}
    found |= {"weights": network["init"]["distribution"], "remaining_ratio": ticket["remaining_ratio"]}
    settings = look(origin, "settings")
    if not isinstance(settings, dict):
        return found
    made = LIFTS | {key: value for key, value in settings.items() if key not in _OF_ANOTHER_RUN}
    if made["loss"] != "trades":
        made.pop("trades_beta", None)
    beside = {"precision": look(origin, "precision"), "images": look(origin, "dataset", "training_samples")}
    return {**made, **beside, **found}


def _own_networks(networks: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, int]:
    """Return the position in a matrix of each of the folder's tickets in it; others may be in it too.

    Of two tickets of one name and one random network, one must be the folder's: the other may be what it is compared
    with, but alone it would be what the folder's ticket once was.
    """
    rst, own, others = config["rst"], {}, []
    sha256 = {entry["name"]: entry["sha256"] for entry in rst["tickets"]}
    for position, network in enumerate(networks):
        for ticket in network["tickets"] if network["kind"] == "ticket" else ():
            if sha256.get(ticket["name"]) == ticket["sha256"]:
                own[ticket["name"]] = position
            elif network["architecture"] == rst["architecture"] and network["init"]["seed"] == rst["init"]["seed"]:
                others.append(ticket)
    stale = [ticket for ticket in others if ticket["name"] in sha256 and ticket["name"] not in own]
    if stale or not own:
        _check_own(stale or [{"name": "none of these", "sha256": "unknown"}], config)
    return own


def _measured(found: Mapping[str, Any], **what: Any) -> Measured:
    low, high = (_percent(value) for value in found["interval_95"])
    return Measured(
        accuracy=_percent(found["accuracy"]), interval=(low, high), samples=_count(found["samples"]), **what
    )


def searched_result(entry: Mapping[str, Any]) -> Result | None:
    """Return what the search itself measured of a ticket on the test images, if its provenance says so."""
    try:
        origin = entry["provenance"]
        found, data = origin["results"], origin["dataset"]
        attack, count = dict(found["attack"]), _count(found["samples"])
        clean, robust = _percent(found["clean_accuracy"]), _percent(found["robust_accuracy"])
        attack["name"] = f"{_text(attack['name'])}{_count(attack['steps'])}"
        whose: dict[str, Any] = {"of": entry["name"], "members": (entry["name"],), "samples": count}
        limits = {"norm": _norm(attack["norm"]), "eps": _size(attack["eps_over_255"]), "settings": attack}
        named = {"name": attack["name"], "words": in_words(attack)}
        rows = (
            Measured(accuracy=clean, interval=_wilson(clean, count), name="clean", words="clean", **whose),
            Measured(accuracy=robust, interval=_wilson(robust, count), **named, **whose, **limits),
        )
        return Result("search", rows, _text(data["name"]), _text(found["split"]), origin)
    except _MALFORMED:
        return None


def _wilson(accuracy: float, count: int) -> tuple[float, float]:
    low, high = interval((torch.arange(count) < round(accuracy * count / 100)).double())
    return round(low, 2), round(high, 2)


def _remark(found: Mapping[str, Any]) -> str:
    """Return what an attack without a budget says besides."""
    distance = _size(found.get("median_l2_of_broken"))
    return "" if distance is None else f"median L2 distance of the broken {distance:.2f}"


def in_words(attack: Mapping[str, Any]) -> str:
    """Return an attack's name for a reader, with what tells it from others of its kind."""
    fixed = {"fgsm": "FGSM", "fgsm_rs": "FGSM-RS", "cw_l2": "CW-L2", "autoattack": "AutoAttack (standard)"}
    name = _text(attack["name"])
    kind = _kind(name)
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


def _kind(name: str) -> str:
    """Return an attack's name without its numbers."""
    return name.rstrip("0123456789x").rstrip("0123456789")


_KINDS = [_kind(name) for name in NAMES]


def _crafted_words(attack: Mapping[str, Any], on: str) -> str:
    """Return an attack on an R2S for a reader."""
    words, kind = in_words(attack), _kind(_text(attack["name"]))
    if on not in (ALL, ENSEMBLE):
        return f"{words} on each member alone"
    if on == ENSEMBLE:
        return f"{words} on the ensemble"
    return f"{words}, gradients of all members (EOT)" if kind in _ONE_LOSS else words


def _is_repository(value: Any) -> bool:
    return isinstance(value, str) and REPOSITORY.fullmatch(value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(plain(value))


def _text(value: Any) -> str:
    if not _is_text(value):
        raise ValueError(f"{str(value)[:50]!r} is no text")
    return value


def _norm(value: Any) -> str:
    if value not in NORMS:
        raise ValueError(f"{str(value)[:50]!r} is no norm")
    return str(value)


def _percent(value: Any) -> float:
    if _size(value) > 100:
        raise ValueError(f"{value!r} is no accuracy in percent")
    return float(value)


def _size(value: Any) -> Any:
    """Return a number from 0 on, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12):
        raise ValueError(f"{str(value)[:50]!r} is no size")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 < value <= 10**7:
        raise ValueError(f"{str(value)[:50]!r} is no count")
    return value


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


def outcomes_of(settings: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return settings that are equal where outcomes are.

    "enough" leaves what "best" does, for less work; the mean over members' losses was once the only average, unsaid.
    """
    if settings is None:
        return None
    said = {key: value for key, value in settings.items() if (key, value) != ("average", "loss")}
    return {**said, "keep": "best"} if said.get("keep") == "enough" else said
