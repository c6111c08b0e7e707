"""The engine: a store with its threads and its clock; what `omendb.open` returns and the server runs.

Threads: the *committer* groups waiting inserts, writes and syncs the log, applies them and answers; the
*flusher* turns frozen memtables into segments; the *compactor* merges segments; the *timer* syncs on an
interval, flushes by age, and watches memory; the *refitter* fits models anew when `max_error` changes; the
*watcher* follows the directory of settings. Queries run in the caller's thread, and large ones in the
*workers* beside it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from omendb.committer import Committer
from omendb.config import Settings, check
from omendb.errors import (
    AlreadyExistsError,
    ClosedError,
    LockedError,
    OmenError,
    OverloadedError,
    WalFailedError,
)
from omendb.executor import Scan
from omendb.flusher import Compactor, Flusher, Refitter, storage_error
from omendb.inspection import (
    compression_gauges,
    disk_gauges,
    gauges,
    index_state,
    index_stats,
    record_stats,
    space_state,
)
from omendb.jit.warmup import Warmed, warm_up
from omendb.lifecycle import Lifecycle
from omendb.merged import window_scan
from omendb.metrics import Metrics, memory_gauges, memory_limit_bytes, package_version, process_memory
from omendb.model import BY_SERIES, Batch, Columns, Windows, make_batch
from omendb.query import RangeQuery, WindowQuery, make_range_query, make_window_query
from omendb.reports import BackupReport, Backups, GcReport, IndexStats, RetrainReport, Stats, Status
from omendb.settings_source import SettingsSource, fixed
from omendb.short_query import ShortAnswer, answer_short
from omendb.storage import backup, decoded_cache, filenames
from omendb.storage.fs import FileSystem, OsFileSystem, release_memory
from omendb.storage.recovery import Recovery, open_store
from omendb.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from numpy.typing import ArrayLike

    from omendb.config import Value
    from omendb.executor import WindowScan
    from omendb.merged import MergedScan
    from omendb.reports import SettingState
    from omendb.storage.catalog import Catalog
    from omendb.storage.store import Store

logger = logging.getLogger("omendb.engine")

FLUSH_AT = 0.70
"""Share of the memory limit at which memtables are flushed early."""

REFUSE_AT = 0.85
"""Share of the memory limit at which inserts are refused."""

_TICK_SECONDS = 0.1
_WATCH_SECONDS = 0.5  # a change applies after one to two of these: the files must have come to rest

_LOCK_POLL_SECONDS = 0.2
"""How often a start that waits for another process looks whether that is gone."""

_WAITING = "waiting for the lock: another process has the directory open"


class Engine:
    """A time-series database in this process.

    Parameters
    ----------
    path : str or Path
        The data directory; made when it does not exist. One process owns it at a time.
    settings : Settings or SettingsSource, optional
        A source is watched while the store is open, where it can change.
    metrics : Metrics, optional
        Where measurements go; a new one by default.
    fs : FileSystem, optional
        For tests.

    Attributes
    ----------
    status : Status
    failed : threading.Event
        Set when the log has failed: nothing more is acknowledged, and the process should end.
    metrics : Metrics
    recovery : Recovery or None
        What the start found.

    Examples
    --------
    >>> import tempfile, omendb
    >>> with tempfile.TemporaryDirectory() as path, omendb.open(path) as db:
    ...     db.insert(1, [10, 20, 30], [1.0, 2.0, 4.0])
    ...     db.query(start=20, series_id=1).value.tolist()
    3
    [2.0, 4.0]
    """

    def __init__(
        self,
        path: str | Path,
        settings: Settings | SettingsSource | None = None,
        *,
        metrics: Metrics | None = None,
        fs: FileSystem | None = None,
    ) -> None:
        self.path = Path(path)
        self.metrics = metrics or Metrics()
        self.recovery: Recovery | None = None
        self._source = settings if isinstance(settings, SettingsSource) else fixed(settings or Settings())
        self._fs = fs or OsFileSystem()
        self._lifecycle = Lifecycle(self.path)
        self._store: Store | None = None
        self._committer: Committer
        self._flusher: Flusher
        self._compactor: Compactor
        self._refitter: Refitter
        # Makes a start and a close that meet come one after the other; taken before all others.
        self._life_lock = threading.Lock()
        self._admin_lock = threading.Lock()  # one maintenance call at a time; taken before all others
        self._backup_lock = threading.Lock()  # one backup at a time; taken before all others
        self._settings_lock = threading.Lock()  # one change of settings at a time; taken after those two
        self._workers = Workers()
        self._last_backup_seconds = 0.0
        self._threads: list[threading.Thread] = []
        self._started_at = time.monotonic()
        self.metrics.add_gauges(memory_gauges(lambda: self.settings.max_memory_mb))
        self.metrics.add_gauges(self._gauges)
        if self._source.is_watched:
            self.metrics.add_gauges(self._source_gauges)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._source.settings

    @property
    def status(self) -> Status:
        """Where the store stands in its life."""
        return self._lifecycle.status

    @property
    def failed(self) -> threading.Event:
        """Set when the log has failed: nothing more is acknowledged, and the process should end."""
        return self._lifecycle.failed

    # Life.

    def start(self, *, compile_kernels: bool = False, wait_for_lock_seconds: float | None = 0.0) -> None:
        """Recover the store and start the threads; returns when it is ready.

        Parameters
        ----------
        compile_kernels : bool
            Make every kernel ready first, so that no request waits for a compiler; without it each is
            compiled, or loaded from the cache, when it is first called.
        wait_for_lock_seconds : float, optional
            How long to wait while another process has the directory open; None: until it is gone. Nothing
            in the directory is looked at meanwhile, and nothing changed.

        Raises
        ------
        LockedError
            Another process has the directory open.
        CorruptionError
            Something that had been durable is damaged.
        ClosedError
            `close` was called meanwhile, by another thread.
        OSError
        """
        lifecycle = self._lifecycle
        lifecycle.report("starting", 0.0)
        self._source.announce()
        self._count_refusals()
        try:
            if compile_kernels:
                self._compile_kernels()
            store, self.recovery = self._recover(wait_for_lock_seconds)
        except ClosedError:
            raise
        except BaseException as error:
            lifecycle.fail(error)
            raise
        with self._life_lock:
            closed = lifecycle.closing.is_set()
            if not closed:
                self._run(store)
        if closed:
            _close_store(store)
            raise ClosedError(f"{self.path} was closed while it was being opened")

    def _recover(self, wait_seconds: float | None) -> tuple[Store, Recovery]:
        """Open the store as soon as no other process has it."""
        asked = time.monotonic()
        waited = False
        while True:
            started = time.monotonic()
            try:
                store, recovery = open_store(self._fs, self.path, self.settings, self._report_recovery)
            except LockedError:
                if wait_seconds is not None and started - asked >= wait_seconds:
                    raise
            else:
                recovery.seconds = time.monotonic() - started
                return store, recovery
            if not waited:
                waited = True
                logger.warning("lock %s is in use by another process, waiting until it is gone", self.path)
            self._lifecycle.report(_WAITING, 0.0, "waiting")
            self._lifecycle.closing.wait(_LOCK_POLL_SECONDS)

    def _report_recovery(self, message: str, progress: float) -> None:
        # At the end the store is open, and is closed in order when nobody wants it any more.
        if progress < 1.0:
            self._lifecycle.report(message, progress)

    def _run(self, store: Store) -> None:
        """Start the threads; the life lock is held."""
        lifecycle = self._lifecycle
        self._compactor = Compactor(store, lifecycle, self.metrics)
        self._flusher = Flusher(store, self._compactor, lifecycle, self.metrics)
        self._refitter = Refitter(store, lifecycle, self.metrics)
        self._committer = Committer(store, self._flusher, lambda: self.settings, lifecycle, self.metrics)
        with self._settings_lock:
            store.settings = self.settings
            self._store = store
        self._last_backup_seconds = self._last_backup()
        targets: dict[str, Callable[[], None]] = {
            "commit": self._committer.run,
            "flush": self._flusher.run,
            "compact": self._compactor.run,
            "refit": self._refitter.run,
            "timer": lambda: self._run_timer(store),
        }
        if self._source.is_watched:
            targets["watch"] = self._run_watcher
        for name, target in targets.items():
            thread = threading.Thread(target=target, name=f"omendb-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._flusher.wake()
        self._compactor.wake()
        self._refitter.wake()
        lifecycle.set_ready()

    def close(self) -> None:
        """Finish what is waiting, flush, and mark a clean stop; may be called twice.

        Raises
        ------
        OSError, WalFailedError
            The stop is not clean; nothing acknowledged is lost.
        """
        with self._life_lock:
            was_open = self._lifecycle.close()
            store = self._store
        if not was_open or store is None:
            return  # a start that is under way gives up, and closes what it has opened
        self._workers.close()
        store.stop_maintenance()
        self._committer.stop()
        self._flusher.wake()
        self._compactor.wake()
        self._refitter.wake()
        for thread in self._threads:
            thread.join()
        if self.failed.is_set():
            store.release()
            return
        _close_store(store)
        logger.info("closed %s", self.path)

    def __enter__(self) -> Self:
        """Start the engine, unless it was."""
        if self.status.phase == "new":
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the engine."""
        self.close()

    # Inserting.

    @property
    def catalog(self) -> Catalog:
        """The named series.

        Raises
        ------
        NotReadyError, ClosedError
        """
        return self._open_store().catalog

    def check_writable(self) -> None:
        """Raise what `submit` would raise now, whatever is inserted.

        Raises
        ------
        OverloadedError, NotReadyError, WalFailedError, ClosedError
        """
        self._open_store()
        self._committer.check_writable()

    def insert(self, series_id: ArrayLike, timestamp: ArrayLike, value: ArrayLike) -> int:
        """Store points; when it returns they are durable and visible, and later writes of a key win.

        Parameters
        ----------
        series_id : int or array_like of int, shape (n,)
            At least 0. A single id may go with arrays of timestamps and values.
        timestamp : int or array_like of int, shape (n,)
            In whatever unit the store uses; any order.
        value : float or array_like of float, shape (n,)
            Finite.

        Returns
        -------
        int
            Number of points.

        Raises
        ------
        InvalidRequestError
            Nothing was stored.
        OverloadedError, DiskFullError
            Nothing was stored; the same call may succeed later.
        WalFailedError, NotReadyError, ClosedError
        """
        batch = make_batch(series_id, timestamp, value)
        if not len(batch.timestamp):
            return 0
        finished = threading.Event()
        outcome: list[OmenError | None] = []

        def done(error: OmenError | None) -> None:
            outcome.append(error)
            finished.set()

        self.submit(batch, done)
        finished.wait()
        if outcome[0] is not None:
            raise outcome[0]
        return len(batch.timestamp)

    def submit(self, batch: Batch, done: Callable[[OmenError | None], None]) -> None:
        """Queue a batch for the next group commit.

        Parameters
        ----------
        batch : Batch
            Valid, with at least one row.
        done : callable
            Is called once, from the committer's thread: with None when the batch is durable and visible,
            else with the error; nothing was stored then. It must not block.

        Raises
        ------
        OverloadedError, NotReadyError, WalFailedError, ClosedError, InvalidRequestError
            The batch was not queued, and `done` will not be called.
        """
        self._open_store()
        self._committer.submit(batch, done)

    # Reading.

    def query(
        self,
        start: int | None = None,
        end: int | None = None,
        series_id: int | ArrayLike | None = None,
        limit: int | None = None,
    ) -> Columns:
        """Rows of some series in a range of time, in order of ``(series_id, timestamp)``.

        Parameters
        ----------
        start, end : int, optional
            Timestamps, both inclusive.
        series_id : int or array_like of int, optional
            One series or several; all without it.
        limit : int, optional
            Rows at most, from the first.

        Returns
        -------
        Columns
            Read-only views over the mapped file, without a copy, when one series is asked for and one
            segment holds the answer; else fresh arrays. A view over a Parquet column may be unaligned.

        Raises
        ------
        InvalidRequestError, CorruptionError, NotReadyError, ClosedError
        """
        return self.scan(make_range_query(start, end, series_id, limit)).columns()

    def scan(self, query: RangeQuery) -> Scan:
        """Bind a range query to the store as it is now; the rows come in pieces.

        Raises
        ------
        NotReadyError, ClosedError
        """
        return Scan(self._open_store().snapshot, query, self._workers, self.settings)

    def answer_short(self, query: RangeQuery | WindowQuery, *, columns: bool) -> ShortAnswer | None:
        """Answer a query that touches few rows as JSON; None when it is not one.

        Raises
        ------
        CorruptionError, NotReadyError, ClosedError
        """
        return answer_short(self._open_store().snapshot, query, self.settings, columns=columns)

    def aggregate(
        self,
        step: int,
        agg: str | Sequence[str] = ("mean",),
        start: int | None = None,
        end: int | None = None,
        series_id: int | ArrayLike | None = None,
        limit: int | None = None,
        by: str | Sequence[str] = BY_SERIES,
    ) -> Windows:
        """Aggregates in windows of `step` timestamp units, for each series; empty windows are left out.

        Parameters
        ----------
        step : int
            At least 1.
        agg : str or sequence of str
            Of count, sum, min, max, mean, first, last, stddev.
        start, end : int, optional
            Timestamps, both inclusive. Windows are aligned to `start`; without it, to multiples of `step`.
        series_id : int or array_like of int, optional
        limit : int, optional
            Windows at most, from the first.
        by : str or sequence of str
            ``series_id``: a row a series and window. Empty: one row a window, of the points of all series.

        Returns
        -------
        Windows

        Raises
        ------
        InvalidRequestError, CorruptionError, NotReadyError, ClosedError
        """
        query = make_window_query(step, agg, start, end, series_id, limit, by=by)
        return self.window_scan(query).windows()

    def window_scan(self, query: WindowQuery) -> WindowScan | MergedScan:
        """Bind a window query to the store as it is now; the windows come in pieces.

        Raises
        ------
        NotReadyError, ClosedError
        """
        return window_scan(self._open_store().snapshot, query, self._workers, self.settings)

    def stats(self) -> Stats:
        """Figures of the store. Exact: counts distinct keys, which takes time when many overlap.

        Raises
        ------
        CorruptionError, NotReadyError, ClosedError
        """
        store = self._open_store()
        return record_stats(store, time.monotonic() - self._started_at, package_version())

    def index_stats(self) -> IndexStats:
        """Figures of the learned index, measured on the data; what has not changed is not measured again.

        Raises
        ------
        CorruptionError, NotReadyError, ClosedError
        """
        store = self._open_store()
        return index_stats(store, self.settings.max_error, self._refitter.last)

    # Configuring.

    def configuration(self) -> dict[str, SettingState]:
        """Return each setting: its value, where that comes from, and whether it can change meanwhile."""
        return self._source.report()

    def configure(self, **settings: Value) -> None:
        """Change settings from now on, until the store is opened again.

        Returns when they are in force; models are then fitted anew in the background. Those that cannot
        change while the store is open stay as they are, and `configuration` shows them as pending.

        Parameters
        ----------
        **settings : int, bool or str
            See `omendb.config.Settings`.

        Raises
        ------
        ConfigError
            Nothing has changed.
        """
        before = self._change(lambda: self._source.call(**settings))
        if self.settings.max_error != before.max_error and self._store is not None:
            self._refitter.wake()

    def reload(self) -> None:
        """Take over what has changed in the watched directory, once it has come to rest."""
        before = self._change(self._source.poll)
        self._count_refusals()
        if self.settings.max_error != before.max_error and self._store is not None:
            self._refitter.wake()

    def _change(self, make: Callable[[], None]) -> Settings:
        """Change the settings, all but refit the models; returns what was in force before."""
        with self._settings_lock:
            before = self.settings
            make()
            store, settings = self._store, self.settings
            if settings != before and store is not None:
                store.settings = settings
                # Most are read where they are used; these two have to be acted upon.
                if store.snapshot.active.rows >= settings.retrain_threshold:
                    self._committer.freeze()
                if not settings.sync_interval_ms:
                    self._sync(store)
            return before

    def _count_refusals(self) -> None:
        counter = self.metrics.config_reload_failures_total
        counter.inc(self._source.failures - counter.value)

    def _run_watcher(self) -> None:
        while not self._lifecycle.closing.wait(_WATCH_SECONDS):
            try:
                self.reload()
            except Exception:
                logger.exception("the settings could not be reloaded")

    # Maintaining.

    def flush(self) -> None:
        """Turn everything in memory into segments; returns when that is done.

        Raises
        ------
        OmenError
            It could not be written; nothing is lost, and it is tried again.
        """
        store = self._open_store()
        self._lifecycle.check_ready()
        frozen = self._committer.freeze()
        while not frozen.wait(_TICK_SECONDS):
            self._lifecycle.check_ready()
        self._flusher.wait_for(set(map(id, store.snapshot.frozen)))

    def gc(self) -> GcReport:
        """Merge segments, drop superseded rows, delete and unmap dead files, give memory back.

        Raises
        ------
        OmenError
        """
        started = time.monotonic()
        with self._admin_lock:
            store = self._open_store()
            before = space_state(store)
            self.flush()
            dropped = 0
            while (work := self._compactor.compact(everything=True)) is not None:
                dropped += work
            store.release_scratch()
            release_memory()
            after = space_state(store)
        seconds = time.monotonic() - started
        self.metrics.gc_duration.observe(seconds)
        logger.info(
            "gc done segments=%d->%d disk_bytes=%d->%d dropped_rows=%d duration_ms=%.3f",
            before.segments,
            after.segments,
            before.disk_bytes,
            after.disk_bytes,
            dropped,
            seconds * 1e3,
        )
        return GcReport(before, after, dropped, seconds)

    def retrain(self, max_error: int | None = None) -> RetrainReport:
        """Flush, and fit every model anew.

        Parameters
        ----------
        max_error : int, optional
            From now on the setting, in rows.

        Raises
        ------
        ConfigError
        OmenError
        """
        started = time.monotonic()
        with self._admin_lock:
            store = self._open_store()
            before = index_state(store)
            if max_error is not None:
                self._change(lambda: self._source.call(max_error=max_error))
            try:
                self.flush()
                store.retrain()
            except OSError as error:
                raise storage_error(error) from error
            finally:
                self._refitter.wake()  # should this have failed, the setting is a new one all the same
            after = index_state(store)
        seconds = time.monotonic() - started
        self._refitter.finished(seconds)
        logger.info(
            "retrain done max_error=%d->%d bytes=%d->%d duration_ms=%.3f",
            before.max_error,
            after.max_error,
            before.bytes,
            after.bytes,
            seconds * 1e3,
        )
        return RetrainReport(before, after, seconds)

    def backup(self, target: str | Path, *, verify: bool = False) -> BackupReport:
        """Copy the store as it is now into a directory of its own; reads and writes go on.

        Everything acknowledged before the call is in it. Segments become hard links where the file system
        allows, so that the call takes milliseconds and no space.

        Parameters
        ----------
        target : str or Path
            Not there, or an empty directory.
        verify : bool
            Check every checksum of the backup before it gets its name: reads all of it.

        Raises
        ------
        AlreadyExistsError
        OmenError
            There is no backup.
        """
        with self._backup_lock:
            return self._backup(Path(target).absolute(), verify=verify)

    def backup_as(self, name: str | None = None, *, verify: bool = False) -> BackupReport:
        """Make a backup below the data directory, in ``backups/NAME``.

        Parameters
        ----------
        name : str, optional
            Letters, digits, dots, hyphens, underscores; without it, made from the time.
        verify : bool
            See `backup`.

        Raises
        ------
        InvalidRequestError, AlreadyExistsError
        OmenError
            There is no backup.
        """
        if name is not None:
            backup.check_name(name)
        directory = self.path / filenames.BACKUPS_DIRECTORY
        with self._backup_lock:
            if name is None:
                wanted = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
                name = backup.free_name(self._fs, directory, wanted)
            elif self._fs.exists(directory / name):
                raise AlreadyExistsError(f"there is a backup of the name {name}")
            self._open_store()
            try:
                backup.remove_leftovers(self._fs, directory)
            except OSError as error:
                raise storage_error(error) from error
            return self._backup(directory / name, verify=verify)

    def backups(self) -> Backups:
        """List the backups below the data directory, oldest first."""
        return Backups(backup.list_backups(self._fs, self.path / filenames.BACKUPS_DIRECTORY))

    def _last_backup(self) -> float:
        try:
            return max((info.unix_seconds for info in self.backups().backups), default=0.0)
        except OSError as error:
            # Whatever is there instead of backups: no reason not to serve the data.
            logger.warning("the backups cannot be listed: %s", error)
            return 0.0

    def _backup(self, target: Path, *, verify: bool) -> BackupReport:
        store = self._open_store()
        self._lifecycle.check_ready()
        started = time.monotonic()
        try:
            record = store.backup(target, time.time(), check=verify)
        except OSError as error:
            self.metrics.backup_failures_total.inc()
            raise storage_error(error) from error
        except OmenError as error:
            self.metrics.backup_failures_total.inc()
            if isinstance(error, WalFailedError):
                self._lifecycle.fail(error)
            raise
        seconds = time.monotonic() - started
        self._last_backup_seconds = record.unix_seconds
        self.metrics.backup_duration.observe(seconds)
        logger.info(
            "backup done %s sequence=%d rows=%d segments=%d bytes=%d linked=%s duration_ms=%.3f",
            target,
            record.sequence,
            record.rows,
            record.segments,
            record.bytes,
            record.linked,
            seconds * 1e3,
        )
        info = backup.to_info(record, target)
        return BackupReport(
            **msgspec.structs.asdict(info), linked=record.linked, verified=verify, duration_seconds=seconds
        )

    # The timer.

    def _run_timer(self, store: Store) -> None:
        committer = self._committer
        synced_at = time.monotonic()
        while not self._lifecycle.closing.wait(self._tick_seconds()):
            now = time.monotonic()
            if committer.unsynced and now - synced_at >= self.settings.sync_interval_ms / 1e3:
                synced_at = now
                self._sync(store)
            if store.snapshot.active.is_empty:
                committer.frozen_at = now
            elif now - committer.frozen_at >= self.settings.flush_interval_ms / 1e3:
                committer.frozen_at = now
                committer.freeze()
            # Without a file descriptor to read the figures with, the last ones stand until the next tick.
            with contextlib.suppress(OSError):
                self._watch_memory(store)

    def _sync(self, store: Store) -> None:
        """Make durable what was acknowledged before it was."""
        if self._committer.unsynced:
            self._committer.unsynced = False
            started = time.perf_counter()
            try:
                store.sync()
            except WalFailedError as failure:
                self._lifecycle.fail(failure)
            else:
                self.metrics.wal_fsync_duration.observe(time.perf_counter() - started)

    def _tick_seconds(self) -> float:
        interval = self.settings.sync_interval_ms / 1e3
        return min(_TICK_SECONDS, interval) if interval else _TICK_SECONDS

    def _watch_memory(self, store: Store) -> None:
        limit = memory_limit_bytes(self.settings.max_memory_mb)
        used = process_memory().unreclaimable
        refusal = None
        if used >= REFUSE_AT * limit:
            refusal = OverloadedError(
                f"memory is short: {used >> 20} of {limit >> 20} MiB are in use", retry_after_seconds=1
            )
        self._committer.refusal = refusal
        share = decoded_cache.share_of(limit, is_set=bool(self.settings.max_memory_mb))
        if used < FLUSH_AT * limit:
            store.cache.set_limit(share)
        else:
            store.cache.set_limit(share // 4)
            # Small memtables are not worth a flush: they are not what the memory went to.
            if store.snapshot.active.bytes > limit // 50:
                self._committer.freeze()
            store.release_scratch()
            release_memory()

    # Helpers.

    def _compile_kernels(self) -> None:
        def report(done: Warmed) -> None:
            self._lifecycle.report(f"compiling kernels: {done.module} is ready", done.position / done.modules)
            if done.compiled:
                logger.info(
                    "kernels compiled module=%s (%d of %d) kernels=%d compiled=%d duration_ms=%.3f",
                    done.module,
                    done.position,
                    done.modules,
                    done.kernels,
                    done.compiled,
                    done.seconds * 1e3,
                )

        self._lifecycle.report("loading kernels", 0.0)
        warm_up(report)

    def _open_store(self) -> Store:
        if self._store is None:
            raise self._lifecycle.refusal()
        self._lifecycle.check_readable()
        return self._store

    def _source_gauges(self) -> Iterable[tuple[str, str, float]]:
        source = self._source
        return [
            (
                "omendb_config_last_reload_successful",
                "1 when everything in the directory of settings was accepted when it was last read.",
                float(source.successful),
            ),
            (
                "omendb_config_last_reload_success_timestamp_seconds",
                "Unix time of the last time that it was; 0 when it never was.",
                source.success_unix_seconds,
            ),
        ]

    def _gauges(self) -> Iterable[tuple[str, str, float]]:
        always = [
            ("omendb_ready", "1 when inserts and queries are taken.", float(self.status.phase == "ready")),
            ("omendb_connections_limit", "The setting max_connections.", self.settings.max_connections),
            (
                "omendb_waiting_for_lock",
                "1 while another process has the data directory open, and this one waits for it.",
                float(self.status.phase == "waiting"),
            ),
        ]
        if self._store is None:
            return always
        found = self.recovery or Recovery()
        return [
            *always,
            *gauges(self._store),
            *compression_gauges(self._store),
            *disk_gauges(self._fs, self.path),
            (
                "omendb_insert_rows_waiting",
                "Rows that wait for a group commit.",
                self._committer.waiting_rows,
            ),
            (
                "omendb_inserts_refused",
                "1 while inserts are refused because memory is short.",
                float(self._committer.refusal is not None),
            ),
            (
                "omendb_last_backup_timestamp_seconds",
                "Unix time of the last backup; 0 when there is none.",
                self._last_backup_seconds,
            ),
            ("omendb_unclean_start", "1 when the last stop was not a clean one.", float(not found.clean)),
            ("omendb_recovery_seconds", "Time that the start took to recover the store.", found.seconds),
            ("omendb_recovery_replayed_rows", "Rows that the start read from the log.", found.replayed_rows),
            (
                "omendb_recovery_replayed_records",
                "Log records that the start read.",
                found.replayed_records,
            ),
            (
                "omendb_recovery_rebuilt_indexes",
                "Learned indexes that the start found damaged and fitted anew.",
                found.rebuilt_indexes,
            ),
        ]


def _close_store(store: Store) -> None:
    try:
        store.close()
    except BaseException:
        store.release()
        raise


def open(  # noqa: A001
    path: str | Path,
    *,
    wait_for_lock_seconds: float | None = 0.0,
    **settings: Any,  # noqa: ANN401
) -> Engine:
    """Open a database in this process, or make one.

    Parameters
    ----------
    path : str or Path
        The data directory.
    wait_for_lock_seconds : float, optional
        How long to wait while another process has the directory open; None: until it is gone.
    **settings : int, bool or str
        See `omendb.config.Settings`.

    Returns
    -------
    Engine
        Started; a context manager that closes it.

    Raises
    ------
    ConfigError
        A setting is unknown, or its value is not one that it accepts.
    LockedError, CorruptionError, OSError
    """
    for name, value in settings.items():
        check(name, value)
    engine = Engine(path, Settings(**settings))
    engine.start(wait_for_lock_seconds=wait_for_lock_seconds)
    return engine
