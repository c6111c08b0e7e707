"""What a handler gets and what it gives back: the part of HTTP that RSGI and ASGI have in common.

A handler takes a `Request` and returns an `Answer`: a `Response` when it is there at once, a `Deferred`
when another thread will bring it, or a coroutine when it has to wait for several things. Errors rise.

Thread safety: everything here belongs to the event loop's thread.
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


class Request:
    """One request, with its body read.

    Parameters
    ----------
    method : str
        In capitals.
    query_string : str
        As it came, percent-encoded, without the question mark.

    Attributes
    ----------
    body : bytes
        Empty until it was read, and for routes that take none.
    started : float
        `time.perf_counter` when the request was complete.
    """

    __slots__ = ("body", "method", "query_string", "started")

    def __init__(self, method: str, query_string: str, body: bytes = b"") -> None:
        self.method = method
        self.query_string = query_string
        self.body = body
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


class Pieces(Protocol):
    """A body that comes in pieces."""

    async def read(self) -> bytes:
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


Outcome = Response | StreamedResponse | Exception
"""How the handling of a request ends; an exception becomes a problem."""


class Deferred:
    """An outcome that comes later, once, to one receiver: a future without the loop's bookkeeping.

    An `asyncio.Future` costs a call through the loop for every result (1.2 us, measured): too much for the
    thousands of inserts that one commit answers.
    """

    __slots__ = ("_outcome", "_receiver")

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._receiver: Callable[[Outcome], None] | None = None

    def then(self, receiver: Callable[[Outcome], None]) -> None:
        """Call `receiver` with the outcome: now if it is there, else when it comes."""
        if self._outcome is not None:
            receiver(self._outcome)
        else:
            self._receiver = receiver

    async def wait(self) -> Outcome:
        """Return the outcome when it is there."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        # When it comes, whoever waited may have been cancelled.
        self.then(lambda outcome: None if future.done() else future.set_result(outcome))
        return await future

    def resolve(self, outcome: Outcome) -> None:
        """Hand over the outcome. Called once, in the event loop's thread."""
        if self._receiver is not None:
            self._receiver(outcome)
        else:
            self._outcome = outcome


Answer: TypeAlias = "Response | Deferred | Coroutine[None, None, Response | StreamedResponse]"
"""What a handler returns."""
