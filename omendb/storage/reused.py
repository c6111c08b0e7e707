"""Memory that flushes, merges and memtables use again.

What the system hands out anew it clears first, page by page, and a virtual machine may have to ask its host
for it: that took more time than what was done with it. So the arrays of one flush are kept for the next,
until the store is idle for a while or memory is short (`Store.release_scratch`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Scratch:
    """Three columns for rows under way. For one thread at a time; `release` may be called from any."""

    __slots__ = ("_columns",)

    def __init__(self) -> None:
        self._columns: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]] | None = None

    def columns(self, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return series, timestamps and values of shape (rows,), with anything in them.

        They are those of the call before: nothing may refer to them any more.
        """
        columns = self._columns
        if columns is None or len(columns[0]) < rows:
            columns = np.empty(rows, np.int64), np.empty(rows, np.int64), np.empty(rows, np.float64)
            self._columns = columns
        series, timestamp, value = columns
        return series[:rows], timestamp[:rows], value[:rows]

    def release(self) -> None:
        """Let go of the memory; who uses it keeps it until then."""
        self._columns = None


class Spare:
    """The arena of a memtable that is gone, for the next one. Any thread may call it."""

    __slots__ = ("_arena",)

    def __init__(self) -> None:
        self._arena: list[NDArray[np.int64]] = []

    def put(self, arena: NDArray[np.int64]) -> None:
        """Keep an arena, the last one only."""
        self._arena = [arena]

    def take(self, words: int) -> NDArray[np.int64] | None:
        """Return the arena when it has so many words, and is not much larger."""
        try:
            arena = self._arena.pop()
        except IndexError:
            return None
        return arena if words <= len(arena) <= 4 * words else None

    def release(self) -> None:
        """Let go of the memory."""
        self._arena = []
