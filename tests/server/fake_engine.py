"""An engine in memory: what the server needs of one, with switches for everything that can go wrong."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from omendb.config import Settings
from omendb.errors import NotReadyError
from omendb.metrics import Metrics, memory_gauges
from omendb.model import Columns, Windows
from omendb.query import RangeQuery, WindowQuery, encode_cursor
from omendb.reports import SettingState, Status
from omendb.server import encode
from omendb.settings_source import fixed
from omendb.short_query import SHORT_ROWS, ShortAnswer
from omendb.storage.catalog import Catalog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from omendb.errors import OmenError
    from omendb.model import Batch


class Report(msgspec.Struct):
    """Stands for the engine's reports."""

    record_count: int = 0
    max_error: int | None = None
    calls: int = 0


class _Waiting(NamedTuple):
    batch: Batch
    done: Callable[[OmenError | None], None]


class FakeEngine:
    """Keeps points in sorted arrays; commits in a thread of its own, many inserts a group.

    Attributes
    ----------
    submit_error, commit_error : OmenError or None
        Raised by `submit`; passed to `done`.
    start_error : BaseException or None
        Raised by `start`.
    chunk_error : Exception or None
        Raised by `chunks` after the first `chunk_error_after` chunks.
    may_start, may_commit, may_admin : threading.Event
        Cleared, they hold back what they are named after.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.metrics = Metrics()
        self.metrics.add_gauges(memory_gauges(lambda: self.settings.max_memory_mb))
        self.status = Status("new", "not started", 0.0)
        self.failed = threading.Event()
        self.closed = threading.Event()
        self.submit_error: OmenError | None = None
        self.commit_error: OmenError | None = None
        self.start_error: BaseException | None = None
        self.chunk_error: Exception | None = None
        self.chunk_error_after = 0
        self.may_start = threading.Event()
        self.may_commit = threading.Event()
        self.may_admin = threading.Event()
        for event in (self.may_start, self.may_commit, self.may_admin):
            event.set()
        self.submitted = threading.Semaphore(0)
        self.chunks_made = 0
        self.admin_running = 0
        self.admin_running_max = 0
        self.admin_calls = 0
        self.catalog = Catalog()
        self.points: dict[tuple[int, int], float] = {}
        self.columns = _columns({})
        self._dirty = False
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._committer: threading.Thread | None = None

    def start(self, *, compile_kernels: bool = False, wait_for_lock_seconds: float | None = 0.0) -> None:
        self.status = Status("starting", "replaying the log", 0.25)
        self.may_start.wait()
        if self.start_error is not None:
            self.status = Status("failed", str(self.start_error), 0.0)
            self.failed.set()
            raise self.start_error
        self._committer = threading.Thread(target=self._commit, daemon=True)
        self._committer.start()
        self.status = Status("ready", "ready", 1.0)

    def close(self) -> None:
        self.status = Status("closed", "closed", 0.0)
        if self._committer is not None:
            self._queue.put(None)
            self._committer.join()
        self.closed.set()

    def load(self, columns: Columns) -> None:
        """Replace all points by rows in order."""
        self.columns = columns

    def check_writable(self) -> None:
        if self.status.phase != "ready":
            raise NotReadyError(self.status.message)

    def submit(self, batch: Batch, done: Callable[[OmenError | None], None]) -> None:
        if self.submit_error is not None:
            raise self.submit_error
        if self.status.phase != "ready":
            raise NotReadyError(self.status.message)
        self._queue.put(_Waiting(batch, done))
        self.submitted.release()

    def scan(self, query: RangeQuery) -> FakeScan:
        return FakeScan(self, query)

    def window_scan(self, query: WindowQuery) -> FakeWindowScan:
        return FakeWindowScan(self, query)

    def answer_short(self, query: RangeQuery | WindowQuery, *, columns: bool) -> ShortAnswer | None:
        names = query.aggregates if isinstance(query, WindowQuery) else None
        scan = self.scan(query) if isinstance(query, RangeQuery) else self.window_scan(query)
        if scan.row_bound > SHORT_ROWS:
            return None
        parts = [*scan.chunks(SHORT_ROWS), None]
        part = parts[0]
        bare = ShortAnswer(0 if part is None else part.count, b"", scan.cursor)
        around = encode.short(bare, names, columns=columns)
        whole = encode.Form(columns, names).whole(part, scan.cursor)
        end = around[around.index(b"]") :]
        begin = around.removesuffix(end)
        return bare._replace(text=whole.removeprefix(begin).removesuffix(end))

    def stats(self) -> Report:
        return Report(record_count=len(self.current().timestamp))

    def index_stats(self) -> Report:
        return Report(max_error=self.settings.max_error)

    def configuration(self) -> dict[str, SettingState]:
        return fixed(self.settings).report()

    def gc(self) -> Report:
        return self._admin(None)

    def retrain(self, max_error: int | None = None) -> Report:
        return self._admin(max_error)

    def backup_as(self, name: str | None = None, *, verify: bool = False) -> Report:
        return self._admin(None)

    def backups(self) -> Report:
        return Report()

    def current(self) -> Columns:
        if self._dirty:
            self._dirty = False
            self.columns = _columns(dict(self.points))
        return self.columns

    def _admin(self, max_error: int | None) -> Report:
        self.admin_running += 1
        self.admin_running_max = max(self.admin_running_max, self.admin_running)
        self.may_admin.wait()
        self.admin_running -= 1
        self.admin_calls += 1
        return Report(max_error=max_error, calls=self.admin_calls)

    def _commit(self) -> None:
        while True:
            group: list[_Waiting] = []
            item = self._queue.get()
            self.may_commit.wait()
            while item is not None:
                group.append(item)
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            error = self.commit_error
            for waiting in group:
                if error is None:
                    batch = waiting.batch
                    keys = zip(batch.series_id.tolist(), batch.timestamp.tolist(), strict=True)
                    self.points.update(zip(keys, batch.value.tolist(), strict=True))
            if error is None:
                self.catalog.mark_logged(self.catalog.count)
                self.catalog.mark_visible(self.catalog.count)
            self._dirty = self._dirty or error is None
            for waiting in group:
                waiting.done(error)
            if item is None:
                return


class FakeScan:
    """The rows of a range query."""

    def __init__(self, engine: FakeEngine, query: RangeQuery) -> None:
        rows = engine.current()
        keep = (rows.timestamp >= query.start) & (rows.timestamp <= query.end)
        if query.series is not None:
            keep &= np.isin(rows.series_id, query.series)
        if query.after is not None:
            series, time = query.after
            keep &= (rows.series_id > series) | ((rows.series_id == series) & (rows.timestamp > time))
        self._engine = engine
        self._query = query
        self._rows = _cut(rows, keep)
        self._stop = self._rows.count if query.limit is None else min(query.limit, self._rows.count)
        self.row_bound = self._stop
        self.cursor: str | None = None

    workers = None

    def prove(self, rows: int) -> None:
        """The bound is close as it is."""

    def map(
        self, function: Callable[[Columns], Any], rows_max: int = 65_536, make_arrays: Any = None
    ) -> Iterator[Any]:
        return map(function, self.chunks(rows_max))

    def count(self) -> int:
        return self._stop

    def chunks(self, rows_max: int = 65_536) -> Iterator[Columns]:
        engine = self._engine
        for index, start in enumerate(range(0, self._stop, rows_max)):
            if engine.chunk_error is not None and index >= engine.chunk_error_after:
                raise engine.chunk_error
            stop = min(start + rows_max, self._stop)
            if stop == self._query.limit and stop < self._rows.count:
                last = (int(self._rows.series_id[stop - 1]), int(self._rows.timestamp[stop - 1]))
                self.cursor = encode_cursor(self._query.identity, last)
            engine.chunks_made += 1
            yield _cut(self._rows, slice(start, stop))


class FakeWindowScan:
    """The windows of a window query."""

    workers = None

    def prove(self, rows: int) -> None:
        """The bound is close as it is."""

    def map(
        self, function: Callable[[Windows], Any], rows_max: int = 65_536, make_arrays: Any = None
    ) -> Iterator[Any]:
        return map(function, self.chunks(rows_max))

    def count(self) -> int:
        return sum(part.count for part in self.chunks())

    def __init__(self, engine: FakeEngine, query: WindowQuery) -> None:
        self._query = query
        self._rows = FakeScan(engine, RangeQuery(query.start, query.end, query.series))._rows
        self.row_bound = self._rows.count
        self.cursor: str | None = None

    def chunks(self, rows_max: int = 65_536) -> Iterator[Windows]:
        query, rows = self._query, self._rows
        starts = (rows.timestamp - query.origin) // query.step * query.step + query.origin
        ids = rows.series_id if query.by else np.zeros_like(starts)
        order = np.lexsort((rows.series_id, rows.timestamp, ids))
        rows, ids, starts = _cut(rows, order), ids[order], starts[order]
        keys, first = np.unique(np.stack([ids, starts]), axis=1, return_index=True)
        groups = np.split(rows.value, first[1:]) if len(first) else []
        made: dict[str, Callable[[Any], float]] = {
            "count": len,
            "sum": np.sum,
            "min": np.min,
            "max": np.max,
            "mean": np.mean,
            "first": lambda group: group[0],
            "last": lambda group: group[-1],
            "stddev": np.std,
        }
        columns = {
            name: np.array(
                [made[name](group) for group in groups],
                dtype=np.int64 if name == "count" else np.float64,
            )
            for name in query.aggregates
        }
        for start in range(0, len(groups), rows_max):
            cut = slice(start, start + rows_max)
            yield Windows(
                np.ascontiguousarray(keys[0][cut]) if query.by else None,
                np.ascontiguousarray(keys[1][cut]),
                {name: column[cut] for name, column in columns.items()},
            )


def _cut(rows: Columns, keep: Any) -> Columns:
    return Columns(rows.series_id[keep], rows.timestamp[keep], rows.value[keep])


def _columns(points: dict[tuple[int, int], float]) -> Columns:
    keys = sorted(points)
    return Columns(
        np.array([series for series, _ in keys], dtype=np.int64),
        np.array([time for _, time in keys], dtype=np.int64),
        np.array([points[key] for key in keys], dtype=np.float64),
    )
