"""What a handler gets and what it gives back: the part of HTTP that RSGI and ASGI have in common.

A handler takes a `Request` and returns an `Answer`: a `Response` when it is there at once, a coroutine when
it has to wait for several things, or None when another thread will call ``request.finish``. Errors rise.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

Headers = list[tuple[str, str]]

JSON: Headers = [("content-type", "application/json")]
"""The headers of most answers: shared, never changed."""


def _unknown() -> bool:
    return False


class Request:
    """One request, with its body read.

    Parameters
    ----------
    method : str
        In capitals.
    query_string : str
        As it came, percent-encoded, without the question mark.
    finish : callable
        Takes the outcome, once, in any thread, when the handler has returned None.
    has_left : callable, optional
        Whether the client is gone, as far as can be told (2 us an open file).

    Attributes
    ----------
    body : bytes
        Empty until it was read, and for routes that take none.
    content_encoding : str
        That of the body, for routes that take one; empty without.
    rows : int
        Rows of an insert, once they are known.
    started : float
        `time.perf_counter` when the request was complete.
    """

    __slots__ = (
        "body",
        "content_encoding",
        "finish",
        "has_left",
        "method",
        "query_string",
        "rows",
        "started",
    )

    def __init__(
        self,
        method: str,
        query_string: str,
        finish: Callable[[Outcome], None],
        has_left: Callable[[], bool] = _unknown,
    ) -> None:
        self.method = method
        self.query_string = query_string
        self.finish = finish
        self.has_left = has_left
        self.body = b""
        self.rows = 0
        self.content_encoding = ""
        self.started = perf_counter()

    def complete(self, body: bytes) -> None:
        """Take the body, and start the clock: a slow client's upload is not the server's duration."""
        self.body = body
        self.started = perf_counter()


class Response(NamedTuple):
    """A whole answer.

    Attributes
    ----------
    status : int
    body : bytes
    headers : list of (str, str)
        Names in lower case. `content-length` is added where it is sent.
    """

    status: int
    body: bytes
    headers: Headers = JSON


Piece: TypeAlias = bytes | bytearray
"""A part of a body; nothing is written to it after it was handed over."""


class Pieces(Protocol):
    """A body that comes in pieces. Belongs to the event loop's thread."""

    async def read(self) -> Piece:
        """Return the next piece; empty at the end."""
        ...

    def close(self, error: BaseException | None = None) -> None:
        """Let go of what the pieces are made from. Called exactly once, after the end or instead of it."""
        ...


class DisconnectedError(Exception):
    """The client left in the middle of an answer: nobody is to blame, and nobody to tell."""


class StreamedResponse(NamedTuple):
    """An answer whose body comes in pieces. When `pieces` raises, the transfer must end broken."""

    status: int
    pieces: Pieces
    headers: Headers = JSON


Outcome: TypeAlias = Response | StreamedResponse | Exception
"""How the handling of a request ends; an exception becomes a problem."""

Answer: TypeAlias = "Response | Coroutine[None, None, Response | StreamedResponse] | None"
"""What a handler returns; None when ``request.finish`` gets the outcome."""


class Waiter:
    """Waits in an event loop for an outcome that another thread brings.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[Outcome] = loop.create_future()

    def finish(self, outcome: Outcome) -> None:
        """Bring the outcome, in any thread."""
        self._loop.call_soon_threadsafe(self._settle, outcome)

    async def wait(self) -> Response | StreamedResponse:
        """Return the outcome when it is there; raise it when it is an error."""
        outcome = await self._future
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _settle(self, outcome: Outcome) -> None:
        if not self._future.done():  # whoever waited may have been cancelled
            self._future.set_result(outcome)
