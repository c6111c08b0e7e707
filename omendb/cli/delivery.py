"""Batches on their way into a store: in order, sent again while an error may pass, counted."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from omendb.errors import DiskFullError, NotReadyError, OmenError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from omendb.cli.csv_reader import CsvBatch
    from omendb.cli.target import Target

PASSING_CODES = {OverloadedError.code, NotReadyError.code, DiskFullError.code, "unreachable"}
"""Kinds of errors that may pass by themselves.

Whether a batch was stored before the connection broke is not known, and need not be: an insert may always
be sent again, since the later write of a point wins.
"""

WAIT_SECONDS_MIN = 0.1
WAIT_SECONDS_MAX = 5.0


class StoppedError(OmenError):
    """A batch that was not sent because an earlier one failed."""

    code = "stopped"


class Delivery:
    """Sends batches to `target`; a context manager. One thread calls it, up to `in_flight` send.

    One batch more than is in flight is prepared meanwhile, so that reading and sending overlap. With one
    in flight the batches are stored in their order.

    Parameters
    ----------
    target : Target
    in_flight : int
        Inserts under way at once, at least 1.
    retry_seconds : float
        How long one batch is sent again after errors that may pass.
    on_stored : callable
        Called with each batch after its acknowledgement, by the calling thread.
    on_wait : callable
        Called with a sentence when a batch has to wait, once for each time of waiting, by any thread.

    Attributes
    ----------
    rows_read, rows_acknowledged : int
        Rows handed to `send`, and rows that the target has acknowledged.
    """

    def __init__(
        self,
        target: Target,
        in_flight: int,
        retry_seconds: float,
        *,
        on_stored: Callable[[CsvBatch], None],
        on_wait: Callable[[str], None],
    ) -> None:
        self.rows_read = 0
        self.rows_acknowledged = 0
        self._target = target
        self._in_flight = in_flight
        self._retry_seconds = retry_seconds
        self._on_stored = on_stored
        self._on_wait = on_wait
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="omendb-import")
        self._pending: deque[tuple[CsvBatch, Future[int]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for what is under way, and count it, also when an error ends the import."""
        if error is not None and not isinstance(error, OmenError):
            self._stop.set()  # an interrupt: start nothing new
        self._pool.shutdown(wait=True)
        while self._pending:
            batch, future = self._pending.popleft()
            if future.exception() is None:
                self._count(batch, future.result())

    def send(self, batch: CsvBatch) -> None:
        """Queue a batch; wait for an earlier one when enough are under way.

        Raises
        ------
        OmenError
            That of an earlier batch.
        """
        self.rows_read += len(batch.batch.timestamp)
        self._pending.append((batch, self._pool.submit(self._deliver, batch)))
        while len(self._pending) > self._in_flight + 1:
            self._settle()

    def finish(self) -> None:
        """Wait until every batch is acknowledged.

        Raises
        ------
        OmenError
            That of the first batch that failed.
        """
        while self._pending:
            self._settle()

    def _settle(self) -> None:
        batch, future = self._pending[0]
        rows = future.result()
        self._pending.popleft()
        self._count(batch, rows)

    def _count(self, batch: CsvBatch, rows: int) -> None:
        self.rows_acknowledged += rows
        self._on_stored(batch)

    def _deliver(self, batch: CsvBatch) -> int:
        wait_seconds = WAIT_SECONDS_MIN
        give_up = None
        while True:
            if self._stop.is_set():
                raise StoppedError("not sent: the import was stopped")
            try:
                return self._target.insert(batch.batch)
            except OmenError as error:
                now = time.monotonic()
                if give_up is None:
                    give_up = now + self._retry_seconds
                    if error.code in PASSING_CODES and self._retry_seconds > 0:
                        self._on_wait(f"Waiting, up to {self._retry_seconds:g} s: {error}")
                if error.code not in PASSING_CODES or now >= give_up:
                    self._stop.set()  # later batches must not overtake this one
                    raise
            self._stop.wait(min(wait_seconds, give_up - now))
            wait_seconds = min(2 * wait_seconds, WAIT_SECONDS_MAX)
