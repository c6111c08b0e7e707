"""Threads for the parts of heavy queries.

A heavy query is cut into parts that are worked on in a few threads, one a core, shared by all queries: each
has only a few parts waiting at a time, so that several of them take turns, and none holds more than these
in memory. Kernels release the GIL, so the parts run beside the server's own thread.

Thread safety: any thread may use the workers, but a part must not wait for another part.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from omendb.errors import ClosedError
from omendb.storage.fs import lower_priority, processor_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS_MAX = 16

NICENESS = 10
"""Of the threads: short queries and inserts go first where processors are short, and where none are it costs
nothing. `perf/fairness.py` measures what it does for them."""


class Workers:
    """A pool of threads.

    Parameters
    ----------
    threads : int, optional
        By default as many as there are processors to run on, and at most `THREADS_MAX`.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads: int = threads or min(processor_count(), THREADS_MAX)
        self._pool = ThreadPoolExecutor(
            self.threads, "omendb-part", initializer=lower_priority, initargs=(NICENESS,)
        )

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield ``function(item)`` for each item, in order.

        Parameters
        ----------
        function : callable
            Runs in the threads; what it raises is raised here, in its turn.
        items : iterable
            Is taken from in the caller's thread, only a few items ahead of what was yielded.

        Raises
        ------
        ClosedError
            `close` was called.

        Notes
        -----
        When the iterator is dropped, parts that have not begun are given up.
        """
        ahead = self.threads + 1
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        try:
            return self._pool.submit(function, item)
        except RuntimeError as error:
            raise ClosedError("the store is closed") from error

    def close(self) -> None:
        """Let go of the threads; parts under way end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
