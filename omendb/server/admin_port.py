"""The metrics port: ``/metrics``, ``/health`` and ``/ready`` from threads of their own.

They answer while the event loop of the HTTP port is busy, which is when somebody wants to know. Health
and readiness are the same functions as on the HTTP port, and so are the errors.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from omendb.server import problems
from omendb.server.request import Request, Response
from omendb.server.routes import Route, Routes

if TYPE_CHECKING:
    from omendb.metrics import Metrics
    from omendb.server.health import Health
    from omendb.server.request import Outcome

logger = logging.getLogger(__name__)

METRICS_TYPE = [("content-type", "text/plain; version=0.0.4; charset=utf-8")]

IDLE_SECONDS = 30
"""Time for a request to arrive, and between requests of a connection."""

CONNECTIONS_MAX = 256
"""Each has a thread. Beyond it the one that was idle for longest is closed: a new one is always served."""


class AdminPort:
    """The metrics port of one server.

    Parameters
    ----------
    address : str
        An IP address.
    port : int
        0 for any free one.
    metrics : Metrics
    health : Health

    Raises
    ------
    OSError
        When the port cannot be listened on.
    """

    def __init__(self, address: str, port: int, metrics: Metrics, health: Health) -> None:
        def render(request: Request) -> Response:
            return Response(200, metrics.render(), METRICS_TYPE)

        def alive(request: Request) -> Response:
            return health.alive()

        def ready(request: Request) -> Response:
            return health.ready()

        handlers = {"/metrics": render, "/health": alive, "/ready": ready}
        routes = Routes({path: {"GET": Route(handler)} for path, handler in handlers.items()})
        self._server = _Server(address, port, routes)
        self._thread = threading.Thread(target=self._server.serve_forever, name="omendb-metrics", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering, and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _finish(outcome: Outcome) -> None:
    raise AssertionError("nothing on this port is answered later")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1_024

    def __init__(self, address: str, port: int, routes: Routes) -> None:
        self.routes = routes
        self._lock = threading.Lock()  # protects the connections; a leaf
        self._connections: dict[Any, None] = {}  # in the order of their last use
        if ":" in address:
            self.address_family = socket.AF_INET6
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service for the host's name, which may take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        self.used(request)
        oldest = None
        with self._lock:
            if len(self._connections) > CONNECTIONS_MAX:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
        if oldest is not None:
            with contextlib.suppress(OSError):  # it is being closed already
                oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def used(self, request: Any) -> None:  # noqa: ANN401
        """Note that a connection is new, or has brought a request."""
        with self._lock:
            self._connections.pop(request, None)
            self._connections[request] = None

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        logger.debug("a connection to the metrics port broke", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "OmenDB"
    sys_version = ""
    # Head and body leave in one system call: after each, another thread may have the GIL for 5 ms.
    wbufsize = -1
    timeout = IDLE_SECONDS

    def _answer(self) -> None:
        path, _, query_string = self.path.partition("?")
        assert isinstance(self.server, _Server)
        self.server.used(self.connection)
        try:
            route = self.server.routes.find(self.command, path)
            response = route.handler(Request(self.command, query_string, _finish))
            assert isinstance(response, Response)
        except Exception as error:
            response = problems.to_response(error)
        self.send_response(response.status)
        for name, value in response.headers:
            self.send_header(name, value)
        if response.status != 204:
            self.send_header("content-length", str(len(response.body)))
        has_body = self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers
        if has_body or self.close_connection:  # nothing here reads bodies
            self.send_header("connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)
        self.wfile.flush()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: a scrape every few seconds is no news."""
