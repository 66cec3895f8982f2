"""Words of the card: text that is no Markdown and no HTML, sizes and budgets for a reader."""

import re
from collections.abc import Iterable, Sequence
from typing import Any


class Verbatim(str):
    """Text that stands in the page as it is."""


def plain(value: Any, most: int = 300) -> str:
    """Return a value as one line of printable characters, cut where it is too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)[: 4 * most]).split())
    return line if len(line) <= most else line[: most - 3] + "..."


def escaped(value: Any) -> str:
    """Return a value as text that is no Markdown and no HTML, whatever it holds; :class:`Verbatim` as it is."""
    if isinstance(value, Verbatim):
        return str(value)
    text = plain(value, 2000).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]|~$#])", r"\\\1", text)
    # pages make links of bare addresses and of @names
    text = text.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")
    text = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)  # a line that starts so would be a list
    return re.sub(r"^([-+=])", r"\\\1", text)


def code(value: Any) -> Verbatim:
    """Return a value as a code span, also within a table."""
    text = plain(value)
    return Verbatim(escaped(text) if set(text) & set("`|") else f"`{text}`")


def fenced(lines: Iterable[Any], language: str = "") -> Verbatim:
    """Return lines as a block of code whose fence is longer than any run of backticks in it."""
    body = "\n".join(plain(line, 4000) for line in lines)
    longest = max((len(run) for run in re.findall("`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return Verbatim(f"{fence}{language}\n{body}\n{fence}")


def human(count: float) -> str:
    """Return bytes for a reader: 327.8 KB, of 1000 bytes each."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def in_percent(share: float) -> str:
    """Return a share for a reader."""
    return f"{100 * share:.3g}%"


def budget(norm: str | None, eps: float | None) -> str:
    """Return a budget for a reader."""
    return f"{norm}, no budget" if eps is None else f"{norm}, eps {eps:g}/255"


def look(value: Any, *keys: str) -> Any:
    """Return what lies under these keys, or None."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def listed(found: Any, key: str) -> list[Any]:
    """Return the list under a key, or []."""
    value = look(found, key)
    return value if isinstance(value, list) else []


def or_unknown(value: Any, most: int = 300) -> str:
    """Return a value for a reader, or 'not recorded'."""
    if value is None or value == "":
        return "not recorded"
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else plain(value, most)


def thousands(value: Any) -> Any:
    """Return a count with commas; anything else as it is."""
    return f"{value:,}" if type(value) is int else value


def and_last(words: Sequence[str]) -> str:
    """Return words as a list in a sentence."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
