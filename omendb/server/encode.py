"""Query answers as JSON: whole, or in pieces of bounded size.

Rows: ``{"count": n, "rows": [{...}, ...], "cursor": null}``. Columns: the same with one array a column
instead of ``rows``; the aggregates of windows stand in an object of their own, ``columns``, because one of
them is called ``count`` too. The count comes first, so that a reader can make room; the cursor last, because
it is known only at the end.

Thread safety: every thread has its own scratch buffer.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from omendb.jit.encode import (
    FLOAT_BYTES_MAX,
    INTEGER_BYTES_MAX,
    ROW_BYTES_MAX,
    window_bytes_max,
    write_floats,
    write_integers,
    write_rows,
    write_windows,
)
from omendb.model import Columns, Windows
from omendb.server.buffers import make_piece, scratch_rows
from omendb.server.request import JSON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from omendb.executor import RowArrays
    from omendb.server.request import Headers, Piece
    from omendb.short_query import ShortAnswer

Part = Columns | Windows
Result = TypeVar("Result")

PIECE_ROWS = 8_192
"""Rows of one piece: half a megabyte of JSON, which granian copies before it lets the GIL go."""

COLUMN_PIECE_ROWS = 16_384
"""The same of single columns: a quarter of a megabyte at most as a rule."""

SCRATCH_BYTES_MAX = 8 << 20
"""A thread keeps a buffer up to this size: a fresh one costs a page fault every 4 KiB."""

_COMMA = ord(",")

_scratch = threading.local()


class Source(Protocol):
    """What a query answers with: a scan of `omendb.executor` or `omendb.merged`."""

    @property
    def cursor(self) -> str | None:
        """Where to go on; known once `chunks` is exhausted."""
        ...

    def map(
        self,
        function: Callable[[Part], Result],
        rows_max: int,
        make_arrays: Callable[[int], RowArrays] | None = None,
    ) -> Iterator[Result]:
        """Yield what a function makes of each part, in order, from the start, as often as it is called.

        The function is called in any thread, and so is what makes arrays; see `omendb.executor.Scan.map`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Form:
    """How one answer is written as JSON.

    Attributes
    ----------
    columns : bool
        One array a column, instead of one object a row.
    aggregates : tuple of str or None
        Those of windows; None when the answer is rows.
    by_series : bool
        Whether the series is told: not of windows that are those of all series together.
    """

    columns: bool
    aggregates: tuple[str, ...] | None
    by_series: bool = True

    @property
    def headers(self) -> Headers:
        """The answer's headers: shared, never changed."""
        return JSON

    @property
    def piece_rows(self) -> int:
        """Rows of one piece."""
        return COLUMN_PIECE_ROWS if self.columns else PIECE_ROWS

    @property
    def needs_count(self) -> bool:
        """Whether the number of rows must be known before the first one is written."""
        return True

    def whole(self, part: Part | None, cursor: str | None) -> bytes:
        """Encode an answer that is one part, or empty: None."""
        if self.columns:
            return whole_columns(part, self.aggregates, cursor, by_series=self.by_series)
        return whole_rows(part, cursor)

    def stream(self, source: Source, count: int, rows_max: int) -> Iterator[Piece]:
        """Encode an answer of several parts and `count` rows, `rows_max` rows a piece."""
        if self.columns:
            return stream_columns(source, self.aggregates, count, rows_max, by_series=self.by_series)
        return stream_rows(source, count, rows_max)


def short(answer: ShortAnswer, names: Sequence[str] | None, *, columns: bool) -> bytes:
    """Put what belongs around a short answer's rows around them.

    Parameters
    ----------
    answer : ShortAnswer
    names : sequence of str or None
        The aggregates of windows; None for rows.
    columns : bool
        As it was asked for.
    """
    before = b'{"count":%d,' % answer.rows if columns else b'{"count":%d,"rows":[' % answer.rows
    after = b'%b,"cursor":%b}' % (b"]}" if columns and names else b"]", _cursor_text(answer.cursor))
    return b"".join((before, answer.text, after))


def whole_rows(part: Part | None, cursor: str | None) -> bytes:
    """Encode an answer that is one part; None when there is nothing to tell."""
    if part is None:
        return b'{"count":0,"rows":[],"cursor":%b}' % _cursor_text(cursor)
    return b'{"count":%d,"rows":[%b],"cursor":%b}' % (
        part.count,
        bytes(_rows_text(part)[1:]),
        _cursor_text(cursor),
    )


def whole_columns(
    part: Part | None, names: Sequence[str] | None, cursor: str | None, *, by_series: bool = True
) -> bytes:
    """Encode an answer that is one part, or None, with one array a column.

    Parameters
    ----------
    part : Columns, Windows or None
    names : sequence of str or None
        The aggregates of windows; None for rows.
    cursor : str or None
    by_series : bool
    """
    pieces = [b'{"count":%d' % (0 if part is None else part.count)]
    for before, name in _fields(names, by_series=by_series):
        text = b"" if part is None else bytes(_column_text(name, part)[1:])
        pieces.append(b"%b%b]" % (before, text))
    pieces.append(b'%b,"cursor":%b}' % (b"" if names is None else b"}", _cursor_text(cursor)))
    return b"".join(pieces)


def stream_rows(source: Source, count: int, rows_max: int) -> Iterator[Piece]:
    """Encode an answer of several parts, `rows_max` rows a piece; `count` is the number of all rows."""
    yield from _joined(b'{"count":%d,"rows":[' % count, source.map(_rows_text, rows_max, scratch_rows))
    yield b'],"cursor":%b}' % _cursor_text(source.cursor)


def stream_columns(
    source: Source, names: Sequence[str] | None, count: int, rows_max: int, *, by_series: bool = True
) -> Iterator[Piece]:
    """Encode an answer of several parts with one array a column.

    The columns stand one after the other, so the source is read once for each: the time is what buys
    bounded memory.
    """
    text = b'{"count":%d' % count
    for before, name in _fields(names, by_series=by_series):
        texts = source.map(partial(_column_text, name), rows_max, scratch_rows)
        yield from _joined(text + before, texts)
        text = b"]"
    yield b'%b,"cursor":%b}' % (b"]" if names is None else b"]}", _cursor_text(source.cursor))


def _joined(before: bytes, texts: Iterator[bytearray]) -> Iterator[Piece]:
    """Yield texts that begin with a comma, the first one without it and behind another text."""
    yield before + next(texts, b",")[1:]
    yield from texts


def _fields(names: Sequence[str] | None, *, by_series: bool) -> Iterator[tuple[bytes, str]]:
    """Yield each column's name, with the text before its numbers."""
    if by_series:
        yield b',"series_id":[', "series_id"
    yield b',"timestamp":[', "timestamp"
    if names is None:
        yield b',"value":[', "value"
        return
    before = b',"columns":{'
    for name in names:
        yield b'%b"%b":[' % (before, name.encode()), name
        before = b","


def _rows_text(part: Part) -> bytearray:
    """Write rows, with a comma before the first."""
    if isinstance(part, Columns):
        buffer = _room(1 + part.count * ROW_BYTES_MAX)
        end = write_rows(part.series_id, part.timestamp, part.value, buffer, 1)
    else:
        buffer = _room(1 + part.count * window_bytes_max(len(part.columns)))
        end = write_windows(part.series_id, part.timestamp, part.columns, buffer, 1)
    return _piece(buffer, end)


def _column_text(name: str, part: Part) -> bytearray:
    """Write the numbers of a column, with a comma before the first."""
    column: NDArray[Any]
    if isinstance(part, Columns) or name in ("series_id", "timestamp"):
        column = getattr(part, name)
    else:
        column = part.columns[name]
    if column.dtype.kind == "f":
        buffer = _room(1 + part.count * FLOAT_BYTES_MAX)
        end = write_floats(column, buffer, 1)
    else:
        buffer = _room(1 + part.count * INTEGER_BYTES_MAX)
        end = write_integers(column, buffer, 1)
    return _piece(buffer, end)


def _piece(buffer: NDArray[np.uint8], end: int) -> bytearray:
    """Copy a text out of the thread's buffer, with a comma as its first character."""
    buffer[0] = _COMMA
    piece = make_piece(end)
    # NumPy lets the GIL go for a copy, and `bytes` would not.
    np.frombuffer(piece, dtype=np.uint8)[:] = buffer[:end]
    return piece


def _cursor_text(cursor: str | None) -> bytes:
    return b"null" if cursor is None else b'"%b"' % cursor.encode("ascii")


def _room(size: int) -> NDArray[np.uint8]:
    """Return a buffer of at least `size` bytes; its content lasts until the next call in this thread."""
    buffer: NDArray[np.uint8] | None = getattr(_scratch, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = np.empty(max(size, 65_536), dtype=np.uint8)
        if len(buffer) <= SCRATCH_BYTES_MAX:
            _scratch.buffer = buffer
    return buffer
