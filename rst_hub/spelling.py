"""Names and budgets as people write them: "PGD-20", "FGSM_RS", "linf", "8/255"; recorded is the table's spelling."""

import math
import re
from collections.abc import Iterable


def folded(word: str) -> str:
    """Return a name without what people write differently: case, "-", "_", spaces."""
    return re.sub(r"[-_\s]", "", word).casefold()


def spelled(word: str, known: Iterable[str]) -> str:
    """Return the known name that a word is another spelling of; the word itself if there is none."""
    return next((name for name in known if folded(name) == folded(word)), word)


def spelled_attack(word: str, known: Iterable[str]) -> str:
    """Return an attack's name as the table has it, with the word's own numbers: "PGD-100 x5" is "pgd100x5".

    A word that is no spelling of a name comes back as it is, and so does "module:function".
    """
    word = word.strip()
    kinds = sorted({re.sub(r"\d+$", "", name) for name in known} | set(known), key=len, reverse=True)
    for kind in kinds:
        rest = folded(word).removeprefix(folded(kind))
        if folded(kind) + rest == folded(word) and re.fullmatch(r"\d*(x\d+)?", rest):
            return kind + rest
    return word


def over_255(word: str) -> float:
    """Return a budget or step in pixels over 255: "8" and "8/255" are 8.0.

    A plain number between 0 and 1 is one from 0 to 1: 0.03137 can only be 8/255; another is refused, never guessed at.

    Raises:
        ValueError: with what to give instead; or the word is no number.
    """
    number, _, divisor = word.partition("/")
    value = float(number)
    if "/" in word:
        if float(divisor) != 255:
            raise ValueError(f"{word}: give pixels over 255, as in 8 or 8/255")
        return value
    if not 0 < value < 1:
        return value
    if value < 0.1 and round(255 * value) and math.isclose(255 * value, round(255 * value), abs_tol=1e-3):
        return float(round(255 * value))
    raise ValueError(advice(value))


def spelled_budget(word: str) -> str:
    """Return a budget's word as :func:`over_255` reads it again: "8" for "8/255"; one that it refuses as it is.

    Below 1 it ends with "/255", because a plain number there is refused.
    """
    try:
        value = over_255(word)
    except ValueError:
        return word.strip()
    if "/" not in word and float(word) == value:
        return word.strip()
    plain = repr(value).removesuffix(".0")
    return f"{plain}/255" if 0 < value < 1 else plain


def advice(value: float) -> str:
    """Return what to say to a budget between 0 and 1 where pixels over 255 are asked for."""
    near = 255 * value
    whole = round(near)
    meant = str(whole) if whole and abs(near - whole) <= min(0.1, 0.02 * whole) else f"{near:.4g}"
    return (
        f"{value:g} is less than one of 255 pixel levels, a budget on pixels from 0 to 1 surely: give {meant}, or "
        f"{meant}/255 (and {value:g}/255 where that is meant)"
    )
