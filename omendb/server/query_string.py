"""Query strings: names, values, and what they may be. Everything that is not known is refused by name."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from omendb.errors import InvalidRequestError
from omendb.model import INT64_MAX, INT64_MIN

if TYPE_CHECKING:
    from collections.abc import Container

INT64_DIGITS_MAX = 19
REMEMBERED_CHARACTERS_MAX = 256
"""Of a part of a query string whose decoding is remembered: selectors come again and again."""

_decode_again = lru_cache(maxsize=4_096)(unquote_plus)


def parse(text: str, known: Container[str], may_be_empty: Container[str] = ()) -> dict[str, list[str]]:
    """Split a query string.

    Parameters
    ----------
    text : str
        Percent-encoded, without the question mark.
    known : container of str
        The names that are accepted.
    may_be_empty : container of str
        Those of them whose empty value has a meaning.

    Returns
    -------
    dict of str to list of str
        The values of each name, in the order given.

    Raises
    ------
    InvalidRequestError
        For a name that is not known, and for a name without a value: a script whose variable is empty
        should hear of it, not get an answer to another question.
    """
    given: dict[str, list[str]] = {}
    if not text:
        return given
    for pair in text.split("&"):
        if not pair:
            continue
        name, _, value = pair.partition("=")
        if "%" in pair or "+" in pair:
            name, value = _decode(name), _decode(value)
        if name not in known:
            raise InvalidRequestError(f"unknown parameter {name!r}", name)
        if not value and name not in may_be_empty:
            raise InvalidRequestError(f"{name} has no value", name)
        if name in given:
            given[name].append(value)
        else:
            given[name] = [value]
    return given


def _decode(text: str) -> str:
    return unquote_plus(text) if len(text) > REMEMBERED_CHARACTERS_MAX else _decode_again(text)


def single(given: dict[str, list[str]], name: str) -> str | None:
    """Return the value of a parameter that may be given once; None when it is not given.

    Raises
    ------
    InvalidRequestError
        When it is given more than once.
    """
    values = given.get(name)
    if values is None:
        return None
    if len(values) > 1:
        raise InvalidRequestError(f"{name} is given {len(values)} times", name)
    return values[0]


def integer(given: dict[str, list[str]], name: str) -> int | None:
    """Return a parameter that is one integer; None when it is not given.

    Raises
    ------
    InvalidRequestError
        When it is given more than once, or is no integer of 64 bits.
    """
    if name not in given:
        return None
    text = single(given, name)
    assert text is not None
    return to_int64(text, name)


def integers(given: dict[str, list[str]], name: str) -> list[int] | None:
    """Return a parameter that is a list: repeated, or with commas, or both; None when it is not given.

    Raises
    ------
    InvalidRequestError
        When one of them is no integer of 64 bits.
    """
    values = given.get(name)
    if values is None:
        return None
    return [to_int64(text, name) for value in values for text in value.split(",")]


def words(given: dict[str, list[str]], name: str) -> tuple[str, ...] | None:
    """Return a parameter that is a list of words, as `integers` does; None when it is not given."""
    values = given.get(name)
    if values is None:
        return None
    return tuple(text for value in values for text in value.split(","))


def to_int64(text: str, name: str) -> int:
    """Read an integer in decimal digits.

    Python's `int` also takes spaces, underscores, a plus sign and digits of other scripts: here they are
    mistakes.

    Raises
    ------
    InvalidRequestError
        Naming the parameter and what was given.
    """
    # Any 18 digits fit; what is left to the slow path is signs, the extremes, and mistakes.
    if len(text) < INT64_DIGITS_MAX and text.isdigit() and text.isascii():
        return int(text)
    digits = text.removeprefix("-")
    if len(digits) <= INT64_DIGITS_MAX and digits.isdigit() and digits.isascii():
        value = int(text)
        if INT64_MIN <= value <= INT64_MAX:
            return value
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    raise InvalidRequestError(f"{name} must be an integer of 64 bits, got {shown!r}", name)
