"""Window aggregates over a range scan: count, sum, min, max, first, last and squared deviations.

Windows are ``[origin + i * step, origin + (i + 1) * step)`` for every integer ``i``, cut to the range asked
for, a series at a time; empty ones are left out. Rows come from `omendb.jit.merge`: stretches of one source
are reduced where they lie, interleaving sources are merged into a small scratch first.

Arithmetic is exact over all of int64. Timestamps are mapped to *ordinals*, uint64 in the same order, whose
differences cannot overflow. The one window that would start before the smallest int64 is reported with the
smallest int64 as its start; no other window can have that start.

A sum adds the rows of each stretch in eight lanes (row ``j`` of the stretch to lane ``j mod 8``), the lanes
in pairs, the remaining up to seven rows one after the other, then the stretches in the order of time. So the
last bits may depend on how rows are spread over sources. NaN makes sum and squared deviations NaN; min and
max leave it out unless there is nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from omendb.jit import layout
from omendb.jit._compile import inline_kernel, kernel, load_f64, load_i64, prefetch
from omendb.jit.merge import (
    CHECK_ALL,
    CHECK_EDGES,
    INT64_MAX,
    INT64_MIN,
    RANGE_FIRST,
    RANGE_LAST,
    RANGE_SOURCE,
    RANGE_START,
    RANGE_STOP,
    ROWS_UNLIMITED,
    SCRATCH_ROWS,
    STEP_BLOCK,
    STEP_DONE,
    WORK_WIDTH,
    borrowed,
    check_ranges,
    find_ranges,
    merge_step,
    next_series,
    open_cursors,
    order_ranges,
)
from omendb.jit.vector import REDUCE_LANES, SQUARE_LANES, reduce_vectors, square_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Typed constants: uint64 with a plain int is float64 in Numba.
ORDINAL_ZERO = np.uint64(0)
ORDINAL_ONE = np.uint64(1)
ORDINAL_MAX = np.uint64(2**64 - 1)
SIGN = np.int64(INT64_MIN)
SIGN_ORDINAL = np.uint64(2**63)

PREFETCH_WINDOWS = 4  # how many windows ahead their ends are asked for

WINDOWS_MAX = 2**62  # of one slab


@inline_kernel
def ordinal(timestamp: int) -> np.uint64:
    """Map a timestamp to ``timestamp + 2**63`` as uint64."""
    return np.uint64(np.int64(timestamp) ^ SIGN)


@inline_kernel
def timestamp_of(ordinal: np.uint64) -> int:
    """Undo `ordinal`."""
    return int(np.int64(ordinal ^ SIGN_ORDINAL))


@kernel
def window_bounds(timestamp: int, origin: int, step: int) -> tuple[int, int]:
    """Return the first and last timestamp of the window that holds `timestamp`, cut to int64.

    Parameters
    ----------
    timestamp, origin : int
        Any int64.
    step : int
        At least 1.
    """
    place = ordinal(timestamp)
    base = ordinal(origin)
    length = np.uint64(step)
    # How far into its window the timestamp lies, from differences that never wrap.
    if place >= base:
        inside = (place - base) % length
    else:
        inside = length - ORDINAL_ONE - (base - place - ORDINAL_ONE) % length
    first = place - min(inside, place)
    last = place + min(length - ORDINAL_ONE - inside, ORDINAL_MAX - place)
    return timestamp_of(first), timestamp_of(last)


@kernel
def advance_windows(last: int, step: int, count: int) -> int:
    """Return the last timestamp of the window `count` windows after the one that ends at `last`.

    Cut to the largest int64; ``count >= 0``.
    """
    room = ORDINAL_MAX - ordinal(last)
    if count == 0:
        return last
    if np.uint64(step) > room // np.uint64(count):
        return INT64_MAX
    return timestamp_of(ordinal(last) + np.uint64(step) * np.uint64(count))


@kernel
def scan_windows(
    sources: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    origin: int,
    step: int,
    simd: bool,
    after_series: int,
    after_window: int,
    resume: bool,
    want_variance: bool,
    want_times: bool,
    out_series: NDArray[np.int64],
    out_window: NDArray[np.int64],
    out_count: NDArray[np.int64],
    out_sum: NDArray[np.float64],
    out_min: NDArray[np.float64],
    out_max: NDArray[np.float64],
    out_first: NDArray[np.float64],
    out_last: NDArray[np.float64],
    out_m2: NDArray[np.float64],
    out_first_at: NDArray[np.int64],
    out_last_at: NDArray[np.int64],
) -> tuple[int, int, int, int, int]:
    """Write the aggregates of every window that holds rows, in order of ``(series_id, window start)``.

    Parameters
    ----------
    sources, series, every_series, start, end
        As for `omendb.jit.merge.scan_rows`.
    origin : int
        Start of a window, any int64.
    step : int
        Length of a window, at least 1.
    simd : bool
        Whether to use vector instructions; the answer is the same.
    after_series, after_window : int
        With `resume`, only windows after this one, which is a window as it was written.
    resume : bool
        Whether this continues an earlier scan.
    want_variance : bool
        Whether to write `out_m2`; else it may be empty.
    want_times : bool
        Whether to write `out_first_at` and `out_last_at`; else they may be empty.
    out_series, out_window, out_count : ndarray of int64, shape (n,)
        Series, first timestamp of the window (cut to int64, not to `start`), rows.
    out_sum, out_min, out_max, out_first, out_last : ndarray of float64, shape (n,)
        Of the window's values; first and last in time.
    out_m2 : ndarray of float64, shape (n,)
        Sum of squared deviations from the window's mean: variance times count.
    out_first_at, out_last_at : ndarray of int64, shape (n,)
        Timestamps of the first and the last value.

    Returns
    -------
    written, status, source_index, row_start, row_stop : int
        As for `omendb.jit.merge.scan_rows`, in windows. All windows written are complete.

    Notes
    -----
    A series is worked on in slabs of whole windows, just large enough to fill the output: a small answer
    out of a long series does not ask for all its rows to be verified. If windows turn out to be empty the
    next slab is twice as long, so that the number of slabs stays logarithmic.
    """
    work = np.empty((WORK_WIDTH, len(sources) + 1), np.int64)
    scratch_timestamp = np.empty(SCRATCH_ROWS, np.int64)
    scratch_value = np.empty(SCRATCH_ROWS, np.float64)
    answer = scan_borrowed(
        borrowed(sources),
        borrowed(work),
        borrowed(scratch_timestamp),
        borrowed(scratch_value),
        borrowed(series),
        every_series,
        start,
        end,
        origin,
        step,
        simd,
        after_series,
        after_window,
        resume,
        want_variance,
        want_times,
        borrowed(out_series),
        borrowed(out_window),
        borrowed(out_count),
        borrowed(out_sum),
        borrowed(out_min),
        borrowed(out_max),
        borrowed(out_first),
        borrowed(out_last),
        borrowed(out_m2),
        borrowed(out_first_at),
        borrowed(out_last_at),
    )
    work[0, 0] = 0  # what is used below here is not freed above
    scratch_timestamp[0] = 0
    scratch_value[0] = 0.0
    return answer


@kernel
def scan_borrowed(
    sources: NDArray[np.int64],
    work: NDArray[np.int64],
    scratch_timestamp: NDArray[np.int64],
    scratch_value: NDArray[np.float64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    origin: int,
    step: int,
    simd: bool,
    after_series: int,
    after_window: int,
    resume: bool,
    want_variance: bool,
    want_times: bool,
    out_series: NDArray[np.int64],
    out_window: NDArray[np.int64],
    out_count: NDArray[np.int64],
    out_sum: NDArray[np.float64],
    out_min: NDArray[np.float64],
    out_max: NDArray[np.float64],
    out_first: NDArray[np.float64],
    out_last: NDArray[np.float64],
    out_m2: NDArray[np.float64],
    out_first_at: NDArray[np.int64],
    out_last_at: NDArray[np.int64],
) -> tuple[int, int, int, int, int]:
    """Do `scan_windows` with borrowed arrays, a workspace and room to merge into."""
    scratch_timestamps = int(np.int64(scratch_timestamp.ctypes.data))
    scratch_values = int(np.int64(scratch_value.ctypes.data))
    live, position = open_cursors(sources, work, series, every_series, start, end, after_series, resume)
    capacity = len(out_series)
    written = 0
    hit_count = 0
    while True:
        series_id, position, hit_count = next_series(
            sources, work, live, series, every_series, position, hit_count
        )
        if hit_count == 0:
            return written, layout.STATUS_DONE, 0, 0, 0
        low = start
        if resume and series_id == after_series:
            _, after_last = window_bounds(after_window, origin, step)
            if after_last >= end:
                continue
            low = max(start, after_last + 1)
        windows = capacity - written + 1
        finished = False
        while not finished:
            count, source_index, row_start, row_stop = find_ranges(
                sources, work, hit_count, low, end, ROWS_UNLIMITED, CHECK_EDGES
            )
            if row_stop > row_start:
                return written, layout.STATUS_VERIFY, source_index, row_start, row_stop
            if count == 0:
                break
            if written == capacity:
                return written, layout.STATUS_FULL, 0, 0, 0
            first = work[RANGE_FIRST, 0]
            last = work[RANGE_LAST, 0]
            for index in range(1, count):
                first = min(first, work[RANGE_FIRST, index])
                last = max(last, work[RANGE_LAST, index])
            _, slab_end = window_bounds(first, origin, step)
            slab_end = advance_windows(slab_end, step, windows - 1)
            finished = slab_end >= last
            if finished:
                source_index, row_start, row_stop = check_ranges(sources, work, count)
            else:
                count, source_index, row_start, row_stop = find_ranges(
                    sources, work, hit_count, low, slab_end, ROWS_UNLIMITED, CHECK_ALL
                )
            if row_stop > row_start:
                return written, layout.STATUS_VERIFY, source_index, row_start, row_stop
            if count > 1:
                order_ranges(work, count)
            size = count
            window_last = low - 1 if low > INT64_MIN else low
            is_open = False
            while size > 0:
                if count == 1:
                    size = 0
                    kind = STEP_BLOCK
                    source_index = work[RANGE_SOURCE, 0]
                    row_start = work[RANGE_START, 0]
                    row_stop = work[RANGE_STOP, 0]
                else:
                    kind, source_index, row_start, row_stop, size = merge_step(
                        sources, work, size, scratch_timestamp, scratch_value, 0, SCRATCH_ROWS
                    )
                    if kind == STEP_DONE:
                        break
                timestamps = scratch_timestamps
                values = scratch_values
                if kind == STEP_BLOCK:
                    timestamps = sources[source_index, layout.TIMESTAMPS]
                    values = sources[source_index, layout.VALUES]
                written, is_open, window_last, full = reduce_rows(
                    timestamps,
                    values,
                    row_start,
                    row_stop,
                    series_id,
                    origin,
                    step,
                    simd,
                    written,
                    is_open,
                    window_last,
                    want_variance,
                    want_times,
                    out_series,
                    out_window,
                    out_count,
                    out_sum,
                    out_min,
                    out_max,
                    out_first,
                    out_last,
                    out_m2,
                    out_first_at,
                    out_last_at,
                )
                if full:
                    return written, layout.STATUS_FULL, 0, 0, 0
            if not finished:
                low = slab_end + 1
                windows = min(2 * windows, WINDOWS_MAX)


@kernel
def reduce_rows(
    timestamps: int,
    values: int,
    row: int,
    row_stop: int,
    series_id: int,
    origin: int,
    step: int,
    simd: bool,
    written: int,
    is_open: bool,
    window_last: int,
    want_variance: bool,
    want_times: bool,
    out_series: NDArray[np.int64],
    out_window: NDArray[np.int64],
    out_count: NDArray[np.int64],
    out_sum: NDArray[np.float64],
    out_min: NDArray[np.float64],
    out_max: NDArray[np.float64],
    out_first: NDArray[np.float64],
    out_last: NDArray[np.float64],
    out_m2: NDArray[np.float64],
    out_first_at: NDArray[np.int64],
    out_last_at: NDArray[np.int64],
) -> tuple[int, bool, int, bool]:
    """Add consecutive rows of one series, all later than those before, to their windows.

    Parameters
    ----------
    timestamps, values : int
        Addresses of the columns.
    row, row_stop : int
        Rows to add, ``row < row_stop``.
    series_id : int
        Theirs.
    origin, step, simd
        As for `scan_windows`.
    written : int
        Windows written, with the open one.
    is_open : bool
        Whether rows may still be added to the last window written.
    window_last : int
        Last timestamp of that window.
    want_variance, want_times, out_series, ...
        As for `scan_windows`.

    Returns
    -------
    written : int
    is_open : bool
    window_last : int
    full : bool
        The output has no room for the next window; rows of it are left.

    Notes
    -----
    The end of a window is looked for where it was in the window before, then outwards in doubling steps:
    two reads when the rows come regularly. The window of the next row is the next one as a rule; only when
    windows were empty it takes a division.
    """
    capacity = len(out_series)
    length = np.uint64(step)
    slice_last = load_i64(timestamps, row_stop - 1)
    expected = 1
    while row < row_stop:
        timestamp = load_i64(timestamps, row)
        continued = is_open and timestamp <= window_last
        if not continued:
            if written == capacity:
                return written, False, window_last, True
            window_first = timestamp
            if is_open and ordinal(timestamp) - ordinal(window_last) <= length:
                window_first = window_last + 1
                window_last = timestamp_of(
                    ordinal(window_last) + min(length, ORDINAL_MAX - ordinal(window_last))
                )
            else:
                window_first, window_last = window_bounds(timestamp, origin, step)
            is_open = True
            out_series[written] = series_id
            out_window[written] = window_first
            written += 1
        stop = row_stop
        if slice_last > window_last:
            stop = find_after(timestamps, row, row_stop - 1, row + expected, window_last)
        count = stop - row
        expected = count
        # Where a window ends is one line of a column that is not read otherwise: ask for it early.
        prefetch(timestamps + 8 * (stop + PREFETCH_WINDOWS * count - 1))
        total, lowest, highest = reduce_values(values, row, stop, simd)
        deviations = 0.0
        if want_variance:
            deviations = square_deviations(values, row, stop, total / count, simd)
        place = written - 1
        if continued:
            if want_variance:
                # Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample
                # variances, 1979, eq. 2.1.
                count_before = out_count[place]
                distance = total / count - float(out_sum[place]) / count_before
                weight = count_before / (count_before + count) * count
                deviations += distance * distance * weight
                out_m2[place] = float(out_m2[place]) + deviations
            out_count[place] += count
            out_sum[place] = float(out_sum[place]) + total
            out_min[place] = lesser(float(out_min[place]), lowest)
            out_max[place] = greater(float(out_max[place]), highest)
        else:
            if want_variance:
                out_m2[place] = deviations
            out_count[place] = count
            out_sum[place] = total
            out_min[place] = lowest
            out_max[place] = highest
            out_first[place] = load_f64(values, row)
            if want_times:
                out_first_at[place] = timestamp
        out_last[place] = load_f64(values, stop - 1)
        if want_times:
            out_last_at[place] = load_i64(timestamps, stop - 1)
        row = stop
    return written, is_open, window_last, False


@kernel
def find_after(timestamps: int, low: int, high: int, guess: int, window_last: int) -> int:
    """Find the first row after a window, outwards from a guess.

    Parameters
    ----------
    timestamps : int
        Address of the column.
    low, high : int
        Row `low` is in the window, row `high` is after it; the answer is in ``(low, high]``.
    guess : int
        Above `low`.
    window_last : int
        Last timestamp of the window.
    """
    if guess < high:
        distance = 1
        if load_i64(timestamps, guess) > window_last:
            high = guess
            while high - distance > low:
                if load_i64(timestamps, high - distance) <= window_last:
                    low = high - distance
                    break
                high -= distance
                distance += distance
        else:
            low = guess
            while low + distance < high:
                if load_i64(timestamps, low + distance) > window_last:
                    high = low + distance
                    break
                low += distance
                distance += distance
    while high - low > 1:
        middle = (low + high) >> 1
        if load_i64(timestamps, middle) > window_last:
            high = middle
        else:
            low = middle
    return high


@inline_kernel
def lesser(left: float, right: float) -> float:
    """Return the smaller one, or the one that is not NaN."""
    return right if right < left or left != left else left


@inline_kernel
def greater(left: float, right: float) -> float:
    """Return the greater one, or the one that is not NaN."""
    return right if right > left or left != left else left


@inline_kernel
def lower(old: float, new: float) -> float:
    """Return the smaller one, the old one where neither is (equal, or one is NaN)."""
    return new if new < old else old


@inline_kernel
def higher(old: float, new: float) -> float:
    """Return the greater one, the old one where neither is (equal, or one is NaN)."""
    return new if new > old else old


@kernel
def reduce_lanes(values: int, row: int, stop: int) -> tuple[float, float, float]:
    """Do what `omendb.jit.vector.reduce_vectors` does, one value at a time.

    Notes
    -----
    Eight lanes, written out: an addition need not wait for the one before it.
    """
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = np.inf
    b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = -np.inf
    while row + 8 <= stop:
        v0 = load_f64(values, row)
        v1 = load_f64(values, row + 1)
        v2 = load_f64(values, row + 2)
        v3 = load_f64(values, row + 3)
        v4 = load_f64(values, row + 4)
        v5 = load_f64(values, row + 5)
        v6 = load_f64(values, row + 6)
        v7 = load_f64(values, row + 7)
        s0 += v0
        s1 += v1
        s2 += v2
        s3 += v3
        s4 += v4
        s5 += v5
        s6 += v6
        s7 += v7
        a0 = v0 if v0 < a0 else a0
        a1 = v1 if v1 < a1 else a1
        a2 = v2 if v2 < a2 else a2
        a3 = v3 if v3 < a3 else a3
        a4 = v4 if v4 < a4 else a4
        a5 = v5 if v5 < a5 else a5
        a6 = v6 if v6 < a6 else a6
        a7 = v7 if v7 < a7 else a7
        b0 = v0 if v0 > b0 else b0
        b1 = v1 if v1 > b1 else b1
        b2 = v2 if v2 > b2 else b2
        b3 = v3 if v3 > b3 else b3
        b4 = v4 if v4 > b4 else b4
        b5 = v5 if v5 > b5 else b5
        b6 = v6 if v6 > b6 else b6
        b7 = v7 if v7 > b7 else b7
        row += 8
    total = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
    lowest = lower(lower(lower(a0, a1), lower(a2, a3)), lower(lower(a4, a5), lower(a6, a7)))
    highest = higher(higher(higher(b0, b1), higher(b2, b3)), higher(higher(b4, b5), higher(b6, b7)))
    return total, lowest, highest


@kernel
def reduce_values(values: int, row: int, stop: int, simd: bool) -> tuple[float, float, float]:
    """Return sum, minimum and maximum of ``values[row:stop]``, which is not empty.

    Notes
    -----
    With `simd` in vector registers, else one value at a time; the answer is the same, bit for bit.
    """
    total = 0.0
    lowest = np.inf
    highest = -np.inf
    if stop - row >= REDUCE_LANES:
        if simd:
            total, lowest, highest = reduce_vectors(values, row, stop)
        else:
            total, lowest, highest = reduce_lanes(values, row, stop)
        row += (stop - row) // REDUCE_LANES * REDUCE_LANES
    while row < stop:
        value = load_f64(values, row)
        total += value
        lowest = value if value < lowest else lowest
        highest = value if value > highest else highest
        row += 1
    if lowest > highest:  # nothing but NaN
        lowest = highest = np.nan
    return total, lowest, highest


@kernel
def square_lanes(values: int, row: int, stop: int, mean: float) -> tuple[float, float]:
    """Do what `omendb.jit.vector.square_vectors` does, one value at a time."""
    q0 = q1 = q2 = q3 = 0.0
    r0 = r1 = r2 = r3 = 0.0
    while row + 4 <= stop:
        d0 = load_f64(values, row) - mean
        d1 = load_f64(values, row + 1) - mean
        d2 = load_f64(values, row + 2) - mean
        d3 = load_f64(values, row + 3) - mean
        q0 += d0 * d0
        q1 += d1 * d1
        q2 += d2 * d2
        q3 += d3 * d3
        r0 += d0
        r1 += d1
        r2 += d2
        r3 += d3
        row += 4
    return (q0 + q1) + (q2 + q3), (r0 + r1) + (r2 + r3)


@kernel
def square_deviations(values: int, row: int, stop: int, mean: float, simd: bool) -> float:
    """Return the sum of squared deviations of ``values[row:stop]`` from their mean.

    Notes
    -----
    Two passes, with the correction for the rounding of `mean` [1]_, in four lanes. `simd`
    as for `reduce_values`.

    References
    ----------
    .. [1] Chan, Golub and LeVeque, Algorithms for computing the sample variance, The American
       Statistician 37(3), 1983, eq. 1.7.
    """
    count = stop - row
    if simd:
        squares, rest = square_vectors(values, row, stop, mean)
    else:
        squares, rest = square_lanes(values, row, stop, mean)
    row += count // SQUARE_LANES * SQUARE_LANES
    while row < stop:
        deviation = load_f64(values, row) - mean
        squares += deviation * deviation
        rest += deviation
        row += 1
    squares -= rest * rest / count
    return 0.0 if squares < 0.0 else squares  # not max(), which would lose a NaN


def warmup() -> None:
    """Compile every kernel, or load it from the cache, with the types of real calls."""
    sources = np.zeros((0, layout.SOURCE_WIDTH), np.int64)
    series = np.zeros(0, np.int64)
    integers = np.zeros(1, np.int64)
    floats = np.zeros(1)
    scan_windows(
        sources,
        series,
        True,
        0,
        0,
        0,
        1,
        True,
        0,
        0,
        False,
        False,
        False,
        integers,
        integers,
        integers,
        floats,
        floats,
        floats,
        floats,
        floats,
        floats,
        integers,
        integers,
    )
