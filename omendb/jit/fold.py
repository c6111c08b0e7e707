"""Merges the windows of several series into one row a window.

Windows come as `omendb.jit.window.scan_windows` writes them, and go into a table of *entries*, one for each
window met so far, in the order in which they were met. A table is also what is merged into another one: so
parts of the series can be folded in threads, and their tables after each other.

What becomes of two rows of a window: counts and sums are added, extremes are those of both, squared
deviations are combined, so that mean and standard deviation are those of all points. The first value is the
earliest one, of equal timestamps that of the row that came first; the last value is the latest one, of equal
timestamps that of the row that came last. Series come in ascending order, so these are the lowest and the
highest series. Sums depend in their last bits on the order of the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from omendb.jit._compile import kernel, multiply_fold
from omendb.jit.window import greater, lesser

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Rows of the integers of windows.
WINDOW = 0  # first timestamp
COUNT = 1
FIRST_AT = 2  # timestamp of the first value
LAST_AT = 3
INTEGERS = 4

# Rows of the floats of windows.
SUM = 0
MIN = 1
MAX = 2
FIRST = 3
LAST = 4
SQUARES = 5  # squared deviations from the mean
FLOATS = 6

SLOT_FREE = -1
_HASH_FACTOR = 0x1E37_79B9_7F4A_7C15  # about 2**61 times the golden ratio, odd


@kernel
def fold_windows(
    integers: NDArray[np.int64],
    floats: NDArray[np.float64],
    count: int,
    want_variance: bool,
    slots: NDArray[np.int64],
    size: int,
    into_integers: NDArray[np.int64],
    into_floats: NDArray[np.float64],
) -> tuple[int, int]:
    """Merge windows into a table.

    Parameters
    ----------
    integers : ndarray of int64, shape (INTEGERS, n)
    floats : ndarray of float64, shape (FLOATS, n)
        The windows; of one series after the other, or a table.
    count : int
        How many there are, at most n.
    want_variance : bool
        Whether squared deviations are merged.
    slots : ndarray of int64, shape (2**k,)
        Hash table of the entries, more than there can be entries; all `SLOT_FREE` at first.
    size : int
        Entries of the table so far.
    into_integers, into_floats : ndarray, shape (INTEGERS, capacity), (FLOATS, capacity)
        The table.

    Returns
    -------
    taken : int
        Windows that were merged: fewer than `count` when the table is full.
    size : int

    Notes
    -----
    The entry of a window is mostly the one behind that of the window before, because series have windows
    at the same times: that is looked at before the hash table.
    """
    mask = len(slots) - 1
    capacity = into_integers.shape[1]
    entry = -1
    for index in range(count):
        window = integers[WINDOW, index]
        entry += 1
        if entry >= size or into_integers[WINDOW, entry] != window:
            place = multiply_fold(window, _HASH_FACTOR) & mask
            while slots[place] != SLOT_FREE and into_integers[WINDOW, slots[place]] != window:
                place = (place + 1) & mask
            entry = slots[place]
            if entry == SLOT_FREE:
                if size == capacity:
                    return index, size
                slots[place] = entry = size
                size += 1
                for field in range(INTEGERS):
                    into_integers[field, entry] = integers[field, index]
                for field in range(FLOATS):
                    into_floats[field, entry] = floats[field, index]
                continue
        rows = integers[COUNT, index]
        rows_before = into_integers[COUNT, entry]
        if want_variance:
            # As in `omendb.jit.window.reduce_rows`.
            distance = floats[SUM, index] / rows - into_floats[SUM, entry] / rows_before
            weight = rows_before / (rows_before + rows) * rows
            into_floats[SQUARES, entry] += floats[SQUARES, index] + distance * distance * weight
        into_integers[COUNT, entry] = rows_before + rows
        into_floats[SUM, entry] += floats[SUM, index]
        into_floats[MIN, entry] = lesser(into_floats[MIN, entry], floats[MIN, index])
        into_floats[MAX, entry] = greater(into_floats[MAX, entry], floats[MAX, index])
        if integers[FIRST_AT, index] < into_integers[FIRST_AT, entry]:
            into_integers[FIRST_AT, entry] = integers[FIRST_AT, index]
            into_floats[FIRST, entry] = floats[FIRST, index]
        if integers[LAST_AT, index] >= into_integers[LAST_AT, entry]:
            into_integers[LAST_AT, entry] = integers[LAST_AT, index]
            into_floats[LAST, entry] = floats[LAST, index]
    return count, size


def warmup() -> None:
    """Compile every kernel, or load it from the cache, with the types of real calls."""
    integers, floats = np.zeros((INTEGERS, 1), np.int64), np.zeros((FLOATS, 1))
    slots = np.full(2, SLOT_FREE, np.int64)
    fold_windows(integers, floats, 1, False, slots, 0, integers.copy(), floats.copy())
