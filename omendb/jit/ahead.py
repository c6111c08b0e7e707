"""Which rows a scan is about to read, from the models alone: no row is touched, and none waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from omendb.jit import layout
from omendb.jit._compile import inline_kernel, kernel, load_i64, load_u8
from omendb.jit.merge import CURSOR_RUN, CURSOR_SOURCE, HIT, WORK_WIDTH, borrowed, next_series, open_cursors
from omendb.jit.search import guess_row

if TYPE_CHECKING:
    from numpy.typing import NDArray

RANGE_WIDTH = 3  # source, first row, row after the last


@kernel
def list_ahead(
    sources: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    first_series: int,
    resume: bool,
    rows: int,
    out: NDArray[np.int64],
) -> tuple[int, int, bool]:
    """List what a scan reads first of each run, in order of series, until there is no more room.

    Parameters
    ----------
    sources, series, every_series, start, end
        As for `omendb.jit.merge.scan_rows`.
    first_series : int
        With `resume`, only series from this one on.
    resume : bool
    rows : int
        Rows of each run at most, at least 1.
    out : ndarray of int64, shape (n, RANGE_WIDTH)
        Written: source, first row, and row after the last. Neighbours are joined. Sources that are not
        mapped (memtables' copies) are left out.

    Returns
    -------
    count : int
        Ranges written.
    next_series : int
        Where to go on.
    more : bool
        Whether there is something to go on with.

    Notes
    -----
    Where a range begins is what the model says: off by its error, which is no matter for advice. A block
    whose checksum was never checked is read whole, and listed whole.
    """
    work = np.empty((WORK_WIDTH, len(sources) + 1), np.int64)
    last = np.full(len(sources), -1, np.int64)
    answer = list_borrowed(
        borrowed(sources),
        borrowed(work),
        borrowed(last),
        borrowed(series),
        every_series,
        start,
        end,
        first_series,
        resume,
        rows,
        out,
    )
    work[0, 0] = 0  # what is used below here is not freed above
    if len(last):
        last[0] = 0
    return answer


@kernel
def list_borrowed(
    sources: NDArray[np.int64],
    work: NDArray[np.int64],
    last: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    first_series: int,
    resume: bool,
    rows: int,
    out: NDArray[np.int64],
) -> tuple[int, int, bool]:
    """Do `list_ahead` with borrowed arrays, a workspace, and the last range of each source."""
    live, position = open_cursors(sources, work, series, every_series, start, end, first_series, resume)
    hit_count = 0
    count = 0
    visited = 0
    while True:
        series_id, position, hit_count = next_series(
            sources, work, live, series, every_series, position, hit_count
        )
        if hit_count == 0:
            return count, 0, False
        # Joined ranges take no room, but time.
        if count + hit_count > len(out) or visited > 4 * len(out):
            return count, series_id, True
        visited += hit_count
        for hit in range(hit_count):
            cursor = work[HIT, hit]
            index = work[CURSOR_SOURCE, cursor]
            if sources[index, layout.VERIFIED] == 0:
                continue
            low, high = guess_range(sources[index], work[CURSOR_RUN, cursor], start, end, rows)
            if low >= high:
                continue
            place = last[index]
            if place >= 0 and out[place, 1] <= low <= out[place, 2]:
                out[place, 2] = max(out[place, 2], high)
                continue
            out[count, 0] = index
            out[count, 1] = low
            out[count, 2] = high
            last[index] = count
            count += 1


@inline_kernel
def guess_range(source: NDArray[np.int64], run: int, start: int, end: int, rows: int) -> tuple[int, int]:
    """Guess the first rows of a run in a range of time, at most `rows`; an empty range when it has none."""
    record = source[layout.RUNS] + run * (8 * layout.RUN_WIDTH)
    first = load_i64(record, layout.RUN_FIRST)
    last = load_i64(record, layout.RUN_LAST)
    low = load_i64(record, layout.RUN_START)
    stop = load_i64(record, layout.RUN_STOP)
    high = stop
    if low >= stop or first > end or last < start:
        return 0, 0
    if load_i64(record, layout.RUN_SHAPE) & 0xFF != layout.KIND_NONE:
        error = load_i64(record, layout.RUN_ERROR)
        run_start = low
        if first < start:
            guess, _ = guess_row(source[layout.KNOTS], source[layout.PIECES], record, start)
            low = min(max(guess - error - 1, run_start), stop - 1)
        if last > end:
            guess, _ = guess_row(source[layout.KNOTS], source[layout.PIECES], record, end)
            high = max(min(guess + error + 2, stop), low + 1)
    high = min(high, low + rows)
    verified = source[layout.VERIFIED]
    shift = source[layout.BLOCK_SHIFT]
    if load_u8(verified, low >> shift) == 0:
        low = low >> shift << shift
    if load_u8(verified, (high - 1) >> shift) == 0:
        high = min(((high - 1) >> shift) + 1 << shift, source[layout.ROWS])
    return low, high


def warmup() -> None:
    """Compile the kernels, or load them from the cache, with the types of real calls."""
    sources = np.zeros((0, layout.SOURCE_WIDTH), np.int64)
    out = np.zeros((1, RANGE_WIDTH), np.int64)
    list_ahead(sources, np.zeros(0, np.int64), True, 0, 0, 0, False, 1, out)
