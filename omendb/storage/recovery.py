"""Opening a data directory: after a clean stop, a crash or a power loss, or for the first time.

Order: lock; manifest; segments and their learned indexes (rebuilt when damaged); files that nothing names
are removed; the log is replayed, its torn tail cut; a new WAL file is started. Nothing is served before
what was read from the log is known to be on stable storage.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from omendb.errors import CorruptionError
from omendb.jit import layout
from omendb.model import Batch
from omendb.series import FIRST_ID, IDS_MAX
from omendb.storage import compaction, filenames, manifest
from omendb.storage.catalog import Catalog
from omendb.storage.decoded_cache import DecodedCache
from omendb.storage.fs import discard
from omendb.storage.memtable import Memtable
from omendb.storage.names import read_file
from omendb.storage.segment import IndexDamageError, Segment, open_segment, rebuild_index
from omendb.storage.segment_writer import write_index
from omendb.storage.store import SEGMENT_ROWS_MAX, Store
from omendb.storage.wal import Record, ReplayedFile, Wal, replay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from omendb.config import Settings
    from omendb.storage.fs import FileSystem
    from omendb.storage.manifest import Manifest, SegmentEntry

logger = logging.getLogger("omendb.recovery")

_ROWS_AT_ONCE = 65_536  # WAL rows gathered for one memtable insert: small records cost most of a replay


@dataclass(slots=True)
class Recovery:
    """What opening found.

    Attributes
    ----------
    created : bool
        The directory was new.
    clean : bool
        The last owner stopped in order, or there was none.
    replayed_records, replayed_rows : int
        What came from the log.
    rebuilt_indexes : int
        Learned indexes that were damaged and fitted anew.
    removed_files : int
        Files that nothing named.
    seconds : float
        How long opening took; the engine, which has a clock, fills it in.
    """

    created: bool = False
    clean: bool = True
    replayed_records: int = 0
    replayed_rows: int = 0
    rebuilt_indexes: int = 0
    removed_files: int = 0
    seconds: float = 0.0


def open_store(
    fs: FileSystem,
    directory: Path,
    settings: Settings,
    progress: Callable[[str, float], None] | None = None,
    *,
    partition_rows: int = compaction.PARTITION_ROWS,
    segment_rows_max: int = SEGMENT_ROWS_MAX,
) -> tuple[Store, Recovery]:
    """Open a data directory, or make a new one.

    Parameters
    ----------
    fs : FileSystem
    directory : Path
    settings : Settings
    progress : callable, optional
        Is told what is done and how far it is, 0 to 1.
    partition_rows, segment_rows_max : int
        See `compaction` and `store`.

    Raises
    ------
    LockedError
        Another process has it open.
    CorruptionError
        Something that had been durable is damaged or missing; nothing was changed but what is safe to.
    OSError
    """
    fs.make_directory(directory)
    lock: Any = fs.lock(directory / filenames.LOCK)
    try:
        report = progress or _say_nothing
        return _open_locked(fs, directory, settings, report, lock, partition_rows, segment_rows_max)
    except CorruptionError as error:
        lock.close()
        advice = f"`omendb repair {directory}` shows what can be saved"
        raise CorruptionError(error.path, error.offset, f"{error.reason}; {advice}") from error
    except BaseException:
        lock.close()
        raise


def _open_locked(
    fs: FileSystem,
    directory: Path,
    settings: Settings,
    report: Callable[[str, float], None],
    lock: object,
    partition_rows: int,
    segment_rows_max: int,
) -> tuple[Store, Recovery]:
    found = Recovery()
    wal_directory = directory / filenames.WAL_DIRECTORY
    data_directory = directory / filenames.DATA_DIRECTORY
    fs.make_directory(wal_directory)
    fs.make_directory(data_directory)
    discard_if_there(fs, directory / (filenames.MANIFEST + filenames.TEMPORARY_SUFFIX))

    report("reading the manifest", 0.0)
    loaded = manifest.load(fs, directory)
    if loaded is None:
        _check_nothing_there(fs, directory)
        found.created = True
        loaded = manifest.Manifest(0, str(uuid.uuid4()), True, 1, 1, 0, [], [])
    found.clean = loaded.clean
    if not found.clean:
        logger.warning("recovery unclean stop: the last owner of %s did not finish its shutdown", directory)

    cache = DecodedCache()
    segments, loaded = _open_segments(fs, data_directory, loaded, settings, report, found, cache)
    _remove_unnamed(fs, data_directory, loaded, found)

    catalog = Catalog()
    for entry in loaded.catalog:
        path = str(data_directory / filenames.catalog_name(entry.number))
        catalog.restore(read_file(fs, data_directory, entry), path)
    catalog.filed = catalog.count
    memtables, files = _replay(fs, wal_directory, loaded, catalog, settings, report, found)
    _check_named(directory, segments, memtables, catalog)
    # Not only of points: the log may end with names.
    last_sequence = max([loaded.covered_sequence, *(file.last_sequence for file in files)])
    if files:
        # What the page cache gave us may not be on the disk yet, and is served from now on.
        tail = fs.reopen(wal_directory / filenames.wal_name(files[-1].number))
        try:
            tail.sync()
        finally:
            tail.close()
        fs.sync_directory(wal_directory)
    wal = Wal(
        fs,
        wal_directory,
        files[-1].number + 1 if files else loaded.first_wal_file,
        last_sequence + 1,
        [(file.number, file.last_sequence) for file in files],
    )
    store = Store(
        fs,
        directory,
        settings,
        wal,
        loaded,
        segments,
        memtables[:-1],
        memtables[-1],
        catalog,
        lock,
        cache,
        partition_rows,
        segment_rows_max,
    )
    store.mark_open()
    report("ready", 1.0)
    logger.info(
        "recovery done %s segments=%d rows=%d replayed_records=%d replayed_rows=%d rebuilt_indexes=%d "
        "removed_files=%d clean=%s",
        directory,
        len(segments),
        store.snapshot.segment_rows,
        found.replayed_records,
        found.replayed_rows,
        found.rebuilt_indexes,
        found.removed_files,
        found.clean,
    )
    return store, found


def _say_nothing(_message: str, _fraction: float) -> None:
    """Take a report of progress that nobody asked for."""


def discard_if_there(fs: FileSystem, path: Path) -> None:
    """Remove a file that nothing refers to, when there is one."""
    if fs.exists(path):
        discard(fs, path)


def _check_nothing_there(fs: FileSystem, directory: Path) -> None:
    """Refuse to call a directory new that holds data but no manifest."""
    path = str(directory / filenames.MANIFEST)
    for name in fs.names(directory / filenames.DATA_DIRECTORY):
        if filenames.is_ours(name):
            raise CorruptionError(path, 0, f"the manifest is missing, but there is data/{name}")
    wal_directory = directory / filenames.WAL_DIRECTORY
    numbers = [n for name in fs.names(wal_directory) if (n := filenames.wal_number(name)) is not None]
    if numbers not in ([], [1]):
        raise CorruptionError(path, 0, f"the manifest is missing, but there are WAL files {numbers}")
    for number in numbers:
        wal_path = wal_directory / filenames.wal_name(number)
        # A crash during the very first start leaves one WAL file without a record.
        if next(replay(fs, wal_directory, number, 0, []), None) is not None:
            raise CorruptionError(path, 0, f"the manifest is missing, but {wal_path} holds records")
        fs.remove(wal_path)


def _open_segments(
    fs: FileSystem,
    data_directory: Path,
    loaded: Manifest,
    settings: Settings,
    report: Callable[[str, float], None],
    found: Recovery,
    cache: DecodedCache,
) -> tuple[list[Segment], Manifest]:
    segments: list[Segment] = []
    entries: list[SegmentEntry] = []
    next_number = loaded.next_number
    for position, entry in enumerate(loaded.segments):
        report("opening segments", 0.3 * position / len(loaded.segments))
        try:
            segment = open_segment(fs, data_directory, entry, cache)
        except IndexDamageError as damage:
            logger.warning("recovery rebuilds a learned index: %s", damage)
            index = rebuild_index(fs, data_directory, entry, settings.max_error)
            written = write_index(fs, data_directory, entry.number, next_number, index)
            next_number += 1
            entry = msgspec.structs.replace(entry, index=written)
            segment = open_segment(fs, data_directory, entry, cache)
            found.rebuilt_indexes += 1
        segments.append(segment)
        entries.append(entry)
    return segments, msgspec.structs.replace(loaded, segments=entries, next_number=next_number)


def _remove_unnamed(fs: FileSystem, data_directory: Path, loaded: Manifest, found: Recovery) -> None:
    """Remove files of ours that the manifest does not name: left by a crash between write and commit."""
    named = set(manifest.data_names(loaded))
    for name in fs.names(data_directory):
        if filenames.is_ours(name) and name not in named:
            logger.info("recovery removes data/%s: the manifest does not name it", name)
            discard(fs, data_directory / name)
            found.removed_files += 1


def _check_named(
    directory: Path, segments: list[Segment], memtables: list[Memtable], catalog: Catalog
) -> None:
    """Make sure that every point of a named series has its name, and that no id is given twice.

    Raises
    ------
    CorruptionError
    """
    highest = FIRST_ID - 1
    stop = FIRST_ID + IDS_MAX
    ids = [
        segment.index.runs[:, layout.RUN_SERIES]
        for segment in segments
        if segment.entry.last_series >= FIRST_ID
    ]
    for series in (*ids, *(memtable.series_ids() for memtable in memtables)):
        reserved = series[(series >= FIRST_ID) & (series < stop)]
        if len(reserved):
            highest = max(highest, int(reserved.max()))
    if not catalog.count:
        # Ids that somebody chose before they were reserved stay theirs.
        catalog.begin_at(highest + 1)
    elif highest >= catalog.next_id:
        raise CorruptionError(str(directory), 0, f"series {highest} has points, but no name")


def _replay(
    fs: FileSystem,
    wal_directory: Path,
    loaded: Manifest,
    catalog: Catalog,
    settings: Settings,
    report: Callable[[str, float], None],
    found: Recovery,
) -> tuple[list[Memtable], list[ReplayedFile]]:
    files: list[ReplayedFile] = []
    memtables = [Memtable()]
    if loaded.version == 0:
        return memtables, files
    for name in fs.names(wal_directory):
        number = filenames.wal_number(name)
        if number is not None and number < loaded.first_wal_file:
            discard(fs, wal_directory / name)
    sizes = {
        name: fs.size(wal_directory / name)
        for name in fs.names(wal_directory)
        if filenames.wal_number(name) is not None
    }
    total = max(sum(sizes.values()), 1)
    waiting: list[Record] = []
    waiting_rows = 0

    def insert() -> None:
        nonlocal waiting_rows
        if waiting:
            batches = [record.batch for record in waiting]
            rows = Batch(*(np.concatenate(columns) for columns in zip(*batches, strict=True)))
            first_sequence = max(waiting[0].first_sequence, loaded.covered_sequence + 1)
            memtables[-1].insert(rows, waiting[-1].sequence, first_sequence)
        waiting.clear()
        waiting_rows = 0

    for record in replay(
        fs, wal_directory, loaded.first_wal_file, loaded.covered_sequence, files, _ROWS_AT_ONCE
    ):
        found.replayed_records += record.sequence - max(record.first_sequence - 1, loaded.covered_sequence)
        if record.names is not None:
            catalog.restore(record.names, str(wal_directory))
            continue
        rows = len(record.batch.timestamp)
        waiting.append(record)
        waiting_rows += rows
        found.replayed_rows += rows
        if waiting_rows >= _ROWS_AT_ONCE:
            insert()
            done = sum(file.bytes for file in files) + record.stop
            report("replaying the log", 0.3 + 0.7 * min(done / total, 1.0))
            if memtables[-1].rows >= settings.retrain_threshold:
                memtables[-1].freeze()
                memtables.append(Memtable())
    insert()
    return memtables, files
