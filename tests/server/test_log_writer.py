"""Lines reach the reader whole and in order, or are dropped and counted; nobody waits for a reader."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from omendb.metrics import Counter
from omendb.server.log_writer import LineWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

PIPE_BYTES = 4096


class Pipe:
    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def read_all(self) -> str:
        """Close the writing end; return what was written."""
        os.close(self.writing)
        self.writing = -1
        return self.read_rest()

    def read_rest(self) -> str:
        data = b""
        while piece := os.read(self.reading, 65_536):
            data += piece
        return data.decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for descriptor in (made.reading, made.writing):
        if descriptor >= 0:
            os.close(descriptor)


@pytest.fixture
def counters() -> tuple[Counter, Counter]:
    return Counter("written_total", "Lines."), Counter("dropped_total", "Lines.")


def fill(descriptor: int) -> int:
    """Fill a pipe that nobody reads; return how many bytes it took."""
    os.set_blocking(descriptor, False)
    count = 0
    try:
        while True:
            count += os.write(descriptor, b"x" * PIPE_BYTES)
    except BlockingIOError:
        os.set_blocking(descriptor, True)
        return count


def test_lines_come_whole_and_in_the_order_of_each_thread(pipe, counters) -> None:
    writer = LineWriter(pipe.writing, *counters)
    writer.start()
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_rest()))
    reader.start()

    def put(name: int) -> None:
        for number in range(5_000):
            writer.put(f"{name} {number} {'y' * (number % 50)}\n", at_once=number % 997 == 0)

    threads = [threading.Thread(target=put, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.close(60)
    os.close(pipe.writing)
    pipe.writing = -1
    reader.join()

    lines = [line.split(" ") for line in got[0].splitlines()]
    assert len(lines) == 20_000
    assert all(text == "y" * (int(number) % 50) for _, number, text in lines)
    for name in range(4):
        assert [int(number) for who, number, _ in lines if who == str(name)] == list(range(5_000))
    assert counters[0].value == 20_000
    assert counters[1].value == 0


def test_a_reader_that_does_not_read_costs_lines_but_blocks_nobody(pipe, counters) -> None:
    filled = fill(pipe.writing)
    writer = LineWriter(
        pipe.writing, *counters, tell_dropped=lambda count: f"dropped {count}\n", lines_max=10
    )
    writer.start()

    writer.put("first\n", at_once=True)  # the writer takes it, and hangs in its system call
    while writer._lines:
        threading.Event().wait(0.001)
    for number in range(25):  # ten wait, fifteen are dropped
        writer.put(f"{number}\n")
    assert not writer.close(0.01)  # gives up on the reader
    assert counters[1].value == 15

    data = b""
    while len(data) < filled or b"dropped 15\n" not in data:
        data += os.read(pipe.reading, 65_536)
    assert writer.close(60)
    expected = ["first", *map(str, range(10)), "dropped 15"]
    assert data[filled:].decode().splitlines() == expected
    assert counters[0].value == 12


def test_a_non_blocking_descriptor_is_waited_for(pipe, counters) -> None:
    filled = fill(pipe.writing)
    os.set_blocking(pipe.writing, False)
    writer = LineWriter(pipe.writing, *counters)
    writer.start()
    writer.put("late\n", at_once=True)

    data = b""
    while len(data) < filled + 5:
        data += os.read(pipe.reading, 65_536)

    assert writer.close(60)
    assert data[filled:] == b"late\n"


def test_a_reader_that_is_gone_is_survived(pipe, counters) -> None:
    os.close(pipe.reading)
    pipe.reading = -1
    writer = LineWriter(pipe.writing, *counters)
    writer.start()
    writer.put("nobody reads this\n")

    assert writer.close(60)

    assert counters[0].value == 0
    assert counters[1].value == 1


def test_lines_can_be_queued_as_their_parts(pipe, counters) -> None:
    made_in: set[str] = set()

    def make(entry: int) -> str | None:
        made_in.add(threading.current_thread().name)
        return None if entry % 2 else f"{entry}\n"

    writer = LineWriter(pipe.writing, *counters, make=make)
    writer.start()
    for number in range(2_000):
        writer.put(number if number % 10 else f"text {number}\n")

    assert writer.close(60)

    expected = [f"text {n}" if n % 10 == 0 else str(n) for n in range(0, 2_000, 2)]
    assert pipe.read_all().splitlines() == expected
    assert made_in == {"omendb-log"}
    assert counters[0].value == 1_000


def test_closing_writes_what_waits(pipe, counters) -> None:
    writer = LineWriter(pipe.writing, *counters)
    writer.start()
    for number in range(100):
        writer.put(f"{number}\n")

    assert writer.close(60)
    assert writer.close(60)

    assert pipe.read_all().splitlines() == list(map(str, range(100)))


def test_text_that_is_no_unicode_is_written_as_escapes(pipe, counters) -> None:
    writer = LineWriter(pipe.writing, *counters)
    writer.start()
    writer.put("caf\u00e9 \udc80\n")

    assert writer.close(60)

    assert pipe.read_all() == "caf\u00e9 \\udc80\n"


def test_a_writer_that_never_began_can_be_closed(pipe, counters) -> None:
    assert not LineWriter(pipe.writing, *counters).close()
