from __future__ import annotations

import asyncio
import signal
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
