"""Range scans: rows of many sources in order of ``(series_id, timestamp)``, each key once, newest wins.

How a scan goes: sources that cannot hold an answer are left out once (`open_cursors`); the run
directories of the others are walked in step (`next_series`); each series gives one range of rows a source
(`find_ranges`); the ranges are merged (`merge_step`) in long blocks that are copied as they are and, where
timestamps interleave, row by row. The kernels of `omendb.jit.window` share these four.

The state of a scan is one int64 array, the *workspace*, of shape (`WORK_WIDTH`, sources). Nothing outlives
a call: a scan goes on after the last key that it has written. All functions are pure and release the GIL.

Checksums: where a source carries a map of verified blocks, rows of unverified blocks are used for nothing
but searching. Before the outcome of a search counts, the rows around it must be verified, else the kernel
returns ``STATUS_VERIFY`` with the rows it needs; the caller verifies them and calls again.

Arrays must be C-contiguous. Pass them writable, as `warmup` does: another type is compiled when it first
comes. The sources' own columns are only read, through their addresses, at any alignment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic

from omendb.jit import layout
from omendb.jit._compile import JIT_DISABLED, kernel, load_f64, load_i64, load_u8
from omendb.jit.search import find_run, lower_bound

if TYPE_CHECKING:
    from numpy.typing import NDArray

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1

# Rows of the workspace. A cursor is a place in one source's run directory.
CURSOR_SOURCE = 0  # the source
CURSOR_RUN = 1  # the run it stands at
CURSOR_SERIES = 2  # that run's series; INT64_MAX past the last run
GROUP_SERIES = 3  # the lowest CURSOR_SERIES of each group of cursors
HIT = 4  # the cursors that stand at the series in hand, oldest first
RANGE_SOURCE = 5  # rows of the series in hand, oldest source first
RANGE_START = 6  # first row not yet taken
RANGE_STOP = 7  # row after the last
RANGE_FIRST = 8  # timestamp of the first row not yet taken
RANGE_LAST = 9  # timestamp of the last row
CHECK_START = 10  # first row that must be verified before the range's rows are used
CHECK_STOP = 11
HEAP = 12  # heap of the ranges that still have rows
WORK_WIDTH = 13

# Cursors of a group share one minimum, so that the next series is found in O(groups + hits) even among
# thousands of sources, and with few sources by one pass over adjacent integers.
GROUP_CURSORS = 32

# What `find_ranges` verifies.
CHECK_NONE = 0  # nothing: an end may be wrong where no verified rows prove it
CHECK_WIDEN = 1  # nothing: an end that no verified rows prove is moved to the end of the run
CHECK_EDGES = 2  # the rows next to both ends of a range
CHECK_ALL = 3  # all its rows

# What `merge_step` returns.
STEP_DONE = 0  # no rows left
STEP_BLOCK = 1  # consecutive rows of one source, not copied
STEP_ROWS = 2  # rows written to the output

ROWS_UNLIMITED = INT64_MAX
BLOCK_ROWS = 32  # the shortest stretch that is worth a block of its own
BATCH_ROWS = 64  # rows merged between two looks for such a stretch
SCRATCH_ROWS = 1024  # two columns of it stay in the first-level cache


if JIT_DISABLED:

    def borrowed(array: Any) -> Any:  # noqa: ANN401
        """Return the array."""
        return array

else:

    def _borrowed(typingctx: Any, array: Any) -> Any:  # noqa: ANN401
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
            view = cgutils.create_struct_proxy(array)(context, builder, args[0])
            view.meminfo = cgutils.get_null_value(view.meminfo.type)
            view.parent = cgutils.get_null_value(view.parent.type)
            return view._getvalue()

        # A read-only array costs one more compilation of the outermost kernel, not of all below it.
        return array.copy(readonly=False)(array), codegen

    borrowed = cast("Any", intrinsic(_borrowed))
    """The array without its reference count; the caller keeps it alive.

    Numba counts references around calls with atomic adds, and removes only some of the needless ones: with
    them a walk over the run directory took 87 ns a series, without 28.
    """


@kernel
def scan_rows(
    sources: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    after_series: int,
    after_timestamp: int,
    resume: bool,
    out_series: NDArray[np.int64],
    out_timestamp: NDArray[np.int64],
    out_value: NDArray[np.float64],
) -> tuple[int, int, int, int, int]:
    """Write the rows of a time range in order of ``(series_id, timestamp)`` until the output is full.

    Parameters
    ----------
    sources : ndarray of int64, shape (k, SOURCE_WIDTH)
        Oldest first: of rows with the same key that of the later source wins.
    series : ndarray of int64, shape (m,)
        Series to look at, ascending, without repeats.
    every_series : bool
        Look at all series; `series` is ignored.
    start, end : int
        First and last timestamp, both inclusive, any int64.
    after_series, after_timestamp : int
        With `resume`, only keys after this one.
    resume : bool
        Whether this continues an earlier scan.
    out_series, out_timestamp, out_value : ndarray of int64, int64, float64, shape (n,)

    Returns
    -------
    written : int
        Rows written; the last one is the key to resume after.
    status : int
        ``STATUS_DONE``; ``STATUS_FULL``: at least one more row exists; ``STATUS_VERIFY``: the rows
        ``row_start`` to ``row_stop`` of ``source_index`` have to be verified first (rows may have been
        written before it came to that).
    source_index, row_start, row_stop : int
        Zeros unless the status is ``STATUS_VERIFY``.

    Notes
    -----
    O(runs met + rows written) when sources do not overlap in time; O(log k) more a row where they do.
    """
    work = np.empty((WORK_WIDTH, len(sources) + 1), np.int64)
    answer = scan_borrowed(
        borrowed(sources),
        borrowed(work),
        borrowed(series),
        every_series,
        start,
        end,
        after_series,
        after_timestamp,
        resume,
        borrowed(out_series),
        borrowed(out_timestamp),
        borrowed(out_value),
    )
    work[0, 0] = 0  # what is used below here is not freed above
    return answer


@kernel
def scan_borrowed(
    sources: NDArray[np.int64],
    work: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    after_series: int,
    after_timestamp: int,
    resume: bool,
    out_series: NDArray[np.int64],
    out_timestamp: NDArray[np.int64],
    out_value: NDArray[np.float64],
) -> tuple[int, int, int, int, int]:
    """Do `scan_rows` with borrowed arrays and a workspace."""
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
            if after_timestamp >= end:
                continue
            low = max(start, after_timestamp + 1)
        # One row more than there is room for tells whether rows follow, and is all that must be verified:
        # even if every other range repeats these keys, a range cut there fills the output.
        left = capacity - written
        count, source_index, row_start, row_stop = find_ranges(
            sources, work, hit_count, low, end, left + 1, CHECK_ALL
        )
        if row_stop > row_start:
            return written, layout.STATUS_VERIFY, source_index, row_start, row_stop
        if count == 0:
            continue
        if left == 0:
            return written, layout.STATUS_FULL, 0, 0, 0
        written_before = written
        full = False
        if count == 1:
            stop = work[RANGE_STOP, 0]
            row_start = work[RANGE_START, 0]
            full = stop - row_start > left
            row_stop = row_start + left if full else stop
            written = copy_rows(
                sources,
                work[RANGE_SOURCE, 0],
                row_start,
                row_stop,
                out_timestamp,
                out_value,
                written,
            )
        else:
            order_ranges(work, count)
            size = count
            while not full:
                kind, source_index, row_start, row_stop, size = merge_step(
                    sources, work, size, out_timestamp, out_value, written, capacity
                )
                if kind == STEP_DONE:
                    break
                if kind == STEP_ROWS:
                    full = row_start == row_stop
                    written = row_stop
                else:
                    full = row_stop - row_start > capacity - written
                    row_stop = min(row_stop, row_start + capacity - written)
                    written = copy_rows(
                        sources,
                        source_index,
                        row_start,
                        row_stop,
                        out_timestamp,
                        out_value,
                        written,
                    )
        ids = out_series[written_before:written]
        for row in range(len(ids)):
            ids[row] = series_id
        if full:
            return written, layout.STATUS_FULL, 0, 0, 0


@kernel
def count_rows(
    sources: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    after_series: int,
    after_timestamp: int,
    resume: bool,
) -> tuple[int, int, int, int, int]:
    """Count the distinct keys that `scan_rows` would write into an output without end.

    Parameters
    ----------
    sources, series, every_series, start, end, after_series, after_timestamp, resume
        As for `scan_rows`.

    Returns
    -------
    count : int
        Rows; with ``STATUS_VERIFY`` those of the series before the one that needs verified rows.
    status : int
        ``STATUS_DONE`` or ``STATUS_VERIFY``.
    source_index, row_start, row_stop : int
        As for `scan_rows`.

    Notes
    -----
    After ``STATUS_VERIFY`` call again from the start, or, so that a count over many cold series stays
    linear, from the series that was reached: it is ``find_series(sources, source_index, row_start)``.

    A range counts by its bounds; rows are read only where the ranges of several sources overlap in time.
    """
    work = np.empty((WORK_WIDTH, len(sources) + 1), np.int64)
    scratch_timestamp = np.empty(SCRATCH_ROWS, np.int64)
    scratch_value = np.empty(SCRATCH_ROWS, np.float64)
    answer = count_borrowed(
        borrowed(sources),
        borrowed(work),
        borrowed(series),
        every_series,
        start,
        end,
        after_series,
        after_timestamp,
        resume,
        borrowed(scratch_timestamp),
        borrowed(scratch_value),
    )
    work[0, 0] = 0  # what is used below here is not freed above
    scratch_timestamp[0] = 0
    scratch_value[0] = 0.0
    return answer


@kernel
def count_borrowed(
    sources: NDArray[np.int64],
    work: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    after_series: int,
    after_timestamp: int,
    resume: bool,
    scratch_timestamp: NDArray[np.int64],
    scratch_value: NDArray[np.float64],
) -> tuple[int, int, int, int, int]:
    """Do `count_rows` with borrowed arrays, a workspace and room to merge into."""
    live, position = open_cursors(sources, work, series, every_series, start, end, after_series, resume)
    total = 0
    hit_count = 0
    while True:
        series_id, position, hit_count = next_series(
            sources, work, live, series, every_series, position, hit_count
        )
        if hit_count == 0:
            return total, layout.STATUS_DONE, 0, 0, 0
        low = start
        if resume and series_id == after_series:
            if after_timestamp >= end:
                continue
            low = max(start, after_timestamp + 1)
        count, source_index, row_start, row_stop = find_ranges(
            sources, work, hit_count, low, end, ROWS_UNLIMITED, CHECK_EDGES
        )
        if row_stop > row_start:
            return total, layout.STATUS_VERIFY, source_index, row_start, row_stop
        if count < 2 or order_ranges(work, count):
            for index in range(count):
                total += work[RANGE_STOP, index] - work[RANGE_START, index]
            continue
        source_index, row_start, row_stop = check_ranges(sources, work, count)
        if row_stop > row_start:
            return total, layout.STATUS_VERIFY, source_index, row_start, row_stop
        size = count
        while True:
            kind, source_index, row_start, row_stop, size = merge_step(
                sources, work, size, scratch_timestamp, scratch_value, 0, SCRATCH_ROWS
            )
            if kind == STEP_DONE:
                break
            total += row_stop - row_start


@kernel
def bound_rows(
    sources: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    after_series: int,
    after_timestamp: int,
    resume: bool,
    limit: int,
    check: int,
) -> int:
    """Bound the rows of a scan from above: the sum of its ranges, repeated keys counted repeatedly.

    Parameters
    ----------
    sources, series, every_series, start, end, after_series, after_timestamp, resume
        As for `scan_rows`.
    limit : int
        Stop as soon as the sum is greater.
    check : int
        ``CHECK_WIDEN``; or ``CHECK_NONE`` for an estimate, which is a bound where nothing is damaged.

    Returns
    -------
    int
        An upper bound, or some number greater than `limit`.

    Notes
    -----
    Asks for no verification, and yet holds over damaged timestamps: an end that is not proven by verified
    rows is taken to be that of the run. So it is loose on data that was never read before.
    """
    work = np.empty((WORK_WIDTH, len(sources) + 1), np.int64)
    bound = bound_borrowed(
        borrowed(sources),
        borrowed(work),
        borrowed(series),
        every_series,
        start,
        end,
        after_series,
        after_timestamp,
        resume,
        limit,
        check,
    )
    work[0, 0] = 0  # what is used below here is not freed above
    return bound


@kernel
def bound_borrowed(
    sources: NDArray[np.int64],
    work: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    after_series: int,
    after_timestamp: int,
    resume: bool,
    limit: int,
    check: int,
) -> int:
    """Do `bound_rows` with borrowed arrays and a workspace."""
    live, position = open_cursors(sources, work, series, every_series, start, end, after_series, resume)
    total = 0
    hit_count = 0
    while total <= limit:
        series_id, position, hit_count = next_series(
            sources, work, live, series, every_series, position, hit_count
        )
        if hit_count == 0:
            break
        low = start
        if resume and series_id == after_series:
            if after_timestamp >= end:
                continue
            low = max(start, after_timestamp + 1)
        count, _, _, _ = find_ranges(sources, work, hit_count, low, end, ROWS_UNLIMITED, check)
        for index in range(count):
            total += work[RANGE_STOP, index] - work[RANGE_START, index]
    return total


@kernel
def find_series(sources: NDArray[np.int64], source_index: int, row: int) -> int:
    """Return the series of a row of a source, ``0 <= row < rows``; O(log(runs))."""
    runs = sources[source_index, layout.RUNS]
    low = 0
    high = sources[source_index, layout.RUN_COUNT]
    while high - low > 1:
        middle = (low + high) >> 1
        if load_i64(runs, middle * layout.RUN_WIDTH + layout.RUN_START) <= row:
            low = middle
        else:
            high = middle
    return int(load_i64(runs, low * layout.RUN_WIDTH + layout.RUN_SERIES))


@kernel
def open_cursors(
    sources: NDArray[np.int64],
    work: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    after_series: int,
    resume: bool,
) -> tuple[int, int]:
    """Leave out the sources that hold nothing of a request, and place a cursor in each of the others.

    Returns
    -------
    live : int
        Number of cursors, which stand in the order of their sources.
    position : int
        First series of the filter to look at.
    """
    position = 0
    low_series = INT64_MIN
    high_series = INT64_MAX
    if resume:
        low_series = after_series
    if not every_series:
        stop = len(series)
        while position < stop:
            middle = (position + stop) >> 1
            if series[middle] < low_series:
                position = middle + 1
            else:
                stop = middle
        if position == len(series):
            return 0, position
        low_series = series[position]
        high_series = series[-1]
    live = 0
    if start > end:
        return live, position
    for index in range(len(sources)):
        if (
            sources[index, layout.RUN_COUNT] == 0
            or sources[index, layout.FIRST_SERIES] > high_series
            or sources[index, layout.LAST_SERIES] < low_series
            or sources[index, layout.FIRST_TIMESTAMP] > end
            or sources[index, layout.LAST_TIMESTAMP] < start
        ):
            continue
        run = 0
        if sources[index, layout.FIRST_SERIES] < low_series:
            run = seek_run(sources, index, low_series)
        work[CURSOR_SOURCE, live] = index
        place_cursor(sources, work, live, run)
        live += 1
    for group in range((live + GROUP_CURSORS - 1) // GROUP_CURSORS):
        refresh_group(work, live, group)
    return live, position


@kernel
def seek_run(sources: NDArray[np.int64], source_index: int, series_id: int) -> int:
    """Call `find_run`: the one place where it is compiled into these kernels, for it is inlined."""
    return find_run(sources[source_index], series_id)


@kernel
def seek_row(sources: NDArray[np.int64], source_index: int, run: int, timestamp: int) -> int:
    """Call `lower_bound`: the one place where it is compiled into these kernels, for it is inlined."""
    return lower_bound(sources[source_index], run, timestamp)


@kernel
def place_cursor(sources: NDArray[np.int64], work: NDArray[np.int64], cursor: int, run: int) -> None:
    """Move a cursor to a run, or past the last one."""
    source_index = work[CURSOR_SOURCE, cursor]
    series_id = INT64_MAX
    if run < sources[source_index, layout.RUN_COUNT]:
        runs = sources[source_index, layout.RUNS]
        series_id = load_i64(runs, run * layout.RUN_WIDTH + layout.RUN_SERIES)
    work[CURSOR_RUN, cursor] = run
    work[CURSOR_SERIES, cursor] = series_id


@kernel
def refresh_group(work: NDArray[np.int64], live: int, group: int) -> None:
    """Compute the lowest series of a group of cursors."""
    lowest = INT64_MAX
    for cursor in range(group * GROUP_CURSORS, min(live, (group + 1) * GROUP_CURSORS)):
        lowest = min(lowest, work[CURSOR_SERIES, cursor])
    work[GROUP_SERIES, group] = lowest


@kernel
def next_series(
    sources: NDArray[np.int64],
    work: NDArray[np.int64],
    live: int,
    series: NDArray[np.int64],
    every_series: bool,
    position: int,
    hit_count: int,
) -> tuple[int, int, int]:
    """Find the next series that any source holds, and the cursors that stand at it.

    Parameters
    ----------
    position, hit_count : int
        As returned by the call before; at first as by `open_cursors`, and 0.

    Returns
    -------
    series_id : int
    position : int
        Next series of the filter.
    hit_count : int
        Cursors in row `HIT` of the workspace; 0 when there is no further series.
    """
    series_id = INT64_MAX
    if every_series:
        group_count = (live + GROUP_CURSORS - 1) // GROUP_CURSORS
        for hit in range(hit_count):
            cursor = work[HIT, hit]
            place_cursor(sources, work, cursor, work[CURSOR_RUN, cursor] + 1)
        refreshed = -1
        for hit in range(hit_count):
            group = work[HIT, hit] // GROUP_CURSORS
            if group != refreshed:
                refresh_group(work, live, group)
                refreshed = group
        for group in range(group_count):
            series_id = min(series_id, work[GROUP_SERIES, group])
        hit_count = 0
        for group in range(group_count):
            if work[GROUP_SERIES, group] == series_id:
                for cursor in range(group * GROUP_CURSORS, min(live, (group + 1) * GROUP_CURSORS)):
                    # INT64_MAX is a series too: only the run tells it from the end of the directory.
                    if (
                        work[CURSOR_SERIES, cursor] == series_id
                        and work[CURSOR_RUN, cursor] < sources[work[CURSOR_SOURCE, cursor], layout.RUN_COUNT]
                    ):
                        work[HIT, hit_count] = cursor
                        hit_count += 1
        return series_id, position, hit_count
    hit_count = 0
    while live > 0 and hit_count == 0 and position < len(series):
        series_id = series[position]
        position += 1
        for cursor in range(live):
            if work[CURSOR_SERIES, cursor] < series_id:
                # Wanted series are often neighbours: look at the next run before searching.
                place_cursor(sources, work, cursor, work[CURSOR_RUN, cursor] + 1)
                if work[CURSOR_SERIES, cursor] < series_id:
                    run = seek_run(sources, work[CURSOR_SOURCE, cursor], series_id)
                    place_cursor(sources, work, cursor, run)
            if (
                work[CURSOR_SERIES, cursor] == series_id
                and work[CURSOR_RUN, cursor] < sources[work[CURSOR_SOURCE, cursor], layout.RUN_COUNT]
            ):
                work[HIT, hit_count] = cursor
                hit_count += 1
    return series_id, position, hit_count


@kernel
def find_ranges(
    sources: NDArray[np.int64],
    work: NDArray[np.int64],
    hit_count: int,
    start: int,
    end: int,
    rows_max: int,
    check: int,
) -> tuple[int, int, int, int]:
    """Find the rows of a time range in each run that the cursors of row `HIT` stand at.

    Parameters
    ----------
    start, end : int
        Inclusive, ``start <= end``.
    rows_max : int
        Longer ranges are cut to their first `rows_max` rows, ``rows_max >= 1``.
    check : int
        ``CHECK_NONE``, ``CHECK_WIDEN``, ``CHECK_EDGES`` or ``CHECK_ALL``.

    Returns
    -------
    count : int
        Ranges, none of them empty, oldest source first.
    source_index, row_start, row_stop : int
        Rows to verify first; ``row_start < row_stop`` only if there are any, and then there are no ranges.
    """
    count = 0
    for hit in range(hit_count):
        cursor = work[HIT, hit]
        source_index = work[CURSOR_SOURCE, cursor]
        run = work[CURSOR_RUN, cursor]
        record = sources[source_index, layout.RUNS] + run * (8 * layout.RUN_WIDTH)
        run_first = load_i64(record, layout.RUN_FIRST)
        run_last = load_i64(record, layout.RUN_LAST)
        run_start = load_i64(record, layout.RUN_START)
        run_stop = load_i64(record, layout.RUN_STOP)
        if run_start >= run_stop or run_first > end or run_last < start:
            continue
        low = run_start
        high = run_stop
        if run_first < start:
            low = seek_row(sources, source_index, run, start)
        if run_last > end:  # so end + 1 does not overflow
            high = seek_row(sources, source_index, run, end + 1)
        if check >= CHECK_EDGES and sources[source_index, layout.ON_DEMAND] != 0:
            row_start, row_stop = missing_edge(sources, source_index, run, low, high, start, end)
            if row_stop > row_start:
                return 0, source_index, row_start, row_stop
        cut = high - low > rows_max
        if cut:
            high = low + rows_max
        check_start = low
        check_stop = high
        if run_first < start:
            check_start = max(low - 1, run_start)
        if run_last > end and not cut:
            check_stop = min(high + 1, run_stop)
        if check != CHECK_NONE and sources[source_index, layout.VERIFIED] != 0:
            if check == CHECK_WIDEN:
                if run_first < start and not row_proven(sources, source_index, run, low, start):
                    low = run_start
                if run_last > end and not row_proven(sources, source_index, run, high, end + 1):
                    high = run_stop
            else:
                row_start, row_stop = check_range(
                    sources, source_index, run, low, high, cut, start, end, check
                )
                if row_stop > row_start:
                    return 0, source_index, row_start, row_stop
        if low < high:
            timestamps = sources[source_index, layout.TIMESTAMPS]
            # The ends of a run are in its record: whole runs need no access to their rows.
            first = run_first
            last = run_last
            if low > run_start:
                first = load_i64(timestamps, low)
            if high < run_stop:
                last = load_i64(timestamps, high - 1)
            work[RANGE_SOURCE, count] = source_index
            work[RANGE_START, count] = low
            work[RANGE_STOP, count] = high
            work[RANGE_FIRST, count] = first
            work[RANGE_LAST, count] = last
            work[CHECK_START, count] = check_start
            work[CHECK_STOP, count] = check_stop
            count += 1
    return count, 0, 0, 0


@kernel
def missing_edge(
    sources: NDArray[np.int64],
    source_index: int,
    run: int,
    low: int,
    high: int,
    start: int,
    end: int,
) -> tuple[int, int]:
    """Return the rows next to a bound of a range that are not there yet, or (0, 0).

    Where rows come on demand a bound is a guess until the rows beside it are verified
    (`omendb.jit.search.lower_bound_on_demand`), and one of two guesses says nothing about the range: so
    each bound is asked for by itself first, a block or two at a time.
    """
    record = sources[source_index, layout.RUNS] + run * (8 * layout.RUN_WIDTH)
    run_start = load_i64(record, layout.RUN_START)
    run_stop = load_i64(record, layout.RUN_STOP)
    if load_i64(record, layout.RUN_FIRST) < start:
        row_start = max(low - 1, run_start)
        row_stop = min(low + 1, run_stop)
        if not rows_verified(sources, source_index, row_start, row_stop):
            return row_start, row_stop
    if load_i64(record, layout.RUN_LAST) > end:
        row_start = max(high - 1, run_start)
        row_stop = min(high + 1, run_stop)
        if not rows_verified(sources, source_index, row_start, row_stop):
            return row_start, row_stop
    return 0, 0


@kernel
def check_range(
    sources: NDArray[np.int64],
    source_index: int,
    run: int,
    low: int,
    high: int,
    cut: bool,
    start: int,
    end: int,
    check: int,
) -> tuple[int, int]:
    """Return the rows that must be verified before a range that was found can be believed, or (0, 0).

    With verified rows on both sides of a bound that stand in the right order to the timestamp looked for,
    the bound is right, whatever unverified timestamps the search has met. If they do not, the search was
    led astray by damage, and the whole run is asked for.
    """
    record = sources[source_index, layout.RUNS] + run * (8 * layout.RUN_WIDTH)
    run_start = load_i64(record, layout.RUN_START)
    run_stop = load_i64(record, layout.RUN_STOP)
    timestamps = sources[source_index, layout.TIMESTAMPS]
    low_searched = load_i64(record, layout.RUN_FIRST) < start
    high_searched = load_i64(record, layout.RUN_LAST) > end
    sound = low <= high
    if sound:
        check_start = low
        check_stop = high
        if low_searched:
            check_start = max(low - 1, run_start)
        if high_searched and not cut:
            check_stop = min(high + 1, run_stop)
        verified = True
        if check == CHECK_ALL:
            verified = rows_verified(sources, source_index, check_start, check_stop)
        else:
            if low_searched:
                edge_stop = min(low + 1, run_stop)
                verified = rows_verified(sources, source_index, check_start, edge_stop)
            if high_searched or cut:
                edge_start = max(high - 1, run_start)
                verified = verified and rows_verified(sources, source_index, edge_start, check_stop)
        if not verified:
            return check_start, check_stop
        if low_searched:
            if low > run_start and load_i64(timestamps, low - 1) >= start:
                sound = False
            if low < run_stop and load_i64(timestamps, low) < start:
                sound = False
        if high_searched:
            if high > run_start and load_i64(timestamps, high - 1) > end:
                sound = False
            if not cut and high < run_stop and load_i64(timestamps, high) <= end:
                sound = False
    # Everything verified and still not sound cannot be: then go on rather than ask for ever.
    if sound or rows_verified(sources, source_index, run_start, run_stop):
        return 0, 0
    return run_start, run_stop


@kernel
def row_proven(sources: NDArray[np.int64], source_index: int, run: int, row: int, timestamp: int) -> bool:
    """Return whether verified rows prove that `row` is the first of a run at or after `timestamp`."""
    record = sources[source_index, layout.RUNS] + run * (8 * layout.RUN_WIDTH)
    run_start = load_i64(record, layout.RUN_START)
    run_stop = load_i64(record, layout.RUN_STOP)
    timestamps = sources[source_index, layout.TIMESTAMPS]
    if not rows_verified(sources, source_index, max(row - 1, run_start), min(row + 1, run_stop)):
        return False
    if row > run_start and load_i64(timestamps, row - 1) >= timestamp:
        return False
    return bool(row == run_stop or load_i64(timestamps, row) >= timestamp)


@kernel
def check_ranges(sources: NDArray[np.int64], work: NDArray[np.int64], count: int) -> tuple[int, int, int]:
    """Return a source and rows of a range that is not verified, or zeros."""
    for index in range(count):
        source_index = work[RANGE_SOURCE, index]
        if sources[source_index, layout.VERIFIED] != 0:
            row_start = work[CHECK_START, index]
            row_stop = work[CHECK_STOP, index]
            if not rows_verified(sources, source_index, row_start, row_stop):
                return source_index, row_start, row_stop
    return 0, 0, 0


@kernel
def rows_verified(sources: NDArray[np.int64], source_index: int, row_start: int, row_stop: int) -> bool:
    """Return whether the checksums of all blocks that hold some rows have been checked."""
    if row_start >= row_stop:
        return True
    verified = sources[source_index, layout.VERIFIED]
    shift = sources[source_index, layout.BLOCK_SHIFT]
    for block in range(row_start >> shift, ((row_stop - 1) >> shift) + 1):
        if load_u8(verified, block) == 0:
            return False
    return True


@kernel
def order_ranges(work: NDArray[np.int64], count: int) -> bool:
    """Sort the ranges into row `HEAP` by first timestamp, and return whether none overlaps another.

    Of equal timestamps that of the newer source stands first. The sorted row is a heap too.

    Notes
    -----
    Shell sort [1]_: sources mostly stand in the order of time already, and then it takes one pass a gap.

    References
    ----------
    .. [1] Knuth, The Art of Computer Programming, vol. 3, sec. 5.2.1 (gaps 1, 4, 13, ...).
    """
    for index in range(count):
        work[HEAP, index] = index
    gap = 1
    while gap * 3 + 1 < count:
        gap = gap * 3 + 1
    while gap > 0:
        for index in range(gap, count):
            entry = work[HEAP, index]
            place = index
            while place >= gap and precedes(work, entry, work[HEAP, place - gap]):
                work[HEAP, place] = work[HEAP, place - gap]
                place -= gap
            work[HEAP, place] = entry
        gap //= 3
    for index in range(1, count):
        if work[RANGE_LAST, work[HEAP, index - 1]] >= work[RANGE_FIRST, work[HEAP, index]]:
            return False
    return True


@kernel
def precedes(work: NDArray[np.int64], left: int, right: int) -> bool:
    """Return whether a range's next row comes before another's: earlier, or as early and newer."""
    left_first = work[RANGE_FIRST, left]
    right_first = work[RANGE_FIRST, right]
    return left_first < right_first or (left_first == right_first and left > right)


@kernel
def sift(work: NDArray[np.int64], size: int, place: int) -> None:
    """Move the range at a place of the heap down until it precedes those below it."""
    entry = work[HEAP, place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and precedes(work, work[HEAP, child + 1], work[HEAP, child]):
            child += 1
        if not precedes(work, work[HEAP, child], entry):
            break
        work[HEAP, place] = work[HEAP, child]
        place = child
    work[HEAP, place] = entry


@kernel
def take_rows(sources: NDArray[np.int64], work: NDArray[np.int64], size: int, place: int, row: int) -> int:
    """Take the rows before `row` from the range at a place of the heap; return the heap's new size.

    The place must be the root or one of its children, whose only ancestor is the root: when both have been
    taken from, the child comes first.
    """
    index = work[HEAP, place]
    if row < work[RANGE_STOP, index]:
        work[RANGE_START, index] = row
        work[RANGE_FIRST, index] = load_i64(sources[work[RANGE_SOURCE, index], layout.TIMESTAMPS], row)
    else:
        size -= 1
        work[HEAP, place] = work[HEAP, size]
    if place < size:
        sift(work, size, place)
    return size


@kernel
def gallop(timestamps: int, low: int, high: int, target: int) -> int:
    """Find the first row in ``(low, high]`` whose timestamp is at or after `target`; `high` if none.

    Row `low` is before it. Doubling steps, then binary search: O(log(distance)) [1]_.

    References
    ----------
    .. [1] Bentley and Yao, An almost optimal algorithm for unbounded searching, IPL 5(3), 1976.
    """
    step = 1
    while step < high - low and load_i64(timestamps, low + step) < target:
        low += step
        step += step
    high = min(high, low + step)
    while high - low > 1:
        middle = (low + high) >> 1
        if load_i64(timestamps, middle) < target:
            low = middle
        else:
            high = middle
    return high


@kernel
def merge_step(
    sources: NDArray[np.int64],
    work: NDArray[np.int64],
    size: int,
    out_timestamp: NDArray[np.int64],
    out_value: NDArray[np.float64],
    out_start: int,
    out_stop: int,
) -> tuple[int, int, int, int, int]:
    """Take the next rows of the merged ranges: a block of one source as it stands, or rows written out.

    Parameters
    ----------
    size : int
        Ranges in the heap (row `HEAP` of the workspace).
    out_start, out_stop : int
        Part of the output to write to.

    Returns
    -------
    kind : int
        ``STEP_DONE``, ``STEP_BLOCK`` or ``STEP_ROWS``.
    source_index, row_start, row_stop : int
        The block; with ``STEP_ROWS`` the rows of the output that were written, none of them if
        ``out_start == out_stop`` and more rows follow.
    size : int
        Ranges left in the heap.

    Notes
    -----
    As long as the first range is alone before the first row of all others, its rows are a block, found by
    galloping. Where two interleave they are merged without branches (one compare decides by arithmetic,
    and equal timestamps advance both), up to the first row of a third. A row costs about 3 ns in a
    two-way merge and a copy in a block.
    """
    # Values are moved as integers: of a choice between floats LLVM makes a branch, which costs 5 ns a row
    # instead of 2.8 when the order is random.
    out_bits = out_value.view(np.int64)
    written = out_start
    while size > 0:
        first = work[HEAP, 0]
        source_index = work[RANGE_SOURCE, first]
        row_start = work[RANGE_START, first]
        row_stop = work[RANGE_STOP, first]
        if size == 1:
            if written > out_start:
                break
            return STEP_BLOCK, source_index, row_start, row_stop, 0
        second_place = 1
        if size > 2 and precedes(work, work[HEAP, 2], work[HEAP, 1]):
            second_place = 2
        second = work[HEAP, second_place]
        limit = work[RANGE_FIRST, second]
        if work[RANGE_FIRST, first] == limit:
            # The same key in an older source, for the newer stands first: superseded.
            size = take_rows(sources, work, size, second_place, work[RANGE_START, second] + 1)
            continue
        timestamps = sources[source_index, layout.TIMESTAMPS]
        stop = row_stop
        if work[RANGE_LAST, first] >= limit:
            stop = gallop(timestamps, row_start, row_stop, limit)
        if stop == row_stop or stop - row_start >= BLOCK_ROWS:
            if written > out_start:
                break
            size = take_rows(sources, work, size, 0, stop)
            return STEP_BLOCK, source_index, row_start, stop, size
        if written == out_stop:
            break
        # Two ranges interleave: merge them up to the third.
        bound = INT64_MAX
        if size > 2:
            bound = work[RANGE_FIRST, work[HEAP, 3 - second_place]] - 1
            for child in range(2 * second_place + 1, min(size, 2 * second_place + 3)):
                bound = min(bound, work[RANGE_FIRST, work[HEAP, child]] - 1)
        newer = max(first, second)
        older = min(first, second)
        newer_row = work[RANGE_START, newer]
        newer_stop = work[RANGE_STOP, newer]
        older_row = work[RANGE_START, older]
        older_stop = work[RANGE_STOP, older]
        newer_timestamps = sources[work[RANGE_SOURCE, newer], layout.TIMESTAMPS]
        newer_values = sources[work[RANGE_SOURCE, newer], layout.VALUES]
        older_timestamps = sources[work[RANGE_SOURCE, older], layout.TIMESTAMPS]
        older_values = sources[work[RANGE_SOURCE, older], layout.VALUES]
        bounded = False
        while not bounded:
            # As many rows as neither range nor the output can fall short of, so that the loop needs no
            # check of them.
            batch = min(BATCH_ROWS, out_stop - written, newer_stop - newer_row, older_stop - older_row)
            newer_before = newer_row
            older_before = older_row
            for _ in range(batch):
                newer_timestamp = load_i64(newer_timestamps, newer_row)
                older_timestamp = load_i64(older_timestamps, older_row)
                timestamp = min(newer_timestamp, older_timestamp)
                if timestamp > bound:
                    bounded = True
                    break
                newer_bits = load_i64(newer_values, newer_row)
                older_bits = load_i64(older_values, older_row)
                out_timestamp[written] = timestamp
                out_bits[written] = newer_bits if newer_timestamp <= older_timestamp else older_bits
                newer_row += 1 if newer_timestamp <= older_timestamp else 0
                older_row += 1 if older_timestamp <= newer_timestamp else 0
                written += 1
            if newer_row == newer_before or older_row == older_before:
                break  # perhaps the start of a block
        first_row = newer_row if first > second else older_row
        second_row = older_row if first > second else newer_row
        size = take_rows(sources, work, size, second_place, second_row)
        size = take_rows(sources, work, size, 0, first_row)
    if size == 0 and written == out_start:
        return STEP_DONE, 0, 0, 0, 0
    return STEP_ROWS, 0, out_start, written, size


@kernel
def copy_rows(
    sources: NDArray[np.int64],
    source_index: int,
    row_start: int,
    row_stop: int,
    out_timestamp: NDArray[np.int64],
    out_value: NDArray[np.float64],
    written: int,
) -> int:
    """Copy rows of one source to the output from row `written` on; return the row after the last."""
    count = row_stop - row_start
    # An address of the first row, not an index, and slices: so the loops become vector copies.
    timestamps = sources[source_index, layout.TIMESTAMPS] + 8 * row_start
    values = sources[source_index, layout.VALUES] + 8 * row_start
    to_timestamp = out_timestamp[written : written + count]
    for row in range(len(to_timestamp)):
        to_timestamp[row] = load_i64(timestamps, row)
    to_value = out_value[written : written + count]
    for row in range(len(to_value)):
        to_value[row] = load_f64(values, row)
    return written + count


def warmup() -> None:
    """Compile every kernel, or load it from the cache, with the types of real calls."""
    sources = np.zeros((0, layout.SOURCE_WIDTH), np.int64)
    series = np.zeros(0, np.int64)
    column = np.zeros(1, np.int64)
    scan_rows(sources, series, True, 0, 0, 0, 0, False, column, column, np.zeros(1))
    count_rows(sources, series, True, 0, 0, 0, 0, False)
    bound_rows(sources, series, True, 0, 0, 0, 0, False, 0, CHECK_WIDEN)
    runs = np.zeros((1, layout.RUN_WIDTH), np.int64)
    source = np.zeros((1, layout.SOURCE_WIDTH), np.int64)
    source[0, layout.RUN_COUNT] = 1
    source[0, layout.RUNS] = runs.ctypes.data
    find_series(source, 0, 0)
