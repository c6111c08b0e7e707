"""The way from other threads into the event loop: many messages, few wake-ups.

`loop.call_soon_threadsafe` costs a handle, a context and a system call for each message, and the system
call lets go of the GIL in the middle of the sender's work. The committer answers hundreds of inserts at
once and granian's thread hands over tens of thousands of requests a second: here the first message wakes
the loop and those that follow until it runs ride along.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

logger = logging.getLogger(__name__)


class Inbox:
    """Messages to the thread of an event loop: a function and its argument.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    """

    __slots__ = ("_loop", "_messages", "_woken")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._messages: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._woken = False

    def put(self, function: Callable[[Any], object], argument: object) -> None:
        """Have `function` called with `argument` in the loop's thread; from any thread, never blocks.

        Messages of one thread are handled in their order. What `function` raises is logged.

        Raises
        ------
        RuntimeError
            When the loop was closed.
        """
        self._messages.append((function, argument))
        # Append first, then look: the loop clears the flag before it empties the queue, so a message is
        # either seen by the running drain or wakes the next one.
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._woken = False
        messages = self._messages
        # Only what is there now: messages that keep coming must not starve timers and streams.
        for _ in range(len(messages)):
            function, argument = messages.popleft()
            try:
                function(argument)
            except Exception:
                logger.exception("a message to the event loop failed")
        if messages and not self._woken:
            self._woken = True
            self._loop.call_soon(self._drain)

    # What granian asks of an event loop: to call back when a body was read. Given the inbox as its loop,
    # it skips the real one's bookkeeping for every request.

    def call_soon_threadsafe(
        self, callback: Callable[[Any], object], argument: object, *, context: object = None
    ) -> None:
        """Do what `put` does: the part of an event loop that granian's futures use."""
        self.put(callback, argument)

    call_soon = call_soon_threadsafe
