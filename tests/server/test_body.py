from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from omendb.config import Settings
from omendb.errors import OverloadedError, PayloadTooLargeError
from omendb.server.body import HELD_BYTES_MAX, SMALL_BYTES, Bodies, Deadlines

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """A loop whose time is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_soon_threadsafe(self, callback: Callable[[float], None], argument: float) -> None:
        callback(argument)

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        self.timers.append((when, callback))

    def advance(self, to: float) -> None:
        self.now = to
        due = [timer for timer in self.timers if timer[0] <= to]
        self.timers = [timer for timer in self.timers if timer[0] > to]
        for _, callback in due:
            callback()


class Entry:
    def __init__(self) -> None:
        self.expired = False

    def expire(self) -> None:
        self.expired = True


def test_what_is_late_expires_and_nothing_else() -> None:
    clock = Clock()
    deadlines = Deadlines(clock)  # type: ignore[arg-type]
    late, done, later = Entry(), Entry(), Entry()
    deadlines.add(late, 10)
    deadlines.add(done, 10)
    clock.now = 4
    deadlines.add(later, 10)
    deadlines.remove(done)

    clock.advance(10)

    assert (late.expired, done.expired, later.expired) == (True, False, False)
    clock.advance(14)
    assert later.expired
    assert not clock.timers


def test_one_timer_serves_many_reads() -> None:
    clock = Clock()
    deadlines = Deadlines(clock)  # type: ignore[arg-type]
    for _ in range(1000):
        entry = Entry()
        deadlines.add(entry, 10)
        deadlines.remove(entry)

    assert len(clock.timers) == 1
    clock.advance(10)
    assert not clock.timers
    deadlines.add(Entry(), 10)
    assert len(clock.timers) == 1


@pytest.fixture
def bodies() -> Bodies:
    settings = Settings(max_body_bytes=HELD_BYTES_MAX // 2)
    return Bodies(Clock(), lambda: settings)  # type: ignore[arg-type]


def test_a_body_beyond_the_limit_is_refused(bodies: Bodies) -> None:
    with pytest.raises(PayloadTooLargeError):
        bodies.hold(0, HELD_BYTES_MAX // 2 + 1)
    assert bodies.hold(0, HELD_BYTES_MAX // 2)


def test_large_bodies_are_bounded_together(bodies: Bodies) -> None:
    sizes = [bodies.hold(0, HELD_BYTES_MAX // 2) for _ in range(2)]
    with pytest.raises(OverloadedError):
        bodies.hold(0, SMALL_BYTES + 1)
    bodies.hold(0, SMALL_BYTES)

    bodies.release(sizes[0])

    bodies.hold(0, SMALL_BYTES + 1)


def test_growing_bodies_are_counted_once(bodies: Bodies) -> None:
    for _ in range(1000):
        size = 0
        for _ in range(40):
            size = bodies.hold(size, 10_000)
        bodies.release(size)

    assert bodies.hold(0, HELD_BYTES_MAX // 2)
    assert bodies.hold(0, HELD_BYTES_MAX // 2)
