"""Plain twins of the index kernels, in whole numbers of any size, and sources for them to read.

`Source` lays columns out as a mapped segment does: read-only, at a byte offset that is no multiple of 8.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from hypothesis import strategies as st

from omendb.jit import layout, pla
from omendb.jit._compile import JIT_DISABLED

if TYPE_CHECKING:
    from numpy.typing import NDArray

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
EXAMPLES = 80 if JIT_DISABLED else 300
ROWS_MAX = 1_200 if JIT_DISABLED else 1_500
EPOCH = 1_700_000_000_000_000_000

MAX_ERRORS = (0, 1, 64, 10**6)
SHAPES = ("regular", "jitter", "lognormal", "bursts", "outlier", "outage", "extremes", "dense", "one")


class Table(NamedTuple):
    """Sorted key columns."""

    series: NDArray[np.int64]
    timestamp: NDArray[np.int64]

    def pairs(self) -> list[tuple[int, int]]:
        return list(zip(self.series.tolist(), self.timestamp.tolist(), strict=True))


def make_run(shape: str, rows: int, random: np.random.Generator) -> list[int]:
    """Make the ascending, unique timestamps of one series."""
    steps = np.arange(rows) * 10**9
    if shape == "one":
        return [int(random.integers(INT64_MIN, INT64_MAX))]
    if shape == "dense":
        values = (np.arange(rows) - rows // 2).tolist()
    elif shape == "jitter":
        values = (EPOCH + steps + random.integers(-(10**8), 10**8, rows)).tolist()
    elif shape == "lognormal":
        values = (EPOCH + np.cumsum(random.lognormal(0.0, 2.0, rows) * 1e8).astype(int)).tolist()
    elif shape == "bursts":
        values = (EPOCH + (np.arange(rows) // 40) * 10**12 + np.arange(rows) % 40).tolist()
    elif shape == "extremes":
        ends = [INT64_MIN, INT64_MIN + 1, -1, 0, 1, INT64_MAX - 1, INT64_MAX]
        values = random.integers(INT64_MIN, INT64_MAX, rows).tolist() + ends
    else:
        values = (EPOCH + steps).tolist()
        if shape == "outlier":
            values[0] = 0
        elif shape == "outage":
            values = values[: rows // 3] + [value + 2**60 for value in values[rows // 3 :]]
    return sorted(set(values))


def make_table(parts: list[tuple[int, str, int, int]]) -> Table:
    """Make a table from (series, shape, rows, seed), one for each series."""
    series: list[int] = []
    timestamps: list[int] = []
    for series_id, shape, rows, seed in sorted(parts):
        run = make_run(shape, rows, np.random.default_rng(seed))
        series += [series_id] * len(run)
        timestamps += run
    return Table(np.array(series, np.int64), np.array(timestamps, np.int64))


series_ids = st.one_of(st.integers(0, 40), st.integers(INT64_MAX - 20, INT64_MAX), st.integers(0, INT64_MAX))
tables = st.lists(
    st.tuples(
        series_ids,
        st.sampled_from(SHAPES),
        st.sampled_from([1, 2, 16, 17, 40, ROWS_MAX // 4, ROWS_MAX]),
        st.integers(0, 2**32),
    ),
    max_size=8,
    unique_by=lambda part: part[0],
).map(make_table)
max_errors = st.sampled_from(MAX_ERRORS)
kinds = st.sampled_from([layout.KIND_NONE, layout.KIND_KNOTS, layout.KIND_PIECES])


def as_mapped(column: NDArray[np.int64]) -> NDArray[np.int64]:
    """Copy a column to where it lies in a mapped Parquet file: read-only, at 4 modulo 8."""
    buffer = np.zeros(8 * len(column) + 12, np.uint8)
    skip = (4 - buffer.ctypes.data) % 8
    view = buffer[skip : skip + 8 * len(column)].view(np.int64)
    view[:] = column
    view.flags.writeable = False
    assert len(view) == 0 or view.ctypes.data % 8 == 4
    return view


class Source:
    """A table with its models, and the source row that kernels read; keeps its arrays alive."""

    def __init__(self, table: Table, models: pla.Models) -> None:
        self.table = table
        self.models = models
        self.column = as_mapped(table.timestamp)
        row = np.zeros(layout.SOURCE_WIDTH, np.int64)
        row[layout.ROWS] = len(self.column)
        row[layout.TIMESTAMPS] = self.column.ctypes.data
        row[layout.RUN_COUNT] = len(models.runs)
        row[layout.RUNS] = models.runs.ctypes.data
        if len(models.series_knots):
            row[layout.SERIES_KNOTS] = models.series_knots.ctypes.data
            row[layout.SERIES_KNOT_COUNT] = len(models.series_knots) - 1
        row[layout.SERIES_SHIFT] = models.series_shift
        row[layout.KNOTS] = models.knots.ctypes.data
        row[layout.PIECES] = models.pieces.ctypes.data
        if len(self.column):
            row[layout.FIRST_SERIES] = table.series[0]
            row[layout.LAST_SERIES] = table.series[-1]
            row[layout.FIRST_TIMESTAMP] = table.timestamp.min()
            row[layout.LAST_TIMESTAMP] = table.timestamp.max()
        self.row = row


def without_models(models: pla.Models) -> pla.Models:
    """Return the bare directory of runs, as over rows copied out of a memtable."""
    runs = models.runs.copy()
    runs[:, layout.RUN_SHAPE] = layout.KIND_NONE
    runs[:, layout.RUN_ERROR] = 0
    runs[:, layout.RUN_MODEL] = 0
    none = np.empty(0, np.int32)
    return pla.Models(runs, none, np.empty((0, layout.PIECE_WIDTH), np.int64), none, 0)


def targets(table: Table, random: np.random.Generator, count: int) -> Table:
    """Make keys to look up: present ones, their neighbours, absent series, and the ends of int64."""
    series = [0, INT64_MAX, -1, INT64_MIN, *table.series.tolist()]
    stamps = [INT64_MIN, INT64_MAX, 0, *table.timestamp.tolist()]
    keys = []
    for _ in range(count):
        row = int(random.integers(0, max(len(table.series), 1)))
        if len(table.series) and random.random() < 0.8:
            series_id, timestamp = int(table.series[row]), int(table.timestamp[row])
            timestamp += int(random.choice([0, 0, -1, 1, -(10**9) // 2, 2**58]))
        else:
            series_id = series[random.integers(len(series))] + int(random.integers(-1, 2))
            timestamp = stamps[random.integers(len(stamps))]
        keys.append((clip(series_id), clip(timestamp)))
    both = np.array(keys, np.int64).reshape(-1, 2)
    return Table(both[:, 0].copy(), both[:, 1].copy())


def clip(value: int) -> int:
    return max(INT64_MIN, min(value, INT64_MAX))


def lower_bound(table: Table, series_id: int, timestamp: int) -> int:
    """First row at or after the key."""
    start, stop = run_rows(table, series_id)
    return start + int(np.searchsorted(table.timestamp[start:stop], timestamp))


def lookup(table: Table, series_id: int, timestamp: int) -> int:
    """Row of the key, or -1."""
    row = lower_bound(table, series_id, timestamp)
    present = row < len(table.series) and (table.series[row], table.timestamp[row]) == (
        series_id,
        timestamp,
    )
    return row if present else -1


def run_rows(table: Table, series_id: int) -> tuple[int, int]:
    """First row of the series, and row after its last."""
    start = np.searchsorted(table.series, series_id)
    return int(start), int(np.searchsorted(table.series, series_id, side="right"))


def locate(table: Table, series_id: int, start: int, end: int) -> tuple[int, int, int]:
    """Run and rows of the series with ``start <= timestamp <= end``."""
    unique = np.unique(table.series)
    run = int(np.searchsorted(unique, series_id))
    if run == len(unique) or unique[run] != series_id:
        return -1, 0, 0
    first, stop = run_rows(table, series_id)
    stamps = table.timestamp[first:stop]
    row_start = first + int(np.searchsorted(stamps, start))
    row_stop = first + int(np.searchsorted(stamps, end, side="right"))
    return run, row_start, max(row_start, row_stop)


def shift_of(span: int, buckets_max: int) -> int:
    """Smallest shift up to 63 that leaves at most that many buckets."""
    fitting = (shift for shift in range(64) if span >> shift < buckets_max)
    return next(fitting, 63)


def knots_of(keys: NDArray[np.int64], shift: int) -> list[int]:
    """Keys before each multiple of ``1 << shift`` after the first; the last entry counts all."""
    distances = [int(key) - int(keys[0]) for key in keys]
    buckets = (distances[-1] >> shift) + 1
    below = [sum(distance < index << shift for distance in distances) for index in range(buckets)]
    return [*below, len(distances)]


def predict(models: pla.Models, run: int, timestamp: int) -> int:
    """Row that the model of a run predicts, by its definition."""
    record = models.runs[run].tolist()
    shape, model = record[layout.RUN_SHAPE], record[layout.RUN_MODEL]
    shift, size = (shape >> 8) & 0xFF, shape >> 32
    distance = timestamp - record[layout.RUN_FIRST]
    if shape & 0xFF == layout.KIND_KNOTS:
        bucket = distance >> shift
        low, high = models.knots[model + bucket : model + bucket + 2].tolist()
        part = ((distance - (bucket << shift)) << 31) >> shift  # in units of 2**-31 buckets
        return record[layout.RUN_START] + low + ((high - low) * part >> 31)
    pieces = models.pieces[model : model + size].tolist()
    piece = max(index for index in range(size) if pieces[index][layout.PIECE_FIRST] <= timestamp)
    first, low, bits = pieces[piece]
    high = record[layout.RUN_STOP] - record[layout.RUN_START]
    if piece + 1 < size:
        high = pieces[piece + 1][layout.PIECE_ROW]
    slope = float(np.int64(bits).view(np.float64))
    return record[layout.RUN_START] + low + min(high - low, math.floor(slope * float(timestamp - first)))


def errors(models: pla.Models, table: Table) -> dict[int, list[int]]:
    """Distance between predicted and true row, for each row of each run that has a model."""
    found = {}
    for run, record in enumerate(models.runs):
        if record[layout.RUN_SHAPE] & 0xFF != layout.KIND_NONE:
            rows = range(record[layout.RUN_START], record[layout.RUN_STOP])
            found[run] = [abs(predict(models, run, int(table.timestamp[row])) - row) for row in rows]
    return found
