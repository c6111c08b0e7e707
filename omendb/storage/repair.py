"""Repair: makes a damaged data directory start again, after showing what that costs.

`examine` changes nothing and says what would be done and lost; `carry_out` does it. What is taken out of the
store goes to ``quarantine/`` below the data directory, whole, and is never deleted. Rows of a damaged segment
are kept block by block: those whose timestamps and values match their checksums go into a new segment. A log
is cut at its first damaged record, so that what stays is what the store held at one moment.

Only the manifest says which of two segments wins where they hold the same point, so a damaged manifest cannot
be made anew from the other files without guessing: that is refused.

The steps are ordered so that a crash between any two of them leaves a directory that can be repaired again,
with nothing lost that the first attempt would have kept.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from omendb.config import Settings
from omendb.errors import CorruptionError, OmenError
from omendb.jit import layout
from omendb.model import Columns
from omendb.series import Name, write_key
from omendb.storage import filenames, format, manifest  # noqa: A004
from omendb.storage.backup import free_name
from omendb.storage.catalog import Catalog
from omendb.storage.fs import NO_LINK_ERRNOS, copy
from omendb.storage.names import Names, read_file, write_file
from omendb.storage.segment import IndexDamageError, load_index, open_segment, read_parquet, rebuild_index
from omendb.storage.segment_pages import PageReader
from omendb.storage.segment_writer import write_index, write_segment
from omendb.storage.wal import Wal, check, find_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from omendb.storage.fs import FileSystem, MappedFile
    from omendb.storage.learned_index import LearnedIndex
    from omendb.storage.manifest import CatalogEntry, Manifest, SegmentEntry


class Loss(NamedTuple):
    """Rows that are lost.

    Attributes
    ----------
    first_series, last_series : int
        The same when it is known which series they belong to.
    rows : int
    first_timestamp, last_timestamp : int
        Bounds of their timestamps, inclusive; not necessarily tight.
    """

    first_series: int
    last_series: int
    rows: int
    first_timestamp: int
    last_timestamp: int


@dataclass(frozen=True, slots=True)
class SegmentDamage:
    """A damaged segment.

    Attributes
    ----------
    entry : SegmentEntry
    path, reason : str
    kept_rows : int
        Rows that go into a new segment.
    losses : list of Loss
    """

    entry: SegmentEntry
    path: str
    reason: str
    kept_rows: int
    losses: list[Loss]


@dataclass(frozen=True, slots=True)
class LogDamage:
    """A log that cannot be read to its end.

    Attributes
    ----------
    path, reason : str
    number : int
        The WAL file that is cut.
    offset : int
        Where it is cut; 0 when nothing of the file can be used, or it is missing.
    later_files : list of int
        WAL files behind it, which are taken out as a whole.
    records : int
        Records from there on that could be read, and are dropped.
    unreadable_bytes : int
        Bytes from there on that belong to no readable record.
    losses : list of Loss
        Rows of those records.
    """

    path: str
    reason: str
    number: int
    offset: int
    later_files: list[int]
    records: int
    unreadable_bytes: int
    losses: list[Loss]


@dataclass(frozen=True, slots=True)
class CatalogDamage:
    """A damaged file of names: the series keep their ids and points, and get names made from the ids.

    Attributes
    ----------
    entry : CatalogEntry
    path, reason : str
    """

    entry: CatalogEntry
    path: str
    reason: str


@dataclass(slots=True)
class Plan:
    """What is damaged, and so what a repair does.

    Attributes
    ----------
    loaded : Manifest
    segments : list of SegmentDamage
    indexes : list of (SegmentEntry, str)
        Whole segments whose learned index is damaged, with the reason: it is fitted anew.
    catalog : list of CatalogDamage
    log : LogDamage or None
    unnamed : list of str
        Files in the data directory that the manifest does not name: they are removed.
    """

    loaded: Manifest
    segments: list[SegmentDamage] = field(default_factory=list)
    indexes: list[tuple[SegmentEntry, str]] = field(default_factory=list)
    catalog: list[CatalogDamage] = field(default_factory=list)
    log: LogDamage | None = None
    unnamed: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """There is nothing to repair."""
        return not (self.segments or self.indexes or self.catalog or self.log or self.unnamed)

    @property
    def losses(self) -> list[Loss]:
        """All rows that a repair drops, summed up by series."""
        parts = [loss for damage in self.segments for loss in damage.losses]
        return _summed([*parts, *(self.log.losses if self.log else [])])

    @property
    def lost_rows(self) -> int:
        """Rows that a repair drops; superseded ones count, those of unreadable log records cannot."""
        return sum(loss.rows for loss in self.losses)


def examine(fs: FileSystem, directory: Path, progress: Callable[[str], None] | None = None) -> Plan:
    """Look at every file of a data directory, and plan its repair; nothing is changed.

    The caller holds the directory's lock.

    Raises
    ------
    CorruptionError
        The manifest is damaged, or a file is of a version that is not known: that cannot be repaired.
    OmenError
        It is no data directory, or its manifest is missing.
    OSError
        A file cannot be read at all: copy the disk first.
    """
    report = progress or _say_nothing
    try:
        loaded = manifest.load(fs, directory)
    except CorruptionError as error:
        raise CorruptionError(error.path, error.offset, f"{error.reason}; {_NO_MANIFEST}") from error
    if loaded is None:
        raise OmenError(f"{directory} has no manifest: it is no data directory, or {_NO_MANIFEST}")
    plan = Plan(loaded)
    data_directory = directory / filenames.DATA_DIRECTORY
    for entry in loaded.segments:
        path = data_directory / filenames.segment_name(entry.number)
        report(str(path))
        try:
            read_parquet(fs, path, entry)
            open_segment(fs, data_directory, entry).verify_all()
        except IndexDamageError as error:
            plan.indexes.append((entry, str(error)))
        except CorruptionError as error:
            salvage = _salvage(fs, data_directory, entry)
            kept = 0 if salvage.rows is None else salvage.rows.count
            plan.segments.append(SegmentDamage(entry, error.path, error.reason, kept, salvage.losses))
    for names in loaded.catalog:
        path = data_directory / filenames.catalog_name(names.number)
        report(str(path))
        try:
            Catalog().restore(read_file(fs, data_directory, names), str(path))
        except CorruptionError as error:
            if "is not known" in error.reason:
                raise  # written by a later version: there is nothing wrong with it
            plan.catalog.append(CatalogDamage(names, error.path, error.reason))
    named = set(manifest.data_names(loaded))
    if fs.exists(data_directory):
        plan.unnamed = [
            name for name in fs.names(data_directory) if filenames.is_ours(name) and name not in named
        ]
    report(str(directory / filenames.WAL_DIRECTORY))
    plan.log = _examine_log(fs, directory / filenames.WAL_DIRECTORY, loaded)
    return plan


def carry_out(fs: FileSystem, directory: Path, plan: Plan) -> None:
    """Do what a plan says; the directory has not changed since it was made, and its lock is held.

    Raises
    ------
    OSError, OmenError
        The directory can be examined and repaired again.
    """
    data_directory = directory / filenames.DATA_DIRECTORY
    quarantine = directory / filenames.QUARANTINE_DIRECTORY
    fs.make_directory(data_directory)
    fs.make_directory(directory / filenames.WAL_DIRECTORY)
    if plan.segments or plan.catalog or plan.log:
        fs.make_directory(quarantine)
    # Before the manifest stops naming them: what it does not name is removed at the next start.
    for damage in plan.segments:
        for name in _names(damage.entry):
            _keep(fs, data_directory / name, quarantine)
    lost_names = [filenames.catalog_name(damage.entry.number) for damage in plan.catalog]
    for name in lost_names:
        _keep(fs, data_directory / name, quarantine)
    if plan.segments or plan.indexes or plan.catalog:
        _publish(fs, directory, plan)
    damaged = [name for damage in plan.segments for name in _names(damage.entry)]
    rebuilt = [filenames.index_name(entry.number, entry.index.number) for entry, _ in plan.indexes]
    for name in (*damaged, *rebuilt, *lost_names, *plan.unnamed):
        if fs.exists(data_directory / name):
            fs.remove(data_directory / name)
    fs.sync_directory(data_directory)
    if plan.log is not None:
        _cut_log(fs, directory / filenames.WAL_DIRECTORY, plan.log, quarantine, plan.loaded)


_NO_MANIFEST = (
    "without the manifest nothing says which file wins where two hold the same point, so it is not made "
    "anew: restore a backup (`omendb restore`), or read data/*.parquet with any Parquet reader"
)


class _Salvage(NamedTuple):
    """What can be saved of a segment: its rows, in order, None when there are none; and what cannot."""

    rows: Columns | None
    max_error: int
    losses: list[Loss]


def _salvage(fs: FileSystem, data_directory: Path, entry: SegmentEntry) -> _Salvage:
    """Read what matches its checksums; the learned index has them, and the series of each row."""
    try:
        index = load_index(fs, data_directory / filenames.index_name(entry.number, entry.index.number), entry)
    except IndexDamageError:
        whole = Loss(
            entry.first_series, entry.last_series, entry.rows, entry.first_timestamp, entry.last_timestamp
        )
        return _Salvage(None, 0, [whole])
    blocks = len(index.timestamp_checksums)
    timestamp, value = np.zeros(entry.rows, np.int64), np.zeros(entry.rows, np.float64)
    time_is_good, value_is_good = np.zeros(blocks, np.bool_), np.zeros(blocks, np.bool_)
    try:
        file = fs.map(data_directory / filenames.segment_name(entry.number))
    except OSError:
        pass  # it is missing: every row is lost, and the index tells which
    else:
        if entry.is_compressed:
            pages = PageReader(file, str(data_directory), index)
            time_is_good = _decode_blocks(pages.read_timestamps, blocks, timestamp)
            value_is_good = _decode_blocks(pages.read_values, blocks, value)
        else:
            time_is_good = _read_blocks(file, entry.timestamp_offset, index.timestamp_checksums, timestamp)
            value_is_good = _read_blocks(file, entry.value_offset, index.value_checksums, value)
    block_of = np.arange(entry.rows) >> format.BLOCK_SHIFT
    kept = (time_is_good & value_is_good)[block_of]
    losses = list(_losses(index, timestamp, time_is_good[block_of], kept))
    if not kept.any():
        return _Salvage(None, index.max_error, losses)
    runs = index.runs
    series = np.repeat(runs[:, layout.RUN_SERIES], runs[:, layout.RUN_STOP] - runs[:, layout.RUN_START])
    return _Salvage(Columns(series[kept], timestamp[kept], value[kept]), index.max_error, losses)


def _read_blocks(
    file: MappedFile, offset: int, checksums: NDArray[np.uint64], column: NDArray[Any]
) -> NDArray[np.bool_]:
    """Fill a column with the blocks that match their checksums; return which those are."""
    good = np.zeros(len(checksums), np.bool_)
    rows = 1 << format.BLOCK_SHIFT
    for block, expected in enumerate(checksums):
        part = column[block * rows : (block + 1) * rows]
        try:
            data = file.read_at(offset + 8 * rows * block, part.nbytes)
        except OSError:
            continue
        if len(data) == part.nbytes and format.checksum(data) == int(expected):
            part[:] = np.frombuffer(data, column.dtype)
            good[block] = True
    return good


def _decode_blocks(
    read: Callable[[int, NDArray[Any]], None], blocks: int, column: NDArray[Any]
) -> NDArray[np.bool_]:
    """Fill a column with the blocks that can be decoded and match their checksums; return which those are."""
    good = np.zeros(blocks, np.bool_)
    rows = 1 << format.BLOCK_SHIFT
    for block in range(blocks):
        part = column[block * rows : (block + 1) * rows]
        try:
            read(block, part)
        except CorruptionError:
            part[:] = 0
            continue
        good[block] = True
    return good


def _losses(
    index: LearnedIndex,
    timestamp: NDArray[np.int64],
    is_known: NDArray[np.bool_],
    kept: NDArray[np.bool_],
) -> Iterator[Loss]:
    """Yield the lost rows of each series; a timestamp that is lost too is bounded by its neighbours."""
    lost = np.flatnonzero(~kept)
    for run in index.runs:
        start, stop = int(run[layout.RUN_START]), int(run[layout.RUN_STOP])
        low, high = np.searchsorted(lost, (start, stop))
        if low == high:
            continue
        first, last = int(lost[low]), int(lost[high - 1])
        if is_known[first]:
            first_timestamp = int(timestamp[first])
        elif first > start:
            first_timestamp = int(timestamp[first - 1]) + 1
        else:
            first_timestamp = int(run[layout.RUN_FIRST])
        if is_known[last]:
            last_timestamp = int(timestamp[last])
        elif last + 1 < stop:
            last_timestamp = int(timestamp[last + 1]) - 1
        else:
            last_timestamp = int(run[layout.RUN_LAST])
        series = int(run[layout.RUN_SERIES])
        yield Loss(series, series, int(high - low), first_timestamp, last_timestamp)


def _publish(fs: FileSystem, directory: Path, plan: Plan) -> None:
    """Write what is salvaged and what is rebuilt, and the manifest that names it."""
    data_directory = directory / filenames.DATA_DIRECTORY
    loaded = plan.loaded
    number = max([loaded.next_number, *(filenames.number_of(n) + 1 for n in fs.names(data_directory))])
    entries = {entry.number: entry for entry in loaded.segments}
    for damage in plan.segments:
        old = entries.pop(damage.entry.number)
        salvage = _salvage(fs, data_directory, old)
        if salvage.rows is None:
            continue
        sequences = (old.first_sequence, old.last_sequence)
        entries[number] = write_segment(
            fs,
            data_directory,
            (number, number + 1),
            salvage.rows,
            salvage.max_error,
            sequences,
            compressed=old.is_compressed,
        )
        number += 2
    for entry, _ in plan.indexes:
        index = rebuild_index(fs, data_directory, entry, Settings().max_error)
        written = write_index(fs, data_directory, entry.number, number, index)
        entries[entry.number] = msgspec.structs.replace(entry, index=written)
        number += 1
    catalog = {entry.number: entry for entry in loaded.catalog}
    logged = _logged_names(fs, directory / filenames.WAL_DIRECTORY) if plan.catalog else {}
    for lost in plan.catalog:
        old_entry = lost.entry
        made = made_names(old_entry.first_id, old_entry.count, logged)
        catalog[old_entry.number] = write_file(fs, data_directory, number, made)
        number += 1
    ordered = sorted(entries.values(), key=lambda entry: (entry.last_sequence, entry.number))
    manifest.commit(
        fs,
        directory,
        msgspec.structs.replace(
            loaded,
            version=loaded.version + 1,
            next_number=number,
            segments=ordered,
            catalog=list(catalog.values()),
        ),
    )


def _logged_names(fs: FileSystem, wal_directory: Path) -> dict[int, bytes]:
    """Return the keys that the log still has, by id."""
    found: dict[int, bytes] = {}
    for name in fs.names(wal_directory):
        if filenames.wal_number(name) is None:
            continue
        for _, record in find_records(fs.read(wal_directory / name), format.WAL_FILE_HEADER.size):
            if record.names is not None:
                stops = np.cumsum(record.names.lengths, dtype=np.int64).tolist()
                keys = record.names.keys.tobytes()
                for position, (start, stop) in enumerate(itertools.pairwise([0, *stops])):
                    found[record.names.first_id + position] = keys[start:stop]
    return found


def made_names(first_id: int, count: int, known: dict[int, bytes]) -> Names:
    """Return names for series whose names are lost, so that their ids are not given to others.

    Parameters
    ----------
    first_id, count : int
        The ids.
    known : dict of int to bytes
        Keys that are not lost.
    """
    keys = [
        known.get(series_id) or write_key(Name("lost", (("series_id", str(series_id)),), "value"))
        for series_id in range(first_id, first_id + count)
    ]
    lengths = np.fromiter(map(len, keys), np.uint32, count)
    return Names(first_id, lengths, np.frombuffer(b"".join(keys), np.uint8))


def _examine_log(fs: FileSystem, wal_directory: Path, loaded: Manifest) -> LogDamage | None:
    covered = loaded.covered_sequence
    numbers: list[int] = []
    if fs.exists(wal_directory):
        try:
            for _ in check(fs, wal_directory, loaded.first_wal_file, covered, [], []):
                pass
        except CorruptionError as error:
            damage = error
        else:
            return None
        numbers = sorted(
            number for name in fs.names(wal_directory) if (number := filenames.wal_number(name)) is not None
        )
    else:
        path = wal_directory / filenames.wal_name(loaded.first_wal_file)
        damage = CorruptionError(str(path), 0, "WAL file is missing")
    if "is not known" in damage.reason:
        # Written by a later version: there is nothing wrong with it.
        raise damage
    cut = filenames.wal_number(Path(damage.path).name)
    assert cut is not None, damage.path
    offset = damage.offset if damage.offset >= format.WAL_FILE_HEADER.size else 0
    records = readable = total = 0
    losses: list[Loss] = []
    for number in numbers:
        if number < cut:
            continue
        data = fs.read(wal_directory / filenames.wal_name(number))
        start = offset if number == cut else format.WAL_FILE_HEADER.size
        total += max(len(data) - start, 0)
        for offset_of, record in find_records(data, start):
            readable += record.stop - offset_of
            if record.sequence <= covered:
                continue  # the segments have it
            records += 1
            losses += _losses_of(record.batch.series_id, record.batch.timestamp)
    return LogDamage(
        path=damage.path,
        reason=damage.reason,
        number=cut,
        offset=offset,
        later_files=[number for number in numbers if number > cut],
        records=records,
        unreadable_bytes=total - readable,
        losses=_summed(losses),
    )


def _losses_of(series_id: NDArray[np.int64], timestamp: NDArray[np.int64]) -> Iterator[Loss]:
    for series in np.unique(series_id):
        times = timestamp[series_id == series]
        yield Loss(int(series), int(series), len(times), int(times.min()), int(times.max()))


def _cut_log(
    fs: FileSystem, wal_directory: Path, damage: LogDamage, quarantine: Path, loaded: Manifest
) -> None:
    # From the last file on: a crash in between leaves a log without a gap.
    for number in sorted(damage.later_files, reverse=True):
        _move(fs, wal_directory / filenames.wal_name(number), quarantine)
    path = wal_directory / filenames.wal_name(damage.number)
    if damage.offset:
        # A copy, not a link: the file itself is cut.
        copy(fs, fs.map(path), quarantine / free_name(fs, quarantine, path.name))
        fs.sync_directory(quarantine)
        file = fs.reopen(path)
        try:
            file.truncate(damage.offset)
            file.sync()
        finally:
            file.close()
        return
    if fs.exists(path):
        _move(fs, path, quarantine)
    # The manifest may say that the log begins here: an empty file is a log without records.
    Wal(fs, wal_directory, damage.number, loaded.covered_sequence + 1).make_file().close()


def _keep(fs: FileSystem, path: Path, quarantine: Path) -> None:
    """Give a file that is about to be removed a second name in the quarantine, when it is there."""
    if not fs.exists(path):
        return
    target = quarantine / free_name(fs, quarantine, path.name)
    try:
        fs.link(path, target)
    except OSError as error:
        if error.errno not in NO_LINK_ERRNOS:
            raise
        copy(fs, fs.map(path), target)
    fs.sync_directory(quarantine)


def _move(fs: FileSystem, path: Path, quarantine: Path) -> None:
    fs.rename(path, quarantine / free_name(fs, quarantine, path.name))
    fs.sync_directory(quarantine)
    fs.sync_directory(path.parent)


def _names(entry: SegmentEntry) -> tuple[str, str]:
    return (
        filenames.segment_name(entry.number),
        filenames.index_name(entry.number, entry.index.number),
    )


def _summed(losses: list[Loss]) -> list[Loss]:
    """Sum up by series, ascending."""
    found: dict[tuple[int, int], Loss] = {}
    for loss in losses:
        key = (loss.first_series, loss.last_series)
        old = found.get(key, Loss(*key, 0, loss.first_timestamp, loss.last_timestamp))
        found[key] = Loss(
            *key,
            old.rows + loss.rows,
            min(old.first_timestamp, loss.first_timestamp),
            max(old.last_timestamp, loss.last_timestamp),
        )
    return [found[key] for key in sorted(found)]


def _say_nothing(_name: str) -> None:
    """Take a report of progress that nobody asked for."""
