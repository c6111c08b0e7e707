"""Writes segments: standard Parquet whose timestamp and value columns can be mapped as raw arrays.

One row group; `timestamp` and `value` PLAIN, uncompressed, in one page each, so that the last
``8 * rows`` bytes of the column chunk are the array; `series_id` dictionary-coded (about 0 bytes a row).
Page checksums are on. Layout: docs/format/segment.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from omendb.jit import layout
from omendb.storage import filenames, format, learned_index  # noqa: A004
from omendb.storage.fs import discard, publish, write_temporary
from omendb.storage.manifest import IndexEntry, SegmentEntry

if TYPE_CHECKING:
    from pathlib import Path

    from omendb.model import Columns
    from omendb.storage.fs import FileSystem, MappedFile, WritableFile

SCHEMA = pa.schema(
    [
        pa.field("series_id", pa.int64(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ],
    metadata={"omendb.format": "1"},
)


class _Sink:
    """What pyarrow writes to: a `WritableFile`."""

    def __init__(self, file: WritableFile) -> None:
        self._file = file
        self.closed = False

    def write(self, data: Any) -> int:  # noqa: ANN401
        self._file.write([data])
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self._file.offset

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self.closed = True


def write_segment(
    fs: FileSystem,
    directory: Path,
    numbers: tuple[int, int],
    rows: Columns,
    max_error: int,
    sequences: tuple[int, int],
) -> SegmentEntry:
    """Write a segment and its learned index, durably; the manifest makes them part of the store.

    Parameters
    ----------
    fs : FileSystem
    directory : Path
        The data directory's `data`.
    numbers : tuple of int
        File numbers of the segment and of its index.
    rows : Columns
        At least one row, in strictly ascending order of ``(series_id, timestamp)``.
    max_error : int
        For the models, in rows.
    sequences : tuple of int
        First and last WAL sequence that the rows come from.

    Raises
    ------
    OSError
        Nothing of it remains then, or only files that the next start removes.
    """
    number, index_number = numbers
    path = directory / filenames.segment_name(number)
    temporary = path.with_name(path.name + filenames.TEMPORARY_SUFFIX)
    checksums = (
        learned_index.block_checksums(rows.timestamp),
        learned_index.block_checksums(rows.value),
    )
    try:
        binding = _write_parquet(fs, temporary, rows)
        index = learned_index.fit(rows.series_id, rows.timestamp, max_error, binding, checksums)
        publish(fs, temporary, path)
        index_entry = write_index(fs, directory, number, index_number, index)
    except BaseException:
        discard(fs, temporary)
        discard(fs, path)
        raise
    runs = index.runs
    return SegmentEntry(
        number=number,
        rows=rows.count,
        bytes=binding.segment_bytes,
        timestamp_offset=binding.timestamp_offset,
        value_offset=binding.value_offset,
        checksum=f"{binding.segment_checksum:016x}",
        first_series=int(rows.series_id[0]),
        last_series=int(rows.series_id[-1]),
        first_timestamp=int(runs[:, layout.RUN_FIRST].min()),
        last_timestamp=int(runs[:, layout.RUN_LAST].max()),
        first_sequence=sequences[0],
        last_sequence=sequences[1],
        index=index_entry,
    )


def write_index(
    fs: FileSystem,
    directory: Path,
    segment_number: int,
    number: int,
    index: learned_index.LearnedIndex,
) -> IndexEntry:
    """Write a learned index file, durably.

    Raises
    ------
    OSError
    """
    data = b"".join(learned_index.encode(index))
    path = directory / filenames.index_name(segment_number, number)
    temporary = write_temporary(fs, path, [data])
    try:
        publish(fs, temporary, path)
    except OSError:
        discard(fs, temporary)
        discard(fs, path)
        raise
    return IndexEntry(number, len(data), f"{format.checksum(data):016x}")


def _write_parquet(fs: FileSystem, temporary: Path, rows: Columns) -> learned_index.Binding:
    table = pa.table([rows.series_id, rows.timestamp, rows.value], schema=SCHEMA)
    if fs.exists(temporary):
        fs.remove(temporary)
    file = fs.create(temporary)
    try:
        with pq.ParquetWriter(
            _Sink(file),
            SCHEMA,
            compression="NONE",
            use_dictionary=["series_id"],  # pyright: ignore[reportArgumentType] # its stub knows bool only
            # One page a column: without these two pyarrow cuts pages at 20,000 rows or 1 MiB.
            data_page_size=1 << 30,
            max_rows_per_page=rows.count,
            dictionary_pagesize_limit=1 << 30,
            write_page_checksum=True,
            store_schema=False,
        ) as writer:
            writer.write_table(table, row_group_size=rows.count)
        file.sync()
    finally:
        file.close()
    written = fs.map(temporary)
    size = len(written.data)
    metadata = pq.read_metadata(pa.BufferReader(pa.py_buffer(written.data)))
    offsets = [_raw_offset(metadata.row_group(0).column(i), rows.count) for i in (1, 2)]
    checksum = rest_checksum(written, format.segment_gaps(size, rows.count, *offsets))
    return learned_index.Binding(rows.count, size, checksum, *offsets)


def rest_checksum(file: MappedFile, gaps: list[tuple[int, int]]) -> int:
    """XXH3-64 of the parts of a segment that are not raw columns.

    Raises
    ------
    OSError
    """
    digest = xxhash.xxh3_64()
    for start, stop in gaps:
        digest.update(file.read_at(start, stop - start))
    return digest.intdigest()


def _raw_offset(column: Any, rows: int) -> int:  # noqa: ANN401
    """Return the byte at which a PLAIN, uncompressed, one-page column chunk has its values."""
    assert column.num_values == rows
    assert column.compression == "UNCOMPRESSED"
    assert column.dictionary_page_offset is None
    offset: int = column.data_page_offset + column.total_compressed_size - 8 * rows
    # The page's header takes some 70 bytes; more pages than one would make this larger.
    assert 0 < offset - column.data_page_offset < 512, offset - column.data_page_offset
    return offset
