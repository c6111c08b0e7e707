"""Backups: a consistent copy of a store, taken while it is written to.

A backup is a data directory of its own: segments and learned indexes as hard links (they never change), the
manifest of one moment, and a copy of the log up to the last record that was durable then. Beside them stands
the file BACKUP, which vouches for the log: a data directory cannot tell its last record, damaged, from a torn
tail. It is made under a temporary name and renamed when everything is on stable storage.

The way back is `omendb.storage.restore`; the format is described in docs/format/backup.md.

Thread safety: one `Backup` belongs to one thread; the functions may run beside anything that does not change
the same directories.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from omendb.errors import AlreadyExistsError, CorruptionError, InvalidRequestError, OmenError
from omendb.reports import BackupInfo
from omendb.storage import filenames, format, manifest  # noqa: A004
from omendb.storage.fs import NO_LINK_ERRNOS, copy, publish
from omendb.storage.verify import verify
from omendb.storage.wal import read_records

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from omendb.storage.fs import FileSystem, MappedFile
    from omendb.storage.manifest import Manifest
    from omendb.storage.verify import Report

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class LogFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A WAL file of a backup.

    Attributes
    ----------
    number : int
    bytes : int
    checksum : str
        XXH3-64 of the whole file, 16 hexadecimal digits.
    """

    number: int
    bytes: int
    checksum: str


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file BACKUP.

    Attributes
    ----------
    manifest_version : int
        Of the manifest beside it; when that has another one, the directory was used as a store since.
    sequence : int
        Last WAL record that the backup holds.
    unix_seconds : float
        When it was taken.
    rows, segments, bytes : int
        See `BackupInfo`.
    linked : bool
        The segments were hard links.
    log : list of LogFile
    """

    manifest_version: int
    sequence: int
    unix_seconds: float
    rows: int
    segments: int
    bytes: int
    linked: bool
    log: list[LogFile]


_decoder = msgspec.json.Decoder(Record)


class _Held(NamedTuple):
    """A file that is still to be copied; the map keeps its content when the store removes its name."""

    file: MappedFile
    target: Path


class _HeldLog(NamedTuple):
    """A WAL file that is still to be copied."""

    file: MappedFile
    number: int
    source: Path


class Backup:
    """A backup that is being made.

    Parameters
    ----------
    fs : FileSystem
    target : Path
        What it will be called: nothing, or an empty directory.

    Raises
    ------
    AlreadyExistsError
    OSError
    """

    def __init__(self, fs: FileSystem, target: Path) -> None:
        if fs.exists(target) and fs.names(target):
            raise AlreadyExistsError(f"{target} exists and is not empty")
        self._fs = fs
        self._target = target
        self._temporary = target.with_name(target.name + filenames.BACKUP_TEMPORARY_SUFFIX)
        self._held: list[_Held] = []
        self._log: list[_HeldLog] = []
        self._manifest: Manifest
        self._sequence = 0
        remove_backup(fs, self._temporary)
        for name in (filenames.DATA_DIRECTORY, filenames.WAL_DIRECTORY):
            fs.make_directory(self._temporary / name)

    def pin(self, source: Path, loaded: Manifest, wal_files: list[int], synced_sequence: int) -> None:
        """Take hold of every file of one moment; the caller's lock keeps their names in place meanwhile.

        Quick: a hard link or an open file each, and nothing is copied.

        Parameters
        ----------
        source : Path
            The data directory.
        loaded : Manifest
        wal_files : list of int
            Numbers of the live WAL files, ascending.
        synced_sequence : int
            The last record that is to be part of the backup; it is on stable storage.

        Raises
        ------
        OSError
        """
        self._manifest, self._sequence = loaded, synced_sequence
        for name in manifest.data_names(loaded):
            path = source / filenames.DATA_DIRECTORY / name
            target = self._temporary / filenames.DATA_DIRECTORY / name
            try:
                self._fs.link(path, target)
            except OSError as error:
                if error.errno not in NO_LINK_ERRNOS:
                    raise
                self._held.append(_Held(self._fs.map(path), target))
        for number in wal_files:
            if number >= loaded.first_wal_file:
                path = source / filenames.WAL_DIRECTORY / filenames.wal_name(number)
                # Never a link: this file goes on to grow.
                self._log.append(_HeldLog(self._fs.map(path), number, path))

    def finish(self, unix_seconds: float, *, check: bool = False) -> Record:
        """Copy what was not linked, make everything durable, and give the backup its name.

        Parameters
        ----------
        unix_seconds : float
            When it was taken.
        check : bool
            Check every checksum of it first.

        Raises
        ------
        CorruptionError
            The log, or with `check` anything, is damaged.
        OSError
        """
        fs, loaded = self._fs, self._manifest
        linked = not self._held
        for held in self._held:
            copy(fs, held.file, held.target)
        self._held.clear()
        files, log_rows = self._copy_log()
        body = manifest.encode(
            msgspec.structs.replace(loaded, clean=self._sequence == loaded.covered_sequence)
        )
        _write(fs, self._temporary / filenames.MANIFEST, body)
        size = sum(entry.bytes + entry.index.bytes for entry in loaded.segments)
        size += sum(entry.bytes for entry in loaded.catalog)
        record = Record(
            manifest_version=loaded.version,
            sequence=self._sequence,
            unix_seconds=unix_seconds,
            rows=sum(entry.rows for entry in loaded.segments) + log_rows,
            segments=len(loaded.segments),
            bytes=size + sum(file.bytes for file in files) + len(body),
            linked=linked,
            log=files,
        )
        _write(fs, self._temporary / filenames.BACKUP, _encode(record))
        for name in (filenames.DATA_DIRECTORY, filenames.WAL_DIRECTORY):
            fs.sync_directory(self._temporary / name)
        fs.sync_directory(self._temporary)
        if check:
            check_backup(fs, self._temporary)
        publish(fs, self._temporary, self._target)
        return record

    def discard(self) -> None:
        """Remove what there is of it; what cannot be removed is removed by the next attempt."""
        with contextlib.suppress(OSError):
            remove_backup(self._fs, self._temporary)

    def _copy_log(self) -> tuple[list[LogFile], int]:
        """Copy the log up to the sequence, checking each record; return its files and rows."""
        files: list[LogFile] = []
        rows = 0
        reached = self._manifest.covered_sequence
        for held in self._log:
            data = held.file.read_at(0, len(held.file.data))
            stop = format.WAL_FILE_HEADER.size
            for record in read_records(data, stop):
                if record.sequence > self._sequence:
                    break
                if record.sequence > self._manifest.covered_sequence:
                    rows += len(record.batch.timestamp)
                reached, stop = max(reached, record.sequence), record.stop
            if held is not self._log[-1] and stop != len(data):
                raise CorruptionError(str(held.source), stop, f"the record after {reached} cannot be read")
            whole = data[:stop]
            path = self._temporary / filenames.WAL_DIRECTORY / filenames.wal_name(held.number)
            _write(self._fs, path, whole)
            files.append(LogFile(held.number, len(whole), f"{format.checksum(whole):016x}"))
            if reached != self._sequence and held is self._log[-1]:
                raise CorruptionError(str(held.source), stop, f"the record after {reached} cannot be read")
        self._log.clear()
        return files, rows


def check_name(name: str) -> None:
    """Accept what may be the name of a backup: never a path.

    Raises
    ------
    InvalidRequestError
    """
    if not _NAME.fullmatch(name) or name.endswith(filenames.TEMPORARY_SUFFIX):
        raise InvalidRequestError(
            "name must be 1 to 100 letters, digits, dots, hyphens and underscores, begin with a letter or "
            f"digit, and not end in {filenames.TEMPORARY_SUFFIX}",
            "name",
        )


def free_name(fs: FileSystem, directory: Path, wanted: str) -> str:
    """Return `wanted`, with a number behind it when a backup has that name."""
    names = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not fs.exists(directory / name))


def list_backups(fs: FileSystem, directory: Path) -> list[BackupInfo]:
    """Return the backups below a directory, oldest first; what is none is left out."""
    found: list[BackupInfo] = []
    for name in fs.names(directory) if fs.exists(directory) else []:
        if name.endswith(filenames.TEMPORARY_SUFFIX):
            continue
        try:
            record = read_record(fs, directory / name)
        except (OSError, CorruptionError):
            continue
        if record is not None:
            found.append(to_info(record, directory / name))
    return sorted(found, key=lambda info: (info.unix_seconds, info.name))


def remove_leftovers(fs: FileSystem, directory: Path) -> None:
    """Remove the unfinished backups below a directory, which nobody else may be making.

    Raises
    ------
    OSError
    """
    for name in fs.names(directory) if fs.exists(directory) else []:
        if name.endswith(filenames.TEMPORARY_SUFFIX):
            remove_backup(fs, directory / name)


def remove_backup(fs: FileSystem, path: Path) -> None:
    """Remove a backup, when there is one; only names that a backup has.

    Raises
    ------
    OSError
    """
    if not fs.exists(path):
        return
    for name in (filenames.MANIFEST, filenames.BACKUP, filenames.LOCK):
        # The manifest first: without it nothing is left that looks whole.
        if fs.exists(path / name):
            fs.remove(path / name)
    for directory in (filenames.DATA_DIRECTORY, filenames.WAL_DIRECTORY):
        if fs.exists(path / directory):
            for name in fs.names(path / directory):
                fs.remove(path / directory / name)
            fs.remove_directory(path / directory)
    fs.remove_directory(path)


def read_record(fs: FileSystem, backup: Path) -> Record | None:
    """Read the file BACKUP of a directory; None when there is none.

    Raises
    ------
    CorruptionError
    OSError
    """
    path = backup / filenames.BACKUP
    if not fs.exists(path):
        return None
    data = fs.read(path)
    head, _, body = data.partition(b"\n")
    words = head.decode(errors="replace").split(" ")
    if len(words) != 3 or words[0] != format.BACKUP_MAGIC:
        raise CorruptionError(str(path), 0, "this is no record of a backup")
    if words[1] != str(format.BACKUP_VERSION):
        raise CorruptionError(str(path), 0, f"backup version {words[1]} is not known")
    if words[2] != f"{format.checksum(body):016x}":
        raise CorruptionError(str(path), 0, "the record of the backup does not match its checksum")
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptionError(str(path), len(head) + 1, str(error)) from error


def to_info(record: Record, path: Path) -> BackupInfo:
    """Return what is told about a backup."""
    return BackupInfo(
        path.name,
        str(path),
        record.sequence,
        record.rows,
        record.segments,
        record.bytes,
        record.unix_seconds,
    )


def check_backup(fs: FileSystem, backup: Path, progress: Callable[[str], None] | None = None) -> Report:
    """Check every checksum of a backup, or of the data directory of a stopped server.

    Returns
    -------
    Report
        Without findings.

    Raises
    ------
    CorruptionError
        The first damage; the message says how many more there are.
    LockedError
        A process has it open.
    OmenError, OSError
        It is no data directory, or cannot be read.
    """
    report = verify(fs, backup, progress)
    if report.findings:
        first, more = report.findings[0], len(report.findings) - 1
        reason = f"{first.reason} (and {more} more places)" if more else first.reason
        raise CorruptionError(first.path, first.offset, reason)
    loaded = manifest.load(fs, backup)
    if loaded is None:
        raise OmenError(f"{backup} has no manifest: it is no whole backup")
    record = read_record(fs, backup)
    if record is not None and record.manifest_version == loaded.version:
        for file in record.log:
            path = backup / filenames.WAL_DIRECTORY / filenames.wal_name(file.number)
            data = fs.read(path)
            if len(data) != file.bytes or f"{format.checksum(data):016x}" != file.checksum:
                raise CorruptionError(str(path), 0, "the log is not the one that was backed up")
    return report


def _write(fs: FileSystem, path: Path, data: bytes) -> None:
    """Write a file, durably but for its name."""
    file = fs.create(path)
    try:
        file.write([data])
        file.sync()
    finally:
        file.close()


def _encode(record: Record) -> bytes:
    body = msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"
    head = f"{format.BACKUP_MAGIC} {format.BACKUP_VERSION} {format.checksum(body):016x}\n"
    return head.encode() + body
