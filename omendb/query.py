"""What can be asked: range and window queries, their validation, and the cursors that continue them."""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from omendb.errors import InvalidRequestError
from omendb.model import AGGREGATES, BY_SERIES, INT64_MAX, INT64_MIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

WINDOWS_MAX = 1_000_000
"""Windows that a query may cut its range into, empty ones counted, for each series."""

_CURSOR = struct.Struct("<BIqqI")  # version, query, series_id, timestamp, checksum
_CURSOR_VERSION = 1


class RangeQuery(msgspec.Struct, frozen=True, eq=False):
    """Rows of some series in a range of time.

    Attributes
    ----------
    start, end : int
        Timestamps, both inclusive.
    series : ndarray of int64, shape (m,), or None
        Ascending, without repeats; None for all series.
    limit : int or None
        Rows of the answer at most.
    after : tuple of int, or None
        Only rows after this ``(series_id, timestamp)``.
    selected_by : str or None
        What `series` was found by: cursors belong to it, and go on when it comes to find more series.
    """

    start: int = INT64_MIN
    end: int = INT64_MAX
    series: NDArray[np.int64] | None = None
    limit: int | None = None
    after: tuple[int, int] | None = None
    selected_by: str | None = None

    @property
    def identity(self) -> int:
        """A number that tells this query from another, whatever its limit and cursor."""
        return _identity(self.start, self.end, self.series, 0, self.selected_by)


class WindowQuery(msgspec.Struct, frozen=True, eq=False):
    """Aggregates of some series in windows of equal length.

    Attributes
    ----------
    start, end, series, selected_by : as in `RangeQuery`
    origin : int
        Windows are ``[origin + i * step, origin + (i + 1) * step)``, for every integer i.
    step : int
        Length of a window, at least 1.
    aggregates : tuple of str
        Some of `omendb.model.AGGREGATES`, in the order of the answer's columns.
    limit : int or None
        Windows of the answer at most.
    after : tuple of int, or None
        Only windows after this ``(series_id, first timestamp)``; the series counts for nothing when they are
        merged.
    by : tuple of str
        `omendb.model.BY_SERIES`: a row a series and window; empty: all series are merged into a row a window.
    """

    step: int
    aggregates: tuple[str, ...]
    origin: int = 0
    start: int = INT64_MIN
    end: int = INT64_MAX
    series: NDArray[np.int64] | None = None
    limit: int | None = None
    after: tuple[int, int] | None = None
    by: tuple[str, ...] = BY_SERIES
    selected_by: str | None = None

    @property
    def identity(self) -> int:
        """A number that tells this query from another, whatever its limit and cursor."""
        identity = _identity(self.start, self.end, self.series, self.step, self.selected_by)
        return identity if self.by else zlib.crc32(b"merged", identity)


def make_range_query(
    start: int | None = None,
    end: int | None = None,
    series_id: int | ArrayLike | None = None,
    limit: int | None = None,
    cursor: str | None = None,
    *,
    selected_by: str | None = None,
) -> RangeQuery:
    """Validate a range query.

    Parameters
    ----------
    start, end : int, optional
        Timestamps, both inclusive; without one the range has no bound there.
    series_id : int or array_like of int, optional
        One series or several; without it all.
    limit : int, optional
        At least 1.
    cursor : str, optional
        From an earlier answer to the same query.
    selected_by : str, optional
        See `RangeQuery`. With it `series_id` is what a look-up has found: ascending, without repeats.

    Raises
    ------
    InvalidRequestError
    """
    low, high = _range(start, end)
    series = _series(series_id, selected_by)
    query = RangeQuery(low, high, series, _limit(limit), None, selected_by)
    if cursor is None:
        return query
    return msgspec.structs.replace(query, after=decode_cursor(cursor, query.identity))


def make_window_query(
    step: int,
    agg: str | Sequence[str] = ("mean",),
    start: int | None = None,
    end: int | None = None,
    series_id: int | ArrayLike | None = None,
    limit: int | None = None,
    cursor: str | None = None,
    by: str | Sequence[str] = BY_SERIES,
    *,
    selected_by: str | None = None,
) -> WindowQuery:
    """Validate a window query.

    Parameters
    ----------
    step : int
        Length of a window in timestamp units, at least 1.
    agg : str or sequence of str
        Names of `omendb.model.AGGREGATES`; a string may hold several, with commas.
    start, end, series_id, limit, cursor, selected_by
        As in `make_range_query`. Windows are aligned to `start`; without it, to multiples of `step`.
    by : str or sequence of str
        ``series_id``: each series has windows of its own. Empty: the windows are those of all series
        together.

    Raises
    ------
    InvalidRequestError
    """
    low, high = _range(start, end)
    _integer(step, "step")
    if step < 1:
        raise InvalidRequestError(f"step must be at least 1, got {step}", "step")
    if start is not None and end is not None and (end - start) // step + 1 > WINDOWS_MAX:
        raise InvalidRequestError(
            f"step {step} cuts the range into {(end - start) // step + 1} windows, "
            f"the maximum is {WINDOWS_MAX}",
            "step",
        )
    query = WindowQuery(
        step=step,
        aggregates=_aggregates(agg),
        origin=0 if start is None else start,
        start=low,
        end=high,
        series=_series(series_id, selected_by),
        limit=_limit(limit),
        by=_by(by),
        selected_by=selected_by,
    )
    if cursor is None:
        return query
    return msgspec.structs.replace(query, after=decode_cursor(cursor, query.identity))


def encode_cursor(identity: int, after: tuple[int, int]) -> str:
    """Make the text that continues a query after a row or window."""
    body = _CURSOR.pack(_CURSOR_VERSION, identity, *after, 0)[:-4]
    return base64.urlsafe_b64encode(body + zlib.crc32(body).to_bytes(4, "little")).decode().rstrip("=")


def decode_cursor(cursor: str, identity: int) -> tuple[int, int]:
    """Read a cursor.

    Raises
    ------
    InvalidRequestError
        It is damaged, or belongs to another query.
    """
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"cursor is not valid: {cursor[:64]!r}", "cursor") from error
    if len(data) != _CURSOR.size or zlib.crc32(data[:-4]).to_bytes(4, "little") != data[-4:]:
        raise InvalidRequestError(f"cursor is not valid: {cursor[:64]!r}", "cursor")
    version, owner, series_id, timestamp, _ = _CURSOR.unpack(data)
    if version != _CURSOR_VERSION:
        raise InvalidRequestError(f"cursor version {version} is not known", "cursor")
    if owner != identity:
        raise InvalidRequestError(
            "cursor belongs to another query: repeat start, end, series_id, match[], step and by as they "
            "were",
            "cursor",
        )
    return series_id, timestamp


def _identity(
    start: int, end: int, series: NDArray[np.int64] | None, step: int, selected_by: str | None
) -> int:
    text = struct.pack("<qqQ", start, end, step)
    if selected_by is not None:
        return zlib.crc32(b"by " + selected_by.encode(), zlib.crc32(text))
    return zlib.crc32(b"all" if series is None else series.tobytes(), zlib.crc32(text))


def _integer(value: object, field: str) -> None:
    if type(value) is int and INT64_MIN <= value <= INT64_MAX:
        return
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InvalidRequestError(f"{field} must be an integer, got {value!r}", field)
    if not INT64_MIN <= value <= INT64_MAX:
        raise InvalidRequestError(f"{field} must fit 64 bits signed, got {value}", field)


def _range(start: int | None, end: int | None) -> tuple[int, int]:
    low, high = INT64_MIN, INT64_MAX
    if start is not None:
        _integer(start, "start")
        low = int(start)
    if end is not None:
        _integer(end, "end")
        high = int(end)
    if low > high:
        raise InvalidRequestError(f"start {low} is after end {high}", "start")
    return low, high


def _limit(limit: int | None) -> int | None:
    if limit is None:
        return None
    _integer(limit, "limit")
    if limit < 1:
        raise InvalidRequestError(f"limit must be at least 1, got {limit}", "limit")
    return int(limit)


def _series(given: int | ArrayLike | None, selected_by: str | None) -> NDArray[np.int64] | None:
    if given is None:
        return None
    if selected_by is not None:
        assert isinstance(given, np.ndarray)
        return given
    if isinstance(given, int) and not isinstance(given, bool):
        _integer(given, "series_id")
        if given < 0:
            raise InvalidRequestError(f"series_id must be at least 0, got {given}", "series_id")
        return np.array([given], dtype=np.int64)
    try:
        array = np.atleast_1d(np.asarray(given))
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(f"series_id must hold integers: {error}", "series_id") from error
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidRequestError("series_id must be an integer or a list of them", "series_id")
    if int(array.min()) < 0 or int(array.max()) > INT64_MAX:
        wrong = int(array.min()) if int(array.min()) < 0 else int(array.max())
        raise InvalidRequestError(f"series_id must be from 0 to {INT64_MAX}, got {wrong}", "series_id")
    return np.unique(array.astype(np.int64))


def _aggregates(given: str | Sequence[str]) -> tuple[str, ...]:
    names = given.split(",") if isinstance(given, str) else list(given)
    for name in names:
        if name not in AGGREGATES:
            raise InvalidRequestError(f"agg must be of {', '.join(AGGREGATES)}, got {name!r}", "agg")
    if not names or len(set(names)) != len(names):
        raise InvalidRequestError("agg must name aggregates, each once", "agg")
    return tuple(names)


def _by(given: str | Sequence[str]) -> tuple[str, ...]:
    names = tuple(name for name in given.split(",") if name) if isinstance(given, str) else tuple(given)
    if names not in ((), BY_SERIES):
        raise InvalidRequestError(f"by must be series_id or empty, got {given!r}", "by")
    return names
