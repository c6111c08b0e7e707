"""Work that does not fit the event loop: threads for it, and a bound on how much of it waits.

Queries that may touch many rows, and the parsing of large bodies, run in threads: kernels release the
GIL. What is beyond the bounds is refused with 503 at once, because a queue without end helps nobody.

Thread safety: everything here but `Work.run_decode` belongs to the event loop's thread, and starts work in
others.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from omendb.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

QUERY_THREADS = 4
QUERIES_MAX = 16
"""Large queries under way at once, streams to slow clients included; each holds a few MB."""
QUERIES_WAITING_MAX = 64
DECODE_THREADS = 2
ADMIN_WAITING_MAX = 8


class Turns:
    """Lets a bounded number of holders in, in order, and a bounded number wait.

    Parameters
    ----------
    name : str
        Of what is counted, for the error.
    holders_max, waiting_max : int
    """

    def __init__(self, name: str, holders_max: int, waiting_max: int) -> None:
        self._name = name
        self._free = asyncio.Semaphore(holders_max)
        self._waiting = 0
        self._waiting_max = waiting_max

    async def take(self) -> bool:
        """Wait for a turn.

        Returns
        -------
        bool
            Whether others were before it.

        Raises
        ------
        OverloadedError
            When too many wait already.
        """
        if self._waiting >= self._waiting_max:
            raise OverloadedError(f"too many {self._name} at once")
        waits = self._free.locked()
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        return waits

    def give_back(self) -> None:
        """End a turn."""
        self._free.release()


class Work:
    """The threads of one server."""

    def __init__(self) -> None:
        self.queries = Turns("large queries", QUERIES_MAX, QUERIES_WAITING_MAX)
        # One holder: two flushes, refits or collections at once would only get in each other's way.
        self.admin = Turns("administrative calls", 1, ADMIN_WAITING_MAX)
        # Of their own: a backup takes milliseconds, and must not wait for a collection that takes minutes.
        self.backups = Turns("backups", 1, ADMIN_WAITING_MAX)
        self._query_pool = ThreadPoolExecutor(QUERY_THREADS, "omendb-query")
        # Inserts do not wait behind scans.
        self._decode_pool = ThreadPoolExecutor(DECODE_THREADS, "omendb-decode")
        self._admin_pool = ThreadPoolExecutor(1, "omendb-admin")
        self._backup_pool = ThreadPoolExecutor(1, "omendb-backup")

    def start_query(self, function: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run a part of a query in a thread."""
        return asyncio.get_running_loop().run_in_executor(self._query_pool, function)

    def start_decode(self, function: Callable[[bytes], Result], body: bytes) -> asyncio.Future[Result]:
        """Read a body in a thread."""
        return asyncio.get_running_loop().run_in_executor(self._decode_pool, function, body)

    def run_decode(self, function: Callable[[], None]) -> None:
        """Run the whole of an insert in a thread; from any thread. The function must not raise."""
        self._decode_pool.submit(function)

    async def run_admin(self, function: Callable[[], Result]) -> Result:
        """Run an administrative call in a thread, after those before it.

        Raises
        ------
        OverloadedError
            When too many wait already.
        """
        await self.admin.take()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._admin_pool, function)
        finally:
            self.admin.give_back()

    async def run_backup(self, function: Callable[[], Result]) -> Result:
        """Run a backup in a thread, after those before it.

        Raises
        ------
        OverloadedError
            When too many wait already.
        """
        await self.backups.take()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._backup_pool, function)
        finally:
            self.backups.give_back()

    def close(self) -> None:
        """Let go of the threads; work under way ends by itself."""
        for pool in (self._query_pool, self._decode_pool, self._admin_pool, self._backup_pool):
            pool.shutdown(wait=False, cancel_futures=True)
