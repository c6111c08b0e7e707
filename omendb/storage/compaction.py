"""Compaction: which segments to merge, and merging them.

Timestamps are cut into partitions; a segment lies in one. Inside a partition, segments that were written
together form a *generation*: they share their sequences and no key. A flush makes a generation of one
segment or few; compaction merges generations that are adjacent in age, so that few remain (universal, or
tiered, compaction as in RocksDB), and cuts a partition in two when it has grown too large. The boundaries
come from the data, so that any timestamp unit will do.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from omendb.jit import layout, merge
from omendb.model import INT64_MAX, INT64_MIN, Columns
from omendb.storage.decoded_cache import NO_READING
from omendb.storage.reused import Scratch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from omendb.storage.decoded_cache import DecodedCache
    from omendb.storage.segment import Segment

GENERATIONS_MAX = 4
"""Generations that a partition may have before some are merged: bounds how many places a read looks at."""

PARTITION_ROWS = 16_000_000
"""Rows of a full partition; one is cut when it holds half as many again."""

MERGE_ROWS = 131_072
"""Rows that a merge of compressed segments asks for at a time."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Segments of one partition that were written together.

    Attributes
    ----------
    segments : tuple of Segment
        Without a common key.
    """

    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        """Rows, superseded ones included."""
        return sum(segment.rows for segment in self.segments)

    @property
    def last_sequence(self) -> int:
        """The WAL record up to which it is the newest."""
        return self.segments[0].entry.last_sequence


@dataclass(frozen=True, slots=True)
class Plan:
    """One merge.

    Attributes
    ----------
    inputs : tuple of Segment
        Oldest first; adjacent in age inside one partition.
    cut : bool
        Cut the partition in two.
    """

    inputs: tuple[Segment, ...]
    cut: bool

    @property
    def rows(self) -> int:
        """Rows of the inputs."""
        return sum(segment.rows for segment in self.inputs)

    @property
    def sequences(self) -> tuple[int, int]:
        """First and last WAL sequence of the inputs."""
        return (
            min(segment.entry.first_sequence for segment in self.inputs),
            max(segment.entry.last_sequence for segment in self.inputs),
        )


def partition_of(timestamp: int, boundaries: Sequence[int]) -> int:
    """Position of the partition that a timestamp belongs to."""
    return bisect_right(boundaries, timestamp)


def generations(segments: Sequence[Segment], boundaries: Sequence[int]) -> list[list[Generation]]:
    """Group segments by partition, and inside one by generation, oldest first."""
    grouped: list[dict[tuple[int, int], list[Segment]]] = [{} for _ in range(len(boundaries) + 1)]
    for segment in segments:
        entry = segment.entry
        partition = grouped[partition_of(entry.first_timestamp, boundaries)]
        partition.setdefault((entry.last_sequence, entry.first_sequence), []).append(segment)
    return [[Generation(tuple(partition[key])) for key in sorted(partition)] for partition in grouped]


def plan(
    segments: Sequence[Segment],
    boundaries: Sequence[int],
    *,
    damaged: Collection[int] = (),
    everything: bool = False,
    compressed: bool = False,
    partition_rows: int = PARTITION_ROWS,
) -> Plan | None:
    """Choose the next merge; None when there is nothing to gain.

    Parameters
    ----------
    segments : sequence of Segment
    boundaries : sequence of int
    damaged : collection of int
        Numbers of segments that failed a checksum: their partitions are left alone.
    everything : bool
        Merge all generations of a partition into one, as gc does.
    compressed : bool
        What the merge is going to write: with `everything` a partition that is otherwise is written anew.
    partition_rows : int
        Rows of a full partition.
    """
    best: Plan | None = None
    for partition in generations(segments, boundaries):
        if any(s.entry.number in damaged for generation in partition for s in generation.segments):
            continue
        chosen = _plan_partition(
            partition, everything=everything, compressed=compressed, partition_rows=partition_rows
        )
        # The smallest first: it is the quickest way to fewer segments.
        if chosen is not None and (best is None or chosen.rows < best.rows):
            best = chosen
    return best


def _plan_partition(
    partition: list[Generation], *, everything: bool, compressed: bool, partition_rows: int
) -> Plan | None:
    total = sum(generation.rows for generation in partition)
    too_large = total >= partition_rows + partition_rows // 2 and _spans_time(partition)
    if too_large and (everything or len(partition) > 1):
        return Plan(_inputs(partition), cut=True)
    if everything:
        is_settled = len(partition) <= 1 and all(
            segment.entry.is_compressed == compressed
            for generation in partition
            for segment in generation.segments
        )
        return None if is_settled else Plan(_inputs(partition), cut=False)
    if len(partition) <= GENERATIONS_MAX:
        return None
    # From the newest back: take older generations in as long as they are not larger than what is taken.
    count, rows = 1, partition[-1].rows
    while count < len(partition) and partition[-1 - count].rows <= 2 * rows:
        rows += partition[-1 - count].rows
        count += 1
    if count < 2:
        count = len(partition) - GENERATIONS_MAX + 1
    return Plan(_inputs(partition[-count:]), cut=False)


def _spans_time(partition: list[Generation]) -> bool:
    entries = [s.entry for generation in partition for s in generation.segments]
    return min(e.first_timestamp for e in entries) < max(e.last_timestamp for e in entries)


def _inputs(chosen: list[Generation]) -> tuple[Segment, ...]:
    return tuple(segment for generation in chosen for segment in generation.segments)


def choose_boundary(inputs: Sequence[Segment], partition_rows: int) -> int | None:
    """Choose where to cut a partition: a timestamp with about `partition_rows` rows before it.

    Returns
    -------
    int or None
        The first timestamp of the newer part; None when no cut leaves rows on both sides.
    """
    total = sum(segment.rows for segment in inputs)
    step = max(1, total // 100_000)
    sample = np.sort(np.concatenate([segment.sample_timestamps(step) for segment in inputs]))
    at = min(len(sample) - 1, max(1, len(sample) * partition_rows // max(total, 1)))
    boundary = int(sample[at])
    first = min(segment.entry.first_timestamp for segment in inputs)
    last = max(segment.entry.last_timestamp for segment in inputs)
    return boundary if first < boundary <= last else None


def with_cache(inputs: Sequence[Segment], cache: DecodedCache) -> list[Segment]:
    """Return the inputs of a merge with a cache of its own for those that are compressed."""
    return [segment.with_cache(cache) for segment in inputs]


def merged(
    inputs: Sequence[Segment],
    rows_max: int,
    start: int = INT64_MIN,
    end: int = INT64_MAX,
    scratch: Scratch | None = None,
) -> Iterator[Columns]:
    """Merge segments, newest wins, in pieces of at most `rows_max` rows.

    Parameters
    ----------
    inputs : sequence of Segment
        Oldest first; plain ones with checked checksums.
    rows_max : int
    start, end : int
        Only rows with timestamps in this range, both inclusive.
    scratch : Scratch, optional
        Gets the rows.

    Yields
    ------
    Columns
        In order, without repeated keys; of use until the next ones are asked for.

    Raises
    ------
    CorruptionError
        Of a compressed input; what was yielded before is right.
    """
    table = np.stack([segment.row for segment in inputs])
    table[table[:, layout.ON_DEMAND] == 0, layout.VERIFIED] = 0
    caches = [segment.cache for segment in inputs if segment.cache is not None]
    # So many rows at a time that what has to be decoded for them stays small.
    part = min(rows_max, MERGE_ROWS) if caches else rows_max
    nothing = np.empty(0, dtype=np.int64)
    resume, after_series, after_timestamp = False, 0, 0
    series, timestamp, value = (Scratch() if scratch is None else scratch).columns(rows_max)
    while True:
        count = 0
        status = layout.STATUS_FULL
        with caches[0].reading() if caches else NO_READING as reading:
            while status != layout.STATUS_DONE and count < rows_max:
                written, status, source, row_start, row_stop = merge.scan_rows(
                    table,
                    nothing,
                    True,
                    start,
                    end,
                    after_series,
                    after_timestamp,
                    resume,
                    series[count : count + part],
                    timestamp[count : count + part],
                    value[count : count + part],
                )
                if written:
                    count += int(written)
                    after_series, after_timestamp = int(series[count - 1]), int(timestamp[count - 1])
                    resume = True
                    reading.renew()
                if status == layout.STATUS_VERIFY:
                    inputs[source].verify_rows(row_start, row_stop, reading)
        if count:
            yield Columns(series[:count], timestamp[:count], value[:count])
        if status == layout.STATUS_DONE:
            return
