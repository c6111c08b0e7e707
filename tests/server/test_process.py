from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from omendb.server import process

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in process.STOP_SIGNALS}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_is_repeated_before_it_is_answered_is_one_signal() -> None:
    told: list[signal.Signals] = []

    async def run() -> None:
        process.call_on_signals(asyncio.get_running_loop(), told.append)
        for _ in range(1_000):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(run())

    assert told == [signal.SIGTERM, signal.SIGINT]


@pytest.mark.usefixtures("handlers")
def test_a_signal_after_an_answered_one_is_told_too() -> None:
    told: list[signal.Signals] = []

    async def run() -> None:
        process.call_on_signals(asyncio.get_running_loop(), told.append)
        for expected in (1, 2, 3):
            signal.raise_signal(signal.SIGTERM)
            while len(told) < expected:
                await asyncio.sleep(0)

    asyncio.run(run())

    assert told == [signal.SIGTERM] * 3


COUNT_MAPPED = """
import ctypes
from omendb.server.process import keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(str(index), ctypes.c_size_t) for index in range(10)]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = (ctypes.c_size_t,)

def mapped(size):
    before = getattr(libc.mallinfo2(), "3")  # blocks that are maps of their own
    assert libc.malloc(size)
    return getattr(libc.mallinfo2(), "3") - before

before = mapped(500_000)
keep_freed_memory()
print(before, mapped(500_000), mapped(5_000_000))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc 2.33 or later")
def test_pieces_of_answers_are_no_maps_of_their_own_and_larger_blocks_are() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT_MAPPED], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["1", "0", "1"]


def test_threads_are_batch_work_until_they_say_otherwise() -> None:
    found: list[int] = []

    def run() -> None:
        found.append(os.sched_getscheduler(0))
        process.be_interactive()
        found.append(os.sched_getscheduler(0))

    before = os.sched_getscheduler(0)
    with process.starting_batch_threads():
        thread = threading.Thread(target=run)
        thread.start()
    thread.join()

    assert found == [os.SCHED_BATCH, os.SCHED_OTHER]
    assert os.sched_getscheduler(0) == before


def test_a_sandbox_may_forbid_it(monkeypatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)

    with process.starting_batch_threads():
        pass
