"""One line a query, and what is worth a line of inserts and of requests that fail.

A query's line, as text (`docs/operations.md` describes the fields)::

    2026-01-01T00:00:00.123Z INFO omendb query 1000 2000 series=all rows=9 format=rows status=200 0.41

Fields 5 and 6 are the bounds as they were given, ``-`` where none was; the last one is the duration in
milliseconds. Nothing of a request stands in a line as it came, except numbers.

The line of a query that was answered is made by the writer's thread (`omendb.server.log_writer`), at about
1 us each: where the request is answered its parts are put into a queue.

Thread safety: everything may be called from any thread, `QueryLog.line` from one.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from math import inf
from time import perf_counter, time
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from omendb.server.log_lines import one_line, stamp, stamp_second
from omendb.server.problems import code_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omendb.engine import Engine
    from omendb.server.log_writer import LineWriter
    from omendb.server.request import Request

logger = logging.getLogger("omendb.requests")

SUMMARY_SECONDS = 10.0
"""How often inserts are summed up in a line, when there were any."""

DISCONNECTED_STATUS = 499
"""Stands for "the client left before the end", as other servers write it; it is never sent."""

ALIKE_MAX = 10
"""Lines a second about requests that fail with the same code, queries excepted: a full disk refuses
thousands of inserts a second, and the log may be on the same disk. The next line tells how many were left
out."""

TEXT_CHARACTERS_MAX = 200
"""Of an error's message, or of a path: the rest is cut off."""

Asked: TypeAlias = "tuple[int | None, int | None, Sequence[int] | None, int | None, str | None]"
"""A query as it was asked: start, end, series (None: all), step (None: rows) and format (None: rows). A
plain tuple, because it is made for each query."""

Answered: TypeAlias = "tuple[Asked, int, float, float]"
"""A query that was answered: as asked, rows, `time.perf_counter` when it came, seconds."""

_BOUND = r"(?:^|&){}=(-?[0-9]{{1,19}})(?:&|$)"
_START, _END = (re.compile(_BOUND.format(name)) for name in ("start", "end"))

_encode = msgspec.json.Encoder().encode


class Limit:
    """Lets so many of a kind pass in a second, and counts the others.

    Parameters
    ----------
    most : int
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()  # protects the counts; a leaf
        self._counts: dict[str, tuple[int, int, int]] = {}  # second, passed in it, held back since the last

    def take(self, kind: str) -> int | None:
        """Return how many were held back before this one, which passes; None when it is held back too."""
        now = int(perf_counter())
        with self._lock:
            second, passed, held = self._counts.get(kind, (now, 0, 0))
            if second != now:
                passed = 0
            if passed >= self._most:
                self._counts[kind] = (now, passed, held + 1)
                return None
            self._counts[kind] = (now, passed + 1, 0)
            return held


class QueryLine(msgspec.Struct, omit_defaults=True):
    """A query's line as JSON. `start` and `end` are null where none was given; `series` is null for all.

    Attributes
    ----------
    time, level, logger, event : str
    start, end : int or None
    series : int or None
        How many were asked for.
    rows : int
        Of the answer: rows or windows.
    format : str
    status : int
    duration_ms : float
    series_id : int, optional
        When one was asked for.
    step : int, optional
        Length of a window.
    code, error : str, optional
        Why it failed.
    """

    time: str
    level: str
    logger: str
    event: str
    start: int | None
    end: int | None
    series: int | None
    rows: int
    format: str
    status: int
    duration_ms: float
    series_id: int | None = None
    step: int | None = None
    code: str | None = None
    error: str | None = None


class QueryLog:
    """Logs the requests of one server.

    Parameters
    ----------
    engine : Engine
        Whose settings say what is logged, and how; whose metrics are summed up.
    writer : LineWriter
    """

    def __init__(self, engine: Engine, writer: LineWriter) -> None:
        self._engine = engine
        self._put = writer.put
        self._limit = Limit(ALIKE_MAX)
        # Of the one thread that makes lines: the last second that one was stamped with, and its text; what
        # to add to `perf_counter` for the time of day, and when that was found out.
        self._second, self._second_text = 0, ""
        self._offset, self._offset_at = 0.0, -inf
        self._summed = (0, 0, 0, 0.0)
        self._summed_at = perf_counter()
        self._stop = threading.Event()
        self._summing = threading.Thread(target=self._sum_up_often, name="omendb-log-sums", daemon=True)

    def start(self) -> None:
        """Begin to sum inserts up."""
        self._summing.start()

    def close(self) -> None:
        """Sum up once more, and end."""
        self._stop.set()
        if self._summing.ident is not None:
            self._summing.join()

    def query(self, asked: Asked, rows: int, started: float, seconds: float) -> None:
        """Log a query that was answered, if the settings say so when its line is made.

        Parameters
        ----------
        asked : tuple
            See `Asked`.
        rows : int
            Rows or windows of the answer.
        started : float
            `time.perf_counter` when the request was complete.
        seconds : float
            How long it took.
        """
        self._put((asked, rows, started, seconds))

    def line(self, answered: Answered) -> str | None:
        """Make the line of a query; None when the settings want none."""
        asked, rows, started, seconds = answered
        settings = self._engine.settings
        mode = settings.log_queries
        if mode != "all" and (mode == "off" or seconds * 1e3 < settings.slow_query_ms):
            return None
        # The clock may be set, and drifts from the monotonic one: asked once a second.
        if abs(started - self._offset_at) > 1:
            self._offset_at = perf_counter()
            self._offset = time() - self._offset_at
        now = started + seconds + self._offset
        if settings.log_format == "json":
            return self._query_line("info", asked, rows, 200, seconds, now=now)
        start, end, series, step, form = asked
        whole = int(now)
        if whole != self._second:
            self._second, self._second_text = whole, stamp_second(whole)
        # A quarter faster than an f-string: 0.8 us.
        return "%s.%03dZ INFO omendb query %s %s %s rows=%d format=%s status=200 %.3f\n" % (  # noqa: UP031
            self._second_text,
            (now - whole) * 1000,
            "-" if start is None else start,
            "-" if end is None else end,
            "series=all" if series is None and step is None else _which(series, step),
            rows,
            form or "rows",
            seconds * 1e3,
        )

    def broken_query(self, asked: Asked, rows: int, seconds: float, error: BaseException | None) -> None:
        """Log a query whose answer was broken off: by `error`, or by its client when that is None."""
        if self._engine.settings.log_queries == "off":
            return
        if error is None:
            self._put(self._query_line("warning", asked, rows, DISCONNECTED_STATUS, seconds, "disconnected"))
        else:
            self._put(self._query_line("warning", asked, rows, 200, seconds, code_of(error), str(error)))

    def slow_insert(self, rows: int, seconds: float) -> None:
        """Log an insert that took `slow_query_ms` or longer."""
        logger.warning("insert slow rows=%d status=200 duration_ms=%.3f", rows, seconds * 1e3)

    def failed(
        self, method: str, path: str, request: Request | None, status: int, error: BaseException
    ) -> None:
        """Log a request that was answered with an error.

        Parameters
        ----------
        method, path : str
            As they came.
        request : Request or None
            None when it was refused before it was read.
        status : int
        error : BaseException
        """
        if request is None:
            seconds, rows = 0.0, 0
        else:
            seconds, rows = perf_counter() - request.started, request.rows
        if path == "/query" and request is not None:
            if self._engine.settings.log_queries != "off":
                bounds = _bound(_START, request.query_string), _bound(_END, request.query_string)
                asked = (*bounds, None, None, None)
                self._put(
                    self._query_line(
                        "warning", asked, 0, status, seconds, code_of(error), str(error), parsed=False
                    )
                )
            return
        suppressed = self._limit.take(code_of(error))
        if suppressed is None:
            return
        if path in ("/insert", "/write") and request is not None:
            logger.warning(
                "insert failed rows=%d status=%d code=%s error=%s suppressed=%d duration_ms=%.3f",
                rows,
                status,
                code_of(error),
                _quoted(str(error)),
                suppressed,
                seconds * 1e3,
            )
        else:
            logger.warning(
                "request failed method=%s path=%s status=%d code=%s error=%s suppressed=%d duration_ms=%.3f",
                _quoted(method),
                _quoted(path),
                status,
                code_of(error),
                _quoted(str(error)),
                suppressed,
                seconds * 1e3,
            )

    def sum_up(self) -> None:
        """Log what was inserted since the last time, if anything was."""
        metrics = self._engine.metrics
        now = perf_counter()
        requests, seconds = metrics.insert_duration.totals()
        sums = (requests, metrics.inserts_total.value, metrics.insert_failures_total.value, seconds)
        before, interval = self._summed, now - self._summed_at
        self._summed, self._summed_at = sums, now
        requests, rows, failed_rows = (sums[0] - before[0], sums[1] - before[1], sums[2] - before[2])
        spent = seconds - before[3]
        if requests or failed_rows:
            logger.info(
                "inserts summary requests=%d rows=%d failed_rows=%d mean_ms=%.3f duration_ms=%.0f",
                requests,
                rows,
                failed_rows,
                spent * 1e3 / requests if requests else 0.0,
                interval * 1e3,
            )

    def _sum_up_often(self) -> None:
        while not self._stop.wait(SUMMARY_SECONDS):
            self.sum_up()
        self.sum_up()

    def _query_line(
        self,
        level: str,
        asked: Asked,
        rows: int,
        status: int,
        seconds: float,
        code: str | None = None,
        error: str | None = None,
        *,
        parsed: bool = True,
        now: float | None = None,
    ) -> str:
        """Make any query's line; `line` has the usual case of it."""
        start, end, series, step, form = asked
        shown_form = (form or "rows") if parsed else "-"
        shown_time = stamp(time() if now is None else now)
        milliseconds = round(seconds * 1e3, 3)
        if self._engine.settings.log_format == "json":
            line = QueryLine(
                time=shown_time,
                level=level,
                logger=logger.name,
                event="query",
                start=start,
                end=end,
                series=None if series is None else len(series),
                rows=rows,
                format=shown_form,
                status=status,
                duration_ms=milliseconds,
                series_id=series[0] if series is not None and len(series) == 1 else None,
                step=step,
                code=code,
                error=None if error is None else error[:TEXT_CHARACTERS_MAX],
            )
            return _encode(line).decode() + "\n"
        bounds = f"{'-' if start is None else start} {'-' if end is None else end}"
        why = "" if code is None else f" code={code}"
        if error is not None:
            why += f" error={_quoted(error)}"
        which = _which(series, step) if parsed else "series=-"
        return (
            f"{shown_time} {level.upper()} omendb query {bounds} {which} rows={rows} "
            f"format={shown_form} status={status}{why} {milliseconds:.3f}\n"
        )


def _which(series: Sequence[int] | None, step: int | None) -> str:
    if series is None:
        text = "series=all"
    elif len(series) == 1:
        text = "series=1 series_id=%d" % series[0]  # noqa: UP031 # half the time of an f-string
    else:
        text = f"series={len(series)}"
    return text if step is None else f"{text} step={step}"


def _bound(pattern: re.Pattern[str], query_string: str) -> int | None:
    found = pattern.search(query_string)
    return None if found is None else int(found.group(1))


def _quoted(text: str) -> str:
    """Return text as a JSON string of printable ASCII: nothing in it ends the line, or the string."""
    return one_line(json.dumps(text[:TEXT_CHARACTERS_MAX]))
