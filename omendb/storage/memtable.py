"""The memtable: the points since the last flush, in memory, always sorted and without repeated keys.

Because a point is put where it belongs when it arrives, and a repeated key overwrites in place, the number
of rows is exact at any time and a read is a copy. The structure is described in `omendb.jit.blocks`.

Thread safety: hold `Memtable.lock` for `insert` and, while the memtable is active, for everything that
reads it. After `freeze` nothing changes any more and reads need no lock.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from omendb.jit import blocks, layout
from omendb.model import INT64_MAX, INT64_MIN
from omendb.storage.reused import Spare
from omendb.storage.source import Source

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from omendb.model import Batch
    from omendb.storage.reused import Scratch

# Measured from 32 to 1,024: larger blocks make late points slow (1,024: a quarter of the rows/s in random
# order), smaller ones make exports slow and directories long.
BLOCK_ROWS = 128
ARENA_WORDS_MIN = 32_768
CACHE_LINE_BYTES = 64


class Memtable:
    """Points in memory, sorted by ``(series_id, timestamp)``; the later write of a key wins.

    Parameters
    ----------
    series_capacity : int, optional
        Series that fit before the first growth, a power of two.
    arena_words : int, optional
        Words of 8 bytes for rows that fit before the first growth, at least 16.
    block_rows : int, optional
        Rows of a full block, a power of two from 4 to 32,768.
    spare : Spare, optional
        Gets the arena when nobody reads this memtable any more.
    arena : ndarray of int64, optional
        From there, instead of a new one.

    Attributes
    ----------
    lock : threading.Lock
        Protects the contents while the memtable is active (see the module). A leaf: nothing else is
        acquired while it is held.
    first_sequence, last_sequence : int
        Of the batches inserted; 0 before the first.
    frozen : bool

    Notes
    -----
    Measured (`perf/memtable.py`): 0.35 MB when new, 144 bytes for a series with one to four points, 17 to
    26 bytes in use for a row of long series, by order of arrival. Growth doubles an array and copies what is
    in use: 24 ms at 1,000,000 series.
    """

    __slots__ = (
        "_arena",
        "_counters",
        "_order",
        "_slots",
        "_spare",
        "_table",
        "first_sequence",
        "frozen",
        "last_sequence",
        "lock",
    )

    def __init__(
        self,
        *,
        series_capacity: int = 1_024,
        arena_words: int = ARENA_WORDS_MIN,
        block_rows: int = BLOCK_ROWS,
        spare: Spare | None = None,
        arena: NDArray[np.int64] | None = None,
    ) -> None:
        assert series_capacity > 0
        assert series_capacity & (series_capacity - 1) == 0
        assert arena_words >= 2 * blocks.ARENA_FIRST
        assert blocks.BLOCK_ROWS_MIN <= block_rows <= blocks.BLOCK_ROWS_MAX
        assert block_rows & (block_rows - 1) == 0
        self.lock = threading.Lock()
        self.frozen = False
        self.first_sequence = 0
        self.last_sequence = 0
        # Twice as many entries as slots: linear probing then takes 1.5 probes on average when full.
        self._table = np.zeros(2 * series_capacity, np.int64)
        self._slots = _aligned(series_capacity * blocks.SLOT_WIDTH).reshape(-1, blocks.SLOT_WIDTH)
        self._spare = Spare() if spare is None else spare
        self._arena = _aligned(arena_words) if arena is None else arena
        self._counters = np.zeros(blocks.COUNTER_WIDTH, np.int64)
        self._counters[blocks.COUNTER_ARENA] = blocks.ARENA_FIRST
        self._counters[blocks.COUNTER_FIRST] = INT64_MAX
        self._counters[blocks.COUNTER_LAST] = INT64_MIN
        self._counters[blocks.COUNTER_BLOCK_ROWS] = block_rows
        self._order = np.empty(0, np.int64)

    @property
    def rows(self) -> int:
        """Number of rows, which is the number of distinct keys."""
        return int(self._counters[blocks.COUNTER_ROWS])

    @property
    def series_count(self) -> int:
        """Number of series."""
        return int(self._counters[blocks.COUNTER_SLOTS])

    @property
    def is_empty(self) -> bool:
        """True when there are no rows."""
        return self.rows == 0

    @property
    def first_timestamp(self) -> int:
        """Lowest timestamp; `INT64_MAX` when there are no rows."""
        return int(self._counters[blocks.COUNTER_FIRST])

    @property
    def last_timestamp(self) -> int:
        """Highest timestamp; `INT64_MIN` when there are no rows."""
        return int(self._counters[blocks.COUNTER_LAST])

    @property
    def bytes(self) -> int:
        """Bytes in use. More are allocated, which are not resident as long as nothing was written to them."""
        slots = self.series_count * self._slots.strides[0]
        arena = int(self._counters[blocks.COUNTER_ARENA]) * self._arena.itemsize
        return self._table.nbytes + slots + arena + self._counters.nbytes + self._order.nbytes

    def __del__(self) -> None:
        # The last reference is gone, and with it everybody who could look into the arena.
        arena = getattr(self, "_arena", None)
        if arena is not None:
            self._spare.put(arena)

    @property
    def spare(self) -> Spare:
        """What its successors may begin with."""
        return self._spare

    def successor(self) -> Memtable:
        """Return an empty memtable with room for as much as is in this one.

        Growth copies what is there, and touches new memory every time.
        """
        words = max(int(self._counters[blocks.COUNTER_ARENA]), ARENA_WORDS_MIN)
        return Memtable(
            series_capacity=len(self._slots),
            # Blocks of long series come in steps, and the next million rows are cut a little differently.
            arena_words=words + words // 8,
            block_rows=int(self._counters[blocks.COUNTER_BLOCK_ROWS]),
            spare=self._spare,
            arena=self._spare.take(words),
        )

    def insert(self, batch: Batch, sequence: int, first_sequence: int | None = None) -> None:
        """Insert points; where a key is already there, or comes twice, the later value wins.

        Parameters
        ----------
        batch : Batch
        sequence : int
            Of the batch, at least that of the one before.
        first_sequence : int, optional
            When the batch joins several records of the log: the sequence of the first.

        Raises
        ------
        MemoryError
            When an array cannot grow. The memtable is consistent but holds a part of the batch; inserting
            the batch again completes it.

        Notes
        -----
        The caller holds `lock`, so that readers see all rows of a batch or none.
        """
        assert not self.frozen
        assert sequence >= self.last_sequence
        if not self.first_sequence:
            self.first_sequence = sequence if first_sequence is None else first_sequence
        self.last_sequence = sequence
        series_id = _read_only(batch.series_id)
        timestamp = _read_only(batch.timestamp)
        value = _read_only(batch.value)
        count = len(series_id)
        done = 0
        while True:
            done = blocks.insert_points(
                self._table,
                self._slots,
                self._arena,
                self._counters,
                series_id,
                timestamp,
                value,
                done,
            )
            if done == count:
                return
            if self._counters[blocks.COUNTER_NEED] == blocks.NEED_SLOTS:
                self._grow_slots()
            else:
                self._grow_arena()

    def freeze(self) -> None:
        """Make the memtable immutable. The caller holds `lock`; later reads do not need it."""
        self.frozen = True

    def read(
        self,
        series: NDArray[np.int64] | None,
        start: int,
        end: int,
        rows_max: int,
        after: tuple[int, int] | None = None,
        scratch: Scratch | None = None,
    ) -> Source | None:
        """Copy rows of a range, in ascending order of ``(series_id, timestamp)``.

        Parameters
        ----------
        series : ndarray of int64, shape (n,), or None
            Ids in ascending order without repeats; None for all series.
        start, end : int
            Timestamps, both inclusive.
        rows_max : int
            At least 1. When more rows match, the first `rows_max` are copied and ``Source.cut`` is set.
        after : (int, int), optional
            Only rows strictly after this ``(series_id, timestamp)``: ``Source.last_key`` of the page before.
        scratch : Scratch, optional
            Gets the rows; else they have arrays of their own.

        Returns
        -------
        Source or None
            Rows of their own, which later inserts do not touch; None when no row matches.

        Notes
        -----
        O(series asked for + result): two kernel calls, measured 3 us for 100 rows of one series. All
        series are visited in sorted order, which is kept until a new series arrives.
        """
        assert rows_max > 0
        after_series, after_timestamp = (INT64_MIN, INT64_MIN) if after is None else after
        wanted_are_slots = False
        if series is None:
            wanted, wanted_are_slots = self._sorted_slots(), True
        elif len(series) > 4 * self.series_count:
            # Visit what is there, not what is asked for: a list of all series of the store meets a
            # memtable that has only some.
            wanted, wanted_are_slots = self._sorted_slots_of(series), True
        else:
            wanted = _read_only(series)
        runs = np.empty((min(len(wanted), rows_max), layout.RUN_WIDTH), np.int64)
        row = np.zeros(layout.SOURCE_WIDTH, np.int64)
        cut = blocks.select_rows(
            self._table,
            self._slots,
            self._arena,
            wanted,
            wanted_are_slots,
            start,
            end,
            after_series,
            after_timestamp,
            rows_max,
            runs,
            row,
        )
        rows = int(row[layout.ROWS])
        if rows == 0:
            return None
        run_count = int(row[layout.RUN_COUNT])
        if run_count < len(runs):
            # A copy where a view would keep much more than it shows.
            runs = runs[:run_count] if 4 * run_count >= len(runs) else runs[:run_count].copy()
        if scratch is None:
            timestamp, value = np.empty(rows, np.int64), np.empty(rows, np.float64)
        else:
            _, timestamp, value = scratch.columns(rows)
        blocks.copy_rows(self._slots, self._arena, runs, timestamp, value, row)
        return Source(runs, timestamp, value, row, cut)

    def export(self, scratch: Scratch | None = None) -> Source:
        """Copy all rows, for a flush; a source without rows when there are none. See `read`."""
        source = None
        if not self.is_empty:
            source = self.read(None, INT64_MIN, INT64_MAX, self.rows, scratch=scratch)
        if source is None:
            runs = np.empty((0, layout.RUN_WIDTH), np.int64)
            return Source(runs, np.empty(0, np.int64), np.empty(0, np.float64))
        assert source.rows == self.rows
        assert not source.cut
        return source

    def series_ids(self) -> NDArray[np.int64]:
        """Copy the ids of all series, in no order, shape (series_count,); the caller holds `lock`."""
        return self._slots[: self.series_count, blocks.SLOT_SERIES].copy()

    def _sorted_slots(self) -> NDArray[np.int64]:
        """Return the slots in ascending order of their series' ids.

        Kept until a new series arrives. Frozen, two threads may compute it at once, and store the same.
        """
        order = self._order
        count = self.series_count
        if len(order) < count:
            ids = self._slots[:count, blocks.SLOT_SERIES]
            arrived = np.arange(len(order), count)
            arrived = arrived[np.argsort(ids[arrived])]
            if len(order):
                # A stable sort merges the two sorted parts in linear time.
                order = np.concatenate((order, arrived))
                order = order[np.argsort(ids[order], kind="stable")]
            else:
                order = arrived
            order.flags.writeable = False
            self._order = order
        return _read_only(order)

    def _sorted_slots_of(self, series: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of the sorted slots whose series are in `series`."""
        order = self._sorted_slots()
        ids = self._slots[order, blocks.SLOT_SERIES]
        at = np.minimum(np.searchsorted(series, ids), len(series) - 1)
        return _read_only(order[series[at] == ids])

    def _grow_slots(self) -> None:
        """Double the number of series that fit."""
        count = self.series_count
        assert len(self._table) < blocks.TABLE_SIZE_MAX
        slots = _aligned(2 * self._slots.size).reshape(-1, blocks.SLOT_WIDTH)
        slots[:count] = self._slots[:count]
        table = np.zeros(2 * len(self._table), np.int64)
        blocks.rehash(self._table, table)
        self._slots = slots
        self._table = table

    def _grow_arena(self) -> None:
        """Double the arena. The part that is not in use is not touched, and so not resident."""
        used = int(self._counters[blocks.COUNTER_ARENA])
        arena = _aligned(2 * len(self._arena))
        arena[:used] = self._arena[:used]
        self._arena = arena


def _aligned(words: int) -> NDArray[np.int64]:
    """Allocate `words` int64s that begin at a cache line, so that slots and blocks do not straddle two."""
    spare = CACHE_LINE_BYTES // 8
    array = np.empty(words + spare, np.int64)
    first = -array.ctypes.data % CACHE_LINE_BYTES // 8
    return array[first : first + words]


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous, read-only view: Numba compiles a kernel once for each kind of array."""
    array = np.ascontiguousarray(array)
    if array.flags.writeable:
        array = array.view()
        array.setflags(write=False)
    return array
