"""The flusher makes segments of frozen memtables, the compactor merges them, the refitter fits their models.

One thread each.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import TYPE_CHECKING

from omendb.errors import (
    ClosedError,
    CorruptionError,
    DiskFullError,
    OmenError,
    OverloadedError,
    WalFailedError,
)
from omendb.reports import Retrain
from omendb.storage.fs import DISK_FULL_ERRNOS

if TYPE_CHECKING:
    from collections.abc import Callable

    from omendb.lifecycle import Lifecycle
    from omendb.metrics import Metrics
    from omendb.storage.store import Store, Work

logger = logging.getLogger("omendb.maintenance")

FROZEN_MAX = 4
"""Frozen memtables that may wait for the flusher before inserts wait for it."""

_NUMBER = re.compile(r"\d+")
_POLL_SECONDS = 0.1
_IDLE_SECONDS = 3.0
"""Without a flush for so long, the memory that is kept for the next one is given back."""
_RETRY_SECONDS_MIN = 1.0
_RETRY_SECONDS_MAX = 15.0


def storage_error(error: OSError) -> OmenError:
    """Wrap what the file system raised outside of the log."""
    if error.errno in DISK_FULL_ERRNOS:
        return DiskFullError(f"no space left: {error}")
    return OmenError(f"storage error: {error}")


class _Retry:
    """Waits longer and longer between attempts that fail, and logs an error once, not at every attempt.

    Parameters
    ----------
    work : str
        What is tried.
    wanted : Event
        Ends a wait: somebody asks for an attempt now, or the store closes.
    """

    def __init__(self, work: str, wanted: threading.Event) -> None:
        self._work = work
        self._wanted = wanted
        self._seconds = _RETRY_SECONDS_MIN
        self._logged = ""

    def wait(self, error: OmenError) -> None:
        """Wait after an attempt that failed."""
        # Each attempt writes files of new numbers: that is no other error.
        kind = _NUMBER.sub("", str(error))
        if self._logged != kind:
            self._logged = kind
            logger.warning("%s failed, will be tried again: %s", self._work, error)
        self.pause()

    def pause(self) -> None:
        """Wait, and longer the next time."""
        self._wanted.wait(self._seconds)
        self._wanted.clear()
        self._seconds = min(2 * self._seconds, _RETRY_SECONDS_MAX)

    def succeeded(self) -> None:
        """Begin anew."""
        if self._logged:
            logger.info("%s works again", self._work)
            self._logged = ""
        self._seconds = _RETRY_SECONDS_MIN


def _repeat(name: str, step: Callable[[], object], wanted: threading.Event, lifecycle: Lifecycle) -> None:
    """Do a work whenever it is wanted, step by step until one returns None; until the lifecycle closes."""
    closing = lifecycle.closing
    retry = _Retry(name, wanted)
    while not closing.is_set():
        wanted.wait()
        wanted.clear()
        while not closing.is_set() and not lifecycle.failed.is_set():
            try:
                if step() is None:
                    break
                retry.succeeded()
            except ClosedError:
                return
            except CorruptionError as error:
                logger.error("%s leaves damaged data alone: %s", name, error)  # noqa: TRY400
                # What was just written may be what is damaged: then the same merge comes next.
                retry.pause()
            except OmenError as error:
                retry.wait(error)


class Compactor:
    """Merges segments in the background, and on request.

    Thread safety: everything may be called from any thread; the store does one merge at a time.

    Parameters
    ----------
    store : Store
    lifecycle : Lifecycle
    metrics : Metrics
    """

    def __init__(self, store: Store, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._wanted = threading.Event()

    def wake(self) -> None:
        """There may be something to merge."""
        self._wanted.set()

    def run(self) -> None:
        """Merge until the lifecycle is closing; the thread of the background."""
        _repeat("compaction", self.compact, self._wanted, self._lifecycle)

    def compact(self, *, everything: bool = False) -> int | None:
        """Do one merge; see `Store.compact`.

        Returns
        -------
        int or None
            Rows that it dropped; None when there was nothing to do.

        Raises
        ------
        OmenError
            Nothing has changed.
        """
        started = time.perf_counter()
        try:
            work = self._store.compact(everything=everything)
        except OSError as error:
            self._metrics.compaction_failures_total.inc()
            raise storage_error(error) from error
        except OmenError as error:
            self._metrics.compaction_failures_total.inc()
            if isinstance(error, WalFailedError):
                self._lifecycle.fail(error)
            raise
        if work is None:
            return None
        seconds = time.perf_counter() - started
        self._metrics.compaction_duration.observe(seconds)
        self._metrics.compaction_read_rows_total.inc(work.rows_in)
        self._metrics.compaction_written_bytes_total.inc(work.bytes_written)
        logger.info(
            "compaction done rows=%d->%d segments=%d->%d bytes=%d duration_ms=%.3f",
            work.rows_in,
            work.rows_out,
            work.segments_in,
            work.segments_out,
            work.bytes_written,
            seconds * 1e3,
        )
        return work.rows_in - work.rows_out


class Refitter:
    """Fits the models of segments anew, in the background, that were fitted with another `max_error`.

    Thread safety: everything may be called from any thread; the store does one refit or merge at a time.

    Parameters
    ----------
    store : Store
    lifecycle : Lifecycle
    metrics : Metrics

    Attributes
    ----------
    last : Retrain or None
        The last refit, by whom ever; None when there was none since the start.
    """

    def __init__(self, store: Store, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self.last: Retrain | None = None
        self._store = store
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._wanted = threading.Event()

    def wake(self) -> None:
        """The setting has changed, or segments of an earlier start may not agree with it."""
        self._wanted.set()

    def run(self) -> None:
        """Refit until the lifecycle is closing; the thread of the background."""
        _repeat("refit", self._refit_stale, self._wanted, self._lifecycle)

    def finished(self, seconds: float) -> None:
        """Note that a refit has ended, and how long it took."""
        self.last = Retrain(time.time(), seconds)
        self._metrics.retrain_duration.observe(seconds)

    def _refit_stale(self) -> Work | None:
        started = time.perf_counter()
        max_error = self._store.settings.max_error
        try:
            work = self._store.retrain(stale=True)
        except OSError as error:
            raise storage_error(error) from error
        except WalFailedError as failure:
            self._lifecycle.fail(failure)
            raise
        if work is not None:
            seconds = time.perf_counter() - started
            self.finished(seconds)
            logger.info(
                "retrain done max_error=%d segments=%d rows=%d bytes=%d duration_ms=%.3f",
                max_error,
                work.segments_out,
                work.rows_out,
                work.bytes_written,
                seconds * 1e3,
            )
        return work


class Flusher:
    """Flushes frozen memtables, the oldest first, and tries again when that fails.

    Thread safety: `run` is the one thread that flushes; the rest may be called from any thread.

    Parameters
    ----------
    store : Store
    compactor : Compactor
        Is woken after each flush.
    lifecycle : Lifecycle
    metrics : Metrics
    """

    def __init__(self, store: Store, compactor: Compactor, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self._store = store
        self._compactor = compactor
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._wanted = threading.Event()
        # Told after each attempt; protects `_error`.
        self._tried = threading.Condition()
        self._error: OmenError | None = None

    def wake(self) -> None:
        """There may be something to flush."""
        self._wanted.set()

    def wait_for_room(self) -> None:
        """Hold an insert back while too many memtables wait.

        Raises
        ------
        DiskFullError, OverloadedError
            Flushing cannot go on.
        """
        if len(self._store.snapshot.frozen) < FROZEN_MAX:
            return
        with self._tried:
            while len(self._store.snapshot.frozen) >= FROZEN_MAX:
                if self._lifecycle.closing.is_set() or self._lifecycle.failed.is_set():
                    return
                if self._error is not None:
                    message = f"memory is full and cannot be flushed: {self._error}"
                    if isinstance(self._error, DiskFullError):
                        raise DiskFullError(message)
                    raise OverloadedError(message)
                self._tried.wait(_POLL_SECONDS)

    def wait_for(self, frozen: set[int]) -> None:
        """Wait until memtables are flushed.

        Parameters
        ----------
        frozen : set of int
            Their identities.

        Raises
        ------
        OmenError
            The attempt failed; it will be repeated.
        """
        with self._tried:
            self._error = None
        self.wake()
        with self._tried:
            while frozen & set(map(id, self._store.snapshot.frozen)):
                self._tried.wait(_POLL_SECONDS)
                if self._error is not None:
                    raise self._error
                self._lifecycle.check_ready()

    def run(self) -> None:
        """Flush until the lifecycle is closing and nothing waits."""
        closing = self._lifecycle.closing
        retry = _Retry("flush", self._wanted)
        while True:
            while not self._wanted.wait(_IDLE_SECONDS):
                self._store.release_scratch()
            self._wanted.clear()
            while self._store.snapshot.frozen and not self._lifecycle.failed.is_set():
                error = self._flush()
                if error is not None:
                    self._metrics.flush_failures_total.inc()
                with self._tried:
                    self._error = error
                    self._tried.notify_all()
                if error is None:
                    retry.succeeded()
                    self._compactor.wake()
                    continue
                if not self._lifecycle.failed.is_set():
                    retry.wait(error)
                if closing.is_set():
                    return
            if closing.is_set():
                return

    def _flush(self) -> OmenError | None:
        started = time.perf_counter()
        try:
            work = self._store.flush_oldest()
        except OSError as error:
            return storage_error(error)
        except WalFailedError as failure:
            self._lifecycle.fail(failure)
            return failure
        except BaseException as bug:
            logger.exception("flush failed")
            self._lifecycle.fail(bug)
            return WalFailedError(f"flush failed: {bug}")
        if work is not None:
            seconds = time.perf_counter() - started
            self._metrics.flush_duration.observe(seconds)
            self._metrics.flushed_rows_total.inc(work.rows_out)
            logger.info(
                "flush done rows=%d segments=%d bytes=%d duration_ms=%.3f",
                work.rows_out,
                work.segments_out,
                work.bytes_written,
                seconds * 1e3,
            )
        return None
