"""Whether a result is of the folder's own tickets, or of the same search with another seed."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import TicketError
from .values import as_text
from .wording import look, plain


def check_own(tickets: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> None:
    """Raise TicketError for results that were measured on other tickets than the folder's."""
    sha256 = {entry["name"]: entry["sha256"] for entry in config["rst"]["tickets"]}
    if not tickets:
        raise ValueError("it names no ticket")
    for ticket in tickets:
        if sha256.get(as_text(ticket["name"])) != ticket["sha256"]:
            raise TicketError(
                f"measured on another ticket {plain(ticket['name'], 80)!r} (SHA-256 {str(ticket['sha256'])[:16]}...); "
                f"here are {', '.join(f'{name} {digest[:16]}...' for name, digest in sha256.items())}: measure again"
            )


def other_seed(said: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
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
        entry = own.get(as_text(ticket["name"]))
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
    made |= {} if look(origin, "own_code") is None else {"own_code": look(origin, "own_code")}
    beside = {"precision": look(origin, "precision"), "images": look(origin, "dataset", "training_samples")}
    return {**made, **beside, **found}


def own_networks(networks: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, int]:
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
        check_own(stale or [{"name": "none of these", "sha256": "unknown"}], config)
    return own
