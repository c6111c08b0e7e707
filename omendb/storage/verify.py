"""The offline check of a data directory: every checksum of every file, and what the manifest says of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omendb.errors import CorruptionError, OmenError
from omendb.storage import filenames, manifest
from omendb.storage.catalog import Catalog
from omendb.storage.names import read_file
from omendb.storage.segment import IndexDamageError, open_segment, read_parquet
from omendb.storage.wal import ReplayedFile, check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from omendb.storage.fs import FileSystem
    from omendb.storage.manifest import CatalogEntry, Manifest, SegmentEntry


@dataclass(frozen=True, slots=True)
class Finding:
    """Damage.

    Attributes
    ----------
    path : str
    offset : int
        First byte of the damaged part.
    reason : str
    """

    path: str
    offset: int
    reason: str


@dataclass(slots=True)
class Report:
    """What a check found.

    Attributes
    ----------
    findings : list of Finding
        Damage; empty when the store is whole.
    warnings : list of str
        What the next start will mend or ignore by itself: a torn tail, a file that nothing names, a learned
        index to be rebuilt.
    files, bytes, rows : int
        What was checked; rows of segments and of the log, superseded ones included.
    """

    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    rows: int = 0

    def damage(self, error: CorruptionError) -> None:
        """Add what an error tells."""
        self.findings.append(Finding(error.path, error.offset, error.reason))


def verify(fs: FileSystem, directory: Path, progress: Callable[[str], None] | None = None) -> Report:
    """Check a data directory that no process has open; nothing is changed.

    Parameters
    ----------
    fs : FileSystem
    directory : Path
    progress : callable, optional
        Is told the name of each file before it is read.

    Raises
    ------
    LockedError
        A process has it open.
    OmenError
        It is no data directory.
    OSError
    """
    if not fs.exists(directory) or not any(
        fs.exists(directory / name)
        for name in (filenames.MANIFEST, filenames.WAL_DIRECTORY, filenames.DATA_DIRECTORY)
    ):
        raise OmenError(f"{directory} is no data directory")
    lock = fs.lock(directory / filenames.LOCK)
    try:
        return _verify_locked(fs, directory, progress or (lambda _name: None))
    finally:
        lock.close()  # type: ignore[attr-defined]


def _verify_locked(fs: FileSystem, directory: Path, progress: Callable[[str], None]) -> Report:
    report = Report()
    path = directory / filenames.MANIFEST
    progress(str(path))
    try:
        loaded = manifest.load(fs, directory)
    except CorruptionError as error:
        report.damage(error)
        return report
    if loaded is None:
        report.findings.append(Finding(str(path), 0, "the manifest is missing"))
        return report
    report.files += 1
    report.bytes += fs.size(path)
    for entry in loaded.segments:
        _verify_segment(fs, directory / filenames.DATA_DIRECTORY, entry, report, progress)
    catalog = Catalog()
    for names in loaded.catalog:
        _verify_names(fs, directory / filenames.DATA_DIRECTORY, names, catalog, report, progress)
    _note_unnamed(fs, directory / filenames.DATA_DIRECTORY, loaded, report)
    _verify_wal(fs, directory / filenames.WAL_DIRECTORY, loaded, catalog, report, progress)
    return report


def _verify_segment(
    fs: FileSystem, directory: Path, entry: SegmentEntry, report: Report, progress: Callable[[str], None]
) -> None:
    path = directory / filenames.segment_name(entry.number)
    progress(str(path))
    report.files += 1
    report.bytes += entry.bytes
    report.rows += entry.rows
    try:
        read_parquet(fs, path, entry)
    except CorruptionError as error:
        report.damage(error)
        return
    progress(str(directory / filenames.index_name(entry.number, entry.index.number)))
    report.files += 1
    report.bytes += entry.index.bytes
    try:
        open_segment(fs, directory, entry).verify_all()
    except IndexDamageError as error:
        report.warnings.append(f"{error}; the next start rebuilds it")
    except CorruptionError as error:
        report.damage(error)


def _verify_names(
    fs: FileSystem,
    directory: Path,
    entry: CatalogEntry,
    catalog: Catalog,
    report: Report,
    progress: Callable[[str], None],
) -> None:
    path = str(directory / filenames.catalog_name(entry.number))
    progress(path)
    report.files += 1
    report.bytes += entry.bytes
    try:
        catalog.restore(read_file(fs, directory, entry), path)
    except CorruptionError as error:
        report.damage(error)


def _note_unnamed(fs: FileSystem, directory: Path, loaded: Manifest, report: Report) -> None:
    named = set(manifest.data_names(loaded))
    report.warnings += [
        f"{directory / name} is not named by the manifest; the next start removes it"
        for name in fs.names(directory)
        if filenames.is_ours(name) and name not in named
    ]


def _verify_wal(
    fs: FileSystem,
    directory: Path,
    loaded: Manifest,
    catalog: Catalog,
    report: Report,
    progress: Callable[[str], None],
) -> None:
    files: list[ReplayedFile] = []
    progress(str(directory))
    try:
        for record in check(
            fs, directory, loaded.first_wal_file, loaded.covered_sequence, files, report.warnings
        ):
            report.rows += len(record.batch.timestamp)
            # After damage to a catalog file, what follows it only looks wrong.
            if record.names is not None and not report.findings:
                catalog.restore(record.names, str(directory))
    except CorruptionError as error:
        report.damage(error)
    report.files += len(files)
    report.bytes += sum(file.bytes for file in files)
