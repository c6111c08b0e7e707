"""Lookups of ``(series_id, timestamp)`` in one source, through its learned index.

A lookup has two stages: `series_id` to run (knots over the directory of runs), then `timestamp` to row
(the run's model, see `omendb.jit.layout`). A model only *guesses*; the guess is clamped into the run and
searched from, outwards, until the neighbours prove the answer. So every answer is exact, whatever the
model says: a wrong guess costs time and nothing else.

Keys cover all of int64, so differences are taken as uint64 after clamping, and knots interpolate in
31-bit fixed point: the same on every machine, and free of what float64 does to nanosecond timestamps.

Kernels keep no state: any number of threads may call them. The caller keeps the arrays behind a source's
addresses alive and unchanged during the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from omendb.jit import layout
from omendb.jit._compile import (
    JIT_DISABLED,
    inline_kernel,
    kernel,
    load_f64,
    load_i32,
    load_i64,
    load_u8,
    prefetch,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUP = 32
"""Lookups that a batch keeps in flight: enough to overlap the cache misses."""
WINDOW_MAX = 32
"""Rows that the lock-step search of a batch covers at most; what lies outside is galloped to."""

if JIT_DISABLED:

    def elapsed(later: int, earlier: int) -> np.uint64:
        """Return ``later - earlier`` as uint64: exact for all int64 with ``later >= earlier``."""
        return np.uint64(int(later) - int(earlier))

else:

    @inline_kernel
    def elapsed(later: int, earlier: int) -> np.uint64:
        """Return ``later - earlier`` as uint64: exact for all int64 with ``later >= earlier``."""
        return np.uint64(later) - np.uint64(earlier)


@inline_kernel
def bucket_of(distance: np.uint64, shift: int) -> int:
    """Return the bucket, ``1 << shift`` wide, of a key at `distance` from the first; below 2**63."""
    return int(np.int64(distance >> np.uint64(shift)))


@inline_kernel
def knot_offset(distance: np.uint64, shift: int, rows: int) -> int:
    """Guess a row inside a bucket of uniform knots, by interpolation.

    Parameters
    ----------
    distance : uint64
        From the model's first key to the key.
    shift : int
        A bucket is ``1 << shift`` wide; 0 to 63.
    rows : int
        Rows of the bucket, below 2**31.

    Returns
    -------
    int
        Row inside the bucket, 0 to `rows`.
    """
    # The part of the bucket that lies before the key, in 31 bits: no float rounds it.
    fraction = int(np.int64((distance << np.uint64(63 - shift)) >> np.uint64(32))) & 0x7FFFFFFF
    return (fraction * rows) >> 31


@inline_kernel
def piece_offset(distance: np.uint64, slope: float, rows: int) -> int:
    """Guess a row inside a piece, on its line.

    Parameters
    ----------
    distance : uint64
        From the first key of the piece to the key.
    slope : float
        Rows per unit, finite, at least 0.
    rows : int
        Rows of the piece.

    Returns
    -------
    int
        Row inside the piece, 0 to `rows`.
    """
    offset = slope * np.float64(distance)
    # Clamp as floats: in the gap behind a dense piece the line leaves the range of int64.
    if offset >= np.float64(rows):
        return rows
    return int(offset) if offset > 0.0 else 0  # 0 for NaN, too


@inline_kernel
def bisect(keys: int, stride: int, low: int, high: int, target: int) -> tuple[int, int]:
    """Find the first key at or after `target` by binary search.

    Parameters
    ----------
    keys, stride : int
        Address of the first key (int64) and distance between keys, in words of 8 bytes.
    low, high : int
        The answer lies in ``[low, high]``; key `high` is not read.
    target : int
        Key to look for.

    Returns
    -------
    position, probes : int
        The answer, and how many keys were compared.
    """
    probes = 0
    while low < high:
        middle = (low + high) >> 1
        probes += 1
        if load_i64(keys, middle * stride) < target:
            low = middle + 1
        else:
            high = middle
    return low, probes


@inline_kernel
def gallop(keys: int, stride: int, low: int, high: int, guess: int, target: int) -> tuple[int, int]:
    """Find the first key at or after `target`, outwards from a guess.

    Parameters
    ----------
    keys, stride : int
        As in `bisect`.
    low, high : int
        The answer lies in ``[low, high]``; key `high` is not read.
    guess : int
        Where the answer is thought to be; any number.
    target : int
        Key to look for.

    Returns
    -------
    position, probes : int
        The answer, and how many keys were compared.

    Notes
    -----
    Exponential, then binary search [1]_, O(log of the distance between guess and answer).

    References
    ----------
    .. [1] Bentley and Yao, An almost optimal algorithm for unbounded searching, IPL 5 (1976).
    """
    guess = max(low, min(guess, high))
    probes = 0
    step = 1
    left = guess >= high
    if not left:
        probes += 1
        left = load_i64(keys, guess * stride) >= target
    if left:
        high = guess
        position = guess - 1
        while position >= low:
            probes += 1
            if load_i64(keys, position * stride) < target:
                low = position + 1
                break
            high = position
            step <<= 1
            position = guess - step
    else:
        low = guess + 1
        position = guess + 1
        while position < high:
            probes += 1
            if load_i64(keys, position * stride) >= target:
                high = position
                break
            low = position + 1
            step <<= 1
            position = guess + step
    position, more = bisect(keys, stride, low, high, target)
    return position, probes + more


@inline_kernel
def guess_run(knots: int, shift: int, distance: np.uint64) -> int:
    """Guess the run of a series from the series knots.

    Parameters
    ----------
    knots, shift : int
        ``SERIES_KNOTS`` (not 0) and ``SERIES_SHIFT`` of the source.
    distance : uint64
        From the source's first series to the series, which is at most its last.

    Returns
    -------
    int
        Index of a run, from 0 to the run count when the knots are sound.
    """
    knot = knots + 4 * bucket_of(distance, shift)
    low: int = load_i32(knot, 0)
    return low + knot_offset(distance, shift, load_i32(knot, 1) - low)


@inline_kernel
def find_run_counted(source: NDArray[np.int64], series_id: int) -> tuple[int, int]:
    """Do `find_run`, and count the table entries that were read."""
    count = source[layout.RUN_COUNT]
    runs = source[layout.RUNS] + 8 * layout.RUN_SERIES
    if count == 0 or series_id <= source[layout.FIRST_SERIES]:
        return 0, 1
    if series_id > source[layout.LAST_SERIES]:
        return count, 1
    knots = source[layout.SERIES_KNOTS]
    if knots == 0:
        run, probes = bisect(runs, layout.RUN_WIDTH, 1, count - 1, series_id)
        return run, probes + 1
    distance = elapsed(series_id, source[layout.FIRST_SERIES])
    guess = guess_run(knots, source[layout.SERIES_SHIFT], distance)
    guess = max(0, min(guess, count - 1))
    if load_i64(runs, guess * layout.RUN_WIDTH) == series_id:
        return guess, 2  # ids do not repeat: no neighbour needs to confirm it
    run, probes = gallop(runs, layout.RUN_WIDTH, 1, count - 1, guess, series_id)
    return run, probes + 1


@inline_kernel
def find_run(source: NDArray[np.int64], series_id: int) -> int:
    """Find the first run whose series is at or after `series_id`.

    Parameters
    ----------
    source : ndarray of int64, shape (SOURCE_WIDTH,)
        Row of the sources array.
    series_id : int
        Any int64.

    Returns
    -------
    int
        Index of the run; the run count when there is none.
    """
    return find_run_counted(source, series_id)[0]


@inline_kernel
def guess_row(knots: int, pieces: int, record: int, timestamp: int) -> tuple[int, int]:
    """Guess the first row of a run at or after `timestamp`.

    Parameters
    ----------
    knots, pieces : int
        ``KNOTS`` and ``PIECES`` of the source.
    record : int
        Address of the record of a run that has a model (not ``KIND_NONE``).
    timestamp : int
        From the run's first to its last timestamp.

    Returns
    -------
    row, probes : int
        Row of the source, and how many table entries were read.
    """
    start = load_i64(record, layout.RUN_START)
    first = load_i64(record, layout.RUN_FIRST)
    model = load_i64(record, layout.RUN_MODEL)
    shape = load_i64(record, layout.RUN_SHAPE)
    if shape & 0xFF == layout.KIND_KNOTS:
        distance = elapsed(timestamp, first)
        shift = (shape >> 8) & 0xFF
        knot = knots + 4 * (model + bucket_of(distance, shift))
        low = load_i32(knot, 0)
        rows = load_i32(knot, 1) - low
        return start + low + knot_offset(distance, shift, rows), 1
    pieces += 8 * layout.PIECE_WIDTH * model
    size = shape >> 32
    probes = 1
    low = 0
    high = size
    while high - low > 1:
        middle = (low + high) >> 1
        probes += 1
        if load_i64(pieces, middle * layout.PIECE_WIDTH + layout.PIECE_FIRST) <= timestamp:
            low = middle
        else:
            high = middle
    piece = pieces + 8 * layout.PIECE_WIDTH * low
    row = load_i64(piece, layout.PIECE_ROW)
    if high < size:
        stop = load_i64(piece, layout.PIECE_WIDTH + layout.PIECE_ROW)
    else:
        stop = load_i64(record, layout.RUN_STOP) - start
    distance = elapsed(timestamp, load_i64(piece, layout.PIECE_FIRST))
    slope = load_f64(piece, layout.PIECE_SLOPE)
    return start + row + piece_offset(distance, slope, stop - row), probes


@kernel
def lower_bound_on_demand(source: NDArray[np.int64], record: int, timestamp: int) -> int:
    """Find the first row of a run at or after `timestamp`, or a row that must be there before it can be told.

    Parameters
    ----------
    source : ndarray of int64, shape (SOURCE_WIDTH,)
        With ``ON_DEMAND``.
    record : int
        Address of the record of a run.
    timestamp : int
        After the run's first timestamp, and not after its last.

    Returns
    -------
    int
        A row of the run. It is the answer if the blocks of this row and of the one before it are verified;
        else one of the two is missing, and the search cannot go on without it.

    Notes
    -----
    Goes from the guess outwards, block by block, and never looks into one that is not verified: what is
    not there yet reads as zeros, which would lead a search to the other end of the run, and so to asking
    for every block between.
    """
    timestamps = source[layout.TIMESTAMPS]
    verified = source[layout.VERIFIED]
    shift = source[layout.BLOCK_SHIFT]
    start: int = load_i64(record, layout.RUN_START)
    stop: int = load_i64(record, layout.RUN_STOP)
    if load_i64(record, layout.RUN_SHAPE) & 0xFF == layout.KIND_NONE:
        row = (start + stop) >> 1
    else:
        row = guess_row(source[layout.KNOTS], source[layout.PIECES], record, timestamp)[0]
    row = max(start, min(row, stop - 1))
    while load_u8(verified, row >> shift) != 0:
        low: int = max(start, (row >> shift) << shift)
        high: int = min(stop, ((row >> shift) + 1) << shift)
        if load_i64(timestamps, high - 1) < timestamp:
            if high == stop:
                return stop
            row = high
            continue
        if low == start or load_i64(timestamps, low) < timestamp:
            return bisect(int(timestamps), 1, low, high, timestamp)[0]
        if load_u8(verified, (low - 1) >> shift) != 0 and load_i64(timestamps, low - 1) < timestamp:
            return low
        row = low - 1
    return row


@inline_kernel
def lower_bound_counted(source: NDArray[np.int64], run: int, timestamp: int) -> tuple[int, int]:
    """Do `lower_bound`, and count the table entries and rows that were read."""
    record = source[layout.RUNS] + run * (8 * layout.RUN_WIDTH)
    start = load_i64(record, layout.RUN_START)
    stop = load_i64(record, layout.RUN_STOP)
    if start >= stop or timestamp <= load_i64(record, layout.RUN_FIRST):
        return start, 0
    if timestamp > load_i64(record, layout.RUN_LAST):
        return stop, 0
    timestamps = source[layout.TIMESTAMPS]
    if source[layout.ON_DEMAND] != 0:
        return lower_bound_on_demand(source, record, timestamp), 0
    if load_i64(record, layout.RUN_SHAPE) & 0xFF == layout.KIND_NONE:
        return bisect(timestamps, 1, start + 1, stop - 1, timestamp)
    guess, probes = guess_row(source[layout.KNOTS], source[layout.PIECES], record, timestamp)
    row, more = gallop(timestamps, 1, start + 1, stop - 1, guess, timestamp)
    return row, probes + more


@inline_kernel
def lower_bound(source: NDArray[np.int64], run: int, timestamp: int) -> int:
    """Find the first row of a run whose timestamp is at or after `timestamp`.

    Parameters
    ----------
    source : ndarray of int64, shape (SOURCE_WIDTH,)
        Row of the sources array.
    run : int
        Index of a run, ``0 <= run < RUN_COUNT``.
    timestamp : int
        Any int64.

    Returns
    -------
    int
        Row of the source, from the run's start to its stop; the stop when all rows are earlier.
    """
    return lower_bound_counted(source, run, timestamp)[0]


@kernel
def locate(source: NDArray[np.int64], series_id: int, start: int, end: int) -> tuple[int, int, int]:
    """Find the rows of one series in a range of time.

    Parameters
    ----------
    source : ndarray of int64, shape (SOURCE_WIDTH,)
        Row of the sources array.
    series_id : int
        Any int64.
    start, end : int
        Timestamps, both inclusive; an empty range when ``start > end``.

    Returns
    -------
    run : int
        Index of the run; -1 when the source does not hold the series.
    row_start, row_stop : int
        Rows of the source, half-open, ``row_start <= row_stop``; 0 and 0 when `run` is -1.
    """
    run = find_run(source, series_id)
    if run == source[layout.RUN_COUNT]:
        return -1, 0, 0
    record = source[layout.RUNS] + run * (8 * layout.RUN_WIDTH)
    if load_i64(record, layout.RUN_SERIES) != series_id:
        return -1, 0, 0
    row_start = lower_bound(source, run, start)
    if start > end:
        return run, row_start, row_start
    # Not lower_bound(end + 1): it would wrap at the largest int64.
    row_stop = lower_bound(source, run, end)
    if row_stop < load_i64(record, layout.RUN_STOP) and load_i64(source[layout.TIMESTAMPS], row_stop) == end:
        row_stop += 1
    # Damaged timestamps, not yet verified, can put the end before the start.
    return run, row_start, max(row_start, row_stop)


@kernel
def lookup(source: NDArray[np.int64], series_id: int, timestamp: int) -> int:
    """Find the row of one key.

    Parameters
    ----------
    source : ndarray of int64, shape (SOURCE_WIDTH,)
        Row of the sources array.
    series_id, timestamp : int
        Any int64.

    Returns
    -------
    int
        Row of the source; -1 when the source does not hold the key.
    """
    run = find_run(source, series_id)
    if run == source[layout.RUN_COUNT]:
        return -1
    record = source[layout.RUNS] + run * (8 * layout.RUN_WIDTH)
    if load_i64(record, layout.RUN_SERIES) != series_id:
        return -1
    row = lower_bound(source, run, timestamp)
    if row < load_i64(record, layout.RUN_STOP) and load_i64(source[layout.TIMESTAMPS], row) == timestamp:
        return row
    return -1


@inline_kernel
def search_group(
    source: NDArray[np.int64],
    series_ids: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    out_rows: NDArray[np.int64],
    exact: bool,
    first: int,
    count: int,
    work: NDArray[np.int64],
) -> None:
    """Do the lookups ``first`` to ``first + count`` of a batch, stage by stage.

    Every stage asks for the cache lines that the next one reads, for all lookups of the group, so that
    the misses overlap: here one costs 160 ns alone and 14 ns in company.

    Parameters
    ----------
    source : ndarray of int64, shape (SOURCE_WIDTH,)
        Row of the sources array; it holds at least one run.
    series_ids, timestamps, out_rows : ndarray of int64, shape (n,)
        As in `lookup_batch`.
    exact : bool
        True: write the row of the key or -1. False: write the lower bound.
    first, count : int
        The group; `count` is at most `GROUP`.
    work : ndarray of int64, shape (6, GROUP)
        Scratch.
    """
    runs = source[layout.RUNS]
    run_count = source[layout.RUN_COUNT]
    first_series = source[layout.FIRST_SERIES]
    last_series = source[layout.LAST_SERIES]
    series_knots = source[layout.SERIES_KNOTS]
    series_shift = source[layout.SERIES_SHIFT]
    knots = source[layout.KNOTS]
    pieces = source[layout.PIECES]
    column = source[layout.TIMESTAMPS]

    records = work[0]
    if series_knots != 0:
        for lane in range(count):
            series_id = max(first_series, min(series_ids[first + lane], last_series))
            distance = elapsed(series_id, first_series)
            prefetch(series_knots + 4 * bucket_of(distance, series_shift))
        for lane in range(count):
            series_id = max(first_series, min(series_ids[first + lane], last_series))
            distance = elapsed(series_id, first_series)
            run = guess_run(series_knots, series_shift, distance)
            run = max(0, min(run, run_count - 1))
            record = runs + run * (8 * layout.RUN_WIDTH)
            records[lane] = record
            prefetch(record)
    else:
        for lane in range(count):
            run = min(find_run(source, series_ids[first + lane]), run_count - 1)
            records[lane] = runs + run * (8 * layout.RUN_WIDTH)

    # From here on only the lookups that still need a search, packed: slot -> lane. Their targets are
    # packed as well: read through `lanes` a lookup took 3 ns more.
    lanes = work[1]
    targets = work[2]
    slots = 0
    for lane in range(count):
        series_id = series_ids[first + lane]
        timestamp = timestamps[first + lane]
        record = records[lane]
        if load_i64(record, layout.RUN_SERIES) != series_id:
            run = find_run(source, series_id)
            if run == run_count:
                out_rows[first + lane] = -1 if exact else source[layout.ROWS]
                continue
            record = runs + run * (8 * layout.RUN_WIDTH)
            if load_i64(record, layout.RUN_SERIES) != series_id:
                out_rows[first + lane] = -1 if exact else load_i64(record, layout.RUN_START)
                continue
        start = load_i64(record, layout.RUN_START)
        stop = load_i64(record, layout.RUN_STOP)
        earliest = load_i64(record, layout.RUN_FIRST)
        if start >= stop or timestamp <= earliest:
            missing = start >= stop or timestamp != earliest
            out_rows[first + lane] = -1 if exact and missing else start
            continue
        if timestamp > load_i64(record, layout.RUN_LAST):
            out_rows[first + lane] = -1 if exact else stop
            continue
        shape = load_i64(record, layout.RUN_SHAPE)
        model = load_i64(record, layout.RUN_MODEL)
        if shape & 0xFF == layout.KIND_KNOTS:
            distance = elapsed(timestamp, earliest)
            bucket = bucket_of(distance, (shape >> 8) & 0xFF)
            prefetch(knots + 4 * (model + bucket))
        elif shape & 0xFF == layout.KIND_PIECES:
            prefetch(pieces + 8 * layout.PIECE_WIDTH * model)
        records[slots] = record
        lanes[slots] = lane
        targets[slots] = timestamp
        slots += 1

    bases = work[3]
    lasts = work[4]
    width = 2
    for slot in range(slots):
        record = records[slot]
        timestamp = targets[slot]
        start = load_i64(record, layout.RUN_START)
        last = load_i64(record, layout.RUN_STOP) - 1
        wanted = 2 * load_i64(record, layout.RUN_ERROR) + 2
        if load_i64(record, layout.RUN_SHAPE) & 0xFF == layout.KIND_NONE:
            guess = (start + last) >> 1
            wanted = last - start
        else:
            guess = guess_row(knots, pieces, record, timestamp)[0]
        wanted = min(wanted, WINDOW_MAX)
        while width < wanted:
            width <<= 1
        guess = max(start + 1, min(guess, last))
        prefetch(column + 8 * guess)
        bases[slot] = guess
        lasts[slot] = last
    half_width = width >> 1
    starts = work[5]
    for slot in range(slots):
        base = bases[slot] - half_width + 1
        base = max(base, load_i64(records[slot], layout.RUN_START) + 1)
        bases[slot] = base
        starts[slot] = base

    half = half_width
    while half > 0:
        for slot in range(slots):
            base = bases[slot]
            probe = min(base + half - 1, lasts[slot])
            timestamp = targets[slot]
            bases[slot] = base + half if load_i64(column, probe) < timestamp else base
        half >>= 1

    for slot in range(slots):
        lane = int(lanes[slot])
        timestamp = targets[slot]
        row = min(bases[slot], lasts[slot])  # damaged timestamps must not lead out of the run
        if load_i64(column, row) != timestamp:
            base = starts[slot]
            if row == base or row == base + width - 1:
                # The answer may lie outside the window.
                start = load_i64(records[slot], layout.RUN_START)
                row = gallop(column, 1, start + 1, lasts[slot], row, timestamp)[0]
            if exact and load_i64(column, row) != timestamp:
                row = -1
        out_rows[first + lane] = row


@kernel
def lookup_batch(
    source: NDArray[np.int64],
    series_ids: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    out_rows: NDArray[np.int64],
) -> None:
    """Find the rows of many keys.

    Parameters
    ----------
    source : ndarray of int64, shape (SOURCE_WIDTH,)
        Row of the sources array.
    series_ids, timestamps : ndarray of int64, shape (n,)
        Keys, in any order; ascending order is faster.
    out_rows : ndarray of int64, shape (n,)
        Written: the row of each key, -1 where the source does not hold it.
    """
    if source[layout.RUN_COUNT] == 0:
        out_rows[:] = -1
        return
    work = np.empty((6, GROUP), np.int64)
    for first in range(0, len(out_rows), GROUP):
        count = min(GROUP, len(out_rows) - first)
        search_group(source, series_ids, timestamps, out_rows, True, first, count, work)


@kernel
def lower_bound_batch(
    source: NDArray[np.int64],
    series_ids: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    out_rows: NDArray[np.int64],
) -> None:
    """Find, for many keys, the first row at or after the key in order of ``(series_id, timestamp)``.

    For a series that the source holds that is `lower_bound`; for others the start of the next run.

    Parameters
    ----------
    source : ndarray of int64, shape (SOURCE_WIDTH,)
        Row of the sources array.
    series_ids, timestamps : ndarray of int64, shape (n,)
        Keys, in any order; ascending order is faster.
    out_rows : ndarray of int64, shape (n,)
        Written: rows, 0 to ``ROWS``; ``ROWS`` when every row is before the key.
    """
    if source[layout.RUN_COUNT] == 0:
        out_rows[:] = source[layout.ROWS]
        return
    work = np.empty((6, GROUP), np.int64)
    for first in range(0, len(out_rows), GROUP):
        count = min(GROUP, len(out_rows) - first)
        search_group(source, series_ids, timestamps, out_rows, False, first, count, work)


@inline_kernel
def binary_search(
    series_column: NDArray[np.int64],
    timestamp_column: NDArray[np.int64],
    series_id: int,
    timestamp: int,
) -> int:
    """Find the first row at or after a key by lexicographic binary search."""
    low = 0
    high = len(timestamp_column)
    while low < high:
        middle = (low + high) >> 1
        series = series_column[middle]
        if series < series_id or (series == series_id and timestamp_column[middle] < timestamp):
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def binary_lookup(
    series_column: NDArray[np.int64],
    timestamp_column: NDArray[np.int64],
    series_id: int,
    timestamp: int,
) -> int:
    """Do what `lookup` does without an index: the baseline of measurements.

    Parameters
    ----------
    series_column, timestamp_column : ndarray of int64, shape (n,)
        In ascending order of both.
    series_id, timestamp : int
        Any int64.

    Returns
    -------
    int
        Row, or -1.
    """
    row = binary_search(series_column, timestamp_column, series_id, timestamp)
    if row < len(timestamp_column) and series_column[row] == series_id and timestamp_column[row] == timestamp:
        return row
    return -1


@kernel
def binary_lookup_batch(
    series_column: NDArray[np.int64],
    timestamp_column: NDArray[np.int64],
    series_ids: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    out_rows: NDArray[np.int64],
) -> None:
    """Do what `lookup_batch` does without an index: the baseline of measurements.

    Parameters
    ----------
    series_column, timestamp_column : ndarray of int64, shape (n,)
        In ascending order of both.
    series_ids, timestamps, out_rows : ndarray of int64, shape (m,)
        As in `lookup_batch`.
    """
    for index in range(len(out_rows)):
        series_id = series_ids[index]
        timestamp = timestamps[index]
        row = binary_search(series_column, timestamp_column, series_id, timestamp)
        if (
            row < len(timestamp_column)
            and series_column[row] == series_id
            and timestamp_column[row] == timestamp
        ):
            out_rows[index] = row
        else:
            out_rows[index] = -1


def warmup() -> None:
    """Call every kernel once, with the argument types that occur, so that it is compiled and cached.

    Source rows are always writable arrays; keys may come out of read-only ones.
    """
    keys = np.arange(4, dtype=np.int64)
    mapped = keys.copy()
    mapped.flags.writeable = False  # as over a mapped segment
    records = np.array([[0, 0, 4, 0, 3, 0, layout.KIND_NONE, 0]], np.int64)
    source = np.zeros(layout.SOURCE_WIDTH, np.int64)
    source[layout.ROWS] = len(keys)
    source[layout.TIMESTAMPS] = keys.ctypes.data
    source[layout.RUN_COUNT] = 1
    source[layout.RUNS] = records.ctypes.data
    rows = np.empty(len(keys), np.int64)
    locate(source, 0, 1, 2)
    lookup(source, 0, 2)
    for column in (keys, mapped):
        lookup_batch(source, column, column, rows)
        lower_bound_batch(source, column, column, rows)
    binary_lookup(mapped, mapped, 0, 2)
    binary_lookup_batch(mapped, mapped, keys, keys, rows)
