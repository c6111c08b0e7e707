"""The manifest: the durable list of live segments, and where the write-ahead log begins.

One small file, replaced as a whole: a line with its checksum, then JSON (docs/format/manifest.md). A file
that it does not name is not part of the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from omendb.errors import CorruptionError, WalFailedError
from omendb.storage import filenames, format  # noqa: A004
from omendb.storage.fs import publish, write_temporary

if TYPE_CHECKING:
    from pathlib import Path

    from omendb.storage.fs import FileSystem


class IndexEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The learned index file of a segment.

    Attributes
    ----------
    number : int
        Its file number.
    bytes : int
    checksum : str
        XXH3-64 of the whole file, 16 hexadecimal digits.
    """

    number: int
    bytes: int
    checksum: str


class SegmentEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One live segment.

    Attributes
    ----------
    number : int
        Its file number.
    rows, bytes : int
    timestamp_offset, value_offset : int
        Byte in the file at which the raw column, of 8 bytes a row, starts; of a compressed segment, the
        column's pages.
    checksum : str
        XXH3-64 of all bytes of the file but those two columns, 16 hexadecimal digits. (Their rows have
        checksums by block, in the learned index.)
    first_series, last_series, first_timestamp, last_timestamp : int
        Bounds of its rows, all inclusive.
    first_sequence, last_sequence : int
        The WAL records that its rows come from. Segments with the same two numbers were written together
        and share no key; between others the higher `last_sequence` wins.
    index : IndexEntry
    timestamp_bytes, value_bytes : int
        Of a compressed segment: bytes of the column's pages. 0: the column is raw.
    """

    number: int
    rows: int
    bytes: int
    timestamp_offset: int
    value_offset: int
    checksum: str
    first_series: int
    last_series: int
    first_timestamp: int
    last_timestamp: int
    first_sequence: int
    last_sequence: int
    index: IndexEntry
    timestamp_bytes: int = 0
    value_bytes: int = 0

    @property
    def is_compressed(self) -> bool:
        """Its columns are compressed pages, not raw arrays."""
        return self.timestamp_bytes > 0

    @property
    def columns(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where timestamps and values stand in the file, as (start, stop) in bytes."""
        timestamp_bytes, value_bytes = 8 * self.rows, 8 * self.rows
        if self.is_compressed:
            timestamp_bytes, value_bytes = self.timestamp_bytes, self.value_bytes
        return (
            (self.timestamp_offset, self.timestamp_offset + timestamp_bytes),
            (self.value_offset, self.value_offset + value_bytes),
        )


class CatalogEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of names of series.

    Attributes
    ----------
    number : int
        Its file number.
    first_id, count : int
        It names the series of these consecutive ids.
    bytes : int
    checksum : str
        XXH3-64 of the file but its last 8 bytes, which are the same, 16 hexadecimal digits.
    """

    number: int
    first_id: int
    count: int
    bytes: int
    checksum: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a data directory holds.

    Attributes
    ----------
    version : int
        Goes up by one with every change.
    store : str
        Identity of the store (a UUID).
    clean : bool
        The last owner stopped in order, with everything flushed.
    next_number : int
        The next file number for a segment or an index.
    first_wal_file : int
        The log begins with the WAL file of this number.
    covered_sequence : int
        WAL records up to this one are in the segments.
    boundaries : list of int
        Ascending; partition ``i`` holds timestamps from ``boundaries[i - 1]`` up to, not including,
        ``boundaries[i]``, the outermost two without limit.
    segments : list of SegmentEntry
        In ascending order of `last_sequence`, then of `number`.
    catalog : list of CatalogEntry
        In ascending order of ids, without gaps. Names that the log holds are not in it yet.
    """

    version: int
    store: str
    clean: bool
    next_number: int
    first_wal_file: int
    covered_sequence: int
    boundaries: list[int]
    segments: list[SegmentEntry]
    catalog: list[CatalogEntry] = []


def data_names(loaded: Manifest) -> list[str]:
    """Return the names in the data directory that a manifest names."""
    return [
        *(
            name
            for entry in loaded.segments
            for name in (
                filenames.segment_name(entry.number),
                filenames.index_name(entry.number, entry.index.number),
            )
        ),
        *(filenames.catalog_name(entry.number) for entry in loaded.catalog),
    ]


_decoder = msgspec.json.Decoder(Manifest)


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of the file."""
    body = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    head = f"{format.MANIFEST_MAGIC} {format.MANIFEST_VERSION} {format.checksum(body):016x}\n"
    return head.encode() + body


def decode(data: bytes, path: str) -> Manifest:
    """Read the bytes of the file.

    Raises
    ------
    CorruptionError
        They do not match their checksum, or are of a version that is not known.
    """
    head, separator, body = data.partition(b"\n")
    words = head.split(b" ")
    if not separator or len(words) != 3 or words[0] != format.MANIFEST_MAGIC.encode():
        raise CorruptionError(path, 0, "this is no manifest")
    if words[1] not in [str(version).encode() for version in format.MANIFEST_VERSIONS_READ]:
        raise CorruptionError(path, 0, f"manifest version {words[1].decode(errors='replace')} is not known")
    if words[2] != f"{format.checksum(body):016x}".encode():
        raise CorruptionError(path, 0, "the manifest does not match its checksum")
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptionError(path, len(head) + 1, str(error)) from error


def load(fs: FileSystem, directory: Path) -> Manifest | None:
    """Read the manifest of a data directory; None when there is none.

    Raises
    ------
    CorruptionError
    """
    path = directory / filenames.MANIFEST
    if not fs.exists(path):
        return None
    return decode(fs.read(path), str(path))


def commit(fs: FileSystem, directory: Path, manifest: Manifest) -> None:
    """Make `manifest` the store's, durably.

    Raises
    ------
    OSError
        The store's manifest is still the old one.
    WalFailedError
        It is not known which of the two a crash would leave: both are whole, but no file that one of them
        names may be removed any more, so the process must stop.
    """
    path = directory / filenames.MANIFEST
    temporary = write_temporary(fs, path, [encode(manifest)])
    try:
        publish(fs, temporary, path)
    except OSError as error:
        raise WalFailedError(f"cannot publish {path}: {error}") from error
