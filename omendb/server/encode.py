"""Query answers as JSON: whole, or in pieces of bounded size.

Rows: ``{"count": n, "rows": [{...}, ...], "cursor": null}``. Columns: the same with one array a column
instead of ``rows``. The count comes first, so that a reader can make room; the cursor last, because it is
known only at the end.

Thread safety: every thread has its own scratch buffer.
"""

from __future__ import annotations

import threading
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
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

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


def whole_rows(part: Part | None, cursor: str | None) -> bytes:
    """Encode an answer that is one part; None when there is nothing to tell."""
    if part is None:
        return b'{"count":0,"rows":[],"cursor":%b}' % _cursor_text(cursor)
    return b'{"count":%d,"rows":[%b],"cursor":%b}' % (
        part.count,
        _rows_text(part),
        _cursor_text(cursor),
    )


def whole_columns(part: Part | None, names: Iterable[str], cursor: str | None) -> bytes:
    """Encode an answer that is one part, or None, with one array a column.

    Parameters
    ----------
    part : Columns, Windows or None
    names : iterable of str
        The columns after ``series_id`` and ``timestamp``.
    cursor : str or None
    """
    pieces = [b'{"count":%d' % (0 if part is None else part.count)]
    for name in ("series_id", "timestamp", *names):
        text = b"" if part is None else _column_text(part, name)
        pieces.append(b',"%b":[%b]' % (name.encode(), text))
    pieces.append(b',"cursor":%b}' % _cursor_text(cursor))
    return b"".join(pieces)


def stream_rows(source: Source, count: int, rows_max: int) -> Iterator[bytes]:
    """Encode an answer of several parts, `rows_max` rows a piece; `count` is the number of all rows."""
    before = b'{"count":%d,"rows":[' % count
    for part in source.chunks(rows_max):
        yield before + _rows_text(part)
        before = b","
    yield b'],"cursor":%b}' % _cursor_text(source.cursor)


def stream_columns(source: Source, names: Iterable[str], count: int, rows_max: int) -> Iterator[bytes]:
    """Encode an answer of several parts with one array a column.

    The columns stand one after the other, so the source is read once for each: the time is what buys
    bounded memory.
    """
    before = b'{"count":%d' % count
    for name in ("series_id", "timestamp", *names):
        before += b',"%b":[' % name.encode()
        for part in source.chunks(rows_max):
            yield before + _column_text(part, name)
            before = b","
        before = b"]"
    yield b'],"cursor":%b}' % _cursor_text(source.cursor)


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
