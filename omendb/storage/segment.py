"""A live segment: a mapped Parquet file with its learned index.

The columns of a plain segment are used where they lie in the map; those of a compressed one are decoded block
by block into an arena (`omendb.storage.decoded_cache`), and look the same to kernels.

Immutable but for the marks of which blocks have been checked. Safe from any thread: two threads that check
the same block do the same work and set the same mark. The file stays mapped as long as anything refers to
the segment or to an array over it; removing its name does not disturb readers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omendb.errors import CorruptionError
from omendb.jit import layout
from omendb.model import Columns
from omendb.storage import filenames, format, learned_index  # noqa: A004
from omendb.storage.decoded_cache import DecodedCache
from omendb.storage.segment_pages import PageReader, find_pages
from omendb.storage.segment_writer import rest_checksum

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from omendb.storage.decoded_cache import Arena, NoReading, Reading
    from omendb.storage.fs import FileSystem, MappedFile
    from omendb.storage.manifest import SegmentEntry

_VERIFY_BLOCKS = 16  # blocks read in one call when checksums are checked: 1 MiB


class Segment:
    """A mapped segment.

    Parameters
    ----------
    entry : SegmentEntry
        What the manifest says of it.
    path : Path
    file : MappedFile
    index : LearnedIndex
        Matches the file.

    Attributes
    ----------
    timestamp : ndarray of int64, shape (rows,)
        Read-only view over the map; may be unaligned.
    value : ndarray of float64, shape (rows,)
        Read-only view over the map; may be unaligned.
    row : ndarray of int64, shape (layout.SOURCE_WIDTH,)
        The segment as kernels see it.
    verified : ndarray of uint8, shape (blocks,)
        1 for each block whose checksums have been checked.
    cache : DecodedCache or None
        Of a compressed segment.
    observed : object
        What was measured of its index, kept for the next who asks.
    """

    __slots__ = (
        "__weakref__",
        "cache",
        "entry",
        "file",
        "index",
        "observed",
        "path",
        "row",
        "timestamp",
        "value",
        "verified",
    )

    def __init__(
        self, entry: SegmentEntry, path: Path, file: MappedFile, index: learned_index.LearnedIndex
    ) -> None:
        self.entry = entry
        self.path = path
        self.file = file
        self.index = index
        self.cache: DecodedCache | None = None
        self.observed: object = None
        self._lay_out()
        self.row = self.row_over(self.timestamp, self.value)
        self.row[layout.VERIFIED] = self.verified.ctypes.data
        self.row[layout.BLOCK_SHIFT] = format.BLOCK_SHIFT

    def _lay_out(self) -> None:
        """Set the columns and the marks."""
        entry = self.entry
        self.timestamp: NDArray[np.int64] = _column(self.file, entry.timestamp_offset, entry.rows).view(
            np.int64
        )
        self.value: NDArray[np.float64] = _column(self.file, entry.value_offset, entry.rows).view(np.float64)
        self.verified = np.zeros(len(self.index.timestamp_checksums), dtype=np.uint8)

    def row_over(self, timestamp: NDArray[np.int64], value: NDArray[np.float64]) -> NDArray[np.int64]:
        """Describe the segment to kernels with other arrays for its columns, which need no checks."""
        row = np.zeros(layout.SOURCE_WIDTH, dtype=np.int64)
        self.index.fill(row)
        row[layout.TIMESTAMPS] = timestamp.ctypes.data
        row[layout.VALUES] = value.ctypes.data
        return row

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.entry.rows

    def with_cache(self, cache: DecodedCache) -> Segment:  # it has nothing to keep there
        """Return the same segment, for a reader that decodes into a cache of its own."""
        return self

    def with_index(self, entry: SegmentEntry, index: learned_index.LearnedIndex) -> Segment:
        """Return the same segment under another learned index; the marks of checked blocks go along."""
        other = Segment(entry, self.path, self.file, index)
        other.verified[:] = self.verified
        return other

    def verify_rows(self, start: int, stop: int, reading: Reading | NoReading | None = None) -> None:
        """Check the checksums of the blocks that hold rows `start` to `stop`, unless that was done before.

        Parameters
        ----------
        start, stop : int
            Half-open, ``0 <= start < stop <= rows``.
        reading : Reading or NoReading, optional
            For which rows of a compressed segment are decoded; they are there until it ends.

        Raises
        ------
        CorruptionError
            Bytes do not match their checksum, or cannot be read.
        """
        first, last = start >> format.BLOCK_SHIFT, (stop - 1) >> format.BLOCK_SHIFT
        block = first
        while block <= last:
            if self.verified[block]:
                block += 1
                continue
            until = min(block + _VERIFY_BLOCKS, last + 1)
            self._verify_blocks(block, until)
            block = until

    def verify_all(self) -> None:
        """Check every block.

        Raises
        ------
        CorruptionError
        """
        self.verify_rows(0, self.rows)

    def columns(self) -> Columns:
        """All rows; timestamps and values are views over the map, or fresh arrays when it is compressed.

        Raises
        ------
        CorruptionError
        """
        self.verify_all()
        return Columns(self._series(), self.timestamp, self.value)

    def sample_timestamps(self, step: int) -> NDArray[np.int64]:
        """Every so many of the timestamps.

        Raises
        ------
        CorruptionError
            Of a compressed segment only: others have been checked by then.
        """
        return self.timestamp[::step]

    def _series(self) -> NDArray[np.int64]:
        runs = self.index.runs
        return np.repeat(runs[:, layout.RUN_SERIES], runs[:, layout.RUN_STOP] - runs[:, layout.RUN_START])

    def _verify_blocks(self, start: int, stop: int) -> None:
        binding, index = self.index.binding, self.index
        step = 8 << format.BLOCK_SHIFT
        for offset, checksums in (
            (binding.timestamp_offset, index.timestamp_checksums),
            (binding.value_offset, index.value_checksums),
        ):
            low, high = start * step, min(stop * step, 8 * binding.rows)
            try:
                # Through the descriptor: what cannot be read is an error here, a signal through the map.
                data = memoryview(self.file.read_at(offset + low, high - low))
            except OSError as error:
                raise CorruptionError(str(self.path), offset + low, f"cannot be read: {error}") from error
            for block in range(start, stop):
                at = (block - start) * step
                if format.checksum(data[at : at + step]) != int(checksums[block]):
                    raise CorruptionError(
                        str(self.path), offset + block * step, f"block {block} does not match its checksum"
                    )
        self.verified[start:stop] = 1


class CompressedSegment(Segment):
    """A segment whose pages are compressed: blocks are decoded when a kernel asks for them.

    Parameters
    ----------
    entry, path, file, index
        As for `Segment`.
    cache : DecodedCache
        Takes the decoded blocks.
    arena : Arena, optional
        Of the same segment under another learned index.

    Attributes
    ----------
    timestamp, value
        Views over the arena: of use to kernels only, within a reading.
    """

    __slots__ = ("_arena", "_reader")

    def __init__(
        self,
        entry: SegmentEntry,
        path: Path,
        file: MappedFile,
        index: learned_index.LearnedIndex,
        cache: DecodedCache,
        arena: Arena | None = None,
    ) -> None:
        self._reader = PageReader(file, str(path), index)
        self._arena = arena or cache.add(self._reader, entry.rows)
        super().__init__(entry, path, file, index)
        self.cache = cache
        self.row[layout.ON_DEMAND] = 1

    def _lay_out(self) -> None:
        self.timestamp, self.value = self._arena.timestamp, self._arena.value
        self.verified = self._arena.verified

    def with_index(self, entry: SegmentEntry, index: learned_index.LearnedIndex) -> CompressedSegment:
        """Return the same segment under another learned index; what is decoded goes along."""
        assert self.cache is not None
        return CompressedSegment(entry, self.path, self.file, index, self.cache, self._arena)

    def with_cache(self, cache: DecodedCache) -> CompressedSegment:
        """Return the same segment with nothing decoded yet, in another cache."""
        return CompressedSegment(self.entry, self.path, self.file, self.index, cache)

    def verify_rows(self, start: int, stop: int, reading: Reading | NoReading | None = None) -> None:
        """Decode the blocks that hold rows `start` to `stop`, and check them; see `Segment.verify_rows`.

        Without a reading they are only checked.

        Raises
        ------
        CorruptionError
        """
        if reading is not None:
            reading.need(self._arena, start, stop)
            return
        for block in range(start >> format.BLOCK_SHIFT, ((stop - 1) >> format.BLOCK_SHIFT) + 1):
            rows = self._reader.rows_of(block)
            self.decode_block(block, np.empty(rows, np.int64), np.empty(rows, np.float64))

    def decode_block(self, block: int, timestamp: NDArray[np.int64], value: NDArray[np.float64]) -> None:
        """Decode a block, past the cache, and check it.

        Parameters
        ----------
        block : int
        timestamp : ndarray of int64, shape (rows of the block,), contiguous
        value : ndarray of float64, shape (rows of the block,), contiguous
            Garbage after an error, both.

        Raises
        ------
        CorruptionError
        """
        self._reader.read_timestamps(block, timestamp)
        self._reader.read_values(block, value)

    def columns(self) -> Columns:
        """All rows, decoded into fresh arrays.

        Raises
        ------
        CorruptionError
        """
        timestamp, value = np.empty(self.rows, np.int64), np.empty(self.rows, np.float64)
        for block in range(self._reader.blocks):
            rows = slice(block << format.BLOCK_SHIFT, (block + 1) << format.BLOCK_SHIFT)
            self.decode_block(block, timestamp[rows], value[rows])
        return Columns(self._series(), timestamp, value)

    def sample_timestamps(self, step: int) -> NDArray[np.int64]:
        """Every so many of the timestamps; decodes them all, a block at a time.

        Raises
        ------
        CorruptionError
        """
        parts = []
        for block in range(self._reader.blocks):
            timestamp = np.empty(self._reader.rows_of(block), np.int64)
            self._reader.read_timestamps(block, timestamp)
            parts.append(timestamp[-(block << format.BLOCK_SHIFT) % step :: step])
        return np.concatenate(parts)


def _column(file: MappedFile, offset: int, rows: int) -> NDArray[np.uint8]:
    return file.data[offset : offset + 8 * rows]


def open_segment(
    fs: FileSystem, directory: Path, entry: SegmentEntry, cache: DecodedCache | None = None
) -> Segment:
    """Map a segment and its learned index, and check both.

    Parameters
    ----------
    fs : FileSystem
    directory : Path
        The data directory's `data`.
    entry : SegmentEntry
    cache : DecodedCache, optional
        For what is decoded of a compressed segment; one of its own without.

    Raises
    ------
    CorruptionError
        The segment itself is not what the manifest says.
    IndexDamageError
        Only its learned index is: it can be rebuilt.
    """
    path = directory / filenames.segment_name(entry.number)
    file = map_segment(fs, path, entry)
    index_path = directory / filenames.index_name(entry.number, entry.index.number)
    index = load_index(fs, index_path, entry)
    if entry.is_compressed:
        return CompressedSegment(entry, path, file, index, cache or DecodedCache())
    return Segment(entry, path, file, index)


def map_segment(fs: FileSystem, path: Path, entry: SegmentEntry) -> MappedFile:
    """Map a segment and check everything but its two columns against the manifest.

    Raises
    ------
    CorruptionError
    """
    try:
        file = fs.map(path)
    except OSError as error:
        raise CorruptionError(str(path), 0, f"cannot be opened: {error.strerror}") from error
    size = len(file.data)
    if size != entry.bytes:
        raise CorruptionError(
            str(path), min(size, entry.bytes), f"the file has {size} bytes, the manifest says {entry.bytes}"
        )
    gaps = format.segment_gaps(size, entry.columns)
    try:
        if rest_checksum(file, gaps) != int(entry.checksum, 16):
            raise CorruptionError(str(path), 0, "the file's headers and footer do not match their checksum")
    except OSError as error:
        raise CorruptionError(str(path), 0, f"cannot be read: {error}") from error
    return file


class IndexDamageError(Exception):
    """A learned index file that is missing, damaged or foreign; the segment itself may be whole."""


def load_index(fs: FileSystem, path: Path, entry: SegmentEntry) -> learned_index.LearnedIndex:
    """Map the learned index of a segment and check it; the segment itself is not looked at.

    Raises
    ------
    IndexDamageError
    """
    try:
        file = fs.map(path)
        if len(file.data) != entry.index.bytes:
            raise IndexDamageError(
                f"{path} has {len(file.data)} bytes, the manifest says {entry.index.bytes}"
            )
        if format.checksum(file.read_at(0, entry.index.bytes)) != int(entry.index.checksum, 16):
            raise IndexDamageError(f"{path} does not match its checksum")
        index = learned_index.decode(file.data, str(path))
    except OSError as error:
        raise IndexDamageError(f"{path} cannot be read: {error.strerror}") from error
    except CorruptionError as error:
        raise IndexDamageError(str(error)) from error
    if index.binding != _binding(entry) or (index.pages is not None) != entry.is_compressed:
        raise IndexDamageError(f"{path} belongs to another segment")
    return index


def _binding(entry: SegmentEntry) -> learned_index.Binding:
    return learned_index.Binding(
        entry.rows, entry.bytes, int(entry.checksum, 16), entry.timestamp_offset, entry.value_offset
    )


def read_parquet(fs: FileSystem, path: Path, entry: SegmentEntry) -> Columns:
    """Read a segment through pyarrow, checking every page, without its learned index.

    Raises
    ------
    CorruptionError
    """
    file = map_segment(fs, path, entry)
    try:
        data = file.read_at(0, entry.bytes)
        reader = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        table = reader.read()
        series, timestamp, value = (
            np.ascontiguousarray(table.column(name).combine_chunks().to_numpy())
            for name in ("series_id", "timestamp", "value")
        )
    except (OSError, pa.ArrowException) as error:
        raise CorruptionError(str(path), 0, f"cannot be read as Parquet: {error}") from error
    if reader.metadata.num_row_groups != 1 or len(series) != entry.rows:
        raise CorruptionError(str(path), 0, f"holds {len(series)} rows, the manifest says {entry.rows}")
    return Columns(series, timestamp, value)


def rebuild_index(
    fs: FileSystem, directory: Path, entry: SegmentEntry, max_error: int
) -> learned_index.LearnedIndex:
    """Fit the learned index of a segment anew from the segment alone.

    Raises
    ------
    CorruptionError
        The segment is damaged as well.
    """
    path = directory / filenames.segment_name(entry.number)
    rows = read_parquet(fs, path, entry)
    checksums = (
        learned_index.block_checksums(rows.timestamp),
        learned_index.block_checksums(rows.value),
    )
    pages = None
    if entry.is_compressed:
        try:
            pages = find_pages(fs.map(path), str(path), entry.rows, entry.columns)
        except OSError as error:
            raise CorruptionError(str(path), 0, f"cannot be read: {error}") from error
    try:
        return learned_index.fit(rows.series_id, rows.timestamp, max_error, _binding(entry), checksums, pages)
    except ValueError as error:
        raise CorruptionError(str(path), 0, str(error)) from error
