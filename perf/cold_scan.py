"""Measure scans whose rows are not in memory, with different values of `prefetch_size`.

Run ``python perf/cold_scan.py [--rows N] [--series N] [--directory DIR]``. The directory should be on the
disk that is of interest; it needs 16 bytes a row. Before each scan the store's pages are dropped
from memory (this process alone has them mapped), and that is checked. The passes of the different values
alternate; the figure is the median.

A *first* scan is one after a start: it reads whole blocks and checks their checksums. A *later* one is a scan
whose rows were checked before, and have been dropped from memory since.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This directory's http.py would stand in the way of the standard library's.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))

import argparse
import contextlib
import ctypes
import gc
import mmap
import os
import platform
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import omendb
from omendb.storage.fs import is_resident

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from omendb import Engine

ROWS = 20_000_000
SERIES = 1_000
STEP = 1_000
PREFETCH = (0, 2_000, 4_000, 20_000, 100_000)
PASSES = 5

_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Workload(NamedTuple):
    """A scan, of the engine and the rows a series has."""

    name: str
    run: Callable[[Engine, int], int]


def slices(rows: int) -> Callable[[Engine, int], int]:
    """Aggregate a short time in the middle of every series."""

    def run(db: Engine, run_rows: int) -> int:
        start = run_rows // 2 * STEP
        answer = db.aggregate(10 * STEP, ("count", "max"), start=start, end=start + rows * STEP - 1)
        return int(answer.columns["count"].sum())

    return run


def whole(db: Engine, series_id: object) -> int:
    answer = db.aggregate(1_000 * STEP, ("count", "max"), series_id=series_id)
    return int(answer.columns["count"].sum())


WORKLOADS = (
    Workload("100 rows of every series", slices(100)),
    Workload("2,000 rows of every series", slices(2_000)),
    Workload(
        "all rows of every tenth series",
        lambda db, run_rows: whole(db, np.arange(0, db.stats().series_count, 10)),
    ),
    Workload("all rows of one series", lambda db, run_rows: whole(db, 0)),
)


def fill(directory: Path, rows: int, series: int) -> None:
    """Make a store of few large segments."""
    run_rows = rows // series
    rng = np.random.default_rng(1)
    timestamps = np.arange(run_rows) * STEP
    with omendb.open(directory, retrain_threshold=4_000_000) as db:
        for series_id in range(series):
            db.insert(series_id, timestamps, rng.random(run_rows))
        db.gc()


def drop(db: Engine) -> None:
    """Let the system forget the pages of the store."""
    gc.collect()  # stores that were closed before may still have them mapped
    for segment in db._store.snapshot.segments:
        data = segment.file.data
        address = data.ctypes.data & -mmap.PAGESIZE
        # A page that is mapped is not dropped from the cache: unmap it first (the map itself stays).
        _libc.madvise(address, len(data), mmap.MADV_DONTNEED)
        descriptor = os.open(segment.path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        kept = sum(is_resident(address + at) for at in range(0, len(data), 64 * mmap.PAGESIZE))
        if kept > len(data) // (64 * mmap.PAGESIZE) // 100 + 2:
            sys.exit(f"{kept} of {len(data) // (64 * mmap.PAGESIZE)} pages of {segment.path} stay in memory")


def measure(
    directory: Path, workload: Workload, run_rows: int, *, first: bool
) -> Iterator[tuple[int, float]]:
    """Yield each value of `prefetch_size` with the median of its seconds."""
    seconds: dict[int, list[float]] = {rows: [] for rows in PREFETCH}
    counts = set()
    with contextlib.ExitStack() as stack:
        db = stack.enter_context(omendb.open(directory))
        counts.add(workload.run(db, run_rows))  # compiles; and checks the checksums, for later scans
        for _ in range(PASSES):
            for rows in PREFETCH:
                if first:
                    stack.close()
                    db = stack.enter_context(omendb.open(directory))
                db.configure(prefetch_size=rows)
                drop(db)
                before = time.perf_counter()
                counts.add(workload.run(db, run_rows))
                seconds[rows].append(time.perf_counter() - before)
    if len(counts) != 1:
        sys.exit(f"{workload.name}: different answers: {counts}")
    for rows, taken in seconds.items():
        yield rows, statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--series", type=int, default=SERIES)
    parser.add_argument("--directory", type=Path, help="where to make the store; a temporary one by default")
    options = parser.parse_args()
    run_rows = options.rows // options.series
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory) / "db"
        fill(path, options.rows, options.series)
        print(f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}")
        print(
            f"{options.rows:,} rows, {options.series:,} series of {run_rows:,}; median ms of {PASSES} passes"
        )
        print(f"{'cold scan':<48}" + "".join(f"{f'prefetch {rows:,}':>18}" for rows in PREFETCH))
        for first in (True, False):
            for workload in WORKLOADS:
                figures = [f"{s * 1e3:>18,.1f}" for _, s in measure(path, workload, run_rows, first=first)]
                print(
                    f"{workload.name + (', first' if first else ', later'):<48}" + "".join(figures),
                    flush=True,
                )


if __name__ == "__main__":
    main()
