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
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from omendb.storage.segment import Segment

    Scanned = tuple[NDArray[np.int64], NDArray[np.int64], bool, int, int]

RUNS_MIN = 64
"""Scans of fewer runs wait for the disk so seldom that asking is not worth it."""

_RANGES = 1_024  # asked for together, of each column
_LOOKS = 3  # places of a scan that tell whether it is in memory
_RANGES_OF_LOOK = 4


def is_cold(segments: Sequence[Segment], scanned: Scanned) -> bool:
    """Whether a scan will have to wait for the disk, as far as a few looks tell; takes 20 us.

    Parameters
    ----------
    segments : sequence of Segment
        Not empty.
    scanned : tuple
        As for `ReadAhead`.
    """
    sources, series, every_series, _, _ = scanned
    if every_series:
        series = segments[len(segments) // 2].index.runs[:, layout.RUN_SERIES]
    ranges = np.empty((_RANGES_OF_LOOK, ahead.RANGE_WIDTH), dtype=np.int64)
    for look in range(_LOOKS):
        first = int(series[look * len(series) // _LOOKS])
        count, _, _ = ahead.list_ahead(*scanned, first, True, 1, ranges)
        for index, row, _ in ranges[:count:_RANGES_OF_LOOK].tolist():
            if sources[index, layout.ON_DEMAND]:
                continue
            for column in (layout.TIMESTAMPS, layout.VALUES):
                if not is_resident(int(sources[index, column]) + 8 * row):
                    return True
    return False


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
        if not self._more or (series_id is not None and series_id < self._turn):
            return
        if series_id is not None and self._resume:
            self._next = max(self._next, series_id)  # what has been passed is not asked for any more
        self._ask()
        self._turn = self._next
        if self._more and series_id is not None:
            self._ask()

    def _ask(self) -> None:
        ranges = np.empty((_RANGES, ahead.RANGE_WIDTH), dtype=np.int64)
        count, self._next, self._more = ahead.list_ahead(
            *self._scanned, self._next, self._resume, self._rows, ranges
        )
        self._resume = True
        sources = self._scanned[0]
        for index, start, stop in ranges[:count].tolist():
            if sources[index, layout.ON_DEMAND]:
                continue  # what is at these addresses comes from no file
            for column in (layout.TIMESTAMPS, layout.VALUES):
                will_need(int(sources[index, column]) + 8 * start, 8 * (stop - start))
