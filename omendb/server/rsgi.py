"""The RSGI side: requests from granian, answers to it.

A request that needs no waiting is begun and answered in the thread that brings it, without a coroutine, a
task or a future; an insert is answered in the committer's. The event loop has the rest: streams, large
requests, deadlines.

Thread safety: an exchange is in one thread at a time, and passes from one to another.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from omendb.server import connection
from omendb.server.body import read_rsgi
from omendb.server.connection import Pacer
from omendb.server.request import DisconnectedError, Request, Response

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from omendb.server.app import Bound
    from omendb.server.connection import Connection
    from omendb.server.request import Answer, Outcome, Piece, StreamedResponse
    from omendb.server.routes import Route

logger = logging.getLogger(__name__)


class Exchange:
    """One request and its answer.

    Parameters
    ----------
    bound : Bound
    scope, protocol : RSGI's objects
    finished : asyncio.Future, optional
        Resolved when the answer was given to the server.
    """

    __slots__ = ("_bound", "_finished", "_protocol", "_read", "_request", "_route", "_scope")

    def __init__(
        self,
        bound: Bound,
        scope: Any,  # noqa: ANN401
        protocol: Any,  # noqa: ANN401
        finished: asyncio.Future[None] | None = None,
    ) -> None:
        self._bound = bound
        self._scope = scope
        self._protocol: Any = protocol
        self._finished = finished
        self._route: Route | None = None
        self._request: Request | None = None
        self._read: Any = None

    def begin(self) -> None:
        """Find the route, read the body, call the handler; never raises."""
        scope = self._scope
        method = scope.method
        try:
            bound = self._bound
            self._route = route = bound.entrance.pass_rsgi(bound.routes, method, scope.path, scope)
            self._request = request = Request(method, scope.query_string, self._finish, self._has_left)
            if route.takes_encoding:
                request.content_encoding = scope.headers.get("content-encoding") or ""
            if route.takes_body:
                self._read = read_rsgi(self._protocol, scope.headers, self._bound.bodies, self._arrived)
            else:
                self._follow(route.handler(request))
        except Exception as error:
            self._finish(error)

    def _has_left(self) -> bool:
        return connection.has_left(self._scope.client, self._scope.server)

    def _arrived(self, body: bytes | Exception) -> None:
        if isinstance(body, Exception):
            self._finish(body)
            return
        request, route = self._request, self._route
        assert request is not None
        assert route is not None
        try:
            request.complete(body)
            self._follow(route.handler(request))
        except Exception as error:
            self._finish(error)

    def _follow(self, answer: Answer) -> None:
        if type(answer) is Response:
            self._finish(answer)
        elif answer is not None:
            self._bound.spawn(self._wait(answer))  # type: ignore[arg-type]

    async def _wait(self, answer: Coroutine[Any, Any, Response | StreamedResponse]) -> None:
        try:
            outcome = await answer
        except Exception as error:
            self._finish(error)
        else:
            self._finish(outcome)

    def _finish(self, outcome: Outcome) -> None:
        if type(outcome) is not Response:
            if isinstance(outcome, Exception):
                scope = self._scope
                outcome = self._bound.failed(self._route, outcome, scope.method, scope.path, self._request)
            else:
                self._bound.spawn(self._stream(outcome))  # type: ignore[arg-type]
                return
        self._protocol.response_bytes(outcome.status, outcome.headers, outcome.body)
        self._end()

    def _end(self) -> None:
        read, self._read = self._read, None
        if read is not None:
            read.release()
        # These refer back to this exchange. granian keeps the answer of a request whose body was not read
        # to its end until the protocol is gone: it must not wait for the garbage collector.
        self._request = self._protocol = None
        if self._finished is not None:
            self._bound.loop.call_soon_threadsafe(self._finished.set_result, None)

    async def _stream(self, response: StreamedResponse) -> None:
        pieces = response.pieces
        assert self._request is not None
        if self._request.method == "HEAD":
            self._protocol.response_empty(response.status, response.headers)
            pieces.close()
            self._end()
            return
        scope = self._scope
        transport = self._protocol.response_stream(response.status, response.headers)
        link: Connection | None = None
        pacer: Pacer | None = None
        is_first = True
        error: BaseException | None = None
        try:
            while piece := await pieces.read():
                await _send(transport, piece)
                if pacer is not None:
                    await pacer.sent(len(piece))
                elif is_first:
                    # Not before something was sent: that fails when the client has left while this waited
                    # for its turn, and then its port may be another client's, who would be broken off.
                    is_first = False
                    link = connection.find(scope.client, scope.server)
                    pacer = None if link is None else Pacer(link)
        except BaseException as broken:
            error = broken
            if not isinstance(broken, DisconnectedError):
                logger.exception("an answer was broken off")
                if is_first:
                    link = connection.find(scope.client, scope.server)
            if not isinstance(broken, Exception):
                raise
        finally:
            pieces.close(error)
            if link is not None:
                if error is not None:
                    link.abort()
                link.close()
            self._end()
            # granian ends the transfer when the transport is gone: an error's traceback must not keep it.
            del transport, error


async def _send(transport: Any, piece: Piece) -> None:  # noqa: ANN401
    try:
        await transport.send_bytes(piece)
    except RuntimeError as error:  # granian's ProtocolClosed
        raise DisconnectedError("the client left") from error
