"""What a query string asks for.

Nearly all queries are made by programs that write plain numbers, each name once. Those are read by one
regular expression, which costs a quarter of reading them name by name. Whatever it does not match, mistakes
above all, is read name by name, so that errors have one place.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from omendb.errors import InvalidRequestError
from omendb.model import AGGREGATES
from omendb.server import query_string

if TYPE_CHECKING:
    from omendb.server.query_log import Asked

MATCH = "match[]"
PARAMETERS = frozenset(("start", "end", "series_id", MATCH, "limit", "cursor", "format", "step", "agg", "by"))
MAY_BE_EMPTY = frozenset(("by",))
FORMS = ("rows", "columns", "arrow")

_NUMBER = "[0-9]{1,18}"  # any of them fits 64 bits
_USUAL = re.compile(
    f"(?:(?:start=(-?{_NUMBER})|end=(-?{_NUMBER})|series_id=({_NUMBER})|limit=({_NUMBER})|step=({_NUMBER})"
    f"|format=({'|'.join(FORMS)})|agg=({'|'.join(AGGREGATES)}))(?:&|\\Z))+\\Z",
    re.ASCII,
).match
_NAMES = 7  # that the expression knows


class Question(msgspec.Struct, frozen=True, gc=False):
    """The parameters of ``GET /query``, each read by itself.

    Attributes
    ----------
    asked : tuple
        Start, end, series, step and form, as the log has them.
    limit : int or None
    cursor : str or None
    agg : tuple of str or None
    by : str or None
    match : tuple of str or None
        Selectors; None when there are none.
    """

    asked: Asked
    limit: int | None = None
    cursor: str | None = None
    agg: tuple[str, ...] | None = None
    by: str | None = None
    match: tuple[str, ...] | None = None


def read_question(text: str) -> Question:
    """Read a query string.

    Parameters
    ----------
    text : str
        Percent-encoded, without the question mark.

    Raises
    ------
    InvalidRequestError
        Naming the parameter and what was given.
    """
    found = _USUAL(text)
    if found is not None:
        start, end, series, limit, step, form, agg = values = found.groups()
        # Of a name that is repeated the expression holds the last value, and of an empty pair nothing.
        if text.count("&") + 1 == _NAMES - values.count(None):
            return Question(
                (
                    None if start is None else int(start),
                    None if end is None else int(end),
                    None if series is None else [int(series)],
                    None if step is None else int(step),
                    form,
                ),
                None if limit is None else int(limit),
                None,
                None if agg is None else (agg,),
            )
    return _read_by_name(text)


def _read_by_name(text: str) -> Question:
    given = query_string.parse(text, PARAMETERS, MAY_BE_EMPTY)
    match = given.get(MATCH)
    if match is not None and "series_id" in given:
        raise InvalidRequestError(f"{MATCH} and series_id cannot be given together", MATCH)
    series = query_string.integers(given, "series_id")
    form = query_string.single(given, "format")
    if form is not None and form not in FORMS:
        raise InvalidRequestError(f"format must be rows, columns or arrow, got {form!r}", "format")
    start, end = query_string.integer(given, "start"), query_string.integer(given, "end")
    limit, cursor = query_string.integer(given, "limit"), query_string.single(given, "cursor")
    step = query_string.integer(given, "step")
    agg, by = query_string.words(given, "agg"), query_string.single(given, "by")
    asked = (start, end, series, step, form)
    return Question(asked, limit, cursor, agg, by, None if match is None else tuple(match))
