"""Measure the kernels: lookups against binary search and NumPy, fitting, and the size of the index.

Run ``python perf/kernels.py``; ``--quick`` takes some seconds, ``--only lookup`` one workload, ``--json``
prints JSON instead of the table. To add a workload, write a function that takes a `Dataset` and yields
`Row`, and add it to `WORKLOADS`.

Data: rows in order of ``(series_id, timestamp)``; sparse 62-bit ids; the lengths of the series are
lognormal; of ten series seven tick every second with 50 ms of jitter, three have lognormal gaps
(sigma 2); nanoseconds. The columns lie as in a mapped Parquet file, at 4 modulo 8 bytes.

Times are CPU times of the one thread that works, so that other processes on the machine disturb them
less; the best of `REPEATS` runs for each rival alike. Batches look up the same keys in every run, so part
of what they touch may stay in a large shared cache; the single lookups take new keys in every run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import kernels_scan  # beside this file
import llvmlite
import numba
import numpy as np

from omendb.jit import layout, pla, search
from omendb.jit import pages as jit_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)

ROWS = 20_000_000
ROWS_QUICK = 1_000_000
SERIES_COUNTS = (1_000, 100_000)
LOOKUPS = 1_000_000
LOOKUPS_COLD = 1_000
EVICT_BYTES = 16 << 20  # beyond the caches of one core; what cores share stays
MAX_ERROR = 64
REPEATS = 5
SEED = 1


@dataclass(frozen=True)
class Row:
    """One figure."""

    workload: str
    measure: str
    value: float
    unit: str
    note: str = ""


class Keys(NamedTuple):
    """Keys to look up, and the rows at which they stand."""

    series: NDArray[np.int64]
    timestamp: NDArray[np.int64]
    row: NDArray[np.int64]


class Dataset:
    """Columns, their models, and the source row through which kernels read both."""

    def __init__(self, row_count: int, series_count: int) -> None:
        random = np.random.default_rng(SEED)
        weights = random.lognormal(0.0, 0.7, series_count)
        counts = 1 + (weights / weights.sum() * (row_count - series_count)).astype(np.int64)
        counts[0] += row_count - counts.sum()
        starts = np.cumsum(counts) - counts
        ids = np.unique(random.integers(0, 2**62, 2 * series_count))[::2][:series_count]
        gaps = (random.lognormal(0.0, 2.0, row_count) * 1e8).astype(np.int64) + 1
        regular = np.repeat(random.random(series_count) < 0.7, counts)
        gaps[regular] = 10**9
        timestamp = np.cumsum(gaps)
        begin = 1_700_000_000 * 10**9 + random.integers(0, 10**12, series_count)
        timestamp += np.repeat(begin - timestamp[starts], counts)
        jitter = random.normal(0.0, 5e7, row_count).astype(np.int64)
        timestamp[regular] += jitter[regular]
        self.row_count = row_count
        self.series_count = series_count
        self.series = np.repeat(ids, counts)
        self.timestamp = as_mapped(timestamp)
        self.value = as_mapped(random.normal(0.0, 1.0, row_count))
        self.models = pla.fit(self.series, self.timestamp, MAX_ERROR)
        self.source = self.describe(self.models)

    def describe(self, models: pla.Models) -> NDArray[np.int64]:
        """Make the source row of the columns with some models, which the caller keeps alive."""
        source = np.zeros(layout.SOURCE_WIDTH, np.int64)
        source[layout.ROWS] = self.row_count
        source[layout.TIMESTAMPS] = self.timestamp.ctypes.data
        source[layout.VALUES] = self.value.ctypes.data
        source[layout.RUN_COUNT] = len(models.runs)
        source[layout.RUNS] = models.runs.ctypes.data
        source[layout.SERIES_KNOTS] = models.series_knots.ctypes.data
        source[layout.SERIES_KNOT_COUNT] = len(models.series_knots) - 1
        source[layout.SERIES_SHIFT] = models.series_shift
        source[layout.KNOTS] = models.knots.ctypes.data
        source[layout.PIECES] = models.pieces.ctypes.data
        source[layout.FIRST_SERIES] = models.runs[0, layout.RUN_SERIES]
        source[layout.LAST_SERIES] = models.runs[-1, layout.RUN_SERIES]
        source[layout.FIRST_TIMESTAMP] = models.runs[:, layout.RUN_FIRST].min()
        source[layout.LAST_TIMESTAMP] = models.runs[:, layout.RUN_LAST].max()
        return source

    @cached_property
    def random_keys(self) -> Keys:
        """Existing keys in random order."""
        random = np.random.default_rng(SEED + 1)
        return self.keys_at(random.integers(0, self.row_count, min(LOOKUPS, self.row_count)))

    @cached_property
    def sorted_keys(self) -> Keys:
        """The same keys in order."""
        return self.keys_at(np.sort(self.random_keys.row))

    @cached_property
    def combined(self) -> NDArray[np.int64]:
        """One ascending int64 for both columns: the runs' spans of time one after the other."""
        runs = self.models.runs
        spans = runs[:, layout.RUN_LAST] - runs[:, layout.RUN_FIRST] + 1
        base = np.cumsum(spans) - spans - runs[:, layout.RUN_FIRST]
        return np.repeat(base, runs[:, layout.RUN_STOP] - runs[:, layout.RUN_START]) + self.timestamp

    def keys_at(self, rows: NDArray[np.int64]) -> Keys:
        """Return the keys of some rows."""
        return Keys(self.series[rows], self.timestamp[rows], rows)


def as_mapped(column: NDArray[Scalar]) -> NDArray[Scalar]:
    """Copy a column to where it lies in a mapped Parquet file: read-only, at 4 modulo 8 bytes."""
    buffer = np.empty(column.nbytes + 8, np.uint8)
    skip = (4 - buffer.ctypes.data) % 8
    view = buffer[skip : skip + column.nbytes].view(column.dtype)
    view[:] = column
    view.flags.writeable = False
    return view


def best_seconds(work: Callable[[], object]) -> float:
    """Run once to compile and warm up, then return the shortest of several runs, in CPU seconds."""
    work()
    seconds = []
    for _ in range(REPEATS):
        begin = time.thread_time()
        work()
        seconds.append(time.thread_time() - begin)
    return min(seconds)


def lookup(data: Dataset) -> Iterator[Row]:
    """Time per lookup of an existing key: in batches, in sorted batches, one by one from Python."""
    yield from batch_lookup(data, "batch, random", data.random_keys)
    yield from batch_lookup(data, "batch, sorted", data.sorted_keys)
    yield from single_lookup(data, "single, random, from Python", data.random_keys)
    yield from cold_lookup(data, "single, cold data, median", data.random_keys)


def batch_lookup(data: Dataset, name: str, keys: Keys) -> Iterator[Row]:
    """Look up many keys by one call."""
    found = np.empty(len(keys.row), np.int64)
    combined = data.combined[keys.row]

    def learned() -> None:
        search.lookup_batch(data.source, keys.series, keys.timestamp, found)

    def binary() -> None:
        search.binary_lookup_batch(data.series, data.timestamp, keys.series, keys.timestamp, found)

    def numpy() -> None:
        found[:] = np.searchsorted(data.combined, combined)

    nanoseconds = []
    for work in (learned, binary, numpy):
        found[:] = -1
        nanoseconds.append(best_seconds(work) * 1e9 / len(found))
        check(found, keys.row)
    yield from compared(name, nanoseconds)


def single_lookup(data: Dataset, name: str, keys: Keys) -> Iterator[Row]:
    """Look up one key by each call, with keys that no earlier run has read; Python's loop included."""
    combined = data.combined[keys.row]
    pairs = list(zip(keys.series.tolist(), keys.timestamp.tolist(), strict=True))
    few = len(pairs) // (REPEATS + 1)

    def learned(part: slice) -> None:
        for series_id, timestamp in pairs[part]:
            search.lookup(data.source, series_id, timestamp)

    def binary(part: slice) -> None:
        for series_id, timestamp in pairs[part]:
            search.binary_lookup(data.series, data.timestamp, series_id, timestamp)

    def numpy(part: slice) -> None:
        for key in combined[part]:
            data.combined.searchsorted(key)

    nanoseconds = []
    for work in (learned, binary, numpy):
        parts = iter(range(REPEATS + 1))

        def fresh(work: Callable[[slice], None] = work, parts: Iterator[int] = parts) -> None:
            part = next(parts)
            work(slice(part * few, (part + 1) * few))

        nanoseconds.append(best_seconds(fresh) * 1e9 / few)
    yield from compared(name, nanoseconds)


def cold_lookup(data: Dataset, name: str, keys: Keys) -> Iterator[Row]:
    """Look up one key while the data is not in the core's own caches but the code is; the median call."""
    other = np.zeros(EVICT_BYTES // 8, np.int64)
    pairs = list(zip(keys.series.tolist(), keys.timestamp.tolist(), strict=True))[:LOOKUPS_COLD]
    combined = data.combined[keys.row[:LOOKUPS_COLD]]
    small = Dataset(1_000, 10)
    small_keys = list(zip(small.series.tolist(), small.timestamp.tolist(), strict=True))[:50]
    small_combined = small.combined[:50]

    def median(
        call: Callable[[NDArray[np.int64], Any], object],
        arguments: tuple[Any, Any],
        looked_up: tuple[Any, Any],
    ) -> float:
        nanoseconds = []
        clock = time.perf_counter_ns
        for cold in looked_up[1]:
            other.sum()
            # Arguments of a call were just made: they are in the cache, whatever else is not.
            key = (cold[0] + 0, cold[1] + 0) if isinstance(cold, tuple) else cold + 0
            for warm in looked_up[0]:
                call(arguments[0], warm)
                clock()
            begin = clock()
            call(arguments[1], key)
            nanoseconds.append(clock() - begin)
        return float(np.median(nanoseconds))

    both = (small_keys, pairs)
    nothing = median(lambda source, key: None, (None, None), both)
    learned = median(lambda source, key: search.lookup(source, *key), (small.source, data.source), both)
    binary = median(
        lambda columns, key: search.binary_lookup(*columns, *key),
        ((small.series, small.timestamp), (data.series, data.timestamp)),
        both,
    )
    numpy = median(
        lambda column, key: column.searchsorted(key),
        (small.combined, data.combined),
        (small_combined, combined),
    )
    yield from compared(name, [max(one - nothing, 1.0) for one in (learned, binary, numpy)])


def compared(name: str, nanoseconds: list[float]) -> Iterator[Row]:
    """Make the rows of the learned index and of its two rivals."""
    learned, binary, numpy = nanoseconds
    note = f"{binary / learned:.1f}x as fast as binary search"
    yield Row("lookup", f"{name}: learned", learned, "ns", note)
    yield Row("lookup", f"{name}: binary search", binary, "ns", "Numba, lexicographic on both columns")
    note = "on one combined, aligned key, prepared outside the timing"
    yield Row("lookup", f"{name}: numpy.searchsorted", numpy, "ns", note)


def check(found: NDArray[np.int64], expected: NDArray[np.int64]) -> None:
    """Stop when a lookup was wrong: its time would mean nothing."""
    if not np.array_equal(found, expected):
        raise SystemExit("a lookup found a wrong row")


def fit(data: Dataset) -> Iterator[Row]:
    """Keys per second of fitting, by kind of model."""
    kinds = (
        ("chosen by run", layout.KIND_NONE),
        ("knots", layout.KIND_KNOTS),
        ("pieces", layout.KIND_PIECES),
    )
    for name, kind in kinds:
        seconds = best_seconds(lambda kind=kind: pla.fit(data.series, data.timestamp, MAX_ERROR, kind=kind))
        note = f"{seconds * 1e3:.0f} ms"
        yield Row("fit", name, data.row_count / seconds / 1e6, "M keys/s", note)


def index(data: Dataset) -> Iterator[Row]:
    """Size of the index and how well it predicts."""
    models = data.models
    size = sum(array.nbytes for array in models[:4])
    kinds = np.bincount(models.runs[:, layout.RUN_SHAPE] & 0xFF, minlength=3)
    note = f"runs without model {kinds[0]}, with knots {kinds[1]}, with pieces {kinds[2]}"
    yield Row("index", "bytes", size, "bytes", note)
    yield Row("index", "bytes of the directory of runs", models.runs.nbytes, "bytes")
    yield Row("index", "bytes per million rows", size * 1e6 / data.row_count, "bytes")
    quality = pla.measure(data.source)
    for name in ("error_max", "error_mean", "error_p99"):
        yield Row("index", name.replace("_", ", "), getattr(quality, name), "rows")
    saved = 1.0 - quality.probes_learned / quality.probes_binary
    yield Row("index", "probes per lookup", quality.probes_learned, "probes")
    yield Row("index", "probes of binary search", quality.probes_binary, "probes", f"saved {saved:.0%}")


def scan(data: Dataset) -> Iterator[Row]:
    """Windows, scans, merges and counts, over half as many rows of their own (`kernels_scan.py`)."""
    rows = data.row_count // 2
    series = min(data.series_count, rows // 100)
    for workload, rate in kernels_scan.measure(rows, series):
        name = f"{workload.name}, {workload.source_count} sources {workload.spread}"
        yield Row("scan", name, rate, "M rows/s", f"{series:,} series")


def pages(data: Dataset) -> Iterator[Row]:
    """Decode pages of 8,192 values: differences of eight bits, and indices of 15 bits into a dictionary."""
    del data
    rows = 8_192
    random = np.random.default_rng(SEED)
    # Blocks of 128 differences: their least one, four widths, and the bits.
    block = b"\x00" + bytes([8] * 4)
    deltas = b"\x80\x01\x04\x80\x40\x00" + b"".join(block + random.bytes(128) for _ in range(rows // 128))
    # One group of 1,024 times eight indices.
    indices = bytes([15]) + b"\x81\x10" + random.bytes(rows // 8 * 15)
    dictionary = random.integers(0, 2**62, 1 << 15)
    dictionary.flags.writeable = False
    out = np.zeros(rows, np.int64)
    work: dict[str, Callable[[], int]] = {
        "differences": lambda: jit_pages.decode_deltas(np.frombuffer(deltas, np.uint8), out),
        "dictionary": lambda: jit_pages.decode_indices(np.frombuffer(indices, np.uint8), dictionary, out),
    }
    for name, decode in work.items():
        if decode() != rows:
            raise SystemExit(f"a page of {name} was not decoded")
        seconds = best_seconds(lambda decode=decode: [decode() for _ in range(1_000)]) / 1_000
        yield Row("pages", name, rows / seconds / 1e6, "M rows/s", f"{seconds * 1e6:.1f} us a page")


WORKLOADS: dict[str, Callable[[Dataset], Iterator[Row]]] = {
    "lookup": lookup,
    "fit": fit,
    "index": index,
    "scan": scan,
    "pages": pages,
}


def machine() -> dict[str, str | int]:
    """Describe what the figures were measured on."""
    processor = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    repository = Path(__file__).parents[1]
    git = ["git", "-C", str(repository), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "cpu": processor,
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "commit": commit or "none",
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, help=f"rows of each data set; default {ROWS:,}")
    parser.add_argument("--quick", action="store_true", help=f"{ROWS_QUICK:,} rows")
    parser.add_argument("--only", choices=WORKLOADS, action="append", help="a workload; repeatable")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    row_count = options.rows or (ROWS_QUICK if options.quick else ROWS)
    names = options.only or list(WORKLOADS)

    about = machine()
    results = []
    if not options.json:
        for name, value in about.items():
            print(f"{name:<9} {value}")
    for series_count in SERIES_COUNTS:
        data = Dataset(row_count, series_count)
        if not options.json:
            print(f"\n{row_count:,} rows, {series_count:,} series, max_error {MAX_ERROR}")
        for name in names:
            for row in WORKLOADS[name](data):
                results.append({"rows": row_count, "series": series_count, **asdict(row)})
                if not options.json:
                    label = f"{row.workload:<8} {row.measure:<48}"
                    print(f"  {label} {row.value:>14,.1f} {row.unit:<9} {row.note}", flush=True)
    if options.json:
        print(json.dumps({"machine": about, "results": results}, indent=2))


if __name__ == "__main__":
    main()
