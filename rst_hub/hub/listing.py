"""list_models: the tickets on the Hugging Face Hub, as their cards describe them."""

import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi, constants, get_session, get_token
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from ..errors import HubError, SettingsError, cause, chain, foreign, nearest
from ..version import __version__

LIBRARY = "rst-hub"
"""The library's name on the Hub: in the user agent, and as the tag that repositories are found by."""
UNAUTHORISED = (
    "log in (hf auth login) or give a token. If there is one already (token, HF_TOKEN or the login), the Hub does not "
    "know it: copy it anew from the Hub's settings (Access Tokens)"
)
"""What to do about a status of 401."""
_PRINTABLE = re.compile(r"[!-~]+")


def hub_api(token: str | bool | None) -> HfApi:
    """Return the client of the Hub, which says who asks.

    Raises:
        SettingsError: the token cannot be one.
    """
    return HfApi(token=checked_token(token), library_name=LIBRARY, library_version=__version__)


def checked_token(token: str | bool | None) -> str | bool | None:
    """Return a token without the blanks around it, as a file or a terminal leaves them; None for an empty one.

    Where none is given, the one that the client would send is checked: of HF_TOKEN, or of the login.

    Raises:
        SettingsError: it cannot be a token. The message does not say what it is: it may be a secret all the same.
    """
    if isinstance(token, str):
        token = token.strip() or None
    if not isinstance(token, str | bool | None):
        raise SettingsError(f"token is of type {type(token).__name__}: give a string, True, False or None")
    what, sent = "the given token", token
    if token is True or (token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN):
        what, sent = "the token of HF_TOKEN or of the login", None
        with suppress(Exception):  # the client fails in the same way when it needs the token, and says why
            sent = get_token()
    if isinstance(sent, str) and not _PRINTABLE.fullmatch(sent):
        raise SettingsError(
            f"{what} has {len(sent)} characters, and blanks, control characters or other than ASCII among them: copy "
            "it anew from the Hub's settings (Access Tokens)"
        )
    return token


def is_unauthorised(error: BaseException) -> bool:
    """Say whether an error of the Hub's client comes of a status of 401."""
    return any(getattr(getattr(one, "response", None), "status_code", None) == 401 for one in chain(error))


@dataclass(frozen=True)
class Listed:
    """A ticket that :func:`list_models` found: what its card says of it, which nobody has checked; None: not said."""

    repo: str
    ticket: str
    architecture: str | None = None
    remaining_ratio: float | None = None
    bytes: int | None = None
    dataset: str | None = None
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    robust_against: str | None = None


def list_models(
    *, author: str | None = None, search: str | None = None, limit: int = 100, token: str | bool | None = None
) -> list[Listed]:
    """Return the tickets on the Hub, found by the library's tag, with what their cards say of them.

    The robust accuracy is the lowest that the card has for the ticket at the smallest budget of 8/255 or more (or the
    largest below that); ``robust_against`` names attack and budget. The clean accuracy is that of as many images, or of
    the most. Nothing here is checked: load a ticket for that.

    Args:
        author: of one user or organisation only.
        search: part of the repository's name.
        limit: the most repositories to ask for.
        token: for private repositories; the one that is logged in when None.

    Raises:
        HubError: the Hub cannot be reached, or does not know the token.
        SettingsError: the token cannot be one.
    """
    expand = ["cardData", "model-index"]
    return [row for repo in _listing(limit, token, author=author, search=search, expand=expand) for row in _rows(repo)]


def near_names(repo: str, token: str | bool | None = None) -> str:
    """Say which repositories of tickets have a name like this one; nothing if the Hub does not tell."""
    with suppress(HubError):
        return nearest(repo, [found["id"] for found in _listing(1000, token, expand="tags")])
    return ""


def _listing(limit: int, token: str | bool | None, **wanted: Any) -> list[dict[str, Any]]:
    """Return what the Hub says of each repository of tickets, as plain JSON.

    The client's own list_models makes objects of the cards, and fails at all when one card is not as it should be.
    """
    url: str | None = f"{constants.ENDPOINT}/api/models"
    given = {key: value for key, value in wanted.items() if value is not None}
    query: Any = {"filter": LIBRARY, "limit": limit, **given}
    found: list[dict[str, Any]] = []
    token = checked_token(token)
    try:
        headers = build_hf_headers(token=token, library_name=LIBRARY, library_version=__version__)
        while url is not None and len(found) < limit:
            answer = get_session().get(url, params=query, headers=headers, timeout=30)
            hf_raise_for_status(answer)
            found += [repo for repo in answer.json() if isinstance(repo, dict) and isinstance(repo.get("id"), str)]
            url, query = answer.links.get("next", {}).get("url"), None  # the next page's address has the query in it
    except Exception as error:  # the client's HTTP library, of either version, has errors of its own
        said = f"{type(error).__name__} {foreign(error)}"
        said = f"{UNAUTHORISED} ({said})" if is_unauthorised(error) else said
        raise HubError(f"the Hub's tickets cannot be listed: {said}") from cause(error)
    return found[:limit]


def _rows(repo: Mapping[str, Any]) -> list[Listed]:
    """Return a row for each ticket of a repository, from its card's metadata, which may hold anything."""
    card = _mapping(repo.get("cardData"))
    about = _mapping(card.get("rst"))
    measured = _by_ticket(repo.get("model-index") or card.get("model-index"))
    rows = []
    for ticket in map(_mapping, _sequence(about.get("tickets"))):
        name = _text(ticket.get("name")) or "?"
        robust = _headline([one for one in measured[name] if one["type"] == "robust_accuracy"])
        cleans = [one for one in measured[name] if one["type"] == "accuracy"]
        clean = max(cleans, key=lambda one: (_sampled(one) == _sampled(robust), _samples(one) or 0.0), default={})
        rows.append(
            Listed(
                repo=repo["id"],
                ticket=name,
                architecture=_text(about.get("architecture")),
                remaining_ratio=_number(ticket.get("remaining_ratio")),
                bytes=int(_number(ticket.get("bytes")) or 0) or None,
                dataset=_text((clean or robust).get("dataset")),
                clean_accuracy=_number(clean.get("value")),
                robust_accuracy=_number(robust.get("value")),
                robust_against=_text(robust.get("name")),
            )
        )
    return rows or [Listed(repo=repo["id"], ticket="?")]


def _by_ticket(model_index: Any) -> dict[str | None, list[dict[str, Any]]]:
    """Return the metrics of a card's model-index by ticket: type, value, name, args, and the name of the data set."""
    found: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    for index in map(_mapping, _sequence(model_index)):
        for result in map(_mapping, _sequence(index.get("results"))):
            dataset = _mapping(result.get("dataset")).get("name")
            for metric in map(_mapping, _sequence(result.get("metrics"))):
                args = _mapping(metric.get("args"))
                told = {key: metric.get(key) for key in ("type", "value", "name")}
                found[_text(args.get("ticket"))].append({**told, "args": args, "dataset": dataset})
    return found


def _headline(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the metric to show of several under attack: the lowest at the smallest Linf budget from 8/255 on."""

    def order(metric: dict[str, Any]) -> tuple[bool, float, float]:
        eps = _number(metric["args"].get("eps_over_255")) or 0.0
        return eps < 8, eps if eps >= 8 else -eps, _number(metric["value"]) or 0.0

    budgeted = [one for one in metrics if one["args"].get("norm") == "Linf" and _number(one.get("value")) is not None]
    return min(budgeted, key=order, default={})


def _sampled(metric: Mapping[str, Any]) -> tuple[Any, float | None]:
    """Return the data set of a metric and how many of its images it is of: two of as many are of the same ones."""
    return metric.get("dataset"), _samples(metric)


def _samples(metric: Mapping[str, Any]) -> float | None:
    return _number(_mapping(metric.get("args")).get("samples"))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: Any) -> list[Any]:
    return value[:1000] if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 else None
    )
