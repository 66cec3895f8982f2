"""The exceptions of rst-hub. Every message says what is wrong, where, and what to do about it."""

import difflib
import re
from collections.abc import Iterable, Iterator

_TOKEN = re.compile(r"(?i:\bbearer)\s+(?!token\b)[^\s'\",;]+|\bhf_(?!(?:xet|transfer)\b)[A-Za-z0-9]+(?![\w(])")
"""What may be a secret in a foreign text: a header's value, a token of the Hub; not the names of its packages."""


class RstHubError(Exception):
    """Anything that rst-hub refuses; catch this one to catch all of them."""


class SettingsError(RstHubError):
    """A setting or an argument is out of its range, unknown, or contradicts another."""


class ArchitectureError(RstHubError):
    """timm does not know the architecture, or it does not fit the arguments or the ticket."""


class DataError(RstHubError):
    """A data set cannot be read as images with class labels."""


class TicketError(RstHubError):
    """A ticket folder is missing, incomplete, edited, foreign, or written by a newer rst-hub."""


class IntegrityError(TicketError):
    """A ticket's files are not the bytes that were saved: damaged or edited since. A fresh download may help."""


class HubError(RstHubError):
    """The Hub cannot be reached, does not have what was asked for, or refuses it."""


def printable(value: object, most: int = 100) -> str:
    """Return text that came from elsewhere for a message: cut, and without characters that a terminal would obey."""
    line = str(value)[:most].replace("\n", " ")
    return "".join(char if char.isprintable() else "?" for char in line)


def foreign(error: BaseException, most: int = 500) -> str:
    """Return what another library's error says, for a message of ours: on one line, cut, and without a token."""
    return printable(_TOKEN.sub("(token)", str(error)), most)


def cause(error: BaseException) -> BaseException | None:
    """Return the error that ours is raised from; None where the traceback would print a token with it."""
    return None if any(_TOKEN.search(str(one)) for one in chain(error)) else error


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and all that it was raised from or beside."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen:
            seen.append(one)
            waiting += [one.__cause__, one.__context__]
    yield from seen


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names are close to ``name``, as a sentence to end an error message with."""
    known = sorted(known)
    if not known:
        return ""
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if matches:
        return f"Did you mean {' or '.join(matches)}?"
    if len(known) <= 12:
        return f"Known: {', '.join(known)}."
    return "No known name is near it."
