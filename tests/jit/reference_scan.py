"""Plain twins of the scan kernels, and sources made of columns for them to read.

`Sources` lays columns out as segments do: at any byte offset, described by addresses. Blocks that
are not verified hold damage until `Sources.verify` is called: an answer that uses them is wrong.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from hypothesis import strategies as st

from omendb.jit import layout, merge, window

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
BLOCK_SHIFT = 2
NO_SERIES = np.zeros(0, np.int64)

Key = tuple[int, int]
Rows = dict[Key, float]


class WindowRow(NamedTuple):
    series_id: int
    first_timestamp: int
    count: int
    total: float
    lowest: float
    highest: float
    first: float
    last: float
    first_at: int
    last_at: int
    squares: float


def place(array: NDArray[np.generic], offset: int) -> NDArray[np.generic]:
    """Copy an array to an address that is `offset` mod 8."""
    buffer = np.zeros(array.nbytes + 16, np.uint8)
    skip = -buffer.ctypes.data % 8 + offset
    view = np.frombuffer(buffer[skip : skip + array.nbytes + 8].data, array.dtype, len(array) + 1)[:-1]
    view[:] = array
    return view


class Sources:
    """Sources in the kernels' layout, from one dict of rows each, oldest first."""

    def __init__(
        self, tables: Sequence[Rows], offset: int = 0, random: np.random.Generator | None = None
    ) -> None:
        self.rows = np.zeros((len(tables), layout.SOURCE_WIDTH), np.int64)
        self.verified: list[NDArray[np.uint8]] = []
        self.runs: list[NDArray[np.int64]] = []
        self._timestamps: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float64]] = []
        self._true_timestamps: list[NDArray[np.int64]] = []
        self._true_values: list[NDArray[np.float64]] = []
        for index, table in enumerate(tables):
            self._add(index, table, offset, random)

    def _add(self, index: int, table: Rows, offset: int, random: np.random.Generator | None) -> None:
        keys = sorted(table)
        ids = [series_id for series_id, _ in keys]
        times = [timestamp for _, timestamp in keys]
        true_timestamps = np.array(times, np.int64)
        true_values = np.array([table[key] for key in keys], np.float64)
        starts = [row for row in range(len(ids)) if row == 0 or ids[row] != ids[row - 1]]
        runs = np.zeros((len(starts), layout.RUN_WIDTH), np.int64)
        for run, (start, stop) in enumerate(zip(starts, [*starts[1:], len(ids)], strict=False)):
            runs[run, : layout.RUN_LAST + 1] = ids[start], start, stop, times[start], times[stop - 1]
        timestamps = place(true_timestamps, offset)
        values = place(true_values, offset)
        verified = np.ones((len(keys) >> BLOCK_SHIFT) + 1, np.uint8)
        source = self.rows[index]
        if random is not None:
            # Damage of the whole block, of all kinds: near the truth, anywhere, not ascending.
            verified[:] = random.integers(0, 2, len(verified))
            for block in np.flatnonzero(verified == 0):
                rows = slice(block << BLOCK_SHIFT, (block + 1) << BLOCK_SHIFT)
                count = len(timestamps[rows])
                wild = random.integers(INT64_MIN, INT64_MAX, count, np.int64, endpoint=True)
                near = np.array(random.choice(true_timestamps, count), np.int64)
                timestamps[rows] = wild if random.integers(2) else near
                values[rows] = -1.0
            if random.integers(2):
                source[layout.ON_DEMAND] = 1
                if random.integers(2):
                    # As they are before they are decoded.
                    for block in np.flatnonzero(verified == 0):
                        timestamps[block << BLOCK_SHIFT : (block + 1) << BLOCK_SHIFT] = 0
            source[layout.VERIFIED] = verified.ctypes.data
            source[layout.BLOCK_SHIFT] = BLOCK_SHIFT
        source[layout.ROWS] = len(keys)
        source[layout.TIMESTAMPS] = timestamps.ctypes.data
        source[layout.VALUES] = values.ctypes.data
        source[layout.RUN_COUNT] = len(runs)
        source[layout.RUNS] = runs.ctypes.data
        if keys:
            source[layout.FIRST_SERIES] = ids[0]
            source[layout.LAST_SERIES] = ids[-1]
            source[layout.FIRST_TIMESTAMP] = min(times)
            source[layout.LAST_TIMESTAMP] = max(times)
        self.runs.append(runs)
        self.verified.append(verified)
        self._timestamps.append(timestamps)
        self._values.append(values)
        self._true_timestamps.append(true_timestamps)
        self._true_values.append(true_values)

    def verify(self, source_index: int, row_start: int, row_stop: int) -> None:
        """Repair the blocks of some rows, as a check of checksums would refuse them otherwise."""
        assert 0 <= row_start < row_stop <= self.rows[source_index, layout.ROWS]
        # The rows asked for are of one series, and at least one of their blocks is news.
        runs = self.runs[source_index]
        assert any(run[layout.RUN_START] <= row_start and row_stop <= run[layout.RUN_STOP] for run in runs)
        blocks = slice(row_start >> BLOCK_SHIFT, ((row_stop - 1) >> BLOCK_SHIFT) + 1)
        assert not self.verified[source_index][blocks].all()
        rows = slice(blocks.start << BLOCK_SHIFT, blocks.stop << BLOCK_SHIFT)
        self._timestamps[source_index][rows] = self._true_timestamps[source_index][rows]
        self._values[source_index][rows] = self._true_values[source_index][rows]
        self.verified[source_index][blocks] = 1


def select(
    tables: Iterable[Rows], series: Iterable[int] | None, start: int, end: int, after: Key | None = None
) -> Rows:
    """Return the rows that a scan answers with: of equal keys that of the last table."""
    wanted = None if series is None else set(series)
    merged: Rows = {}
    for table in tables:
        merged.update(table)
    return {
        key: merged[key]
        for key in sorted(merged)
        if (wanted is None or key[0] in wanted) and start <= key[1] <= end and (after is None or key > after)
    }


def aggregate(rows: Rows, origin: int, step: int) -> list[WindowRow]:
    """Aggregate rows in windows, in exact arithmetic where floats allow it."""
    groups: dict[Key, list[tuple[int, float]]] = {}
    for (series_id, timestamp), value in sorted(rows.items()):
        groups.setdefault((series_id, (timestamp - origin) // step), []).append((timestamp, value))
    answer = []
    for (series_id, index), points in groups.items():
        values = [value for _, value in points]
        mean = math.fsum(values) / len(values)
        answer.append(
            WindowRow(
                series_id,
                max(INT64_MIN, origin + index * step),
                len(values),
                math.fsum(values),
                min(values),
                max(values),
                values[0],
                values[-1],
                points[0][0],
                points[-1][0],
                math.fsum((value - mean) ** 2 for value in values),
            )
        )
    return answer


def filter_of(series: Sequence[int] | None) -> NDArray[np.int64]:
    """Return the kernels' series filter; it is ignored when all series are wanted."""
    return NO_SERIES if series is None else np.array(sorted(set(series)), np.int64)


def scan(
    sources: Sources,
    series: Sequence[int] | None,
    start: int,
    end: int,
    capacity: int,
    after: Key | None = None,
) -> list[tuple[int, int, float]]:
    """Scan to the end, as often as it takes, and check each answer's status."""
    rows: list[tuple[int, int, float]] = []
    out_series = np.full(capacity, -7, np.int64)
    out_timestamp = np.full(capacity, -7, np.int64)
    out_value = np.full(capacity, np.nan)
    more = False
    while True:
        key = after or (0, 0)
        written, status, source_index, row_start, row_stop = merge.scan_rows(
            sources.rows,
            filter_of(series),
            series is None,
            start,
            end,
            *key,
            after is not None,
            out_series,
            out_timestamp,
            out_value,
        )
        assert 0 <= written <= capacity
        columns = (out_series[:written], out_timestamp[:written], out_value[:written])
        rows += list(zip(*(column.tolist() for column in columns), strict=True))
        if written:
            after = rows[-1][:2]
            more = False
        if status == layout.STATUS_VERIFY:
            sources.verify(source_index, row_start, row_stop)
            continue
        assert (source_index, row_start, row_stop) == (0, 0, 0)
        if status == layout.STATUS_DONE:
            assert not more, "the answer before said that rows follow"
            return rows
        assert status == layout.STATUS_FULL
        assert written == capacity
        more = True


def count(
    sources: Sources,
    series: Sequence[int] | None,
    start: int,
    end: int,
    after: Key | None = None,
    go_on: bool = False,
) -> int:
    """Count; after a verification from the start again, or with `go_on` from the series reached."""
    total = 0
    while True:
        key = after or (0, 0)
        rows, status, source_index, row_start, row_stop = merge.count_rows(
            sources.rows, filter_of(series), series is None, start, end, *key, after is not None
        )
        if status == layout.STATUS_DONE:
            return total + rows
        assert status == layout.STATUS_VERIFY
        sources.verify(source_index, row_start, row_stop)
        reached = merge.find_series(sources.rows, source_index, row_start)
        if go_on and reached > 0 and (after is None or reached > after[0]):
            total += rows
            after = (reached - 1, INT64_MAX)


def scan_windows(
    sources: Sources,
    series: Sequence[int] | None,
    start: int,
    end: int,
    origin: int,
    step: int,
    capacity: int,
    want_variance: bool = True,
    simd: bool = True,
) -> list[WindowRow]:
    """Aggregate to the end, as often as it takes, and check each answer's status."""
    rows: list[WindowRow] = []
    integers = [np.full(capacity, -7, np.int64) for _ in range(3)]
    floats = [np.full(capacity, np.nan) for _ in range(5)]
    squares = np.full(capacity if want_variance else 0, np.nan)
    times = [np.full(capacity, -7, np.int64) for _ in range(2)]
    after: Key | None = None
    more = False
    while True:
        key = after or (0, 0)
        written, status, source_index, row_start, row_stop = window.scan_windows(
            sources.rows,
            filter_of(series),
            series is None,
            start,
            end,
            origin,
            step,
            simd,
            *key,
            after is not None,
            want_variance,
            True,
            *integers,
            *floats,
            squares,
            *times,
        )
        assert 0 <= written <= capacity
        columns = [column[:written].tolist() for column in (*integers, *floats, *times)]
        columns.append(squares[:written].tolist() if want_variance else [0.0] * written)
        rows += [WindowRow(*row) for row in zip(*columns, strict=True)]
        if written:
            after = rows[-1][:2]
            more = False
        if status == layout.STATUS_VERIFY:
            sources.verify(source_index, row_start, row_stop)
            continue
        assert (source_index, row_start, row_stop) == (0, 0, 0)
        if status == layout.STATUS_DONE:
            assert not more, "the answer before said that windows follow"
            return rows
        assert status == layout.STATUS_FULL
        assert written == capacity
        more = True


series_ids = st.sampled_from([0, 1, 2, 5, 7, INT64_MAX - 1, INT64_MAX])
timestamps = st.one_of(
    st.integers(-20, 200),
    st.sampled_from([INT64_MIN, INT64_MIN + 1, INT64_MIN + 50, 0, INT64_MAX - 50, INT64_MAX - 1, INT64_MAX]),
)
stretches = st.tuples(
    series_ids, timestamps, st.sampled_from([1, 1, 2, 3, 7, 2**40, 2**60]), st.integers(1, 90)
)


@st.composite
def tables(draw: st.DrawFn) -> list[Rows]:
    """Draw up to five sources of regular stretches, which overlap and repeat each other's keys."""
    drawn = draw(st.lists(st.lists(stretches, max_size=5), max_size=5))
    answer: list[Rows] = []
    for index, parts in enumerate(drawn):
        table: Rows = {}
        for series_id, first, step, rows in parts:
            last = min(first + (rows - 1) * step, INT64_MAX)
            for timestamp in range(first, last + 1, step):
                table[series_id, timestamp] = float(1_000 * (index + 1) + len(table))
        answer.append(table)
    return answer


@st.composite
def bounds(draw: st.DrawFn) -> tuple[int, int]:
    """Draw a range of time, both ends inclusive, mostly not empty."""
    start, end = draw(timestamps), draw(timestamps)
    if draw(st.booleans()):
        start = INT64_MIN
    if draw(st.booleans()):
        end = INT64_MAX
    return (min(start, end), max(start, end)) if draw(st.integers(0, 9)) else (start, end)


filters = st.one_of(st.none(), st.lists(st.one_of(series_ids, st.integers(0, 9)), unique=True, max_size=6))
randoms = st.integers(0, 2**32).map(np.random.default_rng)
