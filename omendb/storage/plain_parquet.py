"""Writes the plain form of a segment: standard Parquet whose columns are the arrays as they are in memory.

Arrow writes such files, too, and copies every column twice on the way; flushes and merges spent more time on
that than on all else. What makes a plain file is little: a dictionary page and one page of run lengths for
the series, two pages that are arrays, and a footer. Pages, encodings, statistics and checksums are the ones
that Arrow writes of the same rows (docs/format/segment.md).

References
----------
.. [1] Apache Parquet, "File format" and parquet.thrift, version 2.10.
.. [2] Apache Thrift, "Thrift compact protocol encoding".
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from omendb.model import Columns
    from omendb.storage.fs import Bytes, WritableFile

    Field: TypeAlias = tuple[int, int, Any]

_MAGIC = b"PAR1"
_CREATED_BY = b"omendb version 1"

# Thrift's compact protocol.
_TRUE = 1
_I32 = 5
_I64 = 6
_BINARY = 8
_LIST = 9
_STRUCT = 12

# Parquet's enumerations.
_INT64 = 2
_DOUBLE = 5
_PLAIN = 0
_RLE = 3
_RLE_DICTIONARY = 8
_DATA_PAGE = 0
_DICTIONARY_PAGE = 2
_REQUIRED = 0
_UNCOMPRESSED = 0
_PIECE_BYTES = 1 << 21
"""What is given to the disk at once. A sync of the log waits for what the disk has been given before it: in
one piece, a segment made the inserts of that moment wait for all of it."""

_VERSION = 2  # of the file: encodings and types of Parquet 2


def write_plain(file: WritableFile, rows: Columns, metadata: dict[str, str]) -> None:
    """Write a Parquet file of one row group to a new file.

    Parameters
    ----------
    file : WritableFile
        Empty. The columns of a large one are synced piece by piece; what is left is for the caller.
    rows : Columns
        At least one, ascending by series.
    metadata : dict
        Becomes the file's key-value metadata.

    Raises
    ------
    OSError
    """
    count = rows.count
    ids, indices = _series_pages(rows.series_id)
    bounds = (
        (_bits(rows.series_id[0]), _bits(rows.series_id[-1])),
        (_bits(rows.timestamp.min()), _bits(rows.timestamp.max())),
        _float_bounds(rows.value),
    )
    dictionary_head = _page_head(_DICTIONARY_PAGE, ids, (7, _STRUCT, _dictionary_fields(len(ids))))
    columns: tuple[tuple[bytes, int, int, Bytes, list[Bytes]], ...] = (
        (b"series_id", _INT64, _RLE_DICTIONARY, indices, [dictionary_head, ids]),
        (b"timestamp", _INT64, _PLAIN, rows.timestamp, []),
        (b"value", _DOUBLE, _PLAIN, rows.value, []),
    )
    parts: list[Bytes] = [_MAGIC]
    offset = len(_MAGIC)
    total = 0
    chunks: list[list[Field]] = []
    for (name, kind, encoding, data, before), bound in zip(columns, bounds, strict=True):
        statistics = _statistics_fields(bound)
        head = _page_head(_DATA_PAGE, data, (5, _STRUCT, _data_fields(count, encoding, statistics)))
        data_at = offset + sum(map(_size, before))
        size = data_at - offset + len(head) + _size(data)
        fields = _chunk_fields(name, kind, encoding, count, size, data_at, offset if before else None)
        chunks.append([*fields[:-1], (12, _STRUCT, statistics), fields[-1]])
        parts += [*before, head, np.ascontiguousarray(data)]
        offset += size
        total += size
    footer = _struct(_footer_fields(count, total, chunks, metadata))
    parts += [footer, len(footer).to_bytes(4, "little"), _MAGIC]
    if offset <= _PIECE_BYTES:
        file.write(parts)
        return
    for part in parts:
        view = memoryview(part).cast("B")  # type: ignore[arg-type]
        for at in range(0, len(view), _PIECE_BYTES):
            file.write([view[at : at + _PIECE_BYTES]])
            if len(view) > _PIECE_BYTES:
                file.sync()


def _series_pages(series: NDArray[np.int64]) -> tuple[NDArray[np.int64], bytes]:
    """Return the distinct ids, and the indices of all rows into them as run lengths."""
    starts = np.concatenate((np.zeros(1, np.int64), np.flatnonzero(series[1:] != series[:-1]) + 1))
    lengths = np.diff(starts, append=len(series))
    runs = len(starts)
    # At least one bit: what Arrow does, too.
    width = max((runs - 1).bit_length(), 1)
    # A run is its length, times two, as a varint, and its index in whole bytes.
    head = lengths << 1
    head_bytes = np.ones(runs, np.int64)
    for bits in range(7, 64, 7):
        head_bytes += head >> bits > 0
    index_bytes = -(-width // 8)
    ends = np.cumsum(head_bytes + index_bytes)
    text = np.empty(int(ends[-1]) + 1, np.uint8)
    text[0] = width
    heads = ends - index_bytes - head_bytes + 1
    for byte in range(int(head_bytes.max())):
        chosen = np.flatnonzero(head_bytes > byte)
        more = head_bytes[chosen] > byte + 1
        text[heads[chosen] + byte] = head[chosen] >> (7 * byte) & 0x7F | np.where(more, 0x80, 0)
    for byte in range(index_bytes):
        text[ends - index_bytes + 1 + byte] = np.arange(runs) >> (8 * byte) & 0xFF
    return series[starts], text.tobytes()


def _float_bounds(values: NDArray[np.float64]) -> tuple[bytes, bytes] | None:
    """Return the statistics of a column of floats as Parquet wants them: no NaN, and zeros of both signs."""
    low, high = float(values.min()), float(values.max())
    if np.isnan(low):
        finite = values[~np.isnan(values)]
        if not len(finite):
            return None
        low, high = float(finite.min()), float(finite.max())
    return _bits(np.float64(low if low else -0.0)), _bits(np.float64(high if high else 0.0))


def _bits(number: Any) -> bytes:  # noqa: ANN401 - a NumPy scalar of 8 bytes
    text: bytes = number.tobytes()
    return text


def _size(data: Bytes) -> int:
    return memoryview(data).nbytes  # type: ignore[arg-type]


# Parquet's structures: fields as (number, Thrift type, value).


def _page_head(kind: int, data: Bytes, more: Field) -> bytes:
    size = _size(data)
    checksum = zlib.crc32(np.ascontiguousarray(data) if isinstance(data, np.ndarray) else data)  # type: ignore[arg-type]
    signed = checksum - (1 << 32) if checksum >> 31 else checksum
    return _struct([(1, _I32, kind), (2, _I32, size), (3, _I32, size), (4, _I32, signed), more])


def _dictionary_fields(count: int) -> list[Field]:
    return [(1, _I32, count), (2, _I32, _PLAIN)]


def _data_fields(count: int, encoding: int, statistics: list[Field]) -> list[Field]:
    return [(1, _I32, count), (2, _I32, encoding), (3, _I32, _RLE), (4, _I32, _RLE), (5, _STRUCT, statistics)]


def _statistics_fields(bounds: tuple[bytes, bytes] | None) -> list[Field]:
    nulls = (3, _I64, 0)
    if bounds is None:
        return [nulls]
    low, high = bounds
    # Once as old readers know them, once as new ones do, and that they are exact.
    old = [(1, _BINARY, high), (2, _BINARY, low)]
    return [*old, nulls, (5, _BINARY, high), (6, _BINARY, low), (7, _TRUE, None), (8, _TRUE, None)]


def _chunk_fields(
    name: bytes, kind: int, encoding: int, count: int, size: int, data_at: int, dictionary_at: int | None
) -> list[Field]:
    has_dictionary = dictionary_at is not None
    pages = [[(1, _I32, _DATA_PAGE), (2, _I32, encoding), (3, _I32, 1)]]
    if has_dictionary:
        pages.insert(0, [(1, _I32, _DICTIONARY_PAGE), (2, _I32, _PLAIN), (3, _I32, 1)])
    encodings = [_PLAIN, _RLE, _RLE_DICTIONARY] if has_dictionary else [_RLE, _PLAIN]
    fields: list[Field] = [
        (1, _I32, kind),
        (2, _LIST, (_I32, encodings)),
        (3, _LIST, (_BINARY, [name])),
        (4, _I32, _UNCOMPRESSED),
        (5, _I64, count),
        (6, _I64, size),
        (7, _I64, size),
        (9, _I64, data_at),
    ]
    if has_dictionary:
        fields.append((11, _I64, dictionary_at))
    fields.append((13, _LIST, (_STRUCT, pages)))
    return fields


def _footer_fields(
    count: int, size: int, chunks: Sequence[list[Field]], metadata: dict[str, str]
) -> list[Field]:
    schema: list[list[Field]] = [[(3, _I32, _REQUIRED), (4, _BINARY, b"schema"), (5, _I32, len(chunks))]]
    for chunk in chunks:
        kind, name = chunk[0][2], chunk[2][2][1][0]
        schema.append([(1, _I32, kind), (3, _I32, _REQUIRED), (4, _BINARY, name)])
    group: list[Field] = [
        (1, _LIST, (_STRUCT, [[(2, _I64, 0), (3, _STRUCT, chunk)] for chunk in chunks])),
        (2, _I64, size),
        (3, _I64, count),
        (5, _I64, len(_MAGIC)),
        (6, _I64, size),
    ]
    pairs = [[(1, _BINARY, key.encode()), (2, _BINARY, value.encode())] for key, value in metadata.items()]
    # Of each column: bounds are in the order of its type.
    order: list[Field] = [(1, _STRUCT, [])]
    return [
        (1, _I32, _VERSION),
        (2, _LIST, (_STRUCT, schema)),
        (3, _I64, count),
        (4, _LIST, (_STRUCT, [group])),
        (5, _LIST, (_STRUCT, pairs)),
        (6, _BINARY, _CREATED_BY),
        (7, _LIST, (_STRUCT, [order] * len(chunks))),
    ]


# Thrift.


def _struct(fields: Sequence[Field]) -> bytes:
    parts: list[bytes] = []
    last = 0
    for number, kind, value in fields:
        assert 0 < number - last < 16
        parts += [bytes([(number - last) << 4 | kind]), _value(kind, value)]
        last = number
    return b"".join(parts) + b"\0"


def _value(kind: int, value: Any) -> bytes:  # noqa: ANN401
    if kind == _TRUE:
        return b""
    if kind in (_I32, _I64):
        return _varint(value << 1 if value >= 0 else (-value << 1) - 1)
    if kind == _BINARY:
        text: bytes = value
        return _varint(len(text)) + text
    if kind == _STRUCT:
        return _struct(value)
    element, items = value
    size = (
        bytes([len(items) << 4 | element])
        if len(items) < 15
        else bytes([0xF0 | element]) + _varint(len(items))
    )
    return size + b"".join(_value(element, item) for item in items)


def _varint(number: int) -> bytes:
    text = bytearray()
    while number >= 0x80:
        text.append(number & 0x7F | 0x80)
        number >>= 7
    text.append(number)
    return bytes(text)
