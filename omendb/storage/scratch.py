"""Decodes what one part of a large scan touches into room of its thread, used again for the next part.

A scan of more rows than the cache of decoded blocks holds would push out of it what short queries use, and
gain nothing: each block is asked for once. It would pay for fresh pages of memory as well, twice: when they
are filled, and when they are given back. So the parts of such a scan do not go through the cache. Here the
same pages are filled again and again, and stay in the processor's caches.

The kernels see sources as ever: the addresses of the columns are shifted, so that the rows that a part may
touch lie in the room, and its marks say which of their blocks are decoded.

Thread safety: a `Room` belongs to one thread at a time; `borrow` sees to that.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import numpy as np

from omendb.jit import layout
from omendb.storage import format  # noqa: A004
from omendb.storage.fs import reserve_memory
from omendb.storage.segment import CompressedSegment

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from numpy.typing import NDArray

    from omendb.storage.segment import Segment

ROOM_BLOCKS = 64
"""Blocks that a thread has room for: 8 MiB. A part of a scan touches half as many rows, of all sources
together, unless much of a run is left out."""

_BLOCK_ROWS = 1 << format.BLOCK_SHIFT
_RUN_BYTES = 8 * layout.RUN_WIDTH

_local = threading.local()


class Room:
    """Memory for decoded blocks, and what is in it.

    Parameters
    ----------
    blocks : int
    """

    def __init__(self, blocks: int) -> None:
        memory = reserve_memory(16 * blocks * _BLOCK_ROWS)
        half = 8 * blocks * _BLOCK_ROWS
        self.blocks = blocks
        self._timestamp: NDArray[np.int64] = memory[:half].view(np.int64)
        self._value: NDArray[np.float64] = memory[half:].view(np.float64)
        self._verified = np.zeros(blocks, np.uint8)
        # By source: the segment, and what to add to one of its blocks for the place here.
        self._places: dict[int, tuple[CompressedSegment, int]] = {}

    def lay_out(
        self, segments: Sequence[Segment], whole: NDArray[np.int64], table: NDArray[np.int64]
    ) -> bool:
        """Point the sources of a part at this room.

        Parameters
        ----------
        segments : sequence of Segment
            Of the first sources of the tables.
        whole : ndarray of int64, shape (k, SOURCE_WIDTH)
            The sources of the scan.
        table : ndarray of int64, shape (k, SOURCE_WIDTH)
            Those of the part (`omendb.jit.split.narrow_sources`). Changed.

        Returns
        -------
        bool
            False, and nothing is changed, when there is not room enough.
        """
        places: dict[int, tuple[CompressedSegment, int]] = {}
        used = 0
        for index, segment in enumerate(segments):
            count = int(table[index, layout.RUN_COUNT])
            if not isinstance(segment, CompressedSegment) or count == 0:
                continue
            first_run = int(table[index, layout.RUNS] - whole[index, layout.RUNS]) // _RUN_BYTES
            runs = segment.index.runs
            start = int(runs[first_run, layout.RUN_START])
            stop = int(runs[first_run + count - 1, layout.RUN_STOP])
            # A block more on each side: kernels may look whether a neighbour is decoded.
            first = max((start >> format.BLOCK_SHIFT) - 1, 0)
            last = min((stop - 1 >> format.BLOCK_SHIFT) + 1, (segment.rows - 1) >> format.BLOCK_SHIFT)
            places[index] = segment, used - first
            used += last - first + 1
        if used > self.blocks:
            return False
        self._verified[:] = 0
        self._places = places
        for index, (_, place) in places.items():
            shift = 8 * _BLOCK_ROWS * place
            table[index, layout.TIMESTAMPS] = self._timestamp.ctypes.data + shift
            table[index, layout.VALUES] = self._value.ctypes.data + shift
            table[index, layout.VERIFIED] = self._verified.ctypes.data + place
        return True

    def verify(self, source: int, start: int, stop: int) -> bool:
        """Decode the blocks that hold some rows of a source; return whether it is one of this room's.

        Raises
        ------
        CorruptionError
        """
        found = self._places.get(source)
        if found is None:
            return False
        segment, place = found
        for block in range(start >> format.BLOCK_SHIFT, ((stop - 1) >> format.BLOCK_SHIFT) + 1):
            if self._verified[block + place]:
                continue
            first = (block + place) << format.BLOCK_SHIFT
            rows = slice(first, first + min(segment.rows - (block << format.BLOCK_SHIFT), _BLOCK_ROWS))
            segment.decode_block(block, self._timestamp[rows], self._value[rows])
            self._verified[block + place] = 1
        return True

    def forget(self) -> None:
        """Let go of the segments."""
        self._places = {}


@contextlib.contextmanager
def borrow() -> Generator[Room]:
    """Lend the calling thread's room; another one while it is lent already."""
    room: Room = _local.__dict__.pop("room", None) or Room(ROOM_BLOCKS)
    try:
        yield room
    finally:
        room.forget()
        _local.room = room
