"""Ways to call the server: over a real connection, through ASGI, and byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omendb.server.embedding import HttpServer

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator
    from io import BufferedReader

    from omendb.server.app import Application

TIMEOUT_SECONDS = 30
"""A limit against hanging."""


@dataclass
class Reply:
    """An answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, str]:
        error = self.json["error"]
        assert isinstance(error, dict)
        return error


class LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT_SECONDS)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(TIMEOUT_SECONDS)
        self.loop.close()


class RsgiClient:
    """Calls a granian of its own, one connection a call, over 127.0.0.1 wherever it listens."""

    def __init__(self, application: Application, address: str = "127.0.0.1") -> None:
        self.application = application
        self._loop_thread = LoopThread()
        self._server = self._loop_thread.run(_made(application, address))
        self._serving = asyncio.run_coroutine_threadsafe(self._server.serve(), self._loop_thread.loop)
        self.port = 0
        while not self.port:
            assert not self._serving.done()
            with contextlib.suppress(OSError):
                self.port = self._server.port
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            self.port = 0

    def call(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request(method, target, body, headers or {})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())
        finally:
            connection.close()

    def connect(self) -> Wire:
        return Wire(self.port)

    def close(self) -> None:
        self._loop_thread.loop.call_soon_threadsafe(self._server.stop)
        self._serving.result(TIMEOUT_SECONDS)
        self._loop_thread.close()


class AsgiClient:
    """Calls the application as an ASGI server does."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.loop_thread = LoopThread()

    def call(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        exchange = AsgiExchange(method, target, headers, [body or b""])
        self.loop_thread.run(exchange.run(self.application))
        return exchange.reply

    def close(self) -> None:
        work = self.application.bind(self.loop_thread.loop).work
        work.close()
        self.loop_thread.close()


@dataclass
class AsgiExchange:
    """One call: `pieces` of a body in, messages out; `hangs` when the body has no end."""

    method: str
    target: str
    headers: dict[str, str] | None
    pieces: list[bytes]
    hangs: bool = False
    leaves: bool = False
    sent: list[dict[str, Any]] = field(default_factory=list)

    async def run(self, application: Application) -> None:
        path, _, query_string = self.target.partition("?")
        scope = {
            "type": "http",
            "method": self.method,
            "path": path,
            "query_string": query_string.encode(),
            "headers": [(k.encode(), v.encode()) for k, v in (self.headers or {}).items()],
        }
        pieces = iter(self.pieces)
        last = len(self.pieces) - 1 if not (self.hangs or self.leaves) else None
        index = -1

        async def receive() -> dict[str, Any]:
            nonlocal index
            index += 1
            piece = next(pieces, None)
            if piece is None:
                if self.leaves:
                    return {"type": "http.disconnect"}
                await asyncio.Event().wait()
            return {"type": "http.request", "body": piece, "more_body": index != last}

        async def send(message: Any) -> None:
            self.sent.append(message)

        await application(scope, receive, send)

    @property
    def reply(self) -> Reply:
        start, *rest = self.sent
        assert start["type"] == "http.response.start"
        assert not rest[-1].get("more_body", False)
        names = {name.decode(): value.decode() for name, value in start["headers"]}
        return Reply(start["status"], names, b"".join(message.get("body", b"") for message in rest))


class Wire:
    """A connection to write bytes to and read answers from."""

    def __init__(self, port: int, receive_buffer: int | None = None, source_port: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_SECONDS)
        try:
            if source_port:
                self.socket.bind(("127.0.0.1", source_port))
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        # One for all answers: it may read the beginning of the next one with the end of the last.
        self._reader = _Kept(self.socket.makefile("rb"))

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.file.close()
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.sendall(piece)

    def reply(self, method: str = "GET") -> Reply:
        """Read one answer."""
        response = http.client.HTTPResponse(self.socket, method=method)
        response.fp.close()
        response.fp = self._reader  # type: ignore[assignment]
        response.begin()
        names = {name.lower(): value for name, value in response.getheaders()}
        body = response.read()
        return Reply(response.status, names, body)

    def at_end(self) -> bool:
        """Whether the server has closed the connection; waits for it."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


class _Kept:
    """A file that `http.client` cannot close at the end of an answer."""

    def __init__(self, file: BufferedReader) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def close(self) -> None:
        pass


def request(method: str, target: str, *headers: str, body: bytes = b"") -> bytes:
    """Write a request head, and a body as it is."""
    lines = [f"{method} {target} HTTP/1.1", "host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Frame pieces as the chunks of a body, without its end."""
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


async def _made(application: Application, address: str) -> HttpServer:
    return HttpServer(application, address, 0, stop_seconds=5)
