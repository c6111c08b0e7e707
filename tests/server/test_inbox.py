from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from omendb.server.inbox import Inbox

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class CountingLoop:
    """Counts wake-ups, and runs what it was woken for when asked to."""

    def __init__(self) -> None:
        self.ready: list[Callable[[], None]] = []
        self.wake_ups = 0

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self.wake_ups += 1
        self.ready.append(callback)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.ready.append(callback)

    def turn(self) -> None:
        ready, self.ready = self.ready, []
        for callback in ready:
            callback()


def test_many_messages_wake_the_loop_once() -> None:
    loop = CountingLoop()
    inbox = Inbox(loop)  # type: ignore[arg-type]
    seen: list[Any] = []
    for number in range(100):
        inbox.put(seen.append, number)

    loop.turn()

    assert seen == list(range(100))
    assert loop.wake_ups == 1
    assert not loop.ready


def test_the_next_message_wakes_it_again() -> None:
    loop = CountingLoop()
    inbox = Inbox(loop)  # type: ignore[arg-type]
    seen: list[Any] = []
    for number in range(3):
        inbox.put(seen.append, number)
        loop.turn()

    assert seen == [0, 1, 2]
    assert loop.wake_ups == 3


def test_messages_that_breed_let_others_have_a_turn() -> None:
    loop = CountingLoop()
    inbox = Inbox(loop)  # type: ignore[arg-type]
    seen: list[int] = []

    def breed(number: int) -> None:
        seen.append(number)
        if number < 5:
            inbox.put(breed, number + 1)

    inbox.put(breed, 0)
    loop.turn()

    assert seen == [0]
    assert len(loop.ready) == 1
    while loop.ready:
        loop.turn()
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_failure_is_logged_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    loop = CountingLoop()
    inbox = Inbox(loop)  # type: ignore[arg-type]
    seen: list[Any] = []
    inbox.put(lambda number: 1 / number, 0)
    inbox.put(seen.append, 1)

    loop.turn()

    assert seen == [1]
    assert "ZeroDivisionError" in caplog.text


def test_nothing_is_lost_between_threads() -> None:
    per_thread, thread_count = 5_000, 4

    async def collect() -> list[tuple[int, int]]:
        loop = asyncio.get_running_loop()
        inbox = Inbox(loop)
        seen: list[tuple[int, int]] = []
        complete = asyncio.Event()

        def take(message: tuple[int, int]) -> None:
            seen.append(message)
            if len(seen) == per_thread * thread_count:
                complete.set()

        def send(thread: int) -> None:
            for number in range(per_thread):
                inbox.put(take, (thread, number))

        threads = [threading.Thread(target=send, args=(n,)) for n in range(thread_count)]
        for thread in threads:
            thread.start()
        await complete.wait()
        for thread in threads:
            thread.join()
        return seen

    seen = asyncio.run(collect())

    assert sorted(seen) == [(t, n) for t in range(thread_count) for n in range(per_thread)]
    for thread in range(thread_count):
        assert [n for t, n in seen if t == thread] == list(range(per_thread))
