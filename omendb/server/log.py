"""The log of one server: standard output, one line an event.

It begins before anything else of the server and ends after it, on every way out except `kill -9`.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from omendb.server.log_lines import LineHandler, configure
from omendb.server.log_writer import LineWriter
from omendb.server.query_log import Answered, QueryLog

if TYPE_CHECKING:
    from omendb.engine import Engine

STANDARD_OUTPUT = 1


class ServerLog:
    """What the process logs, and the requests of a server.

    Parameters
    ----------
    engine : Engine
        Whose settings `log_format`, `log_queries` and `slow_query_ms` are read for each line.
    descriptor : int
        Where the lines go.

    Attributes
    ----------
    requests : QueryLog
    """

    def __init__(self, engine: Engine, descriptor: int = STANDARD_OUTPUT) -> None:
        metrics = engine.metrics
        self._writer = LineWriter(
            descriptor,
            metrics.log_lines_total,
            metrics.log_lines_dropped_total,
            self._tell_dropped,
            self._make,
        )
        self._handler = LineHandler(self._writer, lambda: engine.settings.log_format)
        self.requests = QueryLog(engine, self._writer)
        self._undo = configure(self._handler)

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()
        self.requests.start()

    def close(self) -> None:
        """Write what waits, unless nobody reads it; may be called twice."""
        self.requests.close()
        self._writer.close()
        self._undo()

    def _make(self, entry: Answered) -> str | None:
        return self.requests.line(entry)

    def _tell_dropped(self, count: int) -> str:
        record = logging.LogRecord(
            "omendb.log", logging.WARNING, "", 0, "log lines dropped count=%d", (count,), None
        )
        record.created = time.time()
        return self._handler.line(record)
