"""The values that pass between the layers: batches in, columns and windows out.

Invariants: a `Batch` is valid by construction (equal lengths, exact dtypes, finite values, no negative
series). Arrays are never written to after they have been handed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from omendb.errors import InvalidRequestError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1

AGGREGATES = ("count", "sum", "min", "max", "mean", "first", "last", "stddev")
"""The window aggregates, in the order of the columns that the kernels write."""

BY_SERIES = ("series_id",)
"""What the rows of a window query are by, unless told otherwise; the other way is by nothing: ``()``."""


class Batch(NamedTuple):
    """Points that are stored together, all or none.

    Attributes
    ----------
    series_id : ndarray of int64, shape (n,)
        At least 0.
    timestamp : ndarray of int64, shape (n,)
        In the store's timestamp unit, any order, repeats allowed: the later position wins.
    value : ndarray of float64, shape (n,)
        Finite.
    """

    series_id: NDArray[np.int64]
    timestamp: NDArray[np.int64]
    value: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows in ascending order of ``(series_id, timestamp)``, as three arrays of equal length.

    Attributes
    ----------
    series_id : ndarray of int64, shape (n,)
    timestamp : ndarray of int64, shape (n,)
        In the store's timestamp unit.
    value : ndarray of float64, shape (n,)
    """

    series_id: NDArray[np.int64]
    timestamp: NDArray[np.int64]
    value: NDArray[np.float64]

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.timestamp)


@dataclass(frozen=True, slots=True)
class Windows:
    """Window aggregates in ascending order of ``(series_id, timestamp)``; empty windows are left out.

    Attributes
    ----------
    series_id : ndarray of int64, shape (n,), or None
        None when all series were merged.
    timestamp : ndarray of int64, shape (n,)
        First timestamp of the window.
    columns : dict of str to ndarray, each of shape (n,)
        One entry an aggregate asked for; ``count`` is int64, the others float64. ``stddev`` is that of the
        population (divisor n).
    """

    series_id: NDArray[np.int64] | None
    timestamp: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]

    @property
    def count(self) -> int:
        """Number of windows."""
        return len(self.timestamp)


def make_batch(series_id: ArrayLike, timestamp: ArrayLike, value: ArrayLike) -> Batch:
    """Validate points and bring them into one form.

    Parameters
    ----------
    series_id : int or array_like of int, shape (n,)
        At least 0. A single id may go with arrays of timestamps and values.
    timestamp : int or array_like of int, shape (n,)
    value : float or array_like of float, shape (n,)
        Finite.

    Returns
    -------
    Batch

    Raises
    ------
    InvalidRequestError
        Naming the field, and the first position and value that cannot be accepted.
    """
    timestamps = _integers(timestamp, "timestamp")
    values = _floats(value)
    ids = _integers(series_id, "series_id")
    if ids.shape == (1,) and np.ndim(series_id) == 0:
        ids = np.full(timestamps.shape, ids[0], dtype=np.int64)
    if not len(ids) == len(timestamps) == len(values):
        raise InvalidRequestError(
            f"columns differ in length: series_id {len(ids)}, timestamp {len(timestamps)}, "
            f"value {len(values)}",
            "timestamp" if len(timestamps) != len(values) else "series_id",
        )
    if len(ids) and int(ids.min()) < 0:
        at = int(np.argmax(ids < 0))
        raise InvalidRequestError(f"series_id must be at least 0, got {ids[at]}", f"series_id[{at}]")
    finite = np.isfinite(values)
    if not finite.all():
        at = int(np.argmin(finite))
        raise InvalidRequestError(f"value must be finite, got {values[at]}", f"value[{at}]")
    return Batch(ids, timestamps, values)


def _integers(given: ArrayLike, field: str) -> NDArray[np.int64]:
    try:
        array = np.atleast_1d(np.asarray(given))
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(f"{field} must hold integers: {error}", field) from error
    if array.ndim != 1:
        raise InvalidRequestError(f"{field} must have one dimension, got {array.ndim}", field)
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.dtype.kind == "u":
        if int(array.max()) > INT64_MAX:
            raise InvalidRequestError(f"{field} must fit 64 bits signed, got {array.max()}", field)
    elif array.dtype.kind != "i":
        raise InvalidRequestError(f"{field} must hold integers, got {array.dtype}", field)
    return np.ascontiguousarray(array, dtype=np.int64)


def _floats(given: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.atleast_1d(np.asarray(given))
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(f"value must hold numbers: {error}", "value") from error
    if array.ndim != 1:
        raise InvalidRequestError(f"value must have one dimension, got {array.ndim}", "value")
    if array.size and array.dtype.kind not in "iuf":
        raise InvalidRequestError(f"value must hold numbers, got {array.dtype}", "value")
    return np.ascontiguousarray(array, dtype=np.float64)
