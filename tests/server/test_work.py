from __future__ import annotations

import asyncio

import pytest

from omendb.errors import OverloadedError
from omendb.server.work import Turns


def test_turns_are_bounded_and_so_is_the_queue() -> None:
    async def go() -> None:
        turns = Turns("large queries", holders_max=2, waiting_max=3)
        for _ in range(2):
            assert not await turns.take()
        order: list[int] = []

        async def wait(number: int) -> None:
            assert await turns.take()
            order.append(number)

        waiters = [asyncio.create_task(wait(number)) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="too many large queries"):
            await turns.take()
        assert not order

        for _ in range(3):
            turns.give_back()
        await asyncio.gather(*waiters)

        assert order == [0, 1, 2]

    asyncio.run(go())


def test_a_cancelled_wait_leaves_its_place() -> None:
    async def go() -> None:
        turns = Turns("x", holders_max=1, waiting_max=1)
        await turns.take()
        waiter = asyncio.create_task(turns.take())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)

        again = asyncio.create_task(turns.take())
        await asyncio.sleep(0)
        turns.give_back()
        await again

    asyncio.run(go())
