"""Window queries over all selected series together: one row a window.

The range of time is worked on in *slabs*, so that what is held at a time is bounded whatever the number of
windows. For a slab each thread makes the windows of some series and folds them into a table of its own
(`omendb.jit.fold`); the tables are folded into one, in the order of the series, so that an answer does not
depend on which thread was faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from omendb.executor import (
    BOUND_ROWS_MAX,
    CHUNK_ROWS,
    DEFAULTS,
    SHARD_ROWS,
    Place,
    Request,
    Sources,
    WindowScan,
    count_windows,
    join_windows,
    make_columns,
)
from omendb.jit import fold, layout, window
from omendb.model import INT64_MAX, Windows
from omendb.query import encode_cursor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from omendb.config import Settings
    from omendb.executor import RowArrays
    from omendb.query import WindowQuery
    from omendb.storage.snapshot import Snapshot
    from omendb.workers import Workers

Result = TypeVar("Result")

TABLE_WINDOWS_MAX = 1 << 18
"""Windows of a table: 25 MB of them, and a few tables at a time."""

BATCH_WINDOWS = 8_192
"""Windows of series that are made before they are folded: they stay in the second-level cache."""

TASKS_A_THREAD = 4
"""Shares of a slab: more of them keep all threads busy to the end, and cost a table each."""


class Table:
    """Windows that were met so far, one entry each.

    Parameters
    ----------
    capacity : int
        Entries at most.
    want_variance : bool
    """

    __slots__ = ("_floats", "_integers", "_slots", "_want_variance", "size")

    def __init__(self, capacity: int, *, want_variance: bool) -> None:
        self._integers = np.empty((fold.INTEGERS, capacity), dtype=np.int64)
        self._floats = np.empty((fold.FLOATS, capacity), dtype=np.float64)
        self._slots = np.full(2 << capacity.bit_length(), fold.SLOT_FREE, dtype=np.int64)
        self._want_variance = want_variance
        self.size = 0

    def add_scan(self, request: Request, query: WindowQuery) -> bool:
        """Fold the windows of a request in; return False when there is no room for them.

        Raises
        ------
        CorruptionError
        """
        integers = np.empty((fold.INTEGERS, BATCH_WINDOWS), dtype=np.int64)
        floats = np.empty((fold.FLOATS, BATCH_WINDOWS), dtype=np.float64)
        series = np.empty(BATCH_WINDOWS, dtype=np.int64)
        start, count, first_at, last_at = integers
        arrays = (series, start, count, *floats, first_at, last_at)
        simd = request.sources.settings.enable_simd
        arguments = (*request.arguments, query.origin, query.step, simd)
        place = Place(request.sources, None)
        done = False
        while not done:
            filled, done = place.fill(window.scan_windows, arguments, (self._want_variance, True), arrays)
            if not self._add(integers, floats, filled):
                return False
        return True

    def add(self, other: Table) -> bool:
        """Fold another table in; return False when there is no room for it."""
        return self._add(other._integers, other._floats, other.size)

    def windows(self, aggregates: tuple[str, ...]) -> Windows:
        """Return the windows in order of time."""
        order = np.argsort(self._integers[fold.WINDOW, : self.size])
        start, count = (self._integers[field][order] for field in (fold.WINDOW, fold.COUNT))
        total, low, high, first, last, squares = (column[order] for column in self._floats)
        plain = {"min": low, "max": high, "first": first, "last": last}
        return Windows(None, start, make_columns(aggregates, count, total, plain, squares))

    def _add(self, integers: NDArray[np.int64], floats: NDArray[np.float64], count: int) -> bool:
        taken, self.size = fold.fold_windows(
            integers,
            floats,
            count,
            self._want_variance,
            self._slots,
            self.size,
            self._integers,
            self._floats,
        )
        return bool(taken == count)


class MergedScan:
    """The windows of a query over all its series together, in order of time.

    Parameters
    ----------
    snapshot : Snapshot
    query : WindowQuery
    workers : Workers, optional
    settings : Settings, optional
        As for `omendb.executor.WindowScan`.

    Attributes
    ----------
    row_bound : int
        The answer has, and touches, at most this many rows; or more than `BOUND_ROWS_MAX`.
    cursor : str or None
        Set when `chunks`, or `map`, is exhausted: where to go on when the limit cut the answer.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        query: WindowQuery,
        workers: Workers | None = None,
        settings: Settings = DEFAULTS,
    ) -> None:
        self.query = query
        self.cursor: str | None = None
        self.workers = workers
        self._request = Request(Sources(snapshot, query, INT64_MAX, settings), query)
        self.row_bound = self._request.bound(None)

    def prove(self, rows: int) -> None:
        """Make `row_bound` a close one; as for `omendb.executor.Scan`.

        Raises
        ------
        CorruptionError
        """
        self._request.prove(None, rows)
        self.row_bound = self._request.bound(None)

    def chunks(self, rows_max: int = CHUNK_ROWS) -> Iterator[Windows]:
        """Yield the windows in pieces of at most `rows_max`; an empty answer yields nothing.

        Raises
        ------
        CorruptionError
        """
        query = self.query
        self.cursor = None
        left = query.limit
        last = 0
        for slab in self._slabs():
            if left == 0:
                self.cursor = encode_cursor(query.identity, (0, last))
                return
            count = slab.count if left is None else min(slab.count, left)
            for start in range(0, count, rows_max):
                yield _cut(slab, start, min(start + rows_max, count))
            last = int(slab.timestamp[count - 1])
            if left is not None:
                left -= count
                if count < slab.count:
                    self.cursor = encode_cursor(query.identity, (0, last))
                    return

    def map(
        self,
        function: Callable[[Windows], Result],
        rows_max: int = CHUNK_ROWS,
        make_arrays: Callable[[int], RowArrays] | None = None,
    ) -> Iterator[Result]:
        """Yield what a function makes of each piece, in order; see `omendb.executor.Scan.map`.

        Raises
        ------
        CorruptionError
        """
        if self.workers is None or not self._request.is_split(self.row_bound):
            return map(function, self.chunks(rows_max))
        return self.workers.map(function, self.chunks(rows_max))

    def count(self) -> int:
        """Count the windows that `chunks` yields, by making them.

        Raises
        ------
        CorruptionError
        """
        count = count_windows(self)
        self.cursor = None
        return count

    def windows(self) -> Windows:
        """The whole answer.

        Raises
        ------
        CorruptionError
        """
        return join_windows(self)

    def _slabs(self) -> Iterator[Windows]:
        """Yield the windows of one stretch of time after the other, without empty ones."""
        query, table = self.query, self._request.table
        table = table[table[:, layout.RUN_COUNT] > 0]
        if not len(table):
            return
        low = max(query.start, int(table[:, layout.FIRST_TIMESTAMP].min()))
        high = min(query.end, int(table[:, layout.LAST_TIMESTAMP].max()))
        if query.after is not None:
            # Not in int64: the last window may end with it.
            low = max(low, self._stop_of(self._index_of(query.after[1])))
        if low > high:
            return
        # Plain integers have no bounds, and the number of windows between two timestamps has none either.
        windows_left = self._index_of(high) - self._index_of(low) + 1
        length = windows_left if query.limit is None else min(windows_left, query.limit + 1)
        rows = self.row_bound if self.row_bound <= BOUND_ROWS_MAX else INT64_MAX
        capacity = max(min(length, rows, TABLE_WINDOWS_MAX), 1)
        while low <= high:
            stop = self._stop_of(self._index_of(low) + length - 1)
            found = self._fold(low, min(stop - 1, high), capacity)
            if found is None:
                # More windows have rows than a table has room for.
                length = max(length // 2, 1)
                continue
            if found.size:
                yield found.windows(query.aggregates)
            low = stop
            # Twice as long, so that a stretch without rows is passed in a few steps.
            length *= 2
            capacity = max(min(length, rows, TABLE_WINDOWS_MAX), capacity)

    def _index_of(self, timestamp: int) -> int:
        return (timestamp - self.query.origin) // self.query.step

    def _stop_of(self, index: int) -> int:
        """Return the timestamp after the last one of a window."""
        return self.query.origin + (index + 1) * self.query.step

    def _fold(self, start: int, end: int, capacity: int) -> Table | None:
        """Return the windows between two timestamps, inclusive; None when there are too many."""
        query, workers = self.query, self.workers
        slab = self._request.between(start, end)
        want_variance = "stddev" in query.aggregates

        def work(requests: list[Request]) -> Table | None:
            table = Table(capacity, want_variance=want_variance)
            for request in requests:
                with request.decoding() as lent:
                    if not table.add_scan(lent, query):
                        return None
            return table

        if workers is None or not slab.is_split(self.row_bound):
            return work([slab])
        rows = slab.shard_rows(SHARD_ROWS, self.row_bound)
        requests = slab.split(rows, None, query.origin, query.step)
        share = -(-len(requests) // (TASKS_A_THREAD * workers.threads)) or 1
        shares = [requests[index : index + share] for index in range(0, len(requests), share)]
        whole: Table | None = None
        for table in workers.map(work, shares):
            if table is None:
                return None
            if whole is None:
                whole = table
            elif not whole.add(table):
                return None
        return whole or Table(1, want_variance=want_variance)


def window_scan(
    snapshot: Snapshot,
    query: WindowQuery,
    workers: Workers | None = None,
    settings: Settings = DEFAULTS,
) -> WindowScan | MergedScan:
    """Bind a window query to a snapshot."""
    if query.by:
        return WindowScan(snapshot, query, workers, settings)
    return MergedScan(snapshot, query, workers, settings)


def _cut(windows: Windows, start: int, stop: int) -> Windows:
    if start == 0 and stop == windows.count:
        return windows
    cut = slice(start, stop)
    return Windows(
        None, windows.timestamp[cut], {name: column[cut] for name, column in windows.columns.items()}
    )
