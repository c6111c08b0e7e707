"""The committer: groups waiting inserts, writes and syncs the log, makes them visible, and answers.

One thread inserts into the store, this one. Everybody else puts work into its queue: inserts, and requests
to freeze the memtable.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from omendb.errors import DiskFullError, InvalidRequestError, OmenError, OverloadedError, WalFailedError
from omendb.model import Batch
from omendb.series import FIRST_ID, IDS_MAX
from omendb.storage.format import WAL_ROWS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from omendb.config import Settings
    from omendb.flusher import Flusher
    from omendb.lifecycle import Lifecycle
    from omendb.metrics import Metrics
    from omendb.storage.store import Store

    Done = Callable[[OmenError | None], None]

logger = logging.getLogger("omendb.commit")

PENDING_ROWS_MAX = 8_000_000
"""Rows that may wait before inserts are refused: 192 MB."""


class _Insert(NamedTuple):
    batch: Batch
    done: Done


class _Freeze(NamedTuple):
    done: threading.Event


class Committer:
    """Thread safety: `submit` and `freeze` may be called from any thread; `run` is the one thread.

    Parameters
    ----------
    store : Store
    flusher : Flusher
        Takes the frozen memtables.
    settings : callable
        Returns the settings in force.
    lifecycle : Lifecycle
    metrics : Metrics

    Attributes
    ----------
    refusal : OverloadedError or None
        When set, inserts are refused with it.
    unsynced : bool
        Something was acknowledged that is not synced yet (`sync_interval_ms` above 0).
    frozen_at : float
        Monotonic seconds at which the memtable was last empty or frozen.
    """

    def __init__(
        self,
        store: Store,
        flusher: Flusher,
        settings: Callable[[], Settings],
        lifecycle: Lifecycle,
        metrics: Metrics,
    ) -> None:
        self.refusal: OverloadedError | None = None
        self.unsynced = False
        self.frozen_at = time.monotonic()
        self._store = store
        self._flusher = flusher
        self._settings = settings
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._queue: queue.SimpleQueue[_Insert | _Freeze | None] = queue.SimpleQueue()
        # Protects the count of waiting rows, and that nothing is queued behind the end; a leaf.
        self._lock = threading.Lock()
        self._pending_rows = 0
        self._rows_since_freeze = 0

    @property
    def waiting_rows(self) -> int:
        """Rows that are queued, or being committed."""
        return self._pending_rows

    def submit(self, batch: Batch, done: Done) -> None:
        """Queue a batch; see `omendb.engine.Engine.submit`."""
        rows = len(batch.timestamp)
        if rows > WAL_ROWS_MAX:
            raise InvalidRequestError(
                f"{rows} rows are too many for one insert, the maximum is {WAL_ROWS_MAX}"
            )
        with self._lock:
            self.check_writable()
            self._pending_rows += rows
            self._queue.put(_Insert(batch, done))

    def check_writable(self) -> None:
        """Raise what refuses every batch now.

        Raises
        ------
        OverloadedError, NotReadyError, WalFailedError, ClosedError
        """
        self._lifecycle.check_ready()
        if self.refusal is not None:
            raise self.refusal
        if self._pending_rows > PENDING_ROWS_MAX:
            raise OverloadedError(f"{self._pending_rows} rows wait to be written already")

    def freeze(self) -> threading.Event:
        """Ask for the memtable to be frozen after what is queued; the event tells when it is."""
        request = _Freeze(threading.Event())
        self._queue.put(request)
        return request.done

    def stop(self) -> None:
        """Let `run` end after what is queued; the lifecycle refuses more by then."""
        with self._lock:
            self._queue.put(None)

    def run(self) -> None:
        """Commit until `stop`."""
        held: _Insert | None = None
        while True:
            group: list[_Insert] = []
            rows = 0
            item = self._queue.get() if held is None else held
            held = None
            while isinstance(item, _Insert):
                count = len(item.batch.timestamp)
                if group and rows + count > self._settings().batch_size:
                    held = item
                    break
                group.append(item)
                rows += count
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._commit(group, rows)
            if isinstance(item, _Freeze):
                self._freeze()
                item.done.set()
            elif item is None:
                return

    def _commit(self, group: list[_Insert], rows: int) -> None:
        error = self._store_group(group)
        if isinstance(error, InvalidRequestError) and len(group) > 1:
            # One of them is to blame, and the others are not.
            for waiting in group:
                self._commit([waiting], len(waiting.batch.timestamp))
            return
        with self._lock:
            self._pending_rows -= rows
        for waiting in group:
            _answer(waiting, error)
        if error is None:
            self._metrics.commit_batch_size.observe(rows)
            self._rows_since_freeze += rows
            threshold = self._settings().retrain_threshold
            # Rows that overwrite others do not make the memtable grow, but the log does.
            if self._store.snapshot.active.rows >= threshold or self._rows_since_freeze >= 4 * threshold:
                self._freeze()
        elif isinstance(error, DiskFullError) and not self._store.snapshot.frozen:
            # Segments take less space than the log that they replace, and a new WAL file may grow where the
            # old one has reached its limit. Once: a memtable that waits already is tried again anyway.
            self._freeze()

    def _store_group(self, group: list[_Insert]) -> OmenError | None:
        try:
            self._flusher.wait_for_room()
            self._write(_joined([waiting.batch for waiting in group]))
        except (DiskFullError, OverloadedError, InvalidRequestError) as refusal:
            return refusal
        except WalFailedError as failure:
            self._lifecycle.fail(failure)
            return failure
        except BaseException as bug:
            logger.exception("commit failed")
            self._lifecycle.fail(bug)
            return WalFailedError(f"commit failed: {bug}")
        return None

    def _write(self, batch: Batch) -> None:
        store = self._store
        if self._lifecycle.failed.is_set():
            raise WalFailedError(str(self._lifecycle.refusal()))
        if int(batch.series_id.max()) >= max(FIRST_ID, store.catalog.next_id):
            self._check_named(batch)
        sequence = store.append(batch)
        if self._settings().sync_interval_ms:
            self.unsynced = True
        else:
            started = time.perf_counter()
            store.sync()
            self._metrics.wal_fsync_duration.observe(time.perf_counter() - started)
        store.apply(batch, sequence)

    def _check_named(self, batch: Batch) -> None:
        """Refuse ids that are reserved for named series, and have no name."""
        ids = batch.series_id
        wrong = (ids >= self._store.catalog.next_id) & (ids < FIRST_ID + IDS_MAX)
        if wrong.any():
            raise InvalidRequestError(
                f"series_id {ids[wrong][0]} is not named yet: ids from {FIRST_ID} to "
                f"{FIRST_ID + IDS_MAX - 1} are given by the server",
                "series_id",
            )

    def _freeze(self) -> None:
        try:
            if not self._lifecycle.failed.is_set():
                self._store.freeze()
        except WalFailedError as failure:
            self._lifecycle.fail(failure)
        self._rows_since_freeze = 0
        self.frozen_at = time.monotonic()
        self._flusher.wake()


def _answer(waiting: _Insert, error: OmenError | None) -> None:
    try:
        waiting.done(error)
    except Exception:
        logger.exception("an insert's callback failed")


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    return Batch(
        np.concatenate([batch.series_id for batch in batches]),
        np.concatenate([batch.timestamp for batch in batches]),
        np.concatenate([batch.value for batch in batches]),
    )
