"""Asks the disk for the rows of a scan before they are read.

A scan of many runs (a run is one series in one segment) reads a little here and a little there. Through a
cold map that is one wait for the disk after the other; asked for together, the reads are under way at the
same time. A long run needs no more than its beginning: from there the system sees a sequential reader, and
reads ahead by itself.

What is asked for is advice. It changes no answer, and nothing here fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from omendb.jit import ahead, layout
from omendb.model import INT64_MIN
from omendb.storage.fs import is_resident, will_need

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scanned = tuple[NDArray[np.int64], NDArray[np.int64], bool, int, int]

RUNS_MIN = 64
"""Scans of fewer runs wait for the disk so seldom that asking is not worth it: it takes 50 us."""

_RANGES = 1_024  # asked for together, of each column
_PROBES = 16  # of them are looked at, to tell whether they are in memory already


class ReadAhead:
    """Asks for one batch of runs after the other, a batch ahead of the scan.

    Parameters
    ----------
    scanned : tuple
        The first arguments of a scan's kernel: sources, series, whether it is every series, start, end.
    after : int or None
        The series to begin with; the first one by default.
    rows : int
        Rows to ask for of each run; 0 for none.
    """

    __slots__ = ("_more", "_next", "_resume", "_rows", "_scanned", "_turn")

    def __init__(self, scanned: Scanned, after: int | None, rows: int) -> None:
        self._scanned = scanned
        self._rows = rows
        self._next = after or 0
        self._resume = after is not None
        self._turn = INT64_MIN
        self._more = rows > 0

    def reach(self, series_id: int | None) -> None:
        """Ask for what lies ahead of a scan that has come to a series (None: to nothing yet)."""
        while self._more and (series_id is None or series_id >= self._turn):
            ranges = self._list()
            if not _are_resident(self._scanned[0], ranges):
                _ask(self._scanned[0], ranges)
            if series_id is None:
                return

    def _list(self) -> NDArray[np.int64]:
        ranges = np.empty((_RANGES, ahead.RANGE_WIDTH), dtype=np.int64)
        self._turn = self._next if self._resume else INT64_MIN
        count, self._next, self._more = ahead.list_ahead(
            *self._scanned, self._next, self._resume, self._rows, ranges
        )
        self._resume = True
        return ranges[:count]


def _are_resident(sources: NDArray[np.int64], ranges: NDArray[np.int64]) -> bool:
    """Whether some ranges, looked at here and there, are all in memory."""
    for index, row, _ in ranges[:: max(len(ranges) // _PROBES, 1)].tolist():
        for column in (layout.TIMESTAMPS, layout.VALUES):
            if not is_resident(int(sources[index, column]) + 8 * row):
                return False
    return True


def _ask(sources: NDArray[np.int64], ranges: NDArray[np.int64]) -> None:
    for index, start, stop in ranges.tolist():
        for column in (layout.TIMESTAMPS, layout.VALUES):
            will_need(int(sources[index, column]) + 8 * start, 8 * (stop - start))
