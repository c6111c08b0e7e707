"""Runs queries: one snapshot each, sources pruned and merged in kernels, answers in bounded pieces.

A scan belongs to one thread at a time. It holds its snapshot, and with it the mapped files, until it is
dropped. Kernels release the GIL. A scan of many rows is cut into *shards* (`omendb.jit.split`), which `map`
works on in several threads; the parts come in order all the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from copy import copy
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from omendb import wide_window
from omendb.config import Settings
from omendb.jit import layout, merge, search, split, window
from omendb.model import INT64_MAX, INT64_MIN, Columns, Windows
from omendb.query import RangeQuery, WindowQuery, encode_cursor
from omendb.storage import scratch
from omendb.storage.decoded_cache import no_reading
from omendb.storage.read_ahead import RUNS_MIN, ReadAhead, is_cold

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import TypeAlias

    from numpy.typing import NDArray

    from omendb.storage.decoded_cache import NoReading, Reading
    from omendb.storage.scratch import Room
    from omendb.storage.segment import Segment
    from omendb.storage.snapshot import Snapshot
    from omendb.storage.source import Source
    from omendb.workers import Workers

CHUNK_ROWS = 65_536
"""Rows of one piece of an answer, unless the caller asks for another size."""

BOUND_ROWS_MAX = 1 << 20
"""Rows of a query are counted so far when it begins; how many more there are makes no difference to it."""

SPLIT_ROWS = 131_072
"""A scan that touches more rows is worth the way into other threads: it takes some 0.2 ms."""

SHARD_ROWS = 262_144
"""Rows of a shard of windows."""

LARGE_SHARD_ROWS = 524_288
"""The same of more than `BOUND_ROWS_MAX` rows that need no decoding: a shard costs some 0.1 ms besides."""

_PROOFS_MAX = 8  # a kernel asks for one source at a time

DECODED_ROWS_MIN = 4_096
"""A scan of all series that touches fewer rows goes through the cache of decoded blocks in any case."""

ROW_SHARD_ROWS = 65_536
"""Rows of a shard of rows: a few pieces of an answer, because all of them are held until it is done."""

NO_SERIES = np.empty(0, dtype=np.int64)
DEFAULTS = Settings()

RowArrays: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]"
"""Series, timestamps and values: arrays of one length."""

Part = TypeVar("Part", Columns, Windows)
Result = TypeVar("Result")


class Sources:
    """The sources of one query, oldest first: the snapshot's segments, then what its memtables hold."""

    __slots__ = (
        "_cache_bytes",
        "_memory",
        "_room",
        "prefetch_rows",
        "reading",
        "segments",
        "settings",
        "table",
    )

    def __init__(
        self, snapshot: Snapshot, query: RangeQuery | WindowQuery, rows_max: int, settings: Settings
    ) -> None:
        self.settings = settings
        self.segments = snapshot.segments
        self.reading: Callable[[], Reading | NoReading] = snapshot.reading
        self._cache_bytes = 0 if snapshot.cache is None else snapshot.cache.limit_bytes
        self._room: Room | None = None
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
        self.prefetch_rows = self._ask_ahead(query)

    def _ask_ahead(self, query: RangeQuery | WindowQuery) -> int:
        """Ask the disk for the first rows; return how many of each run are to be asked for later on, too."""
        rows, series, limit = self.settings.prefetch_size, query.series, query.limit
        if rows == 0 or (limit is not None and limit < RUNS_MIN) or not self.segments:
            return 0
        if series is None:
            runs = int(self.table[:, layout.RUN_COUNT].sum())
        else:
            runs = len(series) * len(self.segments)
        if runs < RUNS_MIN:
            return 0
        scanned = (
            self.table,
            NO_SERIES if series is None else series,
            series is None,
            query.start,
            query.end,
        )
        # Before anything looks at rows: to tell how many there are touches some of every run.
        if not is_cold(self.segments, scanned):
            return 0
        ReadAhead(scanned, None if query.after is None else query.after[0], rows).reach(None)
        return rows

    @property
    def rows(self) -> int:
        """Rows of all sources, whatever the query asks for."""
        return int(self.table[:, layout.ROWS].sum())

    @property
    def memory_rows(self) -> int:
        """Rows that came from memtables."""
        return sum(source.rows for source in self._memory)

    def verify(self, source: int, start: int, stop: int, reading: Reading | NoReading) -> None:
        """Check the blocks that a kernel asked for, and decode them where they are compressed.

        Raises
        ------
        CorruptionError
        """
        if self._room is None or not self._room.verify(source, start, stop):
            self.segments[source].verify_rows(start, stop, reading)

    @property
    def exceed_cache(self) -> bool:
        """Whether a scan of everything decodes more than the cache holds."""
        if not self._cache_bytes:
            return False
        rows = sum(segment.rows for segment in self.segments if segment.cache is not None)
        return 16 * rows > self._cache_bytes

    def within(self, room: Room, table: NDArray[np.int64]) -> Sources | None:
        """Return a part of these sources that is decoded into a room; None when it does not fit.

        Parameters
        ----------
        room : Room
        table : ndarray of int64, shape (k, SOURCE_WIDTH)
            The part's sources. Changed.
        """
        if not room.lay_out(self.segments, self.table, table):
            return None
        part = copy(self)
        part.table = table
        part.reading = no_reading
        part.prefetch_rows = 0  # what is compressed is read in order, through a descriptor
        part._room = room
        return part


class Place:
    """How far a scan has come: it goes on after the last key that it has written.

    Parameters
    ----------
    sources : Sources
    after : tuple of int, or None
        The key to begin after: a series, and a timestamp or the first one of a window.
    """

    __slots__ = ("_ahead", "_sources", "key", "resume", "series")

    def __init__(self, sources: Sources, after: tuple[int, int] | None) -> None:
        self._sources = sources
        self._ahead: ReadAhead | None = None
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
        if self._sources.prefetch_rows:
            reached = self.series if self.resume else None
            if self._ahead is None:
                self._ahead = ReadAhead(request[:5], reached, self._sources.prefetch_rows)
            self._ahead.reach(INT64_MIN if reached is None else reached)
        while True:
            filled, done, is_wide = self._fill_steps(kernel, request, options, arrays, filled)
            if not is_wide:
                return filled, done
            if not self._fill_wide(request, options, arrays, filled):
                return filled, True
            filled += 1

    def _fill_steps(
        self,
        kernel: Callable[..., tuple[int, int, int, int, int]],
        request: tuple[Any, ...],
        options: tuple[Any, ...],
        arrays: tuple[NDArray[Any], ...],
        filled: int,
    ) -> tuple[int, bool, bool]:
        """Do `fill` from row `filled` on, up to a window of more rows than should be decoded at a time."""
        size = part = len(arrays[0])
        room = tuple(array[filled:] for array in arrays) if filled else arrays
        with self._sources.reading() as reading:
            while True:
                written, status, source, start, stop = kernel(
                    *request, self.series, self.key, self.resume, *options, *room
                )
                if written:
                    filled += int(written)
                    self.series, self.key = int(arrays[0][filled - 1]), int(arrays[1][filled - 1])
                    self.resume = True
                    reading.renew()
                if status == layout.STATUS_VERIFY:
                    if not reading.is_much(stop - start):
                        self._sources.verify(source, start, stop, reading)
                    elif part > 1:
                        # Less of the answer at a time needs fewer decoded rows at a time.
                        part = max(1, part // 8)
                    elif kernel is window.scan_windows and filled < size:
                        return filled, False, True
                    else:
                        self._sources.verify(source, start, stop, reading)
                elif status == layout.STATUS_DONE or filled == size:
                    return filled, status == layout.STATUS_DONE, False
                else:
                    part *= 2
                room = tuple(array[filled : filled + part] for array in arrays)

    def _fill_wide(
        self,
        request: tuple[Any, ...],
        options: tuple[Any, ...],
        arrays: tuple[NDArray[Any], ...],
        filled: int,
    ) -> bool:
        """Write the next window from rows that are read piece by piece; return whether there is one."""
        *scan, origin, step, simd = request
        after = None
        if self.resume:
            after = (self.series, int(window.window_bounds(self.key, origin, step)[1]))
        want_variance, want_times = options
        pieces = self._pieces(tuple(scan), after)
        found = wide_window.reduce(pieces, origin, step, simd, want_variance, want_times)
        if found is None:
            return False
        # Without times, the arrays for them are no more than something to pass.
        for array, number in zip(arrays if want_times else arrays[:-2], found, strict=False):
            if len(array):
                array[filled] = number
        self.series, self.key, self.resume = found.series_id, found.window, True
        return True

    def _pieces(self, request: tuple[Any, ...], after: tuple[int, int] | None) -> Iterator[Columns]:
        place = Place(self._sources, after)
        done = False
        while not done:
            series, timestamp, value = arrays = _row_arrays(CHUNK_ROWS)
            filled, done = place.fill(merge.scan_rows, request, (), arrays)
            if filled:
                yield Columns(series[:filled], timestamp[:filled], value[:filled])


class Request:
    """What a kernel is asked for: sources, series and a range of time.

    Parameters
    ----------
    sources : Sources
    query : RangeQuery or WindowQuery
    """

    __slots__ = ("end", "every_series", "is_part", "row_bound", "series", "sources", "start", "table")

    def __init__(self, sources: Sources, query: RangeQuery | WindowQuery) -> None:
        self.sources = sources
        self.table = sources.table
        self.series: NDArray[np.int64] = NO_SERIES if query.series is None else query.series
        self.every_series = query.series is None
        self.is_part = False
        # A part touches no more rows, and as a rule exactly as many.
        self.row_bound: int | None = None
        self.start = query.start
        self.end = query.end

    @property
    def arguments(self) -> tuple[NDArray[np.int64], NDArray[np.int64], bool, int, int]:
        """The first arguments of every scan kernel."""
        return self.table, self.series, self.every_series, self.start, self.end

    def is_split(self, row_bound: int) -> bool:
        """Whether a scan that touches at most so many rows is worth the way into other threads."""
        return row_bound > SPLIT_ROWS or (row_bound > DECODED_ROWS_MIN and self.exceeds_cache)

    def shard_rows(self, rows: int, row_bound: int) -> int:
        """Return how many of the rows that it touches a shard should have, for `rows` in plain segments.

        Where rows are decoded, a shard is as long as the rows that are decoded with those touched allow.
        """
        if row_bound > BOUND_ROWS_MAX or not self.exceeds_cache:
            return rows
        return max(rows * row_bound // max(self.sources.rows, 1), 1)

    @property
    def exceeds_cache(self) -> bool:
        """Whether the scan decodes more than the cache holds."""
        return self.every_series and self.sources.exceed_cache

    @contextmanager
    def decoding(self) -> Generator[Request]:
        """Lend the same request in a form that is quickest for the one thread that works on it.

        Of a scan that exceeds the cache of decoded blocks, a part is decoded into room of the thread's own.
        """
        if not self.is_part or not self.exceeds_cache:
            yield self
            return
        with scratch.borrow() as room:
            table = self.table.copy()
            sources = self.sources.within(room, table)
            if sources is None:
                yield self
                return
            part = copy(self)
            part.sources, part.table = sources, table
            yield part

    def between(self, start: int, end: int) -> Request:
        """Return the request for a part of the range of time, both ends inclusive."""
        part = copy(self)
        part.start, part.end = start, end
        return part

    def bound(self, after: tuple[int, int] | None) -> int:
        """Bound the rows after a key from above; more than `BOUND_ROWS_MAX` are not counted exactly."""
        with self.sources.reading():
            return self._bound(after, BOUND_ROWS_MAX, merge.CHECK_WIDEN)

    def prove(self, after: tuple[int, int] | None, rows: int) -> None:
        """Verify the ends of the ranges after a key when they seem to hold at most so many rows.

        Without it a bound is loose over rows that were never read. What cannot be proven in a few steps is
        left alone.

        Raises
        ------
        CorruptionError
        """
        with self.sources.reading() as reading:
            if self._bound(after, rows, merge.CHECK_NONE) > rows:
                return
            for _ in range(_PROOFS_MAX):
                _, status, source, start, stop = merge.count_rows(
                    *self.arguments, *(after or (0, 0)), after is not None
                )
                if status != layout.STATUS_VERIFY or reading.is_much(stop - start):
                    return
                self.sources.verify(source, start, stop, reading)

    def _bound(self, after: tuple[int, int] | None, limit: int, check: int) -> int:
        return int(merge.bound_rows(*self.arguments, *(after or (0, 0)), after is not None, limit, check))

    def split(self, rows: int, after: tuple[int, int] | None, origin: int, step: int) -> list[Request]:
        """Cut into requests of about `rows` rows that have the same answer, one after the other.

        Parameters
        ----------
        rows : int
        after : (int, int) or None
            The row after which it begins.
        origin, step : int
            Windows that must stay whole; a step of 0 for none.
        """
        shards = np.empty((2 * (self.sources.rows // rows) + 2, split.SHARD_WIDTH), dtype=np.int64)
        with self.sources.reading():
            count, _ = split.split_scan(
                *self.arguments, *(after or (0, 0)), after is not None, origin, step, rows, shards
            )
        if count <= 1:
            return [self] * int(count)
        return [self._part(shard) for shard in shards[:count]]

    def _part(self, shard: NDArray[np.int64]) -> Request:
        """Return the request for a shard alone."""
        part = copy(self)
        part.is_part = True
        first, last, part.start, part.end, part.row_bound = shard.tolist()
        if self.every_series:
            part.table = np.empty_like(self.table)
            split.narrow_sources(self.table, first, last, part.table)
        else:
            low, high = np.searchsorted(self.series, first), np.searchsorted(self.series, last, "right")
            part.series = self.series[low:high]
        return part


class _Scan(ABC, Generic[Part]):
    """What scans of rows and of windows have in common.

    Attributes
    ----------
    row_bound : int
        The answer has, and touches, at most this many rows; or more than `BOUND_ROWS_MAX`.
    cursor : str or None
        Set when `chunks`, or `map`, is exhausted: where to go on when the limit cut the answer.
    workers : Workers or None
        The threads that `map` uses.
    """

    row_bound: int
    cursor: str | None
    workers: Workers | None
    _request: Request
    _bound_after: tuple[int, int] | None = None
    _bound_limit: int | None = None

    def __init__(self, limit: int | None, workers: Workers | None) -> None:
        self.cursor = None
        self._limit = limit
        self.workers = workers
        self._shards: list[Request] | None = None

    @abstractmethod
    def chunks(self, rows_max: int = CHUNK_ROWS) -> Iterator[Part]:
        """Yield the answer in pieces of at most `rows_max`; an empty answer yields nothing.

        Raises
        ------
        CorruptionError
            Naming the segment; what was yielded before is right.
        """

    def map(
        self,
        function: Callable[[Part], Result],
        rows_max: int = CHUNK_ROWS,
        make_arrays: Callable[[int], RowArrays] | None = None,
    ) -> Iterator[Result]:
        """Yield what a function makes of each piece, in order; large answers are made in several threads.

        Parameters
        ----------
        function : callable
            Is called in any thread, also in several at once.
        rows_max : int
            Rows of a piece at most.
        make_arrays : callable, optional
            Makes room for so many rows. Pieces of rows lie at the beginning of such arrays as a rule: it
            is called before each piece, in the thread in which the function is called with it.

        Raises
        ------
        CorruptionError
            In its turn: what was yielded before is right.
        """
        workers = self.workers
        if workers is None or not self._request.is_split(self.row_bound):
            return map(function, self._pieces(self._request, rows_max, make_arrays))
        if self._limit is not None:
            # How much of a part belongs to the answer is known only when those before it are made.
            return workers.map(function, self.chunks(rows_max))
        self.cursor = None

        def work(request: Request) -> list[Result]:
            with request.decoding() as lent:
                return [function(part) for part in self._pieces(lent, rows_max, make_arrays)]

        return chain.from_iterable(workers.map(work, self._requests(rows_max)))

    def prove(self, rows: int) -> None:
        """Make `row_bound` a close one, by reading, when the scan seems to touch at most so many rows.

        Raises
        ------
        CorruptionError
        """
        self._request.prove(self._bound_after, rows)
        self._set_bound()

    def _set_bound(self) -> None:
        bound = self._request.bound(self._bound_after)
        self.row_bound = bound if self._bound_limit is None else min(bound, self._bound_limit)

    @abstractmethod
    def _requests(self, rows_max: int) -> list[Request]:
        """Cut the scan into requests that threads share."""

    @abstractmethod
    def _pieces(
        self, request: Request, rows_max: int, make_arrays: Callable[[int], RowArrays] | None = None
    ) -> Iterator[Part]:
        """Yield the whole answer to a request in pieces."""


class Scan(_Scan[Columns]):
    """The rows of a range query, in order.

    Parameters
    ----------
    snapshot : Snapshot
    query : RangeQuery
    workers : Workers, optional
        Threads for `map` and `count`.
    settings : Settings, optional
        Of them `prefetch_size`.

    Attributes
    ----------
    row_bound, cursor
    """

    def __init__(
        self,
        snapshot: Snapshot,
        query: RangeQuery,
        workers: Workers | None = None,
        settings: Settings = DEFAULTS,
    ) -> None:
        super().__init__(query.limit, workers)
        self.query = query
        limit = query.limit
        # One row more than asked for, so that a kernel can tell whether the answer was cut.
        self._sources = Sources(snapshot, query, INT64_MAX if limit is None else limit + 1, settings)
        self._request = Request(self._sources, query)
        self._bound_after, self._bound_limit = query.after, limit
        self._set_bound()

    def count(self) -> int:
        """Count the rows that `chunks` yields.

        Raises
        ------
        CorruptionError
        """
        if self.workers is None or not self._request.is_split(self.row_bound):
            total = self._count(self._request)
        else:
            total = sum(self.workers.map(self._count_part, self._requests(SHARD_ROWS)))
        limit = self.query.limit
        return total if limit is None else min(total, limit)

    def _count_part(self, request: Request) -> int:
        with request.decoding() as lent:
            return self._count(lent)

    def _count(self, request: Request) -> int:
        after = self.query.after
        total = 0
        sources = request.sources
        with sources.reading() as reading:
            while True:
                count, status, source, start, stop = merge.count_rows(
                    *request.arguments, *(after or (0, 0)), after is not None
                )
                if status != layout.STATUS_VERIFY:
                    return total + int(count)
                if reading.is_much(stop - start):
                    break
                sources.verify(source, start, stop, reading)
                # What was counted are whole series, all before the one that was reached: go on from there.
                reached = int(merge.find_series(request.table, source, start))
                if reached > 0 and (after is None or reached > after[0]):
                    total += int(count)
                    after = (reached - 1, INT64_MAX)
                    reading.renew()
        # More than should be decoded at a time: count the rest piece by piece.
        place = Place(sources, after)
        done = False
        while not done:
            arrays = _row_arrays(CHUNK_ROWS)
            filled, done = place.fill(merge.scan_rows, request.arguments, (), arrays)
            total += filled
        return total

    def chunks(self, rows_max: int = CHUNK_ROWS) -> Iterator[Columns]:
        """Yield the rows in pieces of at most `rows_max`; an empty answer yields nothing.

        Raises
        ------
        CorruptionError
            Naming the segment; what was yielded before is right.
        """
        return self._pieces(self._request, rows_max)

    def _pieces(
        self, request: Request, rows_max: int, make_arrays: Callable[[int], RowArrays] | None = None
    ) -> Iterator[Columns]:
        make_arrays = make_arrays or _row_arrays
        arguments = request.arguments
        place = Place(request.sources, self.query.after)
        limit = self.query.limit
        left = INT64_MAX if limit is None else limit
        # Past the bound there is nothing: arrays of its size are large enough.
        bound = self.row_bound if self.row_bound <= BOUND_ROWS_MAX else INT64_MAX
        if request.row_bound is not None:
            bound = min(bound, request.row_bound)
        while left > 0:
            size = min(rows_max, left, max(bound, 1))
            if rows_max < bound < INT64_MAX:
                # Pieces of a length, so that the last one fills its arrays, too.
                size = min(size, -(-bound // -(-bound // rows_max)))
            series, timestamp, value = arrays = make_arrays(size)
            filled, done = place.fill(merge.scan_rows, arguments, (), arrays)
            left -= filled
            bound -= filled
            if done:
                left = 0
            elif left == 0:
                self.cursor = encode_cursor(self.query.identity, (place.series, place.key))
            if filled:
                yield Columns(series[:filled], timestamp[:filled], value[:filled])

    def _requests(self, rows_max: int) -> list[Request]:
        rows = self._request.shard_rows(max(rows_max, ROW_SHARD_ROWS), self.row_bound)
        return self._request.split(rows, self.query.after, 0, 0)

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
        if segment.cache is not None:
            return None  # what is decoded does not stay
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
        if self.row_bound > BOUND_ROWS_MAX:
            rows_max = self._sources.rows
        else:
            rows_max = max(self.row_bound, 1)
        for chunk in self.chunks(rows_max):
            return chunk
        return Columns(NO_SERIES, NO_SERIES, np.empty(0, dtype=np.float64))


class WindowScan(_Scan[Windows]):
    """The windows of a window query, a row a series and window, in order.

    Parameters
    ----------
    snapshot : Snapshot
    query : WindowQuery
        By series.
    workers : Workers, optional
        Threads for `map`, `count` and `windows`.
    settings : Settings, optional
        Of them `prefetch_size` and `enable_simd`.

    Attributes
    ----------
    row_bound, cursor
    """

    def __init__(
        self,
        snapshot: Snapshot,
        query: WindowQuery,
        workers: Workers | None = None,
        settings: Settings = DEFAULTS,
    ) -> None:
        super().__init__(query.limit, workers)
        assert query.by
        self.query = query
        self._sources = Sources(snapshot, query, INT64_MAX, settings)
        self._request = Request(self._sources, query)
        # The rows of a window that was answered already may count as well: a bound it is all the same.
        self._set_bound()

    def chunks(self, rows_max: int = CHUNK_ROWS) -> Iterator[Windows]:
        """Yield the windows in pieces of at most `rows_max`; an empty answer yields nothing.

        Raises
        ------
        CorruptionError
        """
        return self._pieces(self._request, rows_max)

    def _pieces(
        self, request: Request, rows_max: int, make_arrays: Callable[[int], RowArrays] | None = None
    ) -> Iterator[Windows]:
        query = self.query
        arguments = (*request.arguments, query.origin, query.step, self._sources.settings.enable_simd)
        options = ("stddev" in query.aggregates, False)
        place = Place(request.sources, query.after)
        left = INT64_MAX if query.limit is None else query.limit
        bound = self._window_bound()
        while left > 0:
            size = min(rows_max, left, max(bound, 1))
            series, start, count = (np.empty(size, dtype=np.int64) for _ in range(3))
            total, low, high, first, last, squares = (np.empty(size, dtype=np.float64) for _ in range(6))
            arrays = (series, start, count, total, low, high, first, last, squares, series, series)
            filled, done = place.fill(window.scan_windows, arguments, options, arrays)
            left -= filled
            bound -= filled
            if done:
                left = 0
            elif left == 0:
                self.cursor = encode_cursor(query.identity, (place.series, place.key))
            if not filled:
                continue
            cut = slice(0, filled)
            columns = make_columns(
                query.aggregates,
                count[cut],
                total[cut],
                {"min": low[cut], "max": high[cut], "first": first[cut], "last": last[cut]},
                squares[cut],
            )
            yield Windows(series[cut], start[cut], columns)

    def _requests(self, rows_max: int) -> list[Request]:
        if self._shards is None:
            query = self.query
            is_large = self.row_bound > BOUND_ROWS_MAX and not self._request.exceeds_cache
            rows = LARGE_SHARD_ROWS if is_large else SHARD_ROWS
            rows = self._request.shard_rows(rows, self.row_bound)
            self._shards = self._request.split(rows, None, query.origin, query.step)
        return self._shards

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

    def _window_bound(self) -> int:
        """At most this many windows: no more than rows, nor than fit the range."""
        query = self.query
        bound = self.row_bound if self.row_bound <= BOUND_ROWS_MAX else INT64_MAX
        if query.series is not None and query.start != INT64_MIN and query.end != INT64_MAX:
            each = (query.end - query.start) // query.step + 2
            bound = min(bound, each * len(query.series))
        return bound


class WindowSource(Protocol):
    """A scan of windows, by series or merged."""

    query: WindowQuery

    def map(self, function: Callable[[Windows], Result], rows_max: int = CHUNK_ROWS) -> Iterator[Result]:
        """See `Scan.map`."""
        ...


def count_windows(scan: WindowSource) -> int:
    """Count windows by making them."""
    return sum(scan.map(lambda part: part.count))


def join_windows(scan: WindowSource) -> Windows:
    """Return the whole answer as one."""
    parts = list(scan.map(lambda part: part))
    if len(parts) == 1:
        return parts[0]
    names, by_series = scan.query.aggregates, bool(scan.query.by)
    series = [part.series_id for part in parts if part.series_id is not None]
    # Of no parts, too, the columns have their types.
    dtypes = {name: np.int64 if name == "count" else np.float64 for name in names}
    return Windows(
        _joined(series, np.int64) if by_series else None,
        _joined([part.timestamp for part in parts], np.int64),
        {name: _joined([part.columns[name] for part in parts], dtypes[name]) for name in names},
    )


def _row_arrays(size: int) -> RowArrays:
    return (
        np.empty(size, dtype=np.int64),
        np.empty(size, dtype=np.int64),
        np.empty(size, dtype=np.float64),
    )


def _joined(arrays: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)


def make_columns(
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
