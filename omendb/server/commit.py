"""The answer of an insert: from the committer's thread back to the client.

Thread safety: a `Commit` is called from the committer's thread, everything else happens in the event
loop's. The inbox between them wakes the loop once for the inserts of a group, not once for each.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from omendb.server.request import Deferred, Response

if TYPE_CHECKING:
    from omendb.errors import OmenError
    from omendb.metrics import Metrics
    from omendb.server.inbox import Inbox

INSERTED_NONE = Response(200, b'{"inserted":0}')
INSERTED_ONE = Response(200, b'{"inserted":1}')


class Commit(Deferred):
    """One insert on its way, and the callback that the committer calls when its group is durable.

    Parameters
    ----------
    inbox : Inbox
    metrics : Metrics
    count : int
        Rows.
    started : float
        `time.perf_counter` when the request was complete.
    sync_interval_ms : int
        The setting. Unless it is 0, the answer tells that the points are not on stable storage yet.
    """

    __slots__ = ("_count", "_error", "_inbox", "_metrics", "_started", "_sync_interval_ms")

    def __init__(
        self, inbox: Inbox, metrics: Metrics, count: int, started: float, sync_interval_ms: int
    ) -> None:
        super().__init__()
        self._inbox = inbox
        self._metrics = metrics
        self._count = count
        self._started = started
        self._sync_interval_ms = sync_interval_ms
        self._error: OmenError | None = None

    def __call__(self, error: OmenError | None) -> None:
        """Take the result, in the committer's thread."""
        self._error = error
        self._inbox.put(Commit._finish, self)

    def _finish(self) -> None:
        if self._error is not None:
            self.resolve(self._error)
            return
        metrics, count = self._metrics, self._count
        metrics.inserts_total.inc(count)
        metrics.insert_batch_size.observe(count)
        metrics.insert_duration.observe(perf_counter() - self._started)
        if self._sync_interval_ms:
            within = (count, self._sync_interval_ms)
            self.resolve(Response(200, b'{"inserted":%d,"synced_within_ms":%d}' % within))
        elif count == 1:
            self.resolve(INSERTED_ONE)
        else:
            self.resolve(Response(200, b'{"inserted":%d}' % count))
