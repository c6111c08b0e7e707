"""Query answers in Arrow's IPC stream format: record batches that clients map into memory as they are.

A batch is a header and the columns behind it. The header depends on the names of the columns and on the
number of rows only, so pyarrow writes it once: this, and the ends of a stream, is all that the server uses
pyarrow for. Rows of large answers are scanned to where they stand behind it; other columns are copied there.

A stream holds a batch for each piece, none of them with nulls. When the limit has cut the answer a last batch
without rows carries the cursor in its own metadata, under `CURSOR_KEY`: it is known only at the end, and
readers that do not look for it find nothing but an empty batch. The end mark comes last of all.

Thread safety: any thread; each has a batch of its own that it scans to.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from omendb.model import Columns
from omendb.server.buffers import make_piece
from omendb.server.openapi import ARROW as MEDIA_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from omendb.executor import RowArrays
    from omendb.server.encode import Part, Source
    from omendb.server.request import Headers

CURSOR_KEY = b"omendb.cursor"

PIECE_ROWS = 16_384
"""Rows of one batch: 0.4 MB of points."""

_HEADERS: Headers = [("content-type", MEDIA_TYPE)]
_ROW_NAMES = ("series_id", "timestamp", "value")
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@dataclass(frozen=True, slots=True)
class ArrowForm:
    """How one answer is written; the counterpart of `omendb.server.encode.Form`.

    Attributes
    ----------
    aggregates : tuple of str or None
        Those of windows; None when the answer is rows.
    by_series : bool
        Whether the series is told.
    """

    aggregates: tuple[str, ...] | None
    by_series: bool = True

    @property
    def headers(self) -> Headers:
        """The answer's headers: shared, never changed."""
        return _HEADERS

    @property
    def piece_rows(self) -> int:
        """Rows of one piece."""
        return PIECE_ROWS

    @property
    def needs_count(self) -> bool:
        """Whether the number of rows must be known before the first one is written."""
        return False

    def whole(self, part: Part | None, cursor: str | None) -> bytes:
        """Encode an answer that is one part, or empty: None."""
        batch = b"" if part is None else self._batch(part)
        return b"".join((_schema_bytes(self._names), batch, self._tail(cursor)))

    def stream(self, source: Source, _count: int, rows_max: int) -> Iterator[bytes | bytearray]:
        """Encode an answer of several parts, `rows_max` rows a batch."""
        batches = source.map(self._batch, rows_max, None if self.aggregates else _make_place)
        # Behind the first batch: when that cannot be made, nothing must have been said.
        first = next(batches, b"")
        yield _schema_bytes(self._names)
        if first:
            yield first
        yield from batches
        yield self._tail(source.cursor)

    @property
    def _names(self) -> tuple[str, ...]:
        keys = ("series_id", "timestamp") if self.by_series else ("timestamp",)
        return (*keys, *(("value",) if self.aggregates is None else self.aggregates))

    def _batch(self, part: Part) -> bytearray:
        made: _Place | None = getattr(_places, "made", None)
        if made is not None:
            _places.made = None
            if part.timestamp.base is made.timestamp and part.count == len(made.timestamp):
                return made.piece
        columns: list[NDArray[Any]] = [part.timestamp]
        if part.series_id is not None:
            columns.insert(0, part.series_id)
        if isinstance(part, Columns):
            columns.append(part.value)
        else:
            columns.extend(part.columns.values())
        header = _header_bytes(self._names, part.count)
        piece = make_piece(len(header) + 8 * part.count * len(columns))
        piece[: len(header)] = header
        # NumPy lets the GIL go for copies, joining bytes would not.
        body = np.frombuffer(piece, dtype=np.uint8, offset=len(header)).reshape(len(columns), -1)
        for place, column in zip(body, columns, strict=True):
            place.view(column.dtype)[:] = column
        return piece

    def _tail(self, cursor: str | None) -> bytes:
        return _END if cursor is None else _cursor_bytes(self._names, cursor)


class _Place(NamedTuple):
    """A batch of rows that are yet to be written, and where the timestamps go."""

    piece: bytearray
    timestamp: NDArray[np.int64]


_places = threading.local()


def _make_place(rows: int) -> RowArrays:
    """Make a batch of so many rows and return its columns: a scan writes to where the rows are sent from.

    It is the thread's batch until the next part is encoded in it. A part that does not fill it is copied.
    """
    header = _header_bytes(_ROW_NAMES, rows)
    size = len(header)
    piece = make_piece(size + 24 * rows)
    piece[:size] = header
    series = np.frombuffer(piece, dtype=np.int64, count=rows, offset=size)
    timestamp = np.frombuffer(piece, dtype=np.int64, count=rows, offset=size + 8 * rows)
    value = np.frombuffer(piece, dtype=np.float64, count=rows, offset=size + 16 * rows)
    _places.made = _Place(piece, timestamp)
    return series, timestamp, value


@lru_cache(maxsize=64)
def _schema(names: tuple[str, ...]) -> Any:  # noqa: ANN401
    whole = {"series_id", "timestamp", "count"}
    return pa.schema(
        [pa.field(name, pa.int64() if name in whole else pa.float64(), nullable=False) for name in names]
    )


@lru_cache(maxsize=64)
def _schema_bytes(names: tuple[str, ...]) -> bytes:
    return cast("bytes", _schema(names).serialize().to_pybytes())


@lru_cache(maxsize=256)
def _header_bytes(names: tuple[str, ...], count: int) -> bytes:
    """Return what stands before the columns of a batch."""
    body = 8 * count * len(names)
    message = _batch(names, count).serialize()
    return cast("bytes", message.slice(0, len(message) - body).to_pybytes())


def _cursor_bytes(names: tuple[str, ...], cursor: str) -> bytes:
    """Return an empty batch with the cursor, and the end of the stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _schema(names)) as writer:
        writer.write_batch(_batch(names, 0), custom_metadata={CURSOR_KEY: cursor.encode("ascii")})
    return cast("bytes", sink.getvalue().to_pybytes()).removeprefix(_schema_bytes(names))


def _batch(names: tuple[str, ...], count: int) -> Any:  # noqa: ANN401
    schema = _schema(names)
    zeros = np.zeros(count, dtype=np.int64)
    columns = [pa.Array.from_buffers(field.type, count, [None, pa.py_buffer(zeros)]) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
