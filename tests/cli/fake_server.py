"""A stand-in for the server, whose failures a test chooses. It keeps points in a dict."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

DROP = 0
"""In `failures`: close the connection after the work is done, without an answer."""


class FakeServer(ThreadingHTTPServer):
    """Serves /insert, /query (points, and windows by their mean and count) and /admin/stats.

    Attributes
    ----------
    points : dict of (int, int) to float
    batches : list of int
        Rows of each insert that was answered with 200, or was done before its connection was dropped.
    queries : list of str
    failures : deque of int
        Statuses that the next inserts answer instead of storing; `DROP` stores and does not answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.points: dict[tuple[int, int], float] = {}
        self.batches: list[int] = []
        self.queries: list[str] = []
        self.failures: deque[int] = deque()
        self.connections = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeServer

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            failure = self.server.failures.popleft() if self.server.failures else None
            if failure:
                self.answer_error(failure)
                return
            ids, timestamps, values = body["series_id"], body["timestamp"], body["value"]
            if isinstance(ids, int):
                ids = [ids] * len(timestamps)
            for key, value in zip(zip(ids, timestamps, strict=True), values, strict=True):
                self.server.points[key] = value
            self.server.batches.append(len(values))
        if failure == DROP:
            self.close_connection = True
            return
        self.answer(200, {"inserted": len(values)})

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/admin/stats":
            stats = {"record_count": len(self.server.points), "wal": {"bytes": 5_000_000}, "last": None}
            self.answer(200, stats)
        elif parts.path == "/query":
            self.server.queries.append(parts.query)
            self.answer_query(
                {name: last[-1] for name, last in parse_qs(parts.query, keep_blank_values=True).items()}
            )
        else:
            self.answer_error(404)

    def answer_query(self, asked: dict[str, str]) -> None:
        start, end = int(asked.get("start", -(2**63))), int(asked.get("end", 2**63 - 1))
        if start > end:
            self.answer_error(400)
            return
        series = {int(text) for text in asked["series_id"].split(",")} if "series_id" in asked else None
        rows: list[dict[str, Any]] = [
            {"series_id": key[0], "timestamp": key[1], "value": value}
            for key, value in sorted(self.server.points.items())
            if start <= key[1] <= end and (series is None or key[0] in series)
        ]
        if "step" in asked:
            names = asked["agg"].split(",")
            rows = [
                {
                    **({} if "by" in asked else {"series_id": row["series_id"]}),
                    "timestamp": row["timestamp"],
                    **{name: 1 if name == "count" else row["value"] for name in names},
                }
                for row in rows
            ]
        first = int(asked.get("cursor", "0"))
        stop = min(first + int(asked.get("limit", len(rows))), len(rows))
        cursor = str(stop) if stop < len(rows) else None
        page = rows[first:stop]
        answer: dict[str, Any] = {"count": len(page)}
        if asked.get("format") == "columns":
            for name in ("series_id", "timestamp", "value"):
                answer[name] = [row[name] for row in page]
        else:
            answer["rows"] = page
        self.answer(200, {**answer, "cursor": cursor})

    def answer_error(self, status: int) -> None:
        code = {503: "overloaded", 507: "disk_full", 404: "not_found"}.get(status, "invalid_request")
        if status == 502:
            self.answer(status, b"<html>Bad Gateway</html>")
        else:
            told = {"code": code, "message": f"refused with {status}", "field": "start"}
            self.answer(status, {"error": told})

    def answer(self, status: int, body: object) -> None:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def fake_server() -> Iterator[FakeServer]:
    """Run a `FakeServer` for the length of a test."""
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
