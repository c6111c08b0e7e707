"""Bodies of ``POST /write``: InfluxDB's line protocol, as its versions 1 and 2 have it.

A kernel reads what is plainly written; the careful reader, here, reads every other line, and finds the words
for what is wrong. Names are looked up last, when the whole body is known to be valid, so that a refused
request names no series.

Thread safety: everything here may be called in any thread.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from omendb.errors import InvalidRequestError, PayloadTooLargeError
from omendb.jit import lines
from omendb.jit.keys import hash_keys
from omendb.model import INT64_MAX, INT64_MIN, Batch
from omendb.series import canonical_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from omendb.storage.catalog import Catalog

PRECISIONS = {
    "ns": 1,
    "n": 1,
    "us": 1_000,
    "u": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
"""Nanoseconds in a unit of the timestamps, by what `precision` may be."""

_SPACE = re.compile(rb"(?<!\\) ")
_EQUALS = re.compile(rb"(?<!\\)=")
_VALUE = re.compile(rb"[^, ]*")
_INTEGER = re.compile(rb"[+-]?[0-9]{1,30}")
_FLOAT = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(rb"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_TRUE = frozenset((b"t", b"T", b"true", b"True", b"TRUE"))
_FALSE = frozenset((b"f", b"F", b"false", b"False", b"FALSE"))
_UINT64_MAX = 2**64 - 1
_PART_BYTES_MAX = lines.PART_BYTES_MAX
_DISTANCE_MAX = 1 << 31

_ROW_BYTES = 32
"""Of a line with one field, about; room that is too small grows, and what is not written takes no memory."""

_PIECE_BYTES = 1 << 20


class Row(NamedTuple):
    """A value of a line.

    Attributes
    ----------
    field_at, field_stop : int
        Where the field's name stands in the line.
    value : float
    """

    field_at: int
    field_stop: int
    value: float


class Line(NamedTuple):
    """A line.

    Attributes
    ----------
    series_at, series_stop : int
        Where measurement and tags stand in the line.
    rows : list of Row
    timestamp : int
        In nanoseconds.
    """

    series_at: int
    series_stop: int
    rows: list[Row]
    timestamp: int


def scale_of(precision: str | None) -> int:
    """Return the nanoseconds in a unit of the timestamps.

    Raises
    ------
    InvalidRequestError
    """
    scale = PRECISIONS.get(precision or "ns")
    if scale is None:
        raise InvalidRequestError(
            f"precision must be of {', '.join(PRECISIONS)}, got {precision!r}", "precision"
        )
    return scale


def decode_plain(body: bytes, scale: int, now: int, catalog: Catalog) -> Batch | None:
    """Read a body as `decode` does, if that takes no more than the kernels.

    Returns
    -------
    Batch or None
        None when a line must be read carefully, or a series is new: a body of many takes long.
    """
    text = _text(body)
    rows = lines.Rows(len(text) // _ROW_BYTES + 1)
    status, position = lines.FULL, 0
    while status == lines.FULL:
        status, position = _parse(text, position, scale, now // scale * scale, rows, catalog)
        if status == lines.FULL:
            rows.grow()
    if status == lines.GIVE_UP or _missing(text, rows, catalog):
        return None
    return _batch(rows)


def _text(body: bytes) -> NDArray[np.uint8]:
    if len(body) < lines.BODY_BYTES_MIN:
        body += b"\n" * lines.BODY_BYTES_MIN
    return np.frombuffer(body, np.uint8)


def _parse(
    text: NDArray[np.uint8], position: int, scale: int, now: int, rows: lines.Rows, catalog: Catalog
) -> tuple[int, int]:
    return lines.parse_lines(text, position, catalog.seed, scale, now, rows, catalog.keys, catalog.first_id)


def _missing(text: NDArray[np.uint8], rows: lines.Rows, catalog: Catalog) -> int:
    """Look up the series that were not expected; return of how many rows they are not known."""
    if not rows.missing:
        return 0
    count = rows.count
    return catalog.find(text, rows.hashes[:count], rows.places[:count], rows.shapes[:count], rows.ids[:count])


def _batch(rows: lines.Rows) -> Batch:
    count = rows.count
    return Batch(rows.ids[:count], rows.timestamp[:count], rows.value[:count])


def decode(body: bytes, scale: int, now: int, catalog: Catalog) -> Batch:
    """Read a body; give ids to the series that are new.

    Parameters
    ----------
    body : bytes
    scale : int
        Nanoseconds in a unit of its timestamps.
    now : int
        Nanoseconds: the time of lines that have none. It is cut to whole units.
    catalog : Catalog

    Returns
    -------
    Batch
        One row a field, in the order of the body; timestamps in nanoseconds. May be empty.

    Raises
    ------
    InvalidRequestError
        Naming the line.
    """
    text = _text(body)
    rows = lines.Rows(len(text) // _ROW_BYTES + 1)
    now = now // scale * scale
    position = 0
    while True:
        status, position = _parse(text, position, scale, now, rows, catalog)
        if status == lines.DONE:
            break
        if status == lines.FULL:
            rows.grow()
            continue
        stop = body.find(b"\n", position)
        stop = len(body) if stop < 0 else stop
        try:
            line = read_line(body[position:stop], scale, now)
        except InvalidRequestError as error:
            raise _at_line(body, position, error) from None
        if line is not None:
            _append(rows, body, position, line, catalog.seed)
        position = min(stop + 1, len(body))
        if position == len(body):
            break
    if _missing(text, rows, catalog):
        _name(rows, body, catalog)
    return _batch(rows)


def _append(rows: lines.Rows, body: bytes, position: int, line: Line, seed: int) -> None:
    """Add the rows of a line that was read carefully."""
    series_at, series_stop = position + line.series_at, position + line.series_stop
    while rows.count + len(line.rows) > len(rows.value):
        rows.grow()
    for row in line.rows:
        key = body[series_at:series_stop] + b" " + body[position + row.field_at : position + row.field_stop]
        padded = np.frombuffer(key + bytes(8), np.uint8)
        hashes, _ = hash_keys(padded, seed, np.array([0, len(key)], np.int64))
        at = rows.count
        rows.ids[at] = -1
        rows.hashes[at] = hashes[0]
        rows.places[at] = series_at
        rows.shapes[at] = (
            (row.field_at - line.series_at) << 32
            | (series_stop - series_at) << 16
            | (row.field_stop - row.field_at)
        )
        rows.timestamp[at] = line.timestamp
        rows.value[at] = row.value
        rows.count += 1
        rows.missing += 1
    rows.previous = -1


def _name(rows: lines.Rows, body: bytes, catalog: Catalog) -> None:
    """Give ids to the rows whose series are new, or written in a new way."""
    missing = np.flatnonzero(rows.ids[: rows.count] < 0)
    places, shapes = rows.places[missing].tolist(), rows.shapes[missing].tolist()
    distinct: dict[bytes, int] = {}
    keys: list[bytes] = []
    at: list[int] = []
    for place, shape in zip(places, shapes, strict=True):
        series = body[place : place + (shape >> 16 & 0xFFFF)]
        field_at = place + (shape >> 32)
        field = body[field_at : field_at + (shape & 0xFFFF)]
        written = series + b" " + field
        index = distinct.get(written)
        if index is None:
            try:
                keys.append(canonical_key(series, field))
            except InvalidRequestError as error:
                raise _at_line(body, place, error) from None
            index = distinct[written] = len(keys) - 1
        at.append(index)
    rows.ids[missing] = catalog.give_ids(keys, list(distinct))[at]


def read_line(line: bytes, scale: int, now: int) -> Line | None:
    """Read one line by the book.

    Parameters
    ----------
    line : bytes
        Without its end; a carriage return there is taken for a part of it.
    scale : int
        Nanoseconds in a unit of its timestamp.
    now : int
        Timestamp, in nanoseconds, when it has none.

    Returns
    -------
    Line or None
        None for an empty line and a comment.

    Raises
    ------
    InvalidRequestError
    """
    line = line.removesuffix(b"\r")
    series_at = len(line) - len(line.lstrip(b" "))
    if series_at == len(line) or line[series_at : series_at + 1] == b"#":
        return None
    found = _SPACE.search(line, series_at)
    if found is None:
        raise InvalidRequestError("the fields are missing")
    series_stop = found.start()
    if series_stop - series_at > _PART_BYTES_MAX:
        raise InvalidRequestError(f"the name of the series is longer than {_PART_BYTES_MAX} bytes")
    at = _skip_spaces(line, found.end())
    rows: list[Row] = []
    while True:
        equals = _EQUALS.search(line, at)
        if equals is None or equals.start() == at:
            raise InvalidRequestError(f"expected field=value at {_shown(line[at:])}")
        field_stop = equals.start()
        if field_stop - at > _PART_BYTES_MAX or at - series_at >= _DISTANCE_MAX:
            raise InvalidRequestError(f"the name of a field is longer than {_PART_BYTES_MAX} bytes")
        value = _VALUE.match(line, equals.end())
        assert value is not None
        rows.append(Row(at, field_stop, _read_value(value[0], line[at:field_stop])))
        at = value.end() + 1
        if line[value.end() : at] != b",":
            break
    # Behind the last value: nothing, or a space.
    at = _skip_spaces(line, at)
    written = line[at:].rstrip(b" ")
    timestamp = now
    if written:
        if not _INTEGER.fullmatch(written):
            raise InvalidRequestError(f"timestamp must be an integer, got {_shown(written)}")
        timestamp = int(written) * scale
        if not INT64_MIN <= timestamp <= INT64_MAX:
            raise InvalidRequestError(
                f"timestamp {written.decode()} is beyond 64 bits when it is turned into nanoseconds"
            )
    return Line(series_at, series_stop, rows, timestamp)


def _skip_spaces(line: bytes, at: int) -> int:
    return len(line) - len(line[at:].lstrip(b" ")) if at < len(line) else len(line)


def _read_value(text: bytes, field: bytes) -> float:
    def refuse(reason: str) -> InvalidRequestError:
        return InvalidRequestError(f"field {_shown(field)}: {reason}")

    if _FLOAT.fullmatch(text):
        value = float(text)
        if abs(value) == float("inf"):
            raise refuse(f"{_shown(text)} is beyond float64")
        return value
    if text in _TRUE:
        return 1.0
    if text in _FALSE:
        return 0.0
    if text[-1:] in (b"i", b"u") and _INTEGER.fullmatch(text[:-1]):
        integer = int(text[:-1])
        low, high = (INT64_MIN, INT64_MAX) if text.endswith(b"i") else (0, _UINT64_MAX)
        if not low <= integer <= high:
            raise refuse(f"{_shown(text)} is not from {low} to {high}")
        return float(integer)
    if text.startswith(b'"'):
        raise refuse("it is a string, and only numbers and booleans are stored")
    if _NOT_FINITE.fullmatch(text):
        raise refuse(f"value must be finite, got {_shown(text)}")
    raise refuse(f"value must be a number or a boolean, got {_shown(text)}" if text else "it has no value")


def _at_line(body: bytes, position: int, error: InvalidRequestError) -> InvalidRequestError:
    """Say in which line an error is."""
    number = body.count(b"\n", 0, position) + 1
    return InvalidRequestError(f"line {number}: {error}; nothing of the request was stored", f"line {number}")


def _shown(text: bytes) -> str:
    shown = text[:40].decode(errors="replace")
    return repr(shown if len(text) <= 40 else shown + "...")


# Compression.


def inflate(body: bytes, max_bytes: int) -> bytes:
    """Decompress a body of gzip, of one or several members.

    Parameters
    ----------
    body : bytes
    max_bytes : int
        What it may become.

    Raises
    ------
    InvalidRequestError
        It is no gzip, damaged, or cut short.
    PayloadTooLargeError
        It becomes too large: no more than `max_bytes` and a piece are ever in memory.
    """
    parts: list[bytes] = []
    size = 0
    while body:
        member = zlib.decompressobj(wbits=31)
        pending = body
        while not member.eof:
            try:
                part = member.decompress(pending, _PIECE_BYTES)
            except zlib.error as error:
                raise InvalidRequestError(f"the body is not valid gzip: {error}") from error
            pending = member.unconsumed_tail
            if not part and not pending and not member.eof:
                raise InvalidRequestError("the body's gzip data is cut short")
            size += len(part)
            if size > max_bytes:
                raise PayloadTooLargeError(
                    f"the decompressed body is larger than max_body_bytes, {max_bytes} bytes"
                )
            parts.append(part)
        body = member.unused_data
    if not parts:
        raise InvalidRequestError("the body is not valid gzip: it is empty")
    return b"".join(parts)
