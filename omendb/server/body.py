"""Reading request bodies: bounded in size, in time, and in what all of them hold together.

A body with a `Content-Length` beyond the limit is refused before a byte of it is read; one of unknown
length is counted while it comes. A body that is cut short is refused: what arrived is not what was meant.

Thread safety: a read is begun and ends in whatever thread brings the request and its body; deadlines
expire in the event loop's. Who takes a read out of the deadlines decides how it ends.
"""

from __future__ import annotations

import asyncio
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from omendb.errors import (
    InvalidRequestError,
    OverloadedError,
    PayloadTooLargeError,
    RequestTimeoutError,
)

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from omendb.config import Settings

    Receiver = Callable[[bytes | Exception], None]

SMALL_BYTES = 65_536
"""Bodies up to this size are not counted against `HELD_BYTES_MAX`: the connections bound them."""

HELD_BYTES_MAX = 268_435_456
"""What all larger bodies may hold together, from the start of the read to the answer."""


class Expirable(Protocol):
    """Something that ends when its time is over."""

    def expire(self) -> None:
        """End it."""
        ...


class Deadlines:
    """Ends what takes longer than a fixed time, with one timer for all. Safe in any thread.

    The time is the same for all, so the order of arrival is the order of deadlines: an entry costs a
    dictionary's insertion and removal, not a timer.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = Lock()  # protects both; a leaf
        self._deadlines: dict[Expirable, float] = {}
        self._armed = False

    def add(self, entry: Expirable, seconds: float) -> None:
        """Call ``entry.expire()`` in so many seconds, in the loop's thread, unless it is removed before."""
        deadline = self._loop.time() + seconds
        with self._lock:
            self._deadlines[entry] = deadline
            armed, self._armed = self._armed, True
        if not armed:
            self._loop.call_soon_threadsafe(self._arm, deadline)

    def remove(self, entry: Expirable) -> bool:
        """Forget `entry`; False when it has expired, or was removed before."""
        with self._lock:
            return self._deadlines.pop(entry, None) is not None

    def _arm(self, deadline: float) -> None:
        self._loop.call_at(deadline, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        expired: list[Expirable] = []
        with self._lock:
            for entry, deadline in self._deadlines.items():
                if deadline > now:
                    self._arm(deadline)
                    break
                expired.append(entry)
            else:
                self._armed = False
            for entry in expired:
                del self._deadlines[entry]
        for entry in expired:
            entry.expire()


class Bodies:
    """What is common to all reads of bodies: settings, deadlines, and how much they hold together.

    Safe in any thread.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    settings : callable
        Returns the current `Settings`.
    """

    def __init__(self, loop: AbstractEventLoop, settings: Callable[[], Settings]) -> None:
        self.deadlines = Deadlines(loop)
        self._settings = settings
        self._lock = Lock()  # protects the count; a leaf
        self._held_bytes = 0

    @property
    def timeout_seconds(self) -> float:
        """Time in which a body must arrive."""
        return self._settings().body_timeout_ms / 1000

    def hold(self, size: int, more: int) -> int:
        """Count `more` bytes of a body that has `size` so far; return its new size.

        Raises
        ------
        PayloadTooLargeError
            Beyond `max_body_bytes`.
        OverloadedError
            Beyond what all bodies may hold together.
        """
        new_size = size + more
        max_bytes = self._settings().max_body_bytes
        if new_size > max_bytes:
            raise PayloadTooLargeError(f"the body is larger than max_body_bytes, {max_bytes} bytes")
        held = self._held(new_size) - self._held(size)
        if held:
            with self._lock:
                if self._held_bytes + held > max(HELD_BYTES_MAX, max_bytes):
                    raise OverloadedError("too many large bodies at once")
                self._held_bytes += held
        return new_size

    def release(self, size: int) -> None:
        """Give back what `hold` counted for a body of `size` bytes."""
        held = self._held(size)
        if held:
            with self._lock:
                self._held_bytes -= held

    @staticmethod
    def _held(size: int) -> int:
        return size if size > SMALL_BYTES else 0


def read_rsgi(protocol: Any, headers: Any, bodies: Bodies, receiver: Receiver) -> _RsgiRead | None:  # noqa: ANN401
    """Read the body of an RSGI request; call `receiver` once with it, or with an error.

    Parameters
    ----------
    protocol, headers : RSGI's objects
    bodies : Bodies
    receiver : callable

    Returns
    -------
    _RsgiRead or None
        To be released when the request was answered; None when there is no body.

    Raises
    ------
    PayloadTooLargeError, OverloadedError
        By the length alone: nothing was read, and `receiver` is not called.
    """
    length = headers.get("content-length")
    if length == "0":
        receiver(b"")
        return None
    if length is None:
        stream = _RsgiStream(protocol, bodies, receiver)
        stream.begin()
        return stream
    read = _RsgiRead(protocol, bodies, receiver)
    read.size = bodies.hold(0, int(length))
    read.begin()
    return read


class _RsgiRead:
    """A body of known length."""

    __slots__ = ("_bodies", "_expired", "_future", "_protocol", "_receiver", "size")

    def __init__(self, protocol: Any, bodies: Bodies, receiver: Receiver) -> None:  # noqa: ANN401
        self._protocol: Any = protocol
        self._bodies = bodies
        self._receiver = receiver
        self._future: Any = None
        self._expired = False
        self.size = 0

    def begin(self) -> None:
        self._bodies.deadlines.add(self, self._bodies.timeout_seconds)
        self._follow(self._protocol())

    def expire(self) -> None:
        self._expired = True
        future = self._future
        if future is not None:
            future.cancel()
        self._let_go()
        seconds = self._bodies.timeout_seconds
        self._receiver(RequestTimeoutError(f"the body did not arrive within {seconds:g} seconds"))

    def release(self) -> None:
        self._bodies.release(self.size)

    def _follow(self, future: Any) -> None:  # noqa: ANN401
        self._future = future
        future.add_done_callback(self._arrived)
        # Set first, look then: `expire` does it the other way round, so that one of them sees the other. A
        # body that somebody still reads keeps the answer from the client.
        if self._expired:
            future.cancel()

    def _arrived(self, future: Any) -> None:  # noqa: ANN401
        try:
            body = future.result()
        except BaseException:  # granian: the client left, or sent less than it announced; or cancelled
            body = _cut_short()
        self._end(body)

    def _end(self, result: bytes | Exception) -> None:
        self._let_go()
        if self._bodies.deadlines.remove(self):
            self._receiver(result)

    def _let_go(self) -> None:
        # The future refers back to this read, and is of a type that the garbage collector cannot look into;
        # the protocol, as long as it lives, keeps the answer from the client.
        self._future = self._protocol = None


class _RsgiStream(_RsgiRead):
    """A body of unknown length, in pieces."""

    __slots__ = ("_lock", "_pieces")

    def __init__(self, protocol: Any, bodies: Bodies, receiver: Receiver) -> None:  # noqa: ANN401
        super().__init__(protocol, bodies, receiver)
        self._lock = Lock()  # an expired body must not grow any more; taken before those of `Bodies`
        self._pieces: list[bytes] = []

    def begin(self) -> None:
        self._bodies.deadlines.add(self, self._bodies.timeout_seconds)
        self._protocol.__aiter__()
        self._follow(self._protocol.__anext__())

    def expire(self) -> None:
        with self._lock:
            self._expired = True
        super().expire()

    def _arrived(self, future: Any) -> None:  # noqa: ANN401
        with self._lock:
            if self._expired:
                return
            result = self._take(future)
        if result is not None:
            self._end(result)

    def _take(self, future: Any) -> bytes | Exception | None:  # noqa: ANN401
        """Take a piece, and ask for the next one; the result when there is none."""
        try:
            piece = future.result()
            if piece:
                self.size = self._bodies.hold(self.size, len(piece))
                self._pieces.append(piece)
            next_future = self._protocol.__anext__()
        except StopAsyncIteration:
            return b"".join(self._pieces)
        except (PayloadTooLargeError, OverloadedError) as error:
            return error.with_traceback(None)  # or it and its caller's frame would hold each other
        except BaseException:  # granian's own errors: the client left; or cancelled
            return _cut_short()
        if piece:
            self._follow(next_future)
            return None
        # granian gives an empty piece at the end, and also where the client broke off: only at the end is
        # there nothing after it.
        next_future.cancel()
        return _cut_short()


async def read_asgi(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    headers: Iterable[tuple[bytes, bytes]],
    bodies: Bodies,
) -> tuple[bytes, int]:
    """Read the body of an ASGI request.

    Returns
    -------
    bytes, int
        The body, and the size to `Bodies.release` when the request was answered.

    Raises
    ------
    PayloadTooLargeError, OverloadedError, RequestTimeoutError, InvalidRequestError
    """
    announced = next((int(text) for name, text in headers if name == b"content-length"), None)
    size = bodies.hold(0, announced or 0)
    pieces: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout(bodies.timeout_seconds):
            more = announced != 0
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise _cut_short()  # noqa: TRY301 # http.disconnect
                pieces.append(message.get("body", b""))
                received += len(pieces[-1])
                if received > size:
                    size = bodies.hold(size, received - size)
                more = message.get("more_body", False)
    except TimeoutError:
        bodies.release(size)
        seconds = bodies.timeout_seconds
        message_text = f"the body did not arrive within {seconds:g} seconds"
        raise RequestTimeoutError(message_text) from None
    except BaseException:
        bodies.release(size)
        raise
    return b"".join(pieces), size


def _cut_short() -> InvalidRequestError:
    return InvalidRequestError("the body is shorter than announced")
