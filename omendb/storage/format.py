"""Magic numbers, versions and fixed layouts of every file type; each has its page in docs/format/."""

from __future__ import annotations

import struct

import xxhash

# WAL file (docs/format/wal.md).
WAL_MAGIC = b"OMENWAL1"
WAL_FILE_HEADER = struct.Struct("<8sIIQQ")  # magic, version, zero, file number, checksum
WAL_VERSION = 2
WAL_VERSIONS_READ = (1, 2)  # version 1 had no records of names
WAL_RECORD_MAGIC = 0x444E4D4F  # "OMND"
# magic, type, sequence, synced sequence, rows, payload bytes, payload checksum, header checksum
WAL_RECORD_HEADER = struct.Struct("<IIQQIIQQ")
WAL_RECORD_HEADER_CHECKED = WAL_RECORD_HEADER.size - 8  # bytes that the header's checksum covers
WAL_ROWS_MAX = 64 * 1024 * 1024  # rows in one record: keeps its payload below 2 GiB
RECORD_POINTS = 1  # payload: series_id[n], timestamp[n], value[n]
RECORD_SERIES = 2  # payload: series_id, timestamp[n], value[n]: all points of one series
RECORD_NAMES = 3  # payload: names of series (docs/format/catalog.md); rows counts them
WAL_NAMES_BYTES_MAX = 16 * 1024 * 1024  # keys in one record of names, unless a single one is longer

# Catalog file (docs/format/catalog.md).
CATALOG_MAGIC = b"OMENCAT1"
CATALOG_VERSION = 1
CATALOG_HEADER = struct.Struct("<8sII")  # magic, version, number of names

# Manifest (docs/format/manifest.md).
MANIFEST_MAGIC = "omendb-manifest"
MANIFEST_VERSION = 2
MANIFEST_VERSIONS_READ = (1, 2)  # version 1 had neither a catalog nor compressed segments

# Record of a backup (docs/format/backup.md).
BACKUP_MAGIC = "omendb-backup"
BACKUP_VERSION = 1

# Segment (docs/format/segment.md).
BLOCK_SHIFT = 13  # 8,192 rows, 64 KiB of a column, share one checksum
PARQUET_MAGIC = b"PAR1"
PARQUET_TAIL = struct.Struct("<I4s")  # length of the footer, magic

# Learned index sidecar (docs/format/index.md).
INDEX_MAGIC = b"OMENLIX1"
INDEX_VERSION = 1
INDEX_VERSION_COMPRESSED = 2  # of a compressed segment: four sections more, about its pages
# magic, version, configured max_error; rows, segment bytes, segment checksum, timestamp offset,
# value offset; counts: runs, series knots, knots, pieces, blocks; series shift, block shift
INDEX_HEADER = struct.Struct("<8sII5Q5QII")
INDEX_ALIGNMENT = 64


def checksum(data: object, seed: int = 0) -> int:
    """XXH3, 64 bits, of a bytes-like object."""
    return xxhash.xxh3_64_intdigest(data, seed)  # type: ignore[arg-type]


def segment_gaps(size: int, columns: tuple[tuple[int, int], tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the parts of a segment that are not its two columns, as (start, stop) in bytes.

    Parameters
    ----------
    size : int
    columns : tuple of (start, stop)
        The timestamps and the values, in the order of the file.
    """
    (first_start, first_stop), (second_start, second_stop) = columns
    return [(0, first_start), (first_stop, second_start), (second_stop, size)]
