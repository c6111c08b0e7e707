"""Queries that are too large for the event loop: worked on in threads, sent in pieces.

Memory is bounded by the size of a piece: one is being sent, the next one is being made.
"""

from __future__ import annotations

import asyncio
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from omendb.server.request import DisconnectedError, Response, StreamedResponse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omendb.executor import Scan, WindowScan
    from omendb.metrics import Metrics
    from omendb.model import Columns, Windows
    from omendb.server.encode import Form
    from omendb.server.work import Work

PIECE_ROWS = 16_384
"""Rows of one piece: about 1 MB of JSON."""


async def answer(
    scan: Scan | WindowScan,
    form: Form,
    work: Work,
    metrics: Metrics,
    started: float,
) -> Response | StreamedResponse:
    """Answer a query in threads.

    Parameters
    ----------
    scan : Scan or WindowScan
    form : Form
    work : Work
    metrics : Metrics
    started : float
        `time.perf_counter` when the request was complete.

    Raises
    ------
    OverloadedError
        Too many large queries already.
    CorruptionError
    """
    await work.queries.take()
    try:
        begun = await work.start_query(partial(_begin, scan, form))
    except BaseException:
        work.queries.give_back()
        raise
    if isinstance(begun, bytes):
        work.queries.give_back()
        metrics.query_duration.observe(perf_counter() - started)
        return Response(200, begun)
    return StreamedResponse(200, QueryPieces(*begun, work, metrics, started))


class QueryPieces:
    """The pieces of a large answer. The next one is made while the last one is sent.

    Parameters
    ----------
    first : bytes
        Made already, so that what fails at once gets a proper answer.
    rest : iterator of bytes
        Used in one thread at a time.
    work : Work
        Whose turn is given back at the end.
    metrics : Metrics
    started : float
    """

    def __init__(
        self, first: bytes, rest: Iterator[bytes], work: Work, metrics: Metrics, started: float
    ) -> None:
        self._work = work
        self._metrics = metrics
        self._started = started
        self._take = partial(next, rest, b"")
        self._next: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._next.set_result(first)

    async def read(self) -> bytes:
        """Return the next piece; empty at the end.

        Raises
        ------
        CorruptionError
        """
        piece = await self._next
        if piece:
            self._next = self._work.start_query(self._take)
        return piece

    def close(self, error: BaseException | None = None) -> None:
        """End the query's turn, once no thread works on it any more."""
        self._next.add_done_callback(self._end)
        if error is None:
            self._metrics.query_duration.observe(perf_counter() - self._started)
        elif not isinstance(error, DisconnectedError):
            self._metrics.query_failures_total.inc()

    def _end(self, done: asyncio.Future[bytes]) -> None:
        if not done.cancelled():
            done.exception()  # seen already, or nobody is left to see it
        self._work.queries.give_back()


def _begin(scan: Scan | WindowScan, form: Form) -> bytes | tuple[bytes, Iterator[bytes]]:
    """Answer at once when the answer is small, whatever the query touched; else begin to stream."""
    parts: Iterator[Columns | Windows] = scan.chunks(PIECE_ROWS)
    first = next(parts, None)
    if next(parts, None) is None:
        return form.whole(first, scan.cursor)
    del parts, first
    pieces = form.stream(scan, scan.count(), PIECE_ROWS)
    return next(pieces), pieces
