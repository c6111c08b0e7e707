"""How a log line looks: text for people and awk, or one JSON object.

Text: ``TIME LEVEL NAME MESSAGE``, one line an event, whatever is in it: control characters, line ends
included, are shown as escapes, so that no client can forge a line. The word ``query`` in lower case stands
only in the lines of queries (`omendb.server.query_log`), because operators ``grep`` for it and count on
the fields of those lines; elsewhere it is written in capitals.

JSON: ``time``, ``level``, ``logger``, ``event``, ``message``, and each ``key=value`` of the message as a
member of its own, with its type.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from omendb.server.log_writer import LineWriter

MESSAGE_CHARACTERS_MAX = 16_384
"""What is longer is cut: a line must not take the queue's memory."""

QUERY_WORD = "query"

# One conversion of a %-format, with the key before it: "rows=%d", or the second half of "rows=%d->%d".
_CONVERSION = re.compile(r"(?:(\w+)=|(->))?%[-#0 +]*\d*(?:\.\d+)?([a-zA-Z%])")
_EVENT_END = re.compile(r"[:%(]|\s\w+=")

_encode = msgspec.json.Encoder(enc_hook=str).encode


def stamp(seconds: float) -> str:
    """Return a Unix time as ISO 8601 in UTC with milliseconds."""
    whole = int(seconds)
    return f"{stamp_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


def stamp_second(seconds: int) -> str:
    """Return whole Unix seconds as ISO 8601 in UTC, without a zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def one_line(text: str) -> str:
    """Show every character that is not printable as an escape, and cut what is too long."""
    if len(text) > MESSAGE_CHARACTERS_MAX:
        text = text[:MESSAGE_CHARACTERS_MAX] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def text_line(record: logging.LogRecord) -> str:
    """Return a record as a line of text."""
    message = record.getMessage()
    trace = _traceback(record)
    if trace:
        message += f" traceback={trace}"
    message = one_line(message).replace(QUERY_WORD, QUERY_WORD.upper())
    name = record.name.partition(".")[0]
    return f"{stamp(record.created)} {record.levelname} {name} {message}\n"


def json_line(record: logging.LogRecord) -> str:
    """Return a record as a line of JSON."""
    message = record.getMessage()
    if len(message) > MESSAGE_CHARACTERS_MAX:
        message = message[:MESSAGE_CHARACTERS_MAX] + "..."
    line: dict[str, Any] = {
        "time": stamp(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event_of(record),
        "message": message,
    }
    for key, value in fields_of(record).items():
        line.setdefault(key, value)
    trace = _traceback(record)
    if trace:
        line["traceback"] = trace
    return _encode(line).decode() + "\n"


def event_of(record: logging.LogRecord) -> str:
    """Return the fixed words that a record's message begins with: what happened."""
    template = str(record.msg)
    end = _EVENT_END.search(template)
    return (template if end is None else template[: end.start()]).strip(" ,")


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the ``key=value`` parts of a record's message; ``key=%d->%d`` gives before and after."""
    arguments: tuple[Any, ...] = record.args if isinstance(record.args, tuple) else ()
    fields: dict[str, Any] = {}
    position, last_key = 0, ""
    for match in _CONVERSION.finditer(str(record.msg)):
        key, arrow, kind = match.groups()
        if kind == "%":
            continue
        if position >= len(arguments):
            break
        value = _plain(arguments[position])
        position += 1
        if key:
            fields[key] = value
        elif arrow and last_key:
            fields[last_key] = {"before": fields[last_key], "after": value}
        last_key = key or ""
    return fields


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _traceback(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    return "".join(traceback.format_exception(*record.exc_info)).strip()[:MESSAGE_CHARACTERS_MAX]


class LineHandler(logging.Handler):
    """Hands what is logged to a `LineWriter`.

    Parameters
    ----------
    writer : LineWriter
    log_format : callable
        Returns ``"text"`` or ``"json"``; asked for every line.
    """

    def __init__(self, writer: LineWriter, log_format: Callable[[], str]) -> None:
        super().__init__()
        self._writer = writer
        self._log_format = log_format

    def line(self, record: logging.LogRecord) -> str:
        """Return a record's line in the format in force."""
        return json_line(record) if self._log_format() == "json" else text_line(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line."""
        try:
            line = self.line(record)
        except Exception:
            self.handleError(record)
        else:
            self._writer.put(line, at_once=True)


def configure(handler: logging.Handler) -> Callable[[], None]:
    """Send what the process logs to `handler`, unless logging was set up already.

    Errors that nobody catches, and Python's warnings, become lines too.

    Returns
    -------
    callable
        Undoes it.
    """
    root, ours = logging.getLogger(), logging.getLogger("omendb")
    if root.handlers:
        return lambda: None
    level = ours.level
    root.addHandler(handler)
    if level == logging.NOTSET:
        ours.setLevel(logging.INFO)
    hooks = sys.excepthook, threading.excepthook
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_thread
    logging.captureWarnings(True)

    def undo() -> None:
        logging.captureWarnings(False)
        sys.excepthook, threading.excepthook = hooks
        ours.setLevel(level)
        root.removeHandler(handler)

    return undo


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:  # noqa: ANN401
    logging.getLogger("omendb").critical("uncaught error", exc_info=(kind, error, trace))


def _log_thread(given: threading.ExceptHookArgs) -> None:
    if given.exc_type is SystemExit:
        return
    name = given.thread.name if given.thread is not None else "unknown"
    error = given.exc_value or given.exc_type()
    logging.getLogger("omendb").critical(
        "uncaught error thread=%s", name, exc_info=(given.exc_type, error, given.exc_traceback)
    )
