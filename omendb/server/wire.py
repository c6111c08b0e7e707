"""Request bodies: their types, and the way from bytes to a checked `Batch`.

Integers are bounded to 64 bits by their types: a plain `int` would let any size through, to fail deep
inside NumPy. JSON has no NaN and no Infinity, and numbers beyond float64 are refused.

Large bodies go through a kernel that makes no Python objects; it gives up on whatever is not plain and
valid, and msgspec decides then, and finds the words for what is wrong.
"""

from __future__ import annotations

from typing import Annotated, NoReturn

import msgspec
import numpy as np

from omendb.errors import InvalidRequestError
from omendb.jit.parse import PARSED, count_points_bound, parse_points
from omendb.model import INT64_MAX, INT64_MIN, Batch

Int64 = Annotated[int, msgspec.Meta(ge=INT64_MIN, le=INT64_MAX)]
SeriesId = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]


class Point(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One point of an array."""

    series_id: SeriesId
    timestamp: Int64
    value: float


class Points(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One object: a point, or columns of points. One type for both is decoded in one pass."""

    series_id: SeriesId | list[SeriesId]
    timestamp: Int64 | list[Int64]
    value: float | list[float]


class SeriesName(msgspec.Struct, forbid_unknown_fields=True):
    """A named series."""

    series_id: SeriesId
    measurement: str
    field: str
    tags: dict[str, str]


class SeriesAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """Named series, ascending by id."""

    count: int
    series: list[SeriesName]
    cursor: str | None


class RetrainBody(msgspec.Struct, forbid_unknown_fields=True):
    """The optional body of ``POST /admin/retrain-index``."""

    max_error: Int64 | None = None


class BackupBody(msgspec.Struct, forbid_unknown_fields=True):
    """The optional body of ``POST /admin/backup``."""

    name: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None = None
    verify: bool = False


class EmptyBody(msgspec.Struct, forbid_unknown_fields=True):
    """A body without fields."""


_decode_object = msgspec.json.Decoder(Points).decode
_decode_array = msgspec.json.Decoder(list[Point]).decode
_decode_retrain = msgspec.json.Decoder(RetrainBody).decode
_decode_backup = msgspec.json.Decoder(BackupBody).decode
_decode_empty = msgspec.json.Decoder(EmptyBody).decode

KERNEL_BYTES_MIN = 512
"""Bodies from this size on are read by a kernel, unless it gives up; below it msgspec is faster."""

BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError)

GZIP_MAGIC = b"\x1f\x8b"


def decode_points(body: bytes) -> Batch:
    """Read the body of an insert.

    Parameters
    ----------
    body : bytes
        JSON: one point, an array of points, or columns.

    Returns
    -------
    Batch
        In the order of the body. Empty for an empty array, and for empty columns.

    Raises
    ------
    InvalidRequestError
        Naming the first field that cannot be accepted: ``"[3].timestamp"``, ``"value[7]"``.
    """
    if len(body) >= KERNEL_BYTES_MIN:
        batch = _from_kernel(body)
        if batch is not None:
            return batch
    try:
        if body[:1] == b"[" or body.lstrip()[:1] == b"[":
            return _from_array(_decode_array(body))
        points = _decode_object(body)
    except BAD_JSON as error:
        _refuse(body, error)
    return _from_object(points)


def decode_retrain(body: bytes) -> RetrainBody:
    """Read the body of a retrain: nothing, or ``{"max_error": n}``.

    Raises
    ------
    InvalidRequestError
    """
    try:
        return _decode_retrain(body) if body else RetrainBody()
    except BAD_JSON as error:
        _refuse(body, error)


def decode_backup(body: bytes) -> BackupBody:
    """Read the body of a backup: nothing, or ``{"name": "...", "verify": true}``, both optional.

    Raises
    ------
    InvalidRequestError
    """
    try:
        return _decode_backup(body) if body else BackupBody()
    except BAD_JSON as error:
        _refuse(body, error)


def decode_empty(body: bytes) -> None:
    """Check the body of a call that takes no arguments: nothing, or ``{}``.

    Raises
    ------
    InvalidRequestError
    """
    try:
        if body:
            _decode_empty(body)
    except BAD_JSON as error:
        _refuse(body, error)


def _from_kernel(body: bytes) -> Batch | None:
    """Read a body that is valid and plainly written; None when msgspec must decide."""
    text = np.frombuffer(body, np.uint8)
    size = count_points_bound(text)
    series_id, timestamp = np.empty(size, np.int64), np.empty(size, np.int64)
    value = np.empty(size, np.float64)
    count, code = parse_points(text, series_id, timestamp, value)
    if code != PARSED:
        return None
    return Batch(series_id[:count], timestamp[:count], value[:count])


def _from_array(points: list[Point]) -> Batch:
    return Batch(
        np.array([point.series_id for point in points], np.int64),
        np.array([point.timestamp for point in points], np.int64),
        np.array([point.value for point in points], np.float64),
    )


def _from_object(points: Points) -> Batch:
    timestamp, value, series_id = points.timestamp, points.value, points.series_id
    if isinstance(timestamp, int):
        if isinstance(value, list):
            raise InvalidRequestError("value is an array, but timestamp is one number", "value")
        if isinstance(series_id, list):
            raise InvalidRequestError("series_id is an array, but timestamp is one number", "series_id")
        return Batch(
            np.array((series_id,), np.int64),
            np.array((timestamp,), np.int64),
            np.array((value,), np.float64),
        )
    if not isinstance(value, list):
        raise InvalidRequestError("timestamp is an array, but value is one number", "value")
    count = len(timestamp)
    if len(value) != count:
        raise InvalidRequestError(
            f"columns differ in length: timestamp has {count}, value has {len(value)}", "value"
        )
    if isinstance(series_id, int):
        ids = np.full(count, series_id, np.int64)
    elif len(series_id) == count:
        ids = np.array(series_id, np.int64)
    else:
        raise InvalidRequestError(
            f"columns differ in length: timestamp has {count}, series_id has {len(series_id)}",
            "series_id",
        )
    return Batch(ids, np.array(timestamp, np.int64), np.array(value, np.float64))


def _refuse(body: bytes, error: msgspec.DecodeError | UnicodeDecodeError) -> NoReturn:
    """Turn a decoder's error into ours."""
    if not body:
        raise InvalidRequestError("the body is empty") from error
    if body.startswith(GZIP_MAGIC):
        raise InvalidRequestError("the body is compressed; send it as plain JSON") from error
    if isinstance(error, UnicodeDecodeError):
        raise InvalidRequestError("the body is not UTF-8") from error
    message, _, path = str(error).partition(" - at `$")
    field = path.removesuffix("`").removeprefix(".")
    if isinstance(error, msgspec.ValidationError):
        message, named = _named_field(message)
        if named:
            field = f"{field}.{named}" if field else named
        raise InvalidRequestError(message, field or None) from error
    if message == "Input data was truncated":
        message = "JSON is malformed: it ends too early"
    raise InvalidRequestError(message) from error


def _named_field(message: str) -> tuple[str, str | None]:
    """Return a decoder's message in our words, and the field that it names, if it names one."""
    for start, ours in (
        ("Object missing required field `", "is missing"),
        ("Object contains unknown field `", "is not a known field"),
    ):
        if message.startswith(start):
            name = message[len(start) : -1]
            return f"{name} {ours}", name
    # "Expected `int | array`, got `str`"
    message = message.replace("`", "").replace(" | ", " or ")
    return message[:1].lower() + message[1:], None
