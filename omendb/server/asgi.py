"""The ASGI side: requests from any ASGI server, answers to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omendb.server.body import read_asgi
from omendb.server.request import Request, Response, Waiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from omendb.server.app import Bound
    from omendb.server.request import Headers, StreamedResponse
    from omendb.server.routes import Route

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]


async def answer(bound: Bound, scope: Message, receive: Receive, send: Send) -> None:
    """Answer one HTTP request.

    Raises
    ------
    Exception
        When a streamed answer fails in the middle: the server must break the connection off.
    """
    method = scope["method"]
    waiter = Waiter(bound.loop)
    route: Route | None = None
    request: Request | None = None
    held_bytes = 0
    try:
        route = bound.entrance.pass_asgi(
            bound.routes, method, scope["path"], lambda: _authorization(scope), _client(scope)
        )
        request = Request(method, scope["query_string"].decode("latin-1"), waiter.finish)
        if route.takes_encoding:
            given_encoding = dict(scope["headers"]).get(b"content-encoding", b"")
            request.content_encoding = given_encoding.decode("latin-1")
        if route.takes_body:
            body, held_bytes = await read_asgi(receive, scope["headers"], bound.bodies)
            request.complete(body)
        given = route.handler(request)
        if given is None:
            given = waiter.wait()
        response = given if isinstance(given, Response) else await given
    except Exception as error:
        response = bound.failed(route, error, method, scope["path"], request)
    try:
        if isinstance(response, Response):
            await _send_whole(response, method, send)
        else:
            await _send_pieces(response, method, send)
    finally:
        bound.bodies.release(held_bytes)


def _authorization(scope: Message) -> str | None:
    return next(
        (value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"), None
    )


def _client(scope: Message) -> str:
    address = scope.get("client")
    return "unknown" if address is None else f"{address[0]}:{address[1]}"


async def _send_whole(response: Response, method: str, send: Send) -> None:
    length = [("content-length", str(len(response.body)))] if response.status != 204 else []
    await send(_start(response.status, [*response.headers, *length]))
    body = b"" if method == "HEAD" else response.body
    await send({"type": "http.response.body", "body": body})


async def _send_pieces(response: StreamedResponse, method: str, send: Send) -> None:
    error: BaseException | None = None
    try:
        await send(_start(response.status, response.headers))
        if method != "HEAD":
            while piece := await response.pieces.read():
                # The server makes this wait while the client is slow.
                await send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except BaseException as broken:
        error = broken
        raise
    finally:
        response.pieces.close(error)


def _start(status: int, headers: Headers) -> Message:
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return {"type": "http.response.start", "status": status, "headers": encoded}
