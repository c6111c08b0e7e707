"""Writes segments: standard Parquet, plain or compressed.

One row group; `series_id` dictionary-coded (about 0 bytes a row); page checksums. Plain: `timestamp` and
`value` PLAIN, uncompressed, in one page each, so that the last ``8 * rows`` bytes of the column chunk are an
array that can be mapped (`omendb.storage.plain_parquet`). Compressed, by Arrow: `timestamp` as
DELTA_BINARY_PACKED, `value` in what takes the least room, ZSTD, and one page for each block of rows, so that
a block can be decoded by itself. Layout: docs/format/segment.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from omendb.jit import layout
from omendb.storage import filenames, format, learned_index  # noqa: A004
from omendb.storage.fs import discard, publish, write_temporary
from omendb.storage.manifest import IndexEntry, SegmentEntry
from omendb.storage.plain_parquet import write_plain
from omendb.storage.segment_pages import PageReader, find_pages

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from omendb.model import Columns
    from omendb.storage.fs import FileSystem, MappedFile, WritableFile

SCHEMA = pa.schema(
    [
        pa.field("series_id", pa.int64(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)

_FORMAT_KEY = "omendb.format"

ZSTD_LEVEL = 3
"""Of pages: indices and differences are packed bits, which no level makes smaller (perf/compression.py)."""

_SAMPLE_BLOCKS = 8  # of which is told how small a column becomes
_DISTINCT_MAX = 0.9  # share of distinct values in the sample above which no dictionary is thought of


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
    *,
    compressed: bool = False,
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
    compressed : bool
        Write compressed pages, not raw columns.

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
        written = _write_parquet(fs, temporary, rows, compressed=compressed)
        binding = written.binding
        index = learned_index.fit(
            rows.series_id, rows.timestamp, max_error, binding, checksums, written.pages
        )
        if compressed:
            _read_back(fs, temporary, index)
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
        timestamp_bytes=written.timestamp_bytes,
        value_bytes=written.value_bytes,
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


class _Written(NamedTuple):
    """A file without its name; bytes of columns and pages are those of a compressed one."""

    binding: learned_index.Binding
    timestamp_bytes: int
    value_bytes: int
    pages: learned_index.Pages | None


def _write_parquet(fs: FileSystem, temporary: Path, rows: Columns, *, compressed: bool) -> _Written:
    if fs.exists(temporary):
        fs.remove(temporary)
    file = fs.create(temporary)
    try:
        if compressed:
            _write_compressed(file, rows)
        else:
            write_plain(file, rows, {_FORMAT_KEY: "1"})
        file.sync()
    finally:
        file.close()
    written = fs.map(temporary)
    size = len(written.data)
    group = pq.read_metadata(pa.BufferReader(pa.py_buffer(written.data))).row_group(0)
    columns = tuple(_place(group.column(i), rows.count, compressed=compressed) for i in (1, 2))
    checksum = rest_checksum(written, format.segment_gaps(size, (columns[0], columns[1])))
    binding = learned_index.Binding(rows.count, size, checksum, columns[0][0], columns[1][0])
    if not compressed:
        return _Written(binding, 0, 0, None)
    lengths = [stop - start for start, stop in columns]
    pages = find_pages(written, str(temporary), rows.count, (columns[0], columns[1]))
    return _Written(binding, lengths[0], lengths[1], pages)


def _write_compressed(file: WritableFile, rows: Columns) -> None:
    table = pa.table([rows.series_id, rows.timestamp, rows.value], schema=SCHEMA)
    with pq.ParquetWriter(
        _Sink(file),
        SCHEMA,
        # Without these two pyarrow cuts pages at 20,000 rows or 1 MiB.
        data_page_size=1 << 30,
        max_rows_per_page=1 << format.BLOCK_SHIFT,
        dictionary_pagesize_limit=1 << 30,
        write_page_checksum=True,
        store_schema=False,
        **_compression(rows),
    ) as writer:
        writer.write_table(table, row_group_size=rows.count)
        # Not as metadata of the schema: pyarrow stores that only within its own schema.
        writer.add_key_value_metadata({_FORMAT_KEY: "2"})


def _compression(rows: Columns) -> dict[str, Any]:
    """Choose how the columns are encoded, as arguments for pyarrow: the values as a sample says."""
    encodings = {"timestamp": "DELTA_BINARY_PACKED"}
    dictionary = ["series_id"]
    chosen = choose_encoding(rows.value)
    if chosen == "RLE_DICTIONARY":
        dictionary.append("value")
    elif chosen == "BYTE_STREAM_SPLIT":
        encodings["value"] = chosen
    return {
        "compression": "ZSTD",
        "compression_level": ZSTD_LEVEL,
        "use_dictionary": dictionary,
        "column_encoding": encodings,
    }


def choose_encoding(values: NDArray[np.float64]) -> str:
    """Choose the encoding of a column of values that takes the least room.

    Parameters
    ----------
    values : ndarray of float64, shape (n,)
        Not empty.

    Returns
    -------
    str
        Parquet's name: ``PLAIN``, ``BYTE_STREAM_SPLIT`` or ``RLE_DICTIONARY``.

    Notes
    -----
    For the first two pages are compressed, of some blocks: other pages do not matter to them. A dictionary
    is counted: bits of an index a row, and each distinct value as it is in a page of plain ones. A
    random walk with two decimals, 200 series of 10,000 rows: 1.9 bytes a row with a dictionary, 2.7 plain,
    5.0 split (perf/compression.py).
    """
    codec = pa.Codec("zstd", compression_level=ZSTD_LEVEL)
    step = 1 << format.BLOCK_SHIFT
    blocks = -(-len(values) // step)
    plain = split = rows = 0
    sample: list[NDArray[np.float64]] = []
    for block in range(0, blocks, max(1, blocks // _SAMPLE_BLOCKS)):
        part = np.ascontiguousarray(values[block * step : (block + 1) * step])
        sample.append(part)
        rows += len(part)
        plain += codec.compress(part.tobytes()).size
        split += codec.compress(part.view(np.uint8).reshape(-1, 8).T.tobytes()).size
    sizes: dict[str, float] = {
        "PLAIN": plain / rows * len(values),
        "BYTE_STREAM_SPLIT": split / rows * len(values),
    }
    # One NaN stands for all in Arrow's dictionaries, whatever its bits.
    if len(np.unique(np.concatenate(sample))) <= _DISTINCT_MAX * rows and not np.isnan(values).any():
        distinct = len(pa.array(values).unique())
        bits = max(distinct - 1, 1).bit_length()
        sizes["RLE_DICTIONARY"] = bits / 8 * len(values) + plain / rows * distinct
    return min(sizes, key=sizes.__getitem__)


def _read_back(fs: FileSystem, temporary: Path, index: learned_index.LearnedIndex) -> None:
    """Decode what was written: the rows that it is made of are about to be removed.

    Raises
    ------
    CorruptionError
    """
    reader = PageReader(fs.map(temporary), str(temporary), index)
    for block in range(reader.blocks):
        rows = reader.rows_of(block)
        reader.read_timestamps(block, np.empty(rows, np.int64))
        reader.read_values(block, np.empty(rows, np.float64))


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


def _place(column: Any, rows: int, *, compressed: bool) -> tuple[int, int]:  # noqa: ANN401
    """Return where a column stands in the file: its pages, or, when they are raw, its values."""
    assert column.num_values == rows
    start: int = column.data_page_offset
    if column.dictionary_page_offset is not None:
        start = min(start, column.dictionary_page_offset)
    stop = start + column.total_compressed_size
    if compressed:
        return start, stop
    # PLAIN, uncompressed, one page: the values are its end.
    assert column.compression == "UNCOMPRESSED"
    assert column.dictionary_page_offset is None
    # The page's header takes some 70 bytes; more pages than one would make this larger.
    assert 0 < column.total_compressed_size - 8 * rows < 512, column.total_compressed_size
    return stop - 8 * rows, stop
