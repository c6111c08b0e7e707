"""One window of more rows than should be decoded at a time: it is reduced piece by piece.

Counts, extremes, first and last are what they are in one go; sums may differ in the last bits, because the
pieces are added up one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from omendb.jit import layout, window
from omendb.storage.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterable

    from omendb.model import Columns


class Reduced(NamedTuple):
    """A window, or the part of one, as `omendb.jit.window.scan_windows` writes it."""

    series_id: int
    window: int
    rows: int
    total: float
    lowest: float
    highest: float
    first: float
    last: float
    squares: float
    first_at: int
    last_at: int


def reduce(
    pieces: Iterable[Columns],
    origin: int,
    step: int,
    simd: bool,
    want_variance: bool,
    want_times: bool,
) -> Reduced | None:
    """Reduce the first window of a scan; None when there are no rows.

    Parameters
    ----------
    pieces : iterable of Columns
        The rows in order, none of the pieces empty. No more are taken than are needed.
    origin, step, simd
        As for `omendb.jit.window.scan_windows`.
    want_variance, want_times : bool
        Whether `squares`, and the two times, are made.
    """
    whole: Reduced | None = None
    for piece in pieces:
        part, is_last = _reduce_piece(piece, origin, step, simd, want_variance, want_times)
        if whole is None:
            whole = part
        elif (part.series_id, part.window) != (whole.series_id, whole.window):
            return whole
        else:
            whole = combine(whole, part)
        if is_last:
            return whole
    return whole


def combine(early: Reduced, late: Reduced) -> Reduced:
    """Put two parts of a window together, the second after the first in time.

    Notes
    -----
    Squared deviations after Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for
    computing sample variances, 1979, eq. 2.1.
    """
    rows = early.rows + late.rows
    distance = late.total / late.rows - early.total / early.rows
    return Reduced(
        early.series_id,
        early.window,
        rows,
        early.total + late.total,
        float(np.fmin(early.lowest, late.lowest)),
        float(np.fmax(early.highest, late.highest)),
        early.first,
        late.last,
        early.squares + late.squares + distance * distance * early.rows / rows * late.rows,
        early.first_at,
        late.last_at,
    )


def _reduce_piece(
    piece: Columns, origin: int, step: int, simd: bool, want_variance: bool, want_times: bool
) -> tuple[Reduced, bool]:
    """Reduce the first window of a piece; also return whether it ends inside of it."""
    series_id = int(piece.series_id[0])
    stop = int(np.searchsorted(piece.series_id, series_id, "right"))
    timestamp, value = piece.timestamp[:stop], piece.value[:stop]
    runs = np.zeros((1, layout.RUN_WIDTH), np.int64)
    runs[0, : layout.RUN_LAST + 1] = series_id, 0, stop, timestamp[0], timestamp[-1]
    source = Source(runs, timestamp, value)
    # Room for two: the second one tells that the first has ended.
    integers = np.zeros((5, 2), np.int64)
    floats = np.zeros((6, 2))
    written, *_ = window.scan_windows(
        source.row[np.newaxis],
        runs[0, :1],
        True,
        int(timestamp[0]),
        int(timestamp[-1]),
        origin,
        step,
        simd,
        0,
        0,
        False,
        want_variance,
        want_times,
        *integers[:3],
        *floats,
        *integers[3:],
    )
    _, start, rows, first_at, last_at = integers[:, 0].tolist()
    total, lowest, highest, first, last, squares = floats[:, 0].tolist()
    part = Reduced(series_id, start, rows, total, lowest, highest, first, last, squares, first_at, last_at)
    return part, written > 1 or stop < len(piece.series_id)
