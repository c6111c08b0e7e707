"""A source: sorted rows, with the description of them that the kernels read (`omendb.jit.layout`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from omendb.jit import layout
from omendb.model import INT64_MAX, INT64_MIN

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Source:
    """Rows in strictly ascending order of ``(series_id, timestamp)``.

    Parameters
    ----------
    runs : ndarray of int64, shape (m, RUN_WIDTH), C-contiguous
        Run records, ascending by series; none of them is empty, together they cover all rows.
    timestamp : ndarray of int64, shape (n,), contiguous
        In the store's timestamp unit.
    value : ndarray of float64, shape (n,), contiguous
    row : ndarray of int64, shape (SOURCE_WIDTH,), optional
        The source row, complete, with the addresses of the other arrays. Without it the row is computed,
        for runs that have no models.
    cut : bool, optional
        True when these are the first rows of an answer and more follow.

    Notes
    -----
    `row` holds addresses: the arrays stay alive as long as this object does, which must be as long as a
    kernel may use the row. Nothing is written to after construction; any thread may read.
    """

    __slots__ = ("cut", "row", "runs", "timestamp", "value")

    def __init__(
        self,
        runs: NDArray[np.int64],
        timestamp: NDArray[np.int64],
        value: NDArray[np.float64],
        row: NDArray[np.int64] | None = None,
        cut: bool = False,
    ) -> None:
        self.runs = runs
        self.timestamp = timestamp
        self.value = value
        self.row = _describe(runs, timestamp, value) if row is None else row
        self.cut = cut

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.timestamp)

    @property
    def last_key(self) -> tuple[int, int]:
        """``(series_id, timestamp)`` of the last row: what the next page comes after."""
        run = self.runs[-1]
        return int(run[layout.RUN_SERIES]), int(run[layout.RUN_LAST])

    def series_column(self) -> NDArray[np.int64]:
        """Return the series id of every row, as int64 of shape (rows,)."""
        runs = self.runs
        lengths = runs[:, layout.RUN_STOP] - runs[:, layout.RUN_START]
        return np.repeat(runs[:, layout.RUN_SERIES], lengths)


def _describe(
    runs: NDArray[np.int64], timestamp: NDArray[np.int64], value: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the source row of runs without models."""
    for array in (runs, timestamp, value):
        assert array.flags.c_contiguous
    row = np.zeros(layout.SOURCE_WIDTH, np.int64)
    row[layout.ROWS] = len(timestamp)
    row[layout.TIMESTAMPS] = timestamp.ctypes.data
    row[layout.VALUES] = value.ctypes.data
    row[layout.RUN_COUNT] = len(runs)
    row[layout.RUNS] = runs.ctypes.data
    # The bounds of an empty source exclude every key, and need no special case where they are compared.
    row[layout.FIRST_SERIES] = runs[0, layout.RUN_SERIES] if len(runs) else INT64_MAX
    row[layout.LAST_SERIES] = runs[-1, layout.RUN_SERIES] if len(runs) else INT64_MIN
    row[layout.FIRST_TIMESTAMP] = runs[:, layout.RUN_FIRST].min(initial=INT64_MAX)
    row[layout.LAST_TIMESTAMP] = runs[:, layout.RUN_LAST].max(initial=INT64_MIN)
    return row
