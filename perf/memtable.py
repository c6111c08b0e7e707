"""Measure the memtable: inserts a second by order of arrival, reads by number of series.

Run ``python perf/memtable.py [repeats]``. It prints two tables. Loads and exports are measured in CPU time
of the thread, which they never give up, so that a shared machine does not distort them; single calls in
wall time, of which it prints the median.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from omendb.jit import blocks
from omendb.model import INT64_MAX, INT64_MIN, Batch
from omendb.storage.memtable import Memtable

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BATCH_ROWS = 10_000
SEED = 1


def ids(series_count: int) -> NDArray[np.int64]:
    """Make distinct sparse series ids, as hashed labels give them."""
    random = np.random.default_rng(SEED)
    return np.unique(random.integers(0, 2**62, 2 * series_count))[:series_count]


def load(memtable: Memtable, series: NDArray[np.int64], time_: NDArray[np.int64]) -> list[float]:
    """Insert in batches; return the CPU seconds of each."""
    value = np.arange(len(series), dtype=np.float64)
    seconds = []
    for start in range(0, len(series), BATCH_ROWS):
        part = slice(start, start + BATCH_ROWS)
        batch = Batch(series[part], time_[part], value[part])
        begin = time.thread_time()
        memtable.insert(batch, start)
        seconds.append(time.thread_time() - begin)
    return seconds


def points(series_count: int, rows: int, order: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Make points: every series once a tick; or late, random, or one series after the other."""
    random = np.random.default_rng(SEED)
    known = ids(series_count)
    if order == "by series":
        per_series = rows // series_count
        return np.repeat(known, per_series), np.tile(np.arange(per_series) * 1000, series_count)
    if order == "random":
        return known[random.integers(0, series_count, rows)], random.integers(0, 2**40, rows)
    if order == "random series, in order":
        return known[random.integers(0, series_count, rows)], np.arange(rows)
    known = random.permutation(known)
    series = np.tile(known, -(-rows // series_count))[:rows]
    time_ = np.repeat(np.arange(-(-rows // series_count)) * 1000, series_count)[:rows]
    if order == "5% late":
        late = random.random(rows) < 0.05
        time_[late] -= random.integers(0, 500_000, int(late.sum())) + 1
    elif order == "backfill":
        time_ = time_ - (time_ >= time_[-1] // 2) * 10**9
    return series, time_


def median_us(call: Callable[[int], object], count: int) -> float:
    """Median microseconds of single calls."""
    seconds = []
    for index in range(count):
        begin = time.perf_counter()
        call(index)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds) * 1e6


def main() -> None:
    """Print the table."""
    blocks.warmup()
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(f"{'series':>9} {'rows':>9}  {'order':<24}{'M rows/s':>9}{'worst batch ms':>15}"
          f"{'bytes/row':>10}{'export ms':>10}")  # fmt: skip
    for series_count, rows, order in (
        (1, 1_000_000, "tick"),
        (1, 1_000_000, "random"),
        (1, 1_000_000, "backfill"),
        (1_000, 2_000_000, "tick"),
        (1_000, 2_000_000, "by series"),
        (1_000, 2_000_000, "5% late"),
        (1_000, 2_000_000, "backfill"),
        (1_000, 2_000_000, "random"),
        (100_000, 2_000_000, "tick"),
        (1_000_000, 1_000_000, "tick"),
        (1_000_000, 4_000_000, "tick"),
        (1_000_000, 4_000_000, "random series, in order"),
        (1_000_000, 4_000_000, "5% late"),
        (1_000_000, 4_000_000, "random"),
    ):
        series, time_ = points(series_count, rows, order)
        best = None
        for _ in range(repeats):
            memtable = Memtable()
            seconds = load(memtable, series, time_)
            begin = time.thread_time()
            memtable.export()
            export = time.thread_time() - begin
            if best is None or sum(seconds) < best[0]:
                best = (sum(seconds), max(seconds), export)
        assert best is not None
        seconds_sum, seconds_max, export = best
        print(
            f"{series_count:>9} {rows:>9}  {order:<24}{rows / seconds_sum / 1e6:>9.1f}"
            f"{seconds_max * 1e3:>15.2f}{memtable.bytes / memtable.rows:>10.1f}{export * 1e3:>10.1f}"
        )
        del memtable
        gc.collect()
    print()
    print(f"{'series':>9}  {'one call':<30}{'median us':>10}")
    for series_count, rows in ((1_000, 1_000_000), (1_000_000, 4_000_000)):
        measure_calls(series_count, rows)


def measure_calls(series_count: int, rows: int) -> None:
    """Print the latencies of single calls on a memtable of so many series."""
    memtable = Memtable()
    series, time_ = points(series_count, rows, "tick")
    load(memtable, series, time_)
    one = series[5:6]
    memtable.insert(Batch(np.repeat(one, 100), np.arange(100) + 10**9, np.zeros(100)), rows)
    picks = np.random.default_rng(SEED).choice(ids(series_count), 1_000, replace=False)
    few = np.sort(picks)
    last_tick = int(time_[-1])
    point = Batch(one, np.array([2 * 10**9]), np.zeros(1))
    calls: tuple[tuple[str, int, Callable[[int], object]], ...] = (
        ("100 rows of one series", 2_000, lambda _: memtable.read(one, 10**9, 10**9 + 99, 65_536)),
        ("1 row of a random series", 1_000, lambda i: memtable.read(picks[i : i + 1], 0, 0, 65_536)),
        ("an absent series", 1_000, lambda _: memtable.read(one + 1, 0, 0, 65_536)),
        ("1,000 series, 1 row each", 100, lambda _: memtable.read(few, 0, 0, 65_536)),
        ("first page of 65,536 rows", 20, lambda _: memtable.read(None, INT64_MIN, INT64_MAX, 65_536)),
        ("last tick of all series", 5, lambda _: memtable.read(None, last_tick, 10**8, INT64_MAX)),
        ("insert of one point", 1_000, lambda _: memtable.insert(point, 10**9)),
    )
    for name, count, call in calls:
        print(f"{series_count:>9}  {name:<30}{median_us(call, count):>10.1f}")


if __name__ == "__main__":
    main()
