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
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from omendb.model import Columns, Windows
from omendb.server.query_log import DISCONNECTED_STATUS
from omendb.server.request import DisconnectedError, Response, StreamedResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from omendb.executor import RowArrays, Scan, WindowScan
    from omendb.merged import MergedScan
    from omendb.metrics import Metrics
    from omendb.server.arrow import ArrowForm
    from omendb.server.encode import Form, Part
    from omendb.server.query_log import Asked, QueryLog
    from omendb.server.request import Piece
    from omendb.server.work import Work
    from omendb.workers import Workers

    AnyForm: TypeAlias = Form | ArrowForm
    AnyScan: TypeAlias = Scan | WindowScan | MergedScan

Result = TypeVar("Result")

PIECES_AT_ONCE = 8
"""Pieces that come out of a thread at once: each change of threads takes the GIL from short queries."""

KEPT_WINDOW_BYTES_MAX = 32 << 20
"""Windows that are kept until they are counted. More of them are made once to count and once to send."""

EVEN_PIECES = 4
"""Pieces that kept windows are encoded in at a time: they are there already, and each task costs its way."""

KEPT_ROW_BYTES_MAX = 1 << 20
"""Rows that are kept before they are counted: enough for an answer of one piece."""


async def answer(
    scan: Callable[[], AnyScan],
    form: AnyForm,
    work: Work,
    noted: Noted,
    has_left: Callable[[], bool],
) -> Response | StreamedResponse:
    """Answer a query in threads.

    Parameters
    ----------
    scan : callable
        Makes the scan, in a thread: it copies what memtables hold.
    form : Form or ArrowForm
    work : Work
    noted : Noted
        Told how it ended, unless this raises.
    has_left : callable
        Whether the client is gone: asked when this had to wait for its turn, so that queries whose clients
        gave up do not keep those waiting who did not.

    Raises
    ------
    OverloadedError
        Too many large queries already.
    CorruptionError
    """
    if await work.queries.take() and has_left():
        work.queries.give_back()
        noted.end(0, DisconnectedError("the client left before its turn"))
        return Response(DISCONNECTED_STATUS, b"")
    try:
        begun = await work.start_query(partial(_begin, scan, form))
    except BaseException:
        work.queries.give_back()
        raise
    if begun.rest is None:
        work.queries.give_back()
        noted.end(begun.rows(), None)
        return Response(200, bytes(begun.first), form.headers)
    pieces = QueryPieces(begun.first, begun.rest, begun.rows, work, noted)
    return StreamedResponse(200, pieces, form.headers)


class Noted(NamedTuple):
    """What is measured and logged of one query.

    Attributes
    ----------
    metrics : Metrics
    log : QueryLog or None
    asked : Asked
    started : float
        `time.perf_counter` when the request was complete.
    """

    metrics: Metrics
    log: QueryLog | None
    asked: Asked
    started: float

    def end(self, rows: int, error: BaseException | None) -> None:
        """Take how it ended: with an answer of `rows`, or with an error in the middle of one."""
        seconds = perf_counter() - self.started
        if error is None:
            self.metrics.query_duration.observe(seconds)
            if self.log is not None:
                self.log.query(self.asked, rows, self.started, seconds)
            return
        left = isinstance(error, DisconnectedError)
        if not left:
            self.metrics.query_failures_total.inc()
        if self.log is not None:
            self.log.broken_query(self.asked, rows, seconds, None if left else error)


class QueryPieces:
    """The pieces of a large answer. The next ones are made while the last ones are sent.

    Parameters
    ----------
    first : bytes or bytearray
        Made already, so that what fails at once gets a proper answer.
    rest : iterator of bytes or bytearray
        Used in one thread at a time.
    rows : callable
        Says how many rows were sent.
    work : Work
        Whose turn is given back at the end.
    noted : Noted
    """

    def __init__(
        self, first: Piece, rest: Iterator[Piece], rows: Callable[[], int], work: Work, noted: Noted
    ) -> None:
        self._work = work
        self._rows = rows
        self._noted = noted
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
        self._noted.end(self._rows(), error)

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

    def map(
        self,
        function: Callable[[Part], Result],
        rows_max: int,
        make_arrays: Callable[[int], RowArrays] | None = None,
    ) -> Iterator[Result]:
        """Yield what a function makes of each part, in order."""
        if self._workers is None:
            return map(function, self._parts)
        return self._workers.map(function, self._parts)


class Counted:
    """A scan whose rows are counted while they are read.

    Attributes
    ----------
    rows : int
        So far.
    """

    def __init__(self, scan: AnyScan) -> None:
        self.rows = 0
        self._scan = scan

    @property
    def cursor(self) -> str | None:
        """That of the scan."""
        return self._scan.cursor

    def map(
        self,
        function: Callable[[Part], Result],
        rows_max: int,
        make_arrays: Callable[[int], RowArrays] | None = None,
    ) -> Iterator[Result]:
        """Yield what a function makes of each part, in order."""
        for count, result in self._scan.map(lambda part: (part.count, function(part)), rows_max, make_arrays):
            self.rows += count
            yield result


class _Begun(NamedTuple):
    """The first piece of an answer, the others (None: it was all), and how many rows have been sent."""

    first: Piece
    rest: Iterator[Piece] | None
    rows: Callable[[], int]


def _begin(make: Callable[[], AnyScan], form: AnyForm) -> _Begun:
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
        count = sum(part.count for part in parts)
        parts = _even(parts, EVEN_PIECES * form.piece_rows)
        if len(parts) <= 1:
            body = form.whole(parts[0] if parts else None, scan.cursor)
            return _Begun(body, None, _always(count))
        pieces = form.stream(Kept(parts, scan), count, form.piece_rows)
        return _Begun(next(pieces), pieces, _always(count))
    del parts, part, rows
    if form.needs_count:
        count = scan.count()
        pieces = form.stream(scan, count, form.piece_rows)
        return _Begun(next(pieces), pieces, _always(count))
    counted = Counted(scan)
    pieces = form.stream(counted, 0, form.piece_rows)
    return _Begun(next(pieces), pieces, lambda: counted.rows)


def _even(parts: list[Part], rows_max: int) -> list[Part]:
    """Cut windows into parts of `rows_max` anew: of a shard there are few, and each part costs a task."""
    windows = [part for part in parts if isinstance(part, Windows)]
    if len(windows) < 2:
        return parts
    series = [part.series_id for part in windows if part.series_id is not None]
    series_id = np.concatenate(series) if series else None
    timestamp = np.concatenate([part.timestamp for part in windows])
    columns = {name: np.concatenate([part.columns[name] for part in windows]) for name in windows[0].columns}
    cuts = [slice(start, start + rows_max) for start in range(0, len(timestamp), rows_max)]
    return [
        Windows(
            None if series_id is None else series_id[cut],
            timestamp[cut],
            {name: column[cut] for name, column in columns.items()},
        )
        for cut in cuts
    ]


def _always(count: int) -> Callable[[], int]:
    return lambda: count


def _itself(part: Part) -> Part:
    return part


def _bytes_of(part: Part) -> int:
    return part.count * (24 if isinstance(part, Columns) else 16 + 8 * len(part.columns))
