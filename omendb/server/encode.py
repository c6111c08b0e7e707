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
from typing import TYPE_CHECKING, Any, Protocol

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

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from omendb.executor import ShortAnswer

Part = Columns | Windows

SCRATCH_BYTES_MAX = 8 << 20
"""A thread keeps a buffer up to this size: a fresh one costs a page fault every 4 KiB."""

_scratch = threading.local()


class Source(Protocol):
    """What a query answers with: `omendb.executor.Scan` or `WindowScan`."""

    @property
    def cursor(self) -> str | None:
        """Where to go on; known once `chunks` is exhausted."""
        ...

    def chunks(self, rows_max: int) -> Iterator[Part]:
        """Yield the answer in order, from its start, as often as it is called."""
        ...


@dataclass(frozen=True, slots=True)
class Form:
    """How one answer is written.

    Attributes
    ----------
    columns : bool
        One array a column, instead of one object a row.
    aggregates : tuple of str or None
        Those of windows; None when the answer is rows.
    """

    columns: bool
    aggregates: tuple[str, ...] | None

    def whole(self, part: Part | None, cursor: str | None) -> bytes:
        """Encode an answer that is one part, or empty: None."""
        if self.columns:
            return whole_columns(part, self.aggregates, cursor)
        return whole_rows(part, cursor)

    def stream(self, source: Source, count: int, rows_max: int) -> Iterator[bytes]:
        """Encode an answer of several parts and `count` rows, `rows_max` rows a piece."""
        if self.columns:
            return stream_columns(source, self.aggregates, count, rows_max)
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
        _rows_text(part),
        _cursor_text(cursor),
    )


def whole_columns(part: Part | None, names: Sequence[str] | None, cursor: str | None) -> bytes:
    """Encode an answer that is one part, or None, with one array a column.

    Parameters
    ----------
    part : Columns, Windows or None
    names : sequence of str or None
        The aggregates of windows; None for rows.
    cursor : str or None
    """
    pieces = [b'{"count":%d' % (0 if part is None else part.count)]
    for before, name in _fields(names):
        text = b"" if part is None else _column_text(part, name)
        pieces.append(b"%b%b]" % (before, text))
    pieces.append(b'%b,"cursor":%b}' % (b"" if names is None else b"}", _cursor_text(cursor)))
    return b"".join(pieces)


def stream_rows(source: Source, count: int, rows_max: int) -> Iterator[bytes]:
    """Encode an answer of several parts, `rows_max` rows a piece; `count` is the number of all rows."""
    before = b'{"count":%d,"rows":[' % count
    for part in source.chunks(rows_max):
        yield before + _rows_text(part)
        before = b","
    yield b'],"cursor":%b}' % _cursor_text(source.cursor)


def stream_columns(source: Source, names: Sequence[str] | None, count: int, rows_max: int) -> Iterator[bytes]:
    """Encode an answer of several parts with one array a column.

    The columns stand one after the other, so the source is read once for each: the time is what buys
    bounded memory.
    """
    text = b'{"count":%d' % count
    for before, name in _fields(names):
        text += before
        for part in source.chunks(rows_max):
            yield text + _column_text(part, name)
            text = b","
        text = b"]"
    yield b'%b,"cursor":%b}' % (b"]" if names is None else b"]}", _cursor_text(source.cursor))


def _fields(names: Sequence[str] | None) -> Iterator[tuple[bytes, str]]:
    """Yield each column's name, with the text before its numbers."""
    yield b',"series_id":[', "series_id"
    yield b',"timestamp":[', "timestamp"
    if names is None:
        yield b',"value":[', "value"
        return
    before = b',"columns":{'
    for name in names:
        yield b'%b"%b":[' % (before, name.encode()), name
        before = b","


def _rows_text(part: Part) -> bytes:
    if isinstance(part, Columns):
        buffer = _room(part.count * ROW_BYTES_MAX)
        end = write_rows(part.series_id, part.timestamp, part.value, buffer)
    else:
        buffer = _room(part.count * window_bytes_max(len(part.columns)))
        end = write_windows(part.series_id, part.timestamp, part.columns, buffer)
    return buffer[:end].tobytes()


def _column_text(part: Part, name: str) -> bytes:
    column: NDArray[Any]
    if isinstance(part, Columns) or name in ("series_id", "timestamp"):
        column = getattr(part, name)
    else:
        column = part.columns[name]
    if column.dtype.kind == "f":
        buffer = _room(part.count * FLOAT_BYTES_MAX)
        end = write_floats(column, buffer)
    else:
        buffer = _room(part.count * INTEGER_BYTES_MAX)
        end = write_integers(column, buffer)
    return buffer[:end].tobytes()


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
