"""The write-ahead log: what was acknowledged since the last flush.

Invariants: sequence numbers ascend by one a record, across files; a file's successor is created only after
the file itself was synced; nothing is appended after a failure that leaves the tail unknown. Thread
safety: `append` and `rotate` belong to one thread; `sync` may be called from another.

Each record carries the highest sequence that was known to be synced when it was written. That tells a torn
tail from damage: an unreadable record is torn, and cut, unless a later readable one says that it had been
synced. See docs/format/wal.md.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xxhash

from omendb.errors import CorruptionError, DiskFullError, WalFailedError
from omendb.jit import records
from omendb.model import Batch
from omendb.storage import filenames, format  # noqa: A004
from omendb.storage.fs import DISK_FULL_ERRNOS
from omendb.storage.names import Names, body_bytes, decode_body

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from omendb.storage.fs import Bytes, FileSystem, WritableFile

logger = logging.getLogger("omendb.wal")

_PAYLOAD_BYTES_OFFSET = 28  # of the field in a record's header
_NO_POINTS = Batch(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64))


class Record(NamedTuple):
    """One group commit, or several short ones that were read together.

    Attributes
    ----------
    sequence : int
        Its number; numbers ascend by one. Of several records the last one's.
    batch : Batch
        Its points, as read-only views over the file's bytes, or as arrays of their own.
    stop : int
        Byte after it in its file.
    first_sequence : int
        Of several records the first one's.
    names : Names or None
        What the record is when it holds names of series; its batch is empty then.
    """

    sequence: int
    batch: Batch
    stop: int
    first_sequence: int
    names: Names | None = None


@dataclass(slots=True)
class _File:
    number: int
    path: Path
    last_sequence: int  # 0 while it holds no record


class Wal:
    """The log being written.

    Parameters
    ----------
    fs : FileSystem
    directory : Path
        Exists.
    file_number : int
        Number of the first file to be written.
    next_sequence : int
        Sequence of the next record; everything before it is on stable storage.
    older : list of tuple (int, int)
        Number and last sequence of each older file that is still needed.

    Notes
    -----
    The file is created by `make_file`, or else by the first `append`: a full disk does not keep a store from
    being opened.
    """

    def __init__(
        self,
        fs: FileSystem,
        directory: Path,
        file_number: int,
        next_sequence: int,
        older: list[tuple[int, int]] | None = None,
    ) -> None:
        self._fs = fs
        self._directory = directory
        self._next_sequence = next_sequence
        self._synced_sequence = next_sequence - 1
        # Protects the lists of files and the choice of the current one; taken last of all locks.
        self._lock = threading.Lock()
        self._older_bytes: dict[int, int] = {}
        self._older: list[_File] = []
        for number, last_sequence in older or []:
            path = directory / filenames.wal_name(number)
            self._older.append(_File(number, path, last_sequence))
            self._older_bytes[number] = fs.size(path)
        self.failure: WalFailedError | None = None
        self._file: WritableFile | None = None
        self._current = _File(file_number, directory / filenames.wal_name(file_number), 0)

    @property
    def file_number(self) -> int:
        """Number of the file that is written to."""
        return self._current.number

    @property
    def last_sequence(self) -> int:
        """Sequence of the last record written."""
        return self._next_sequence - 1

    @property
    def synced_sequence(self) -> int:
        """Highest sequence that is known to be on stable storage."""
        return self._synced_sequence

    @property
    def bytes(self) -> int:
        """Bytes in all live files."""
        with self._lock:
            return sum(self._older_bytes.values()) + (self._file.offset if self._file else 0)

    @property
    def file_count(self) -> int:
        """Number of live files."""
        return len(self._older) + 1

    def make_file(self) -> WritableFile:
        """Return the file to append to; the first call creates it. Any thread may call it.

        Raises
        ------
        OSError
            It may be tried again.
        """
        with self._lock:
            if self._file is None:
                self._file, self._current = self._create(self._current.number)
            return self._file

    def append(self, batch: Batch) -> int:
        """Write one record; it is durable after the next `sync`.

        Parameters
        ----------
        batch : Batch
            1 to `format.WAL_ROWS_MAX` rows.

        Returns
        -------
        int
            Its sequence.

        Raises
        ------
        DiskFullError
            There is no space: the log is as it was, and may be tried again.
        WalFailedError
            The log is in an unknown state; every later call raises the same.
        """
        rows = len(batch.timestamp)
        assert 0 < rows <= format.WAL_ROWS_MAX, rows
        ids = batch.series_id
        one_series = rows > 1 and ids[0] == ids[-1] and bool((ids == ids[0]).all())
        series = batch.series_id[:1] if one_series else batch.series_id
        kind = format.RECORD_SERIES if one_series else format.RECORD_POINTS
        size = 8 * len(series) + 16 * rows
        return self._append(kind, rows, size, [series, batch.timestamp, batch.value])

    def append_names(self, names: Names) -> int:
        """Write names of series as one record; see `append`."""
        return self._append(format.RECORD_NAMES, names.count, body_bytes(names), names.parts())

    def _append(self, kind: int, rows: int, size: int, parts: list[Bytes]) -> int:
        self._check_usable()
        try:
            file = self.make_file()
        except OSError as error:
            if error.errno not in DISK_FULL_ERRNOS:
                raise self.fail(f"cannot create {self._current.path}: {error}") from error
            raise DiskFullError(f"no space for the write-ahead log: {error.strerror}") from error
        sequence = self._next_sequence
        payload = xxhash.xxh3_64(seed=sequence)
        for part in parts:
            payload.update(part)  # type: ignore[arg-type]
        head = format.WAL_RECORD_HEADER.pack(
            format.WAL_RECORD_MAGIC,
            kind,
            sequence,
            self._synced_sequence,
            rows,
            size,
            payload.intdigest(),
            0,
        )
        checked = head[: format.WAL_RECORD_HEADER_CHECKED]
        head = checked + format.checksum(checked).to_bytes(8, "little")
        good = file.offset
        try:
            file.write([head, *parts])
        except OSError as error:
            if error.errno not in DISK_FULL_ERRNOS:
                raise self.fail(f"write to {self._current.path} failed: {error}") from error
            try:
                # Nothing of this record was promised to anybody: take it back, and stay usable.
                file.truncate(good)
            except OSError as second:
                raise self.fail(f"cannot cut {self._current.path}: {second}") from second
            raise DiskFullError(f"no space for the write-ahead log: {error.strerror}") from error
        self._next_sequence = sequence + 1
        self._current.last_sequence = sequence
        return sequence

    def sync(self) -> None:
        """Bring all records written so far to stable storage.

        Raises
        ------
        WalFailedError
            Never try again: after a failed sync the kernel may call the lost pages clean, and a second
            sync succeeds without them (reproduced on ext4).
        """
        self._check_usable()
        with self._lock:
            file, written = self._file, self._next_sequence - 1
            if written == self._synced_sequence or file is None:
                return
            try:
                file.sync()
            except OSError as error:
                raise self.fail(f"sync of {self._current.path} failed: {error}") from error
            self._synced_sequence = max(self._synced_sequence, written)

    def rotate(self) -> bool:
        """Go on in a new file, so that the old one can be removed once it is flushed.

        Returns
        -------
        bool
            False when the disk has no room for a new file; the log goes on in the old one.

        Raises
        ------
        WalFailedError
            When the old file cannot be synced.
        """
        if self._current.last_sequence == 0:
            return True
        self.sync()
        try:
            file, current = self._create(self._current.number + 1)
        except OSError as error:
            logger.warning("wal cannot start a new file, going on in the old one: %s", error)
            return False
        with self._lock:
            old = self._file
            assert old is not None, "it holds records"
            self._older_bytes[self._current.number] = old.offset
            self._older.append(self._current)
            self._file, self._current = file, current
            old.close()
        return True

    def durable(self) -> tuple[list[int], int]:
        """Return the numbers of the live files, ascending, and the highest sequence on stable storage."""
        with self._lock:
            files = [*self._older, *([self._current] if self._file is not None else [])]
            return [file.number for file in files], self._synced_sequence

    def first_file_after(self, sequence: int) -> int:
        """Return the number of the first live file that holds, or will hold, a record after `sequence`."""
        with self._lock:
            for old in self._older:
                if old.last_sequence > sequence:
                    return old.number
            return self._current.number

    def remove_before(self, file_number: int) -> None:
        """Remove the older files whose number is below `file_number`, as far as the file system lets us."""
        with self._lock:
            dead = [old for old in self._older if old.number < file_number]
            self._older = [old for old in self._older if old.number >= file_number]
            for old in dead:
                self._older_bytes.pop(old.number, None)
        for old in dead:
            try:
                self._fs.remove(old.path)
            except OSError as error:
                # It is ignored and removed at the next start: the manifest says where the log begins.
                logger.warning("wal cannot remove %s: %s", old.path, error)

    def close(self) -> None:
        """Close without syncing."""
        if self._file is not None:
            self._file.close()

    def _create(self, number: int) -> tuple[WritableFile, _File]:
        path = self._directory / filenames.wal_name(number)
        if self._fs.exists(path):
            # Left by an attempt that failed before anything was written to it.
            self._fs.remove(path)
        head = format.WAL_FILE_HEADER.pack(format.WAL_MAGIC, format.WAL_VERSION, 0, number, 0)[:-8]
        file = self._fs.create(path)
        try:
            file.write([head + format.checksum(head).to_bytes(8, "little")])
            file.sync()
            # Sync the directory too: without it a crash may forget the file with everything in it.
            self._fs.sync_directory(self._directory)
        except OSError:
            file.close()
            with contextlib.suppress(OSError):
                self._fs.remove(path)
            raise
        return file, _File(number, path, 0)

    def _check_usable(self) -> None:
        if self.failure is not None:
            raise self.failure

    def fail(self, message: str) -> WalFailedError:
        """Refuse everything from now on: what is on stable storage is no longer known."""
        self.failure = WalFailedError(message)
        logger.critical("wal failed, nothing more is acknowledged: %s", message)
        return self.failure


class ReplayedFile(NamedTuple):
    """What `replay` learned about one file: its number, last sequence (0: no record), and bytes."""

    number: int
    last_sequence: int
    bytes: int


class _Tail(NamedTuple):
    """The part of the last file that a crash left unfinished."""

    path: Path
    start: int
    stop: int


def replay(
    fs: FileSystem,
    directory: Path,
    first_file: int,
    covered_sequence: int,
    files: list[ReplayedFile],
    rows_at_once: int = 1,
) -> Iterator[Record]:
    """Read the records after `covered_sequence`, in order, and cut a torn tail.

    Parameters
    ----------
    fs : FileSystem
    directory : Path
    first_file : int
        Number of the first file that is needed; files before it are left alone.
    covered_sequence : int
        Highest sequence that the segments hold.
    files : list of ReplayedFile
        Is filled with the files that were read.
    rows_at_once : int
        Short records are joined up to so many rows: one at a time they cost most of a replay.

    Yields
    ------
    Record

    Raises
    ------
    CorruptionError
        A record that had been synced cannot be read, or records are missing.
    """
    torn: list[_Tail] = []
    yield from _read(fs, directory, first_file, covered_sequence, files, torn, rows_at_once)
    for tail in torn:
        logger.warning(
            "wal tail torn, cut: %s offset %d, %d bytes that were never acknowledged",
            tail.path,
            tail.start,
            tail.stop - tail.start,
        )
        file = fs.reopen(tail.path)
        try:
            file.truncate(tail.start)
            file.sync()
        finally:
            file.close()


def check(
    fs: FileSystem,
    directory: Path,
    first_file: int,
    covered_sequence: int,
    files: list[ReplayedFile],
    warnings: list[str],
) -> Iterator[Record]:
    """Read as `replay` does and change nothing; a torn tail becomes a line of `warnings`."""
    torn: list[_Tail] = []
    yield from _read(fs, directory, first_file, covered_sequence, files, torn)
    warnings += [
        f"{tail.path} has a torn tail from offset {tail.start} on ({tail.stop - tail.start} bytes, never "
        f"acknowledged); the next start cuts it"
        for tail in torn
    ]


def _read(
    fs: FileSystem,
    directory: Path,
    first_file: int,
    covered_sequence: int,
    files: list[ReplayedFile],
    torn: list[_Tail],
    rows_at_once: int = 1,
) -> Iterator[Record]:
    numbers = sorted(
        number for name in fs.names(directory) if (number := filenames.wal_number(name)) is not None
    )
    numbers = [number for number in numbers if number >= first_file]
    expected = 0
    for number in range(first_file, numbers[-1] + 1 if numbers else first_file + 1):
        path = directory / filenames.wal_name(number)
        if number not in numbers:
            raise CorruptionError(str(path), 0, "WAL file is missing")
        is_last = number == numbers[-1]
        data = fs.read(path)
        start = _check_file_header(path, data, number, is_last=is_last)
        if start is None:
            # It was never finished being created, so it is made anew under the same number.
            torn.append(_Tail(path, 0, len(data)))
            return
        last_sequence = 0
        stop = start
        # A file that was cut between two records looks whole: only the next one can tell.
        older = directory / filenames.wal_name(number - 1)
        before = f", perhaps from the end of {older}" if number > first_file else ""
        for record in read_records(data, start, covered_sequence, rows_at_once):
            if expected == 0 and record.first_sequence > covered_sequence + 1:
                raise CorruptionError(
                    str(path),
                    stop,
                    f"record {record.first_sequence} follows {covered_sequence}: records are missing{before}",
                )
            if expected and record.first_sequence != expected:
                raise CorruptionError(
                    str(path), stop, f"record {record.first_sequence} where {expected} should stand{before}"
                )
            before = ""
            expected = record.sequence + 1
            last_sequence, stop = record.sequence, record.stop
            if record.sequence > covered_sequence:
                yield record
        if stop < len(data):
            _check_tail(path, data, stop, expected or covered_sequence + 1, is_last=is_last)
            torn.append(_Tail(path, stop, len(data)))
        files.append(ReplayedFile(number, last_sequence, stop))


def read_records(
    data: bytes, start: int, covered_sequence: int = 0, rows_at_once: int = 1
) -> Iterator[Record]:
    """Read records up to the first that cannot be read.

    Parameters
    ----------
    data : bytes
        A WAL file.
    start : int
        Offset of the first record.
    covered_sequence : int
        Of short records that are joined, those up to this one are checked and left out.
    rows_at_once : int
        See `replay`.
    """
    while True:
        record = _read_short_records(data, start, covered_sequence, rows_at_once)
        if record is None:
            record = _read_record(data, start)
        if record is None:
            return
        yield record
        start = record.stop


def _check_file_header(path: Path, data: bytes, number: int, *, is_last: bool) -> int | None:
    """Return the offset of the first record; None when the file was never finished being created."""
    size = format.WAL_FILE_HEADER.size
    reason = None
    if len(data) < size:
        reason = f"file header cut at {len(data)} of {size} bytes"
    else:
        magic, version, _, written_number, checksum = format.WAL_FILE_HEADER.unpack_from(data)
        if format.checksum(data[: size - 8]) != checksum or magic != format.WAL_MAGIC:
            reason = "file header does not match its checksum"
        elif version not in format.WAL_VERSIONS_READ:
            raise CorruptionError(str(path), 8, f"WAL version {version} is not known")
        elif written_number != number:
            raise CorruptionError(str(path), 16, f"file says that its number is {written_number}")
    if reason is None:
        return size
    # The header is synced before the first record is written, so that a longer file once had a whole one.
    if not is_last or len(data) > size:
        raise CorruptionError(str(path), 0, reason)
    return None


def _read_record(data: bytes, start: int) -> Record | None:
    header = format.WAL_RECORD_HEADER
    body = start + header.size
    if body > len(data):
        return None
    magic, kind, sequence, _, rows, size, payload_checksum, checksum = header.unpack_from(data, start)
    if magic != format.WAL_RECORD_MAGIC or rows == 0:
        return None
    if kind not in (format.RECORD_POINTS, format.RECORD_SERIES, format.RECORD_NAMES):
        return None
    if format.checksum(data[start : body - 8]) != checksum:
        return None
    stop = body + size
    one_series = kind == format.RECORD_SERIES
    is_names = kind == format.RECORD_NAMES
    if stop > len(data) or (not is_names and size != (8 if one_series else 8 * rows) + 16 * rows):
        return None
    if format.checksum(memoryview(data)[body:stop], sequence) != payload_checksum:
        return None
    if is_names:
        names = decode_body(data, body, stop, rows)
        return None if names is None else Record(sequence, _NO_POINTS, stop, sequence, names)
    series = np.frombuffer(data, np.int64, 1 if one_series else rows, body)
    middle = body + 8 * len(series)
    if one_series:
        series = np.broadcast_to(series, rows).copy()
    timestamp = np.frombuffer(data, np.int64, rows, middle)
    value = np.frombuffer(data, np.float64, rows, middle + 8 * rows)
    return Record(sequence, Batch(series, timestamp, value), stop, sequence)


def _read_short_records(data: bytes, start: int, covered_sequence: int, rows_at_once: int) -> Record | None:
    """Join the short records that begin at `start`; None when the first is not short, or not whole."""
    size_at = start + _PAYLOAD_BYTES_OFFSET
    size = int.from_bytes(data[size_at : size_at + 4], "little")
    if rows_at_once == 1 or not 0 < size <= records.PAYLOAD_BYTES_MAX:
        return None
    series, timestamp, value_bits = (np.empty(rows_at_once, dtype=np.int64) for _ in range(3))
    bytes_of_file = np.frombuffer(data, np.uint8)
    count, rows, first_sequence, stop = records.read_short_records(
        bytes_of_file.ctypes.data,
        start,
        len(data),
        covered_sequence,
        records.SECRET.ctypes.data,
        series,
        timestamp,
        value_bits,
    )
    if not count:
        return None
    batch = Batch(series[:rows], timestamp[:rows], value_bits[:rows].view(np.float64))
    return Record(first_sequence + count - 1, batch, stop, first_sequence)


def find_records(data: bytes, start: int) -> Iterator[tuple[int, Record]]:
    """Find every readable record from `start` on, with its offset, also behind bytes that cannot be read.

    Parameters
    ----------
    data : bytes
        A WAL file.
    start : int
        Offset to begin at.
    """
    while (found := _find_record(data, start)) is not None:
        record = _read_record(data, found[0])
        assert record is not None
        yield found[0], record
        start = record.stop


def _find_record(data: bytes, start: int) -> tuple[int, int] | None:
    """Find the next readable record: its offset and the sequence that it calls synced."""
    mark = format.WAL_RECORD_MAGIC.to_bytes(4, "little")
    while (start := data.find(mark, start)) >= 0:
        if _read_record(data, start) is not None:
            synced: int = format.WAL_RECORD_HEADER.unpack_from(data, start)[3]
            return start, synced
        start += 1
    return None


def _check_tail(path: Path, data: bytes, stop: int, sequence: int, *, is_last: bool) -> None:
    """Make sure that nothing that was synced is lost with the bytes from `stop` on.

    Raises
    ------
    CorruptionError
    """
    if not is_last:
        # The next file exists, and is created only after this one was synced to its end.
        raise CorruptionError(str(path), stop, f"record {sequence} cannot be read")
    start = stop
    while (found := _find_record(data, start)) is not None:
        start, synced = found
        if synced >= sequence:
            raise CorruptionError(
                str(path),
                stop,
                f"record {sequence} cannot be read, and a later one at offset {start} says that it was "
                f"durable; check with `omendb verify`, and restore from a copy",
            )
        start += 1
