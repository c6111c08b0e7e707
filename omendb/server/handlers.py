"""The calls of the API: what a request means, in terms of the engine.

Short queries and small inserts run in the caller's thread; everything that may take longer runs in threads
of its own (`omendb.server.work`). Errors rise, and become answers in one place.

Thread safety: handlers may be called in any thread; the coroutines that they return belong to the event
loop's.
"""

from __future__ import annotations

import asyncio
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from omendb.config import check
from omendb.errors import InvalidRequestError
from omendb.metrics import package_version
from omendb.model import BY_SERIES
from omendb.query import RangeQuery, make_range_query, make_window_query
from omendb.server import encode, large_query, query_string, wire
from omendb.server.arrow import ArrowForm
from omendb.server.commit import INSERTED_NONE, Commit
from omendb.server.named_series import NamedSeries
from omendb.server.question import read_question
from omendb.server.request import Response, Waiter
from omendb.short_query import SHORT_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from omendb.engine import Engine
    from omendb.executor import Scan, WindowScan
    from omendb.merged import MergedScan
    from omendb.model import Batch
    from omendb.query import WindowQuery
    from omendb.server.health import Health
    from omendb.server.query_log import Asked, QueryLog
    from omendb.server.question import Question
    from omendb.server.request import Answer, Request, StreamedResponse
    from omendb.server.work import Work

INLINE_BODY_BYTES = 262_144
"""Bodies up to this size are decoded in the caller's thread: 0.2 ms for 4,000 points."""

NO_PARAMETERS: frozenset[str] = frozenset()

_encode = msgspec.json.Encoder().encode


class Handlers:
    """The handlers of one server.

    Parameters
    ----------
    engine : Engine
    health : Health
    work : Work
    log : QueryLog, optional

    Attributes
    ----------
    named : NamedSeries
        The handlers that know series by name.
    """

    def __init__(self, engine: Engine, health: Health, work: Work, log: QueryLog | None = None) -> None:
        self._engine = engine
        self._health = health
        self._work = work
        self._metrics = engine.metrics
        self._settings = lambda: engine.settings
        self._log = log
        self.named = NamedSeries(engine, health, work, log)

    def insert(self, request: Request) -> Answer:
        """Answer ``POST /insert`` once its points are durable and visible."""
        self._health.require_started()
        if request.query_string:
            query_string.parse(request.query_string, NO_PARAMETERS)
        if len(request.body) > INLINE_BODY_BYTES:
            return self._insert_large(request)
        return self._commit(wire.decode_points(request.body), request)

    async def _insert_large(self, request: Request) -> Response | StreamedResponse:
        batch = await self._work.start_decode(wire.decode_points, request.body)
        waiter = Waiter(asyncio.get_running_loop())
        request.finish = waiter.finish
        return self._commit(batch, request) or await waiter.wait()

    def _commit(self, batch: Batch, request: Request) -> Response | None:
        count = len(batch.timestamp)
        if count == 0:  # a client that flushes an empty buffer did nothing wrong
            return INSERTED_NONE
        request.rows = count
        self._engine.submit(batch, Commit(request, self._metrics, count, self._settings, self._log))
        return None

    def query(self, request: Request) -> Answer:
        """Answer ``GET /query``: rows or windows."""
        self._health.require_started()
        question = read_question(request.query_string)
        if question.match is None:
            return self._query(request, question)
        selected = self.named.remembered(question.match)
        if selected is not None:
            return self._query(request, question, selected)
        selectors = self.named.selectors(question.match)
        if self.named.is_quick():
            return self._query(request, question, self.named.select(question.match, selectors))
        return self._query_later(request, question, partial(self.named.select, question.match, selectors))

    async def _query_later(
        self, request: Request, question: Question, select: Callable[[], NDArray[np.int64]]
    ) -> Response | StreamedResponse:
        selected = await self._work.start_query(select)
        answer = self._query(request, question, selected)
        assert answer is not None
        return answer if isinstance(answer, Response) else await answer

    def _query(
        self, request: Request, question: Question, selected: NDArray[np.int64] | None = None
    ) -> Answer:
        start, end, series, step, form = asked = question.asked
        # Cursors belong to the selectors, not to the series that they happen to find now.
        selected_by = None
        chosen: int | Sequence[int] | NDArray[np.int64] | None = selected
        if question.match is not None:
            selected_by = "\n".join(question.match)
        elif series is not None:
            # One series is the usual case, and much cheaper to check as a number than as a list.
            chosen = series[0] if len(series) == 1 else series
        names: tuple[str, ...] | None = None
        wanted: RangeQuery | WindowQuery
        by_series = True
        limit, cursor = question.limit, question.cursor
        if step is not None:
            agg = question.agg or ("mean",)
            by = BY_SERIES if question.by is None else question.by
            wanted = make_window_query(
                step, agg, start, end, chosen, limit, cursor, by, selected_by=selected_by
            )
            names, by_series = wanted.aggregates, bool(wanted.by)
        elif question.agg is not None or question.by is not None:
            name = "agg" if question.agg is not None else "by"
            raise InvalidRequestError(f"{name} needs step, the length of a window", name)
        else:
            wanted = make_range_query(start, end, chosen, limit, cursor, selected_by=selected_by)
        columns = form == "columns"
        if form == "arrow" or not by_series:
            return self._other_answer(request, wanted, asked, names)
        short = self._engine.answer_short(wanted, columns=columns)
        if short is None:
            scan = partial(self._scan, wanted)
            answer_form = encode.Form(columns, names)
            noted = large_query.Noted(self._metrics, self._log, asked, request.started)
            return large_query.answer(scan, answer_form, self._work, noted, request.has_left)
        body = encode.short(short, names, columns=columns)
        self._answered(request, asked, short.rows)
        return Response(200, body)

    def _answered(self, request: Request, asked: Asked, rows: int) -> None:
        seconds = perf_counter() - request.started
        self._metrics.query_duration.observe(seconds)
        if self._log is not None:
            self._log.query(asked, rows, request.started, seconds)

    def _other_answer(
        self,
        request: Request,
        query: RangeQuery | WindowQuery,
        asked: Asked,
        names: tuple[str, ...] | None,
    ) -> Answer:
        """Answer in a form that short queries have no kernel for."""
        form = asked[-1]
        by_series = isinstance(query, RangeQuery) or bool(query.by)
        answer_form: encode.Form | ArrowForm
        if form == "arrow":
            answer_form = ArrowForm(names, by_series)
        else:
            answer_form = encode.Form(form == "columns", names, by_series)
        scan = self._scan(query)
        if scan.row_bound > SHORT_ROWS:
            scan.prove(SHORT_ROWS)
        if scan.row_bound > SHORT_ROWS:
            noted = large_query.Noted(self._metrics, self._log, asked, request.started)
            return large_query.answer(lambda: scan, answer_form, self._work, noted, request.has_left)
        part = None
        for part in scan.chunks(SHORT_ROWS):  # noqa: B007 # one or none; the cursor comes after it
            pass
        body = answer_form.whole(part, scan.cursor)
        self._answered(request, asked, 0 if part is None else part.count)
        return Response(200, body, answer_form.headers)

    def _scan(self, query: RangeQuery | WindowQuery) -> Scan | WindowScan | MergedScan:
        if isinstance(query, RangeQuery):
            return self._engine.scan(query)
        return self._engine.window_scan(query)

    async def stats(self, request: Request) -> Response:
        """Answer ``GET /admin/stats``."""
        self._prepare(request)
        return Response(200, _encode(await self._work.start_query(self._engine.stats)))

    async def index_stats(self, request: Request) -> Response:
        """Answer ``GET /admin/index-stats``."""
        self._prepare(request)
        return Response(200, _encode(await self._work.start_query(self._engine.index_stats)))

    def config(self, request: Request) -> Response:
        """Answer ``GET /admin/config``."""
        self._prepare(request)
        return Response(200, _encode(self._engine.configuration()))

    async def retrain_index(self, request: Request) -> Response:
        """Answer ``POST /admin/retrain-index``."""
        self._prepare(request)
        max_error = wire.decode_retrain(request.body).max_error
        if max_error is not None:
            check("max_error", max_error)
        report = await self._work.run_admin(partial(self._engine.retrain, max_error))
        return Response(200, _encode(report))

    async def gc(self, request: Request) -> Response:
        """Answer ``POST /admin/gc``."""
        self._prepare(request)
        wire.decode_empty(request.body)
        return Response(200, _encode(await self._work.run_admin(self._engine.gc)))

    async def backup(self, request: Request) -> Response:
        """Answer ``POST /admin/backup``."""
        self._prepare(request)
        wanted = wire.decode_backup(request.body)
        make = partial(self._engine.backup_as, wanted.name, verify=wanted.verify)
        return Response(200, _encode(await self._work.run_backup(make)))

    async def backups(self, request: Request) -> Response:
        """Answer ``GET /admin/backups``."""
        self._prepare(request)
        return Response(200, _encode(await self._work.start_query(self._engine.backups)))

    def alive(self, request: Request) -> Response:
        """Answer ``GET /health``."""
        return self._health.alive()

    def ready(self, request: Request) -> Response:
        """Answer ``GET /ready``."""
        return self._health.ready()

    def index(self, request: Request) -> Response:
        """Answer ``GET /``: what this is, and what can be called."""
        return Response(200, _encode({"name": "OmenDB", "version": package_version(), "calls": CALLS}))

    def _prepare(self, request: Request) -> None:
        self._health.require_started()
        query_string.parse(request.query_string, NO_PARAMETERS)


CALLS = (
    "POST /insert",
    "POST /write",
    "GET /query",
    "GET /series",
    "GET /admin/stats",
    "GET /admin/index-stats",
    "GET /admin/config",
    "POST /admin/retrain-index",
    "POST /admin/gc",
    "POST /admin/backup",
    "GET /admin/backups",
    "GET /health",
    "GET /ready",
    "GET /openapi.json",
)
