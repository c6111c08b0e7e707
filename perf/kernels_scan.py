"""Measure the scan kernels: windows, scans, counts and merges, in rows a second.

Run ``python perf/kernels_scan.py [rows] [series]``; ``taskset -c 1`` steadies the figures. Each figure is the
best of several passes over data in memory, on one core.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from omendb.jit import fold, layout, merge, split, window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
EVERY_SERIES = np.zeros(0, np.int64)
STEP = 1_000  # timestamp units between two rows of a series
CHUNK_ROWS = 65_536
FOLD_WINDOWS = 8_192
FOLD_ENTRIES = 65_536
PASSES = 3
SEED = 1

ROWS = 10_000_000
SERIES = 1_000


class Sources(NamedTuple):
    """Source rows for the kernels, and the arrays behind their addresses."""

    rows: NDArray[np.int64]
    kept: list[NDArray[np.generic]]


class Workload(NamedTuple):
    """A name, how the rows are spread over sources, and what is done with them once."""

    name: str
    source_count: int
    spread: str
    work: Callable[[NDArray[np.int64], int], int]


def owners(spread: str, position: NDArray[np.int64], length: int, count: int) -> NDArray[np.int64]:
    """Return the source that holds each row, by its position in its series of `length` rows."""
    if spread == "in order":
        return position * count // length
    if spread == "5 % late":
        # As out-of-order points leave it: a row in twenty comes one source later than its neighbours.
        late = np.random.default_rng(SEED).integers(0, 20, len(position)) == 0
        return np.minimum(count - 1, position * count // length + late)
    if spread == "tails overlap":
        # The last twentieth of each source's time is shared with the next source, row by row.
        place = position * count % length
        return np.minimum(
            count - 1, position * count // length + ((place * 20 > length * 19) & (position % 2 == 0))
        )
    if spread == "alternating":
        return position % count
    return np.random.default_rng(SEED).integers(0, count, len(position))


def make_sources(rows: int, series: int, source_count: int, spread: str) -> Sources:
    """Spread regular series over sources."""
    length = rows // series
    position = np.tile(np.arange(length), series)
    series_id = np.repeat(np.arange(series), length)
    owner = owners(spread, position, length, source_count)
    value = np.random.default_rng(SEED).normal(size=len(position))
    sources = Sources(np.zeros((source_count, layout.SOURCE_WIDTH), np.int64), [])
    for index in range(source_count):
        mine = owner == index
        add_source(sources, index, series_id[mine], position[mine] * STEP, value[mine])
    return sources


def add_source(
    sources: Sources,
    index: int,
    series_id: NDArray[np.int64],
    timestamp: NDArray[np.int64],
    value: NDArray[np.float64],
) -> None:
    """Describe sorted columns as a source with plain binary search."""
    start = np.flatnonzero(np.diff(series_id, prepend=-1))
    stop = np.append(start[1:], len(series_id))
    runs = np.zeros((len(start), layout.RUN_WIDTH), np.int64)
    runs[:, layout.RUN_SERIES] = series_id[start]
    runs[:, layout.RUN_START] = start
    runs[:, layout.RUN_STOP] = stop
    runs[:, layout.RUN_FIRST] = timestamp[start]
    runs[:, layout.RUN_LAST] = timestamp[stop - 1]
    row = sources.rows[index]
    row[layout.ROWS] = len(series_id)
    row[layout.TIMESTAMPS] = timestamp.ctypes.data
    row[layout.VALUES] = value.ctypes.data
    row[layout.RUN_COUNT] = len(runs)
    row[layout.RUNS] = runs.ctypes.data
    row[layout.FIRST_SERIES] = series_id[0]
    row[layout.LAST_SERIES] = series_id[-1]
    row[layout.FIRST_TIMESTAMP] = timestamp.min()
    row[layout.LAST_TIMESTAMP] = timestamp.max()
    sources.kept.extend((timestamp, value, runs))


def scan(sources: NDArray[np.int64], rows: int) -> int:
    """Scan everything in chunks, as queries and compaction do; return the rows."""
    out_series, out_timestamp = np.empty(CHUNK_ROWS, np.int64), np.empty(CHUNK_ROWS, np.int64)
    out_value = np.empty(CHUNK_ROWS)
    total = 0
    after = (0, 0)
    while True:
        written, status, *_ = merge.scan_rows(
            sources,
            EVERY_SERIES,
            True,
            INT64_MIN,
            INT64_MAX,
            *after,
            total > 0,
            out_series,
            out_timestamp,
            out_value,
        )
        total += written
        if status == layout.STATUS_DONE:
            return total
        after = (int(out_series[written - 1]), int(out_timestamp[written - 1]))


def count(sources: NDArray[np.int64], rows: int) -> int:
    """Count everything."""
    return merge.count_rows(sources, EVERY_SERIES, True, INT64_MIN, INT64_MAX, 0, 0, False)[0]


def windows_of(
    window_rows: int, variance: bool = False, simd: bool = True
) -> Callable[[NDArray[np.int64], int], int]:
    """Make a workload that aggregates everything in windows of some rows each."""

    def work(sources: NDArray[np.int64], rows: int) -> int:
        integers = [np.empty(CHUNK_ROWS, np.int64) for _ in range(3)]
        floats = [np.empty(CHUNK_ROWS) for _ in range(6)]
        total = 0
        after = (0, 0)
        while True:
            written, status, *_ = window.scan_windows(
                sources,
                EVERY_SERIES,
                True,
                INT64_MIN,
                INT64_MAX,
                0,
                window_rows * STEP,
                simd,
                *after,
                total > 0,
                variance,
                False,
                *integers,
                *floats,
                EVERY_SERIES,
                EVERY_SERIES,
            )
            total += int(integers[2][:written].sum())
            if status == layout.STATUS_DONE:
                return total
            after = (int(integers[0][written - 1]), int(integers[1][written - 1]))

    return work


def merged_windows_of(window_rows: int) -> Callable[[NDArray[np.int64], int], int]:
    """Make a workload that aggregates all series together in windows of some rows of each."""

    def work(sources: NDArray[np.int64], rows: int) -> int:
        capacity = FOLD_ENTRIES
        slots = np.full(2 << capacity.bit_length(), fold.SLOT_FREE, np.int64)
        table = (np.empty((fold.INTEGERS, capacity), np.int64), np.empty((fold.FLOATS, capacity)))
        integers = np.empty((fold.INTEGERS, FOLD_WINDOWS), np.int64)
        floats = np.empty((fold.FLOATS, FOLD_WINDOWS))
        series = np.empty(FOLD_WINDOWS, np.int64)
        start, count, first_at, last_at = integers
        size, written, status = 0, 0, layout.STATUS_FULL
        after = (0, 0)
        while status != layout.STATUS_DONE:
            resume = written > 0
            written, status, *_ = window.scan_windows(
                sources,
                EVERY_SERIES,
                True,
                INT64_MIN,
                INT64_MAX,
                0,
                window_rows * STEP,
                True,
                *after,
                resume,
                False,
                True,
                *(series, start, count),
                *floats,
                *(first_at, last_at),
            )
            _, size = fold.fold_windows(integers, floats, written, False, slots, size, *table)
            if written:
                after = (int(series[written - 1]), int(start[written - 1]))
        return int(table[0][fold.COUNT, :size].sum())

    return work


def shards(sources: NDArray[np.int64], rows: int) -> int:
    """Cut everything into shards; return the rows of all."""
    out = np.empty((2 * (rows // CHUNK_ROWS) + 2, split.SHARD_WIDTH), np.int64)
    bounds = (INT64_MIN, INT64_MAX)
    _, total = split.split_scan(sources, EVERY_SERIES, True, *bounds, 0, 0, False, 0, 0, CHUNK_ROWS, out)
    return int(total)


WORKLOADS: Sequence[Workload] = (
    Workload("windows of 1,000 rows", 1, "in order", windows_of(1_000)),
    Workload("windows of 100 rows", 1, "in order", windows_of(100)),
    Workload("windows of 100 rows, with variance", 1, "in order", windows_of(100, True)),
    Workload("windows of 10,000 rows", 1, "in order", windows_of(10_000)),
    Workload("windows of 10,000 rows, scalar", 1, "in order", windows_of(10_000, simd=False)),
    Workload("windows of 1,000 rows, scalar", 1, "in order", windows_of(1_000, simd=False)),
    Workload("windows of 100 rows, scalar", 1, "in order", windows_of(100, simd=False)),
    Workload("windows of 100 rows, with variance, scalar", 1, "in order", windows_of(100, True, simd=False)),
    Workload("windows of 10 rows", 1, "in order", windows_of(10)),
    Workload("windows of 1 row", 1, "in order", windows_of(1)),
    Workload("windows of 100 rows, all series together", 1, "in order", merged_windows_of(100)),
    Workload("windows of 1 row, all series together", 1, "in order", merged_windows_of(1)),
    Workload("shards", 1, "in order", shards),
    Workload("windows of 100 rows", 8, "in order", windows_of(100)),
    Workload("windows of 100 rows", 8, "tails overlap", windows_of(100)),
    Workload("scan", 1, "in order", scan),
    Workload("merge", 2, "in order", scan),
    Workload("merge", 8, "in order", scan),
    Workload("merge", 2, "tails overlap", scan),
    Workload("merge", 8, "tails overlap", scan),
    Workload("merge", 8, "5 % late", scan),
    Workload("merge", 2, "alternating", scan),
    Workload("merge", 2, "random", scan),
    Workload("merge", 4, "random", scan),
    Workload("merge", 8, "random", scan),
    Workload("count", 8, "in order", count),
    Workload("count", 8, "tails overlap", count),
)


def measure(rows: int, series: int) -> Iterator[tuple[Workload, float]]:
    """Yield each workload with its M rows/s over `rows` rows of `series` series; wall time, best pass."""
    for module in (merge, window, split, fold):
        module.warmup()
    made: dict[tuple[int, str], Sources] = {}
    for workload in WORKLOADS:
        layout_key = (workload.source_count, workload.spread)
        if layout_key not in made:
            made.clear()  # one layout at a time in memory
            made[layout_key] = make_sources(rows, series, *layout_key)
        sources = made[layout_key]
        seconds = []
        for _ in range(PASSES):
            before = time.perf_counter()
            total = workload.work(sources.rows, rows)
            seconds.append(time.perf_counter() - before)
        if total != rows // series * series:
            sys.exit(f"{workload.name}: {total} rows instead of {rows // series * series}")
        yield workload, rows / min(seconds) / 1e6


def run(rows: int, series: int) -> None:
    """Print the figures as a table."""
    print(f"{rows:,} rows, {series:,} series")
    print(f"{'workload':<43} {'sources':>7} {'spread':<14} {'M rows/s':>9}")
    for workload, rate in measure(rows, series):
        print(f"{workload.name:<43} {workload.source_count:>7} {workload.spread:<14} {rate:>9,.0f}")


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    run(*(arguments + [ROWS, SERIES][len(arguments) :]))
