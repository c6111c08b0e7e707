"""A snapshot: one consistent view of the store, read by a single attribute access.

Immutable: a change of the store is a new snapshot, and the old one stays valid, with its files mapped, for
as long as a query holds it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from omendb.jit import layout
from omendb.storage.decoded_cache import NO_READING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from omendb.storage.decoded_cache import DecodedCache, NoReading, Reading
    from omendb.storage.memtable import Memtable
    from omendb.storage.segment import Segment


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Segments and memtables, oldest first: on equal keys the later one wins.

    Attributes
    ----------
    segments : tuple of Segment
        In ascending order of their last sequence.
    frozen : tuple of Memtable
        Waiting to be flushed.
    active : Memtable
        Takes inserts; readers hold its lock.
    table : ndarray of int64, shape (segments, layout.SOURCE_WIDTH)
        The segments as kernels see them.
    cache : DecodedCache or None
        Of its compressed segments; None when there are none.
    """

    segments: tuple[Segment, ...]
    frozen: tuple[Memtable, ...]
    active: Memtable
    table: NDArray[np.int64] = field(init=False)
    cache: DecodedCache | None = field(init=False)

    def __post_init__(self) -> None:
        table = np.zeros((len(self.segments), layout.SOURCE_WIDTH), dtype=np.int64)
        for position, segment in enumerate(self.segments):
            table[position] = segment.row
        object.__setattr__(self, "table", table)
        caches = (segment.cache for segment in self.segments if segment.cache is not None)
        object.__setattr__(self, "cache", next(caches, None))

    def reading(self) -> Reading | NoReading:
        """Return what kernels that read the segments run in: a context manager."""
        return NO_READING if self.cache is None else self.cache.reading()

    @property
    def memtables(self) -> tuple[Memtable, ...]:
        """All memtables, oldest first."""
        return (*self.frozen, self.active)

    @property
    def segment_rows(self) -> int:
        """Rows in segments, superseded ones included."""
        return sum(segment.rows for segment in self.segments)

    @property
    def memtable_rows(self) -> int:
        """Rows in memtables."""
        return sum(memtable.rows for memtable in self.memtables)
