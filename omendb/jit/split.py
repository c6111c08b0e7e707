"""Splits a scan into shards of about equal work that together give its answer, in order.

A *shard* is either a span of series over the whole range of time, or a part of the range of one series that
has many rows by itself. The bounds of a shard only decide how evenly the work is spread: whatever they are,
each row belongs to exactly one shard. So rows that have not been verified may be looked at to choose them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from omendb.jit import layout
from omendb.jit._compile import kernel, load_i64
from omendb.jit.merge import (
    CHECK_WIDEN,
    INT64_MAX,
    RANGE_FIRST,
    RANGE_LAST,
    RANGE_SOURCE,
    RANGE_START,
    RANGE_STOP,
    ROWS_UNLIMITED,
    WORK_WIDTH,
    borrowed,
    find_ranges,
    next_series,
    open_cursors,
    rows_verified,
    seek_run,
)
from omendb.jit.window import ordinal, timestamp_of, window_bounds

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Words of a shard.
SHARD_FIRST_SERIES = 0
SHARD_LAST_SERIES = 1  # inclusive
SHARD_START = 2
SHARD_END = 3  # inclusive
SHARD_ROWS = 4  # at most so many
SHARD_WIDTH = 5


@kernel
def split_scan(
    sources: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    after_series: int,
    after_timestamp: int,
    resume: bool,
    origin: int,
    step: int,
    rows: int,
    shards: NDArray[np.int64],
) -> tuple[int, int]:
    """Cut a scan into shards of about `rows` rows.

    Parameters
    ----------
    sources, series, every_series, start, end, after_series, after_timestamp, resume
        As for `omendb.jit.merge.scan_rows`.
    origin, step : int
        Cuts in time fall between the windows of this grid; with a step of 0 they fall anywhere.
    rows : int
        At least 1. A series of more than twice as many is cut in time.
    shards : ndarray of int64, shape (n, SHARD_WIDTH)
        At least one; when there are not enough, the last one takes what is left.

    Returns
    -------
    count : int
        Shards, in the order of the answer. What is in none of them holds no rows.
    total : int
        An upper bound of the rows of all, as `omendb.jit.merge.bound_rows` gives it.
    """
    work = np.empty((WORK_WIDTH, len(sources) + 1), np.int64)
    answer = split_borrowed(
        borrowed(sources),
        borrowed(work),
        borrowed(series),
        every_series,
        start,
        end,
        after_series,
        after_timestamp,
        resume,
        origin,
        step,
        rows,
        borrowed(shards),
    )
    work[0, 0] = 0  # what is used below here is not freed above
    return answer


@kernel
def split_borrowed(
    sources: NDArray[np.int64],
    work: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    after_series: int,
    after_timestamp: int,
    resume: bool,
    origin: int,
    step: int,
    rows: int,
    shards: NDArray[np.int64],
) -> tuple[int, int]:
    """Do `split_scan` with borrowed arrays and a workspace."""
    live, position = open_cursors(sources, work, series, every_series, start, end, after_series, resume)
    capacity = len(shards)
    shard_count = 0
    total = 0
    is_open = False  # whether the last shard may take more series
    hit_count = 0
    while True:
        series_id, position, hit_count = next_series(
            sources, work, live, series, every_series, position, hit_count
        )
        if hit_count == 0:
            return shard_count, total
        low = start
        if resume and series_id == after_series:
            if after_timestamp >= end:
                continue
            low = max(start, after_timestamp + 1)
        count, _, _, _ = find_ranges(sources, work, hit_count, low, end, ROWS_UNLIMITED, CHECK_WIDEN)
        found = 0
        largest = 0
        for index in range(count):
            length = work[RANGE_STOP, index] - work[RANGE_START, index]
            found += length
            if length > work[RANGE_STOP, largest] - work[RANGE_START, largest]:
                largest = index
        if found == 0:
            continue
        total += found
        pieces = found // rows
        if pieces >= 2 and shard_count + pieces < capacity:  # so the last one of all is a span of series
            shard_count = split_series(
                sources,
                work,
                largest,
                series_id,
                low,
                end,
                origin,
                step,
                found,
                pieces,
                shards,
                shard_count,
            )
            is_open = False
        elif is_open or shard_count == capacity:
            shards[shard_count - 1, SHARD_LAST_SERIES] = series_id
            shards[shard_count - 1, SHARD_ROWS] += found
        else:
            shards[shard_count, SHARD_FIRST_SERIES] = series_id
            shards[shard_count, SHARD_LAST_SERIES] = series_id
            shards[shard_count, SHARD_START] = start
            shards[shard_count, SHARD_END] = end
            shards[shard_count, SHARD_ROWS] = found
            shard_count += 1
        is_open = shard_count > 0 and pieces < 2 and shards[shard_count - 1, SHARD_ROWS] < rows


@kernel
def split_series(
    sources: NDArray[np.int64],
    work: NDArray[np.int64],
    index: int,
    series_id: int,
    start: int,
    end: int,
    origin: int,
    step: int,
    rows: int,
    pieces: int,
    shards: NDArray[np.int64],
    shard_count: int,
) -> int:
    """Cut the range of one series into at most `pieces` shards; return the new number of shards.

    Parameters
    ----------
    index : int
        The range of the workspace whose rows decide where to cut.
    rows : int
        Of all its ranges.
    """
    source_index = work[RANGE_SOURCE, index]
    row_start = work[RANGE_START, index]
    length = work[RANGE_STOP, index] - row_start
    first = work[RANGE_FIRST, index]
    last = max(first, work[RANGE_LAST, index])
    timestamps = sources[source_index, layout.TIMESTAMPS]
    share = (ordinal(last) - ordinal(first)) // np.uint64(pieces)
    low = start
    for piece in range(1, pieces):
        row = row_start + length * piece // pieces
        if sources[source_index, layout.VERIFIED] == 0 or rows_verified(sources, source_index, row, row + 1):
            cut = load_i64(timestamps, row)
        else:
            cut = timestamp_of(ordinal(first) + share * np.uint64(piece))
        if step > 0:
            cut = window_bounds(cut, origin, step)[1]
        if low <= cut and cut < end:
            shards[shard_count, SHARD_FIRST_SERIES] = series_id
            shards[shard_count, SHARD_LAST_SERIES] = series_id
            shards[shard_count, SHARD_START] = low
            shards[shard_count, SHARD_END] = cut
            shards[shard_count, SHARD_ROWS] = rows
            shard_count += 1
            low = cut + 1
    shards[shard_count, SHARD_FIRST_SERIES] = series_id
    shards[shard_count, SHARD_LAST_SERIES] = series_id
    shards[shard_count, SHARD_START] = low
    shards[shard_count, SHARD_END] = end
    shards[shard_count, SHARD_ROWS] = rows
    return shard_count + 1


@kernel
def narrow_sources(
    sources: NDArray[np.int64], first_series: int, last_series: int, out: NDArray[np.int64]
) -> None:
    """Describe the part of each source that holds a span of series.

    Parameters
    ----------
    sources : ndarray of int64, shape (k, SOURCE_WIDTH)
    first_series, last_series : int
        Inclusive.
    out : ndarray of int64, shape (k, SOURCE_WIDTH)
        Sources with the same rows, in the same places, and only the runs of the span: also in the same
        order, so that the index of a source means the same in both.

    Notes
    -----
    Of a source that is cut, the model over its series is left out: it belongs to all of them.
    """
    for index in range(len(sources)):
        for field in range(layout.SOURCE_WIDTH):
            out[index, field] = sources[index, field]
        low = 0
        high = sources[index, layout.RUN_COUNT]
        if high == 0:
            continue
        if (
            sources[index, layout.FIRST_SERIES] > last_series
            or sources[index, layout.LAST_SERIES] < first_series
        ):
            out[index, layout.RUN_COUNT] = 0
            continue
        if sources[index, layout.FIRST_SERIES] < first_series:
            low = seek_run(sources, index, first_series)
        if sources[index, layout.LAST_SERIES] > last_series:  # so last_series + 1 does not overflow
            high = seek_run(sources, index, last_series + 1)
        out[index, layout.RUN_COUNT] = high - low
        if low < high < sources[index, layout.RUN_COUNT] or 0 < low < high:
            runs = sources[index, layout.RUNS]
            out[index, layout.RUNS] = runs + low * (8 * layout.RUN_WIDTH)
            out[index, layout.FIRST_SERIES] = load_i64(runs, low * layout.RUN_WIDTH + layout.RUN_SERIES)
            out[index, layout.LAST_SERIES] = load_i64(runs, (high - 1) * layout.RUN_WIDTH + layout.RUN_SERIES)
            out[index, layout.SERIES_KNOTS] = 0
            out[index, layout.SERIES_KNOT_COUNT] = 0


def warmup() -> None:
    """Compile every kernel, or load it from the cache, with the types of real calls."""
    sources = np.zeros((0, layout.SOURCE_WIDTH), np.int64)
    series = np.zeros(0, np.int64)
    shards = np.zeros((1, SHARD_WIDTH), np.int64)
    split_scan(sources, series, True, 0, INT64_MAX, 0, 0, False, 0, 1, 1, shards)
    narrow_sources(sources, 0, 0, sources)
