"""Queries that are too large for the event loop: worked on in threads, sent in pieces.

Memory is bounded by the size of a piece: some are on their way, a few are being made. Windows are kept until
they are counted, up to a bound.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from omendb.model import Columns, Windows
from omendb.server.request import DisconnectedError, Response, StreamedResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from omendb.executor import Scan, WindowScan
    from omendb.merged import MergedScan
    from omendb.metrics import Metrics
    from omendb.server.arrow import ArrowForm
    from omendb.server.encode import Form, Part
    from omendb.server.request import Piece
    from omendb.server.work import Work
    from omendb.workers import Workers

    AnyForm: TypeAlias = Form | ArrowForm
    AnyScan: TypeAlias = Scan | WindowScan | MergedScan

Result = TypeVar("Result")

PIECES_AT_ONCE = 4
"""Pieces that come out of a thread at once: each change of threads takes the GIL from short queries."""

KEPT_WINDOW_BYTES_MAX = 32 << 20
"""Windows that are kept until they are counted. More of them are made once to count and once to send."""

KEPT_ROW_BYTES_MAX = 1 << 20
"""Rows that are kept before they are counted: enough for an answer of one piece."""


async def answer(
    scan: Callable[[], AnyScan],
    form: AnyForm,
    work: Work,
    metrics: Metrics,
    started: float,
) -> Response | StreamedResponse:
    """Answer a query in threads.

    Parameters
    ----------
    scan : callable
        Makes the scan, in a thread: it copies what memtables hold.
    form : Form or ArrowForm
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
        return Response(200, begun, form.headers)
    return StreamedResponse(200, QueryPieces(*begun, work, metrics, started), form.headers)


class QueryPieces:
    """The pieces of a large answer. The next ones are made while the last ones are sent.

    Parameters
    ----------
    first : bytes or bytearray
        Made already, so that what fails at once gets a proper answer.
    rest : iterator of bytes or bytearray
        Used in one thread at a time.
    work : Work
        Whose turn is given back at the end.
    metrics : Metrics
    started : float
    """

    def __init__(
        self, first: Piece, rest: Iterator[Piece], work: Work, metrics: Metrics, started: float
    ) -> None:
        self._work = work
        self._metrics = metrics
        self._started = started
        self._take = partial(_take, rest)
        self._ready = deque((first,))
        self._next = work.start_query(self._take)

    async def read(self) -> Piece:
        """Return the next piece; empty at the end.

        Raises
        ------
        CorruptionError
        """
        if not self._ready:
            self._ready.extend(await self._next)
            if not self._ready:
                return b""
            self._next = self._work.start_query(self._take)
        return self._ready.popleft()

    def close(self, error: BaseException | None = None) -> None:
        """End the query's turn, once no thread works on it any more."""
        self._next.add_done_callback(self._end)
        if error is None:
            self._metrics.query_duration.observe(perf_counter() - self._started)
        elif not isinstance(error, DisconnectedError):
            self._metrics.query_failures_total.inc()

    def _end(self, done: asyncio.Future[list[Piece]]) -> None:
        if not done.cancelled():
            done.exception()  # seen already, or nobody is left to see it
        self._work.queries.give_back()


def _take(rest: Iterator[Piece]) -> list[Piece]:
    return list(islice(rest, PIECES_AT_ONCE))


class Kept:
    """An answer that is held in memory.

    Parameters
    ----------
    parts : list of Columns or of Windows
    scan : Scan, WindowScan or MergedScan
        Where they come from.
    """

    def __init__(self, parts: list[Part], scan: AnyScan) -> None:
        self.cursor = scan.cursor
        self._parts = parts
        self._workers: Workers | None = scan.workers

    def map(self, function: Callable[[Part], Result], _rows_max: int) -> Iterator[Result]:
        """Yield what a function makes of each part, in order."""
        if self._workers is None:
            return map(function, self._parts)
        return self._workers.map(function, self._parts)


def _begin(make: Callable[[], AnyScan], form: AnyForm) -> bytes | tuple[Piece, Iterator[Piece]]:
    """Answer at once when the answer is small, whatever the query touched; else begin to stream.

    The number of rows comes first. That of windows is known only when they have been made, so they are
    kept, unless they are too many: then they are made twice. Rows are counted by the bounds of their
    ranges, which costs next to nothing.
    """
    scan = make()
    parts: list[Part] = []
    size = 0
    rows = scan.map(_itself, form.piece_rows)
    for part in rows:
        parts.append(part)
        size += _bytes_of(part)
        if size > (KEPT_WINDOW_BYTES_MAX if isinstance(part, Windows) else KEPT_ROW_BYTES_MAX):
            break
    else:
        if len(parts) <= 1:
            return form.whole(parts[0] if parts else None, scan.cursor)
        return _first(form.stream(Kept(parts, scan), sum(part.count for part in parts), form.piece_rows))
    del parts, part, rows
    return _first(form.stream(scan, scan.count() if form.needs_count else 0, form.piece_rows))


def _first(pieces: Iterator[Piece]) -> tuple[Piece, Iterator[Piece]]:
    return next(pieces), pieces


def _itself(part: Part) -> Part:
    return part


def _bytes_of(part: Part) -> int:
    return part.count * (24 if isinstance(part, Columns) else 16 + 8 * len(part.columns))
