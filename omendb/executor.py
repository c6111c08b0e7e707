"""Runs queries: one snapshot each, sources pruned and merged in kernels, answers in bounded pieces.

A scan belongs to one thread at a time. It holds its snapshot, and with it the mapped files, until it is
dropped. Kernels release the GIL.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from omendb.jit import answer, layout, merge, search, window
from omendb.model import INT64_MAX, INT64_MIN, Columns, Windows
from omendb.query import RangeQuery, WindowQuery, encode_cursor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from omendb.storage.segment import Segment
    from omendb.storage.snapshot import Snapshot
    from omendb.storage.source import Source

CHUNK_ROWS = 65_536
"""Rows of one piece of an answer, unless the caller asks for another size."""

_NO_SERIES = np.empty(0, dtype=np.int64)
_BOUND_STOP = 1 << 62


class _Sources:
    """The sources of one query, oldest first: the snapshot's segments, then what its memtables hold."""

    __slots__ = ("_memory", "segments", "table")

    def __init__(self, snapshot: Snapshot, query: RangeQuery | WindowQuery, rows_max: int) -> None:
        self.segments = snapshot.segments
        after = query.after if isinstance(query, RangeQuery) else None
        memory: list[Source] = []
        for memtable in snapshot.frozen:
            if memtable.last_timestamp >= query.start and memtable.first_timestamp <= query.end:
                source = memtable.read(query.series, query.start, query.end, rows_max, after)
                if source is not None:
                    memory.append(source)
        active = snapshot.active
        if not active.is_empty:
            with active.lock:
                # Copied once, under the lock: a batch is seen whole or not at all, however long the scan.
                source = active.read(query.series, query.start, query.end, rows_max, after)
            if source is not None:
                memory.append(source)
        self._memory = memory  # keeps the arrays behind the table's addresses alive
        table = snapshot.table
        if memory:
            table = np.concatenate([table, [source.row for source in memory]])
        self.table: NDArray[np.int64] = table

    @property
    def memory_rows(self) -> int:
        """Rows that came from memtables."""
        return sum(source.rows for source in self._memory)

    def verify(self, source: int, start: int, stop: int) -> None:
        """Check the blocks that a kernel asked for.

        Raises
        ------
        CorruptionError
        """
        self.segments[source].verify_rows(start, stop)


class _Place:
    """How far a scan has come: it goes on after the last key that it has written.

    Parameters
    ----------
    sources : _Sources
    after : tuple of int, or None
        The key to begin after: a series, and a timestamp or the first one of a window.
    """

    __slots__ = ("_sources", "key", "resume", "series")

    def __init__(self, sources: _Sources, after: tuple[int, int] | None) -> None:
        self._sources = sources
        self.resume = after is not None
        self.series, self.key = after or (0, 0)

    def fill(
        self,
        kernel: Callable[..., tuple[int, int, int, int, int]],
        request: tuple[Any, ...],
        options: tuple[Any, ...],
        arrays: tuple[NDArray[Any], ...],
    ) -> tuple[int, bool]:
        """Let a kernel write until its arrays are full or nothing is left; verify what it asks for.

        Parameters
        ----------
        kernel : callable
            `omendb.jit.merge.scan_rows`, or another with its arguments and answer: what is asked for, the
            key to go on after, options, and the arrays to write to.
        request, options : tuple
            What stands before and behind the key.
        arrays : tuple of ndarray
            Of equal length; the first two name what was written.

        Returns
        -------
        filled : int
        done : bool
            Nothing is left.

        Raises
        ------
        CorruptionError
        """
        filled = 0
        room = arrays
        while True:
            written, status, source, start, stop = kernel(
                *request, self.series, self.key, self.resume, *options, *room
            )
            if written:
                filled += int(written)
                self.series, self.key = int(arrays[0][filled - 1]), int(arrays[1][filled - 1])
                self.resume = True
            if status != layout.STATUS_VERIFY:
                return filled, status == layout.STATUS_DONE
            self._sources.verify(source, start, stop)
            room = tuple(array[filled:] for array in arrays)


class Scan:
    """The rows of a range query, in order; iterate once.

    Parameters
    ----------
    snapshot : Snapshot
    query : RangeQuery

    Attributes
    ----------
    cursor : str or None
        Set when `chunks` is exhausted: where to go on when the limit cut the answer.
    """

    def __init__(self, snapshot: Snapshot, query: RangeQuery) -> None:
        self.query = query
        self.cursor: str | None = None
        limit = query.limit
        # One row more than asked for, so that a kernel can tell whether the answer was cut.
        self._sources = _Sources(snapshot, query, INT64_MAX if limit is None else limit + 1)
        self._series = _NO_SERIES if query.series is None else query.series
        self._every_series = query.series is None
        resume = query.after is not None
        self._after = query.after or (0, 0)
        bound = merge.bound_rows(
            self._sources.table,
            self._series,
            self._every_series,
            query.start,
            query.end,
            self._after[0],
            self._after[1],
            resume,
            _BOUND_STOP,
        )
        self.row_bound: int = int(bound) if limit is None else min(int(bound), limit)

    def count(self) -> int:
        """Count the rows that `chunks` yields.

        Raises
        ------
        CorruptionError
        """
        query = self.query
        table = self._sources.table
        after_series, after_timestamp = self._after
        resume = query.after is not None
        total = 0
        while True:
            count, status, source, start, stop = merge.count_rows(
                table,
                self._series,
                self._every_series,
                query.start,
                query.end,
                after_series,
                after_timestamp,
                resume,
            )
            if status != layout.STATUS_VERIFY:
                total += int(count)
                return total if query.limit is None else min(total, query.limit)
            self._sources.verify(source, start, stop)
            # What was counted are whole series, all before the one that was reached: go on from there.
            reached = int(merge.find_series(table, source, start))
            if reached > 0 and (not resume or reached > after_series):
                total += int(count)
                after_series, after_timestamp, resume = reached - 1, INT64_MAX, True

    def chunks(self, rows_max: int = CHUNK_ROWS) -> Iterator[Columns]:
        """Yield the rows in pieces of at most `rows_max`; an empty answer yields nothing.

        Raises
        ------
        CorruptionError
            Naming the segment; what was yielded before is right.
        """
        query = self.query
        request = (self._sources.table, self._series, self._every_series, query.start, query.end)
        place = _Place(self._sources, query.after)
        left = self.row_bound
        while left > 0:
            size = min(rows_max, left)
            series = np.empty(size, dtype=np.int64)
            timestamp = np.empty(size, dtype=np.int64)
            value = np.empty(size, dtype=np.float64)
            filled, done = place.fill(merge.scan_rows, request, (), (series, timestamp, value))
            left -= filled
            if done:
                left = 0
            elif left == 0:
                self.cursor = encode_cursor(query.identity, (place.series, place.key))
            if filled:
                yield Columns(series[:filled], timestamp[:filled], value[:filled])

    def view(self) -> Columns | None:
        """The whole answer without copying, when one segment holds it; else None.

        Raises
        ------
        CorruptionError
        """
        query = self.query
        if (
            query.limit is not None
            or query.after is not None
            or query.series is None
            or len(query.series) != 1
            or self._sources.memory_rows
        ):
            return None
        series_id = int(query.series[0])
        found: tuple[Segment, int, int, int] | None = None
        for segment in self._sources.segments:
            entry = segment.entry
            if (
                not entry.first_series <= series_id <= entry.last_series
                or entry.last_timestamp < query.start
                or entry.first_timestamp > query.end
            ):
                continue
            run, start, stop = search.locate(segment.row, series_id, query.start, query.end)
            if run < 0:
                continue
            if start == stop or found is not None:
                # Several segments, or bounds that fell together, as damaged timestamps make them do too:
                # the merge sees to both.
                return None
            found = (segment, run, start, stop)
        if found is None:
            return None
        segment, run, start, stop = found
        record = segment.index.runs[run]
        first, last = int(record[layout.RUN_START]), int(record[layout.RUN_STOP])
        segment.verify_rows(max(start - 1, first), min(stop + 1, last))
        timestamp, value = segment.timestamp[start:stop], segment.value[start:stop]
        right_before = start == first or segment.timestamp[start - 1] < query.start <= timestamp[0]
        right_after = stop == last or segment.timestamp[stop] > query.end >= timestamp[-1]
        if not (right_before and right_after):
            return None
        return Columns(np.broadcast_to(np.int64(series_id), len(timestamp)), timestamp, value)

    def columns(self) -> Columns:
        """The whole answer; read-only views when one segment holds it, else fresh arrays.

        Raises
        ------
        CorruptionError
        """
        answer = self.view()
        if answer is not None:
            return answer
        for chunk in self.chunks(max(self.row_bound, 1)):
            return chunk
        return Columns(_NO_SERIES, _NO_SERIES, np.empty(0, dtype=np.float64))


class WindowScan:
    """The windows of a window query, in order; iterate once.

    Parameters
    ----------
    snapshot : Snapshot
    query : WindowQuery

    Attributes
    ----------
    row_bound : int
        The answer has at most this many windows, and touches at most this many rows.
    cursor : str or None
        Set when `chunks` is exhausted: where to go on when the limit cut the answer.
    """

    def __init__(self, snapshot: Snapshot, query: WindowQuery) -> None:
        self.query = query
        self.cursor: str | None = None
        self._sources = _Sources(snapshot, query, INT64_MAX)
        self._series = _NO_SERIES if query.series is None else query.series
        self.row_bound: int = int(
            merge.bound_rows(
                self._sources.table,
                self._series,
                query.series is None,
                query.start,
                query.end,
                0,
                0,
                False,
                _BOUND_STOP,
            )
        )

    def chunks(self, rows_max: int = CHUNK_ROWS) -> Iterator[Windows]:
        """Yield the windows in pieces of at most `rows_max`; an empty answer yields nothing.

        Raises
        ------
        CorruptionError
        """
        query = self.query
        request = (
            self._sources.table,
            self._series,
            query.series is None,
            query.start,
            query.end,
            query.origin,
            query.step,
        )
        want_variance = "stddev" in query.aggregates
        place = _Place(self._sources, query.after)
        left = self._window_bound()
        while left > 0:
            size = min(rows_max, left)
            series, start, count = (np.empty(size, dtype=np.int64) for _ in range(3))
            total, low, high, first, last, squares = (np.empty(size, dtype=np.float64) for _ in range(6))
            arrays = (series, start, count, total, low, high, first, last, squares)
            filled, done = place.fill(window.scan_windows, request, (want_variance,), arrays)
            left -= filled
            if done:
                left = 0
            elif left == 0:
                self.cursor = encode_cursor(query.identity, (place.series, place.key))
            if not filled:
                continue
            cut = slice(0, filled)
            columns = _columns(
                query.aggregates,
                count[cut],
                total[cut],
                {"min": low[cut], "max": high[cut], "first": first[cut], "last": last[cut]},
                squares[cut],
            )
            yield Windows(series[cut], start[cut], columns)

    def count(self) -> int:
        """Count the windows that `chunks` yields, by making them.

        Raises
        ------
        CorruptionError
        """
        count = sum(part.count for part in self.chunks())
        self.cursor = None
        return count

    def windows(self) -> Windows:
        """The whole answer.

        Raises
        ------
        CorruptionError
        """
        parts = list(self.chunks())
        if not parts:
            empty = {
                name: np.empty(0, dtype=np.int64 if name == "count" else np.float64)
                for name in self.query.aggregates
            }
            return Windows(_NO_SERIES, _NO_SERIES, empty)
        if len(parts) == 1:
            return parts[0]
        return Windows(
            np.concatenate([part.series_id for part in parts]),
            np.concatenate([part.timestamp for part in parts]),
            {name: np.concatenate([part.columns[name] for part in parts]) for name in self.query.aggregates},
        )

    def _window_bound(self) -> int:
        """At most this many windows: no more than rows, nor than fit the range."""
        query = self.query
        bound = self.row_bound
        if query.series is not None and query.start != INT64_MIN and query.end != INT64_MAX:
            each = (query.end - query.start) // query.step + 2
            bound = min(bound, each * len(query.series))
        return bound if query.limit is None else min(bound, query.limit)


def _columns(
    names: tuple[str, ...],
    count: NDArray[np.int64],
    total: NDArray[np.float64],
    plain: dict[str, NDArray[np.float64]],
    squares: NDArray[np.float64],
) -> dict[str, NDArray[Any]]:
    """Make the columns of an answer out of what the kernel sums up; `squares` only where it is asked for."""
    columns: dict[str, NDArray[Any]] = {}
    for name in names:
        if name == "count":
            columns[name] = count
        elif name == "sum":
            columns[name] = total
        elif name == "mean":
            columns[name] = total / count
        elif name == "stddev":
            columns[name] = np.sqrt(squares / count)
        else:
            columns[name] = plain[name]
    return columns


SHORT_ROWS = 20_000
"""Rows that a short query touches at most: 1 to 2 ms, less than the way through another thread costs when the
machine is busy."""

_TRIES = 8  # a kernel asks for blocks to be verified one source at a time

_local = threading.local()


class ShortAnswer(NamedTuple):
    """The answer of a short query.

    Attributes
    ----------
    rows : int
        Or windows.
    text : memoryview
        Their JSON, without what surrounds them; holds until the thread's next short query.
    cursor : str or None
        Where to go on when the limit cut the answer.
    """

    rows: int
    text: bytes | memoryview
    cursor: str | None


def answer_short(snapshot: Snapshot, query: RangeQuery | WindowQuery, *, columns: bool) -> ShortAnswer | None:
    """Answer a query that touches few rows, in one kernel call; None when it is not one.

    Parameters
    ----------
    snapshot : Snapshot
    query : RangeQuery or WindowQuery
    columns : bool
        One array a column, instead of one object a row.

    Raises
    ------
    CorruptionError
    """
    workspace: answer.Workspace | None = getattr(_local, "workspace", None)
    if workspace is None:
        workspace = _local.workspace = answer.Workspace(SHORT_ROWS)
    room = workspace.room
    limit = INT64_MAX if query.limit is None else query.limit
    every_series = query.series is None
    series = _NO_SERIES if query.series is None else query.series
    place = (*(query.after or (0, 0)), query.after is not None)
    span = (query.start, query.end)
    call: Callable[[], tuple[int, int, int, int, int, int]]
    if isinstance(query, RangeQuery):
        fields = workspace.layout(None, columns=columns).fields
        sources = _Sources(snapshot, query, min(limit, INT64_MAX - 1) + 1)
        call = partial(
            answer.answer_rows,
            *(sources.table, series, every_series, *span, *place, limit, room, fields, columns),
        )
    else:
        fields = workspace.layout(query.aggregates, columns=columns).fields
        sources = _Sources(snapshot, query, INT64_MAX)
        windows = (query.origin, query.step)
        variance = "stddev" in query.aggregates
        call = partial(
            answer.answer_windows,
            *(sources.table, series, every_series, *span, *windows, *place, limit, variance),
            *(room, fields, columns),
        )
    for _ in range(_TRIES):
        count, status, source, start, stop, size = call()
        if status == layout.STATUS_VERIFY:
            sources.verify(source, start, stop)
            continue
        if status == answer.STATUS_LARGE:
            return None
        cursor = None
        if status == layout.STATUS_FULL:
            keys = workspace.integers
            cursor = encode_cursor(query.identity, (int(keys[0, count - 1]), int(keys[1, count - 1])))
        return ShortAnswer(count, workspace.text[:size], cursor)
    return None
