"""What the contestants store: seeded series, and the text and columns in which they are sent."""

from __future__ import annotations

import functools
import gzip
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BASE_MS = 1_700_000_000_000
"""Where the made series begin: a multiple of every window length that is asked for."""

STEP_MS = 10_000
HALF_STEP_MS = STEP_MS // 2
NAB = Path(__file__).resolve().parents[2] / "tests" / "data" / "nab.csv.gz"

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Points sorted by series and time, and the order in which they arrive.

    Attributes
    ----------
    name : str
        Also the measurement's name where a contestant has measurements.
    series, timestamp : ndarray of int64, shape (n,)
        Ascending by (series, timestamp), each pair once. Timestamps in milliseconds.
    value : ndarray of float64, shape (n,)
    arrival : ndarray of int64, shape (n,)
        Rows in the order of arrival.
    fixed_width : bool
        Every value has three digits, a dot and two digits.
    """

    name: str
    series: Int64s
    timestamp: Int64s
    value: Float64s
    arrival: Int64s
    fixed_width: bool
    series_count: int
    start: int
    stop: int
    offsets: Int64s = field(init=False)

    def __post_init__(self) -> None:
        starts = np.searchsorted(self.series, np.arange(self.series_count + 1))
        object.__setattr__(self, "offsets", starts.astype(np.int64))

    @property
    def rows(self) -> int:
        return len(self.series)

    @property
    def rows_per_series(self) -> int:
        return self.rows // self.series_count


def regular(name: str, series_count: int, rows_per_series: int, seed: int = 1) -> Dataset:
    """Make points 10 s apart, with random walks of two decimals as values."""
    time = BASE_MS + HALF_STEP_MS + STEP_MS * np.arange(rows_per_series, dtype=np.int64)
    return _made(name, series_count, rows_per_series, np.tile(time, series_count), None, seed)


def jittered(name: str, series_count: int, rows_per_series: int, seed: int = 2) -> Dataset:
    """Make the same with times up to 4 s off, and 5 % of the rows arriving later than their followers."""
    random = np.random.default_rng(seed)
    rows = series_count * rows_per_series
    time = BASE_MS + HALF_STEP_MS + STEP_MS * np.arange(rows_per_series, dtype=np.int64)
    times = np.tile(time, series_count) + random.integers(-4_000, 4_001, rows)
    lateness = np.where(random.random(rows) < 0.05, random.integers(2, 100, rows), 0)
    return _made(name, series_count, rows_per_series, times, lateness, seed)


def _made(
    name: str, series_count: int, rows_per_series: int, times: Int64s, lateness: Int64s | None, seed: int
) -> Dataset:
    random = np.random.default_rng(seed)
    steps = np.rint(random.normal(0, 40, (series_count, rows_per_series))).astype(np.int64)
    cents = np.cumsum(steps, axis=1) + random.integers(30_000, 80_000, (series_count, 1))
    # Reflected at 100 and at 1,000, so that every value is written with six characters.
    low, span = 10_000, 89_999
    cents = np.abs((cents - low) % (2 * span) - span)
    values = (low + span - cents).reshape(-1) / 100.0
    row = np.tile(np.arange(rows_per_series, dtype=np.int64), series_count)
    key = row if lateness is None else row + lateness
    return Dataset(
        name=name,
        series=np.repeat(np.arange(series_count, dtype=np.int64), rows_per_series),
        timestamp=times,
        value=values,
        arrival=np.argsort(key, kind="stable"),
        fixed_width=True,
        series_count=series_count,
        start=BASE_MS,
        stop=BASE_MS + STEP_MS * rows_per_series,
    )


def real(name: str = "nab") -> Dataset:
    """Read the real series of tests/data; of rows with the same time the last one counts."""
    with gzip.open(NAB, "rt") as text:
        table = np.loadtxt(text, delimiter=",", skiprows=1, dtype=np.float64)
    series, time = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    order = np.lexsort((np.arange(len(series)), time, series))
    series, time, value = series[order], time[order], table[order, 2]
    last = np.append((np.diff(series) != 0) | (np.diff(time) != 0), True)
    series, time, value = series[last], time[last], value[last]
    day_ms = 86_400_000
    return Dataset(
        name=name,
        series=series,
        timestamp=time,
        value=value,
        arrival=np.argsort(time, kind="stable"),
        fixed_width=False,
        series_count=int(series.max()) + 1,
        start=int(time.min()) // day_ms * day_ms,
        stop=int(time.max()) // day_ms * day_ms + day_ms,
    )


def label(series: int) -> str:
    """Return the label value that stands for a series, of fixed width."""
    return f"{series:06d}"


@functools.lru_cache(maxsize=2)
def line_bodies(dataset: Dataset, batch_rows: int) -> list[bytes]:
    """Write a data set as line protocol, times in milliseconds, `batch_rows` rows a body, as they arrive."""
    if not dataset.fixed_width:
        lines = [
            f"{dataset.name},series={label(series)} value={value!r} {time}\n".encode()
            for series, value, time in zip(
                dataset.series[dataset.arrival].tolist(),
                dataset.value[dataset.arrival].tolist(),
                dataset.timestamp[dataset.arrival].tolist(),
                strict=True,
            )
        ]
        return [b"".join(lines[row : row + batch_rows]) for row in range(0, len(lines), batch_rows)]
    bodies = []
    for first in range(0, dataset.rows, batch_rows):
        rows = dataset.arrival[first : first + batch_rows]
        bodies.append(
            _fixed_lines(dataset.name, dataset.series[rows], dataset.timestamp[rows], dataset.value[rows])
        )
    return bodies


def _fixed_lines(name: str, series: Int64s, time: Int64s, value: Float64s) -> bytes:
    template = f"{name},series=000000 value=000.00 0000000000000\n".encode()
    text = np.empty((len(series), len(template)), dtype=np.uint8)
    text[:] = np.frombuffer(template, dtype=np.uint8)
    column = len(name) + len(",series=")
    _digits(text[:, column : column + 6], series)
    column += 6 + len(" value=")
    cents = np.rint(value * 100).astype(np.int64)
    _digits(text[:, column : column + 3], cents // 100)
    _digits(text[:, column + 4 : column + 6], cents % 100)
    _digits(text[:, column + 7 : column + 20], time)
    return text.tobytes()


def _digits(text: Bytes, number: Int64s) -> None:
    rest = number
    for column in range(text.shape[1] - 1, -1, -1):
        rest, digit = np.divmod(rest, 10)
        text[:, column] = 48 + digit
