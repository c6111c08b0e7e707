"""What compression costs and saves: bytes a point, merging, and queries, with it and without, in one run.

    python perf/compression.py                 # 1,000 series of 10,000 points, 10 s apart
    python perf/compression.py --quick         # a tenth of the series
    python perf/compression.py --json out.json

Values are a random walk with two decimals (normally distributed steps of ``--sigma``). Two stores of the same
rows, one of them compressed, are asked the same queries in turns; answers are compared before they are timed.
Times are processor time of this process a query, the median of the rounds: other processes on the machine
make them longer, but not by much, and both alike.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omendb.config import Settings
from omendb.executor import Scan
from omendb.merged import window_scan
from omendb.model import Batch
from omendb.query import make_range_query, make_window_query
from omendb.short_query import answer_short
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store
from omendb.workers import Workers

# Python puts a script's directory first; these two are modules there.
sys.path.insert(0, str(Path(__file__).parent))
from kernels import machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from omendb.storage.store import Store

ROWS = 10_000  # of a series
STEP_SECONDS = 10
START = 1_700_000_000
SEED = 1
ROUNDS = 5
QUERIES = 200
WORKERS = Workers()
"""As a server has them."""
ROW_GROUPS = (65_536, 2_000_000)
LEVELS = (1, 3, 9)


def walk(series: int, sigma: float) -> NDArray[np.float64]:
    """Return the values, one series after the other."""
    rng = np.random.default_rng(SEED)
    return np.round(np.cumsum(rng.normal(0, sigma, (series, ROWS)), axis=1), 2).ravel()


def measure_encodings(values: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Bytes a row of the column of values, however pyarrow can write it, with pages of 8,192 rows."""
    results = []
    schema = pa.schema([pa.field("value", pa.float64(), nullable=False)])
    table = pa.table([values], schema=schema)
    for encoding in ("RLE_DICTIONARY", "PLAIN", "BYTE_STREAM_SPLIT"):
        for row_group in ROW_GROUPS:
            for level in LEVELS:
                out = io.BytesIO()
                began = time.process_time()
                pq.write_table(
                    table,
                    out,
                    row_group_size=row_group,
                    compression="ZSTD",
                    compression_level=level,
                    use_dictionary=encoding == "RLE_DICTIONARY",
                    use_byte_stream_split=encoding == "BYTE_STREAM_SPLIT",
                    dictionary_pagesize_limit=1 << 30,
                    data_page_size=1 << 30,
                    max_rows_per_page=8_192,
                    store_schema=False,
                )
                seconds = time.process_time() - began
                results.append(
                    {
                        "encoding": encoding,
                        "row_group": row_group,
                        "level": level,
                        "bytes_a_row": len(out.getvalue()) / len(values),
                        "million_rows_a_second": len(values) / seconds / 1e6,
                    }
                )
    return results


def make_store(
    directory: Path, values: NDArray[np.float64], *, compressed: bool
) -> tuple[Store, dict[str, float]]:
    """Fill a store in slices of time, as it comes in, and settle it."""
    settings = Settings(enable_compression=compressed)
    store, _ = open_store(OsFileSystem(), directory, settings)
    series = len(values) // ROWS
    table = values.reshape(series, ROWS)
    ids = np.arange(series, dtype=np.int64)
    flush_seconds = 0.0
    for start in range(0, ROWS, 1_000):
        times = (np.arange(start, start + 1_000, dtype=np.int64) * STEP_SECONDS + START) * 1_000
        batch = Batch(
            np.repeat(ids, 1_000), np.tile(times, series), table[:, start : start + 1_000].reshape(-1).copy()
        )
        sequence = store.append(batch)
        store.sync()
        store.apply(batch, sequence)
        store.freeze()
        began = time.process_time()
        store.flush_oldest()
        flush_seconds += time.process_time() - began
    began = time.process_time()
    while store.compact(everything=True) is not None:
        pass
    seconds = time.process_time() - began
    began = time.process_time()
    for segment in store.snapshot.segments:
        segment.columns()
    read_seconds = time.process_time() - began
    figures = {
        "bytes_a_point": store.data_bytes / len(values),
        "flush_million_rows_a_second": len(values) / flush_seconds / 1e6,
        "gc_million_rows_a_second": len(values) / seconds / 1e6,
        "checked_and_decoded_million_rows_a_second": len(values) / read_seconds / 1e6,
    }
    return store, figures


def ask_range(store: Store, rows: int) -> Callable[[int, int], bytes]:
    """Return what answers a range of one series, as the server does."""

    def ask(series: int, row: int) -> bytes:
        start = (START + row * STEP_SECONDS) * 1_000
        query = make_range_query(start, start + (rows - 1) * STEP_SECONDS * 1_000, series)
        short = answer_short(store.snapshot, query, columns=True)
        if short is not None:
            return bytes(short.text)
        found = Scan(store.snapshot, query).columns()
        return found.timestamp.tobytes() + found.value.tobytes()

    return ask


def ask_windows(store: Store, series: list[int] | None, by: str = "series_id") -> list[bytes]:
    """Return 100 means of each series, or of all together."""
    query = make_window_query(ROWS // 100 * STEP_SECONDS * 1_000, "mean", START * 1_000, None, series, by=by)
    windows = window_scan(store.snapshot, query, WORKERS).windows()
    return [windows.timestamp.tobytes(), np.round(windows.columns["mean"], 9).tobytes()]


def drop_cache(store: Store) -> None:
    """Take everything decoded out of the cache."""
    limit = store.cache.limit_bytes
    store.cache.set_limit(0)
    store.cache.set_limit(limit)


def measure_queries(plain: Store, compressed: Store, series: int) -> list[dict[str, Any]]:
    """Processor time of queries on both, in turns."""
    rng = np.random.default_rng(SEED)
    results = []

    def compare(name: str, ask: Callable[[Store], object], count: int, *, cold: bool = False) -> None:
        times: dict[bool, list[float]] = {False: [], True: []}
        answers = [ask(store) for store in (plain, compressed)]
        if answers[0] != answers[1]:
            raise SystemExit(f"{name}: the stores answer differently")
        for _ in range(ROUNDS):
            for store, is_compressed in ((plain, False), (compressed, True)):
                if cold and is_compressed:
                    drop_cache(store)
                began = time.process_time()
                ask(store)
                times[is_compressed].append((time.process_time() - began) / count)
        off, on = (statistics.median(times[kind]) * 1e6 for kind in (False, True))
        results.append({"query": name, "off_us": off, "on_us": on, "ratio": on / off})

    for rows in (100, 1_000):
        keys = [(int(rng.integers(series)), int(rng.integers(ROWS - rows))) for _ in range(QUERIES)]

        def ask(store: Store, keys: list[tuple[int, int]] = keys, rows: int = rows) -> list[bytes]:
            one = ask_range(store, rows)
            return [one(*key) for key in keys]

        compare(f"{rows:,} rows, warm", ask, QUERIES)
        compare(f"{rows:,} rows, each in a block of its own, not decoded", ask, QUERIES, cold=True)
    compare("10,000 points to 100 means, warm", lambda store: ask_windows(store, [series // 2]), 1)
    compare("100 means of each series", lambda store: ask_windows(store, None), 1)
    compare("100 means of all together", lambda store: ask_windows(store, None, ""), 1)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--series", type=int, default=1_000)
    parser.add_argument("--quick", action="store_true", help="100 series")
    parser.add_argument("--sigma", type=float, default=0.5, help="of the walk's steps; default 0.5")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    series = 100 if options.quick else options.series

    about = machine()
    for name, value in about.items():
        print(f"{name:<9} {value}")
    values = walk(series, options.sigma)
    print(f"\n{len(values):,} points of {series:,} series, {len(np.unique(values)):,} distinct values")

    encodings = measure_encodings(values[: 200 * ROWS])
    print("\nvalues alone, up to 2,000,000 rows     bytes a row   M rows/s written")
    for row in encodings:
        what = f"{row['encoding']}, groups of {row['row_group']:,}, level {row['level']}"
        print(f"  {what:<44} {row['bytes_a_row']:>6.3f} {row['million_rows_a_second']:>10.1f}", flush=True)

    with tempfile.TemporaryDirectory() as directory:
        stores = {}
        sizes = {}
        for name, compressed in (("off", False), ("on", True)):
            stores[name], sizes[name] = make_store(Path(directory) / name, values, compressed=compressed)
        print("\nstore, settled by gc                                off         on")
        for figure in sizes["off"]:
            print(f"  {figure:<42} {sizes['off'][figure]:>10.2f} {sizes['on'][figure]:>10.2f}", flush=True)
        queries = measure_queries(stores["off"], stores["on"], series)
        print("\nqueries, us of processor time                       off         on      ratio")
        for row in queries:
            print(f"  {row['query']:<42} {row['off_us']:>10.1f} {row['on_us']:>10.1f} {row['ratio']:>10.2f}")
        cache = stores["on"].cache.figures()
        print(f"\ncache: {cache._asdict()}")
        for store in stores.values():
            store.wal.close()
            store.release()
    if options.json:
        report = {
            "machine": about,
            "series": series,
            "sigma": options.sigma,
            "encodings": encodings,
            "stores": sizes,
            "queries": queries,
        }
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
