"""The store: everything durable, without threads and without a clock.

Who calls what: one thread inserts (`append`, `sync`, `apply`, `freeze`), one flushes (`flush_oldest`), one
maintains (`compact`, `retrain`); any thread may read `snapshot`. The engine owns those threads; a test may
call all of it from one, in any order, and so replay any schedule.

Invariants: `snapshot` holds every applied record; the manifest and the log together hold every record that
was synced; a file is removed only after the manifest has stopped naming it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from omendb.errors import ClosedError, CorruptionError, DiskFullError, WalFailedError
from omendb.model import INT64_MAX, INT64_MIN, Batch, Columns
from omendb.storage import backup, compaction, filenames, learned_index, manifest
from omendb.storage.decoded_cache import DecodedCache
from omendb.storage.format import WAL_NAMES_BYTES_MAX
from omendb.storage.fs import DISK_FULL_ERRNOS, discard
from omendb.storage.memtable import Memtable
from omendb.storage.names import write_file
from omendb.storage.reused import Scratch
from omendb.storage.segment import IndexDamageError, Segment, open_segment
from omendb.storage.segment_writer import write_index, write_segment
from omendb.storage.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence
    from pathlib import Path

    from omendb.config import Settings
    from omendb.storage.catalog import Catalog
    from omendb.storage.fs import FileSystem
    from omendb.storage.manifest import CatalogEntry, Manifest, SegmentEntry
    from omendb.storage.wal import Wal

logger = logging.getLogger("omendb.storage")

SEGMENT_ROWS_MAX = 2_000_000
"""Rows of one segment: bounds the memory that writing one takes (about 100 MB)."""

MERGE_CACHE_BYTES = 16 << 20
"""What a merge keeps of the compressed segments that it reads."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a flush, a compaction or a retrain did.

    Attributes
    ----------
    rows_in, rows_out : int
    bytes_written : int
    segments_in, segments_out : int
    """

    rows_in: int
    rows_out: int
    bytes_written: int
    segments_in: int
    segments_out: int


class Store:
    """An open data directory; `omendb.storage.recovery.open_store` makes one.

    Attributes
    ----------
    snapshot : Snapshot
        The current one; replaced, never changed.
    settings : Settings
        May be replaced while the store is open.
    damaged : set of int
        Numbers of segments that failed a checksum since the start.
    cache : DecodedCache
        What is decoded of compressed segments.
    catalog : Catalog
        The named series.
    """

    def __init__(
        self,
        fs: FileSystem,
        directory: Path,
        settings: Settings,
        wal: Wal,
        loaded: Manifest,
        segments: Sequence[Segment],
        frozen: Sequence[Memtable],
        active: Memtable,
        catalog: Catalog,
        lock: Any,  # noqa: ANN401
        cache: DecodedCache,
        partition_rows: int = compaction.PARTITION_ROWS,
        segment_rows_max: int = SEGMENT_ROWS_MAX,
    ) -> None:
        self.fs = fs
        self.directory = directory
        self.data_directory = directory / filenames.DATA_DIRECTORY
        self.settings = settings
        self.wal = wal
        self.catalog = catalog
        self.damaged: set[int] = set()
        self.cache = cache
        self.snapshot = Snapshot(tuple(segments), tuple(frozen), active)
        self._manifest = loaded
        self._is_marked_open = False
        self._next_number = loaded.next_number
        self._partition_rows = partition_rows
        self._segment_rows_max = segment_rows_max
        self._directory_lock = lock
        # Protects the manifest, the snapshot's replacement and the file numbers; taken before the WAL's.
        self._lock = threading.Lock()
        # Held through a compaction or a retrain, so that one runs at a time; taken before `_lock`.
        self._maintenance_lock = threading.Lock()
        self._closing = False
        # Of the thread that flushes, and of who holds the maintenance lock.
        self._flush_scratch, self._merge_scratch = Scratch(), Scratch()
        self._removed: list[tuple[weakref.ref[Any], int]] = []

    def mark_open(self) -> None:
        """Publish what recovery found, and that the store is in use: only `close` makes it clean again.

        On a full disk that is left to the first `append`: what is stored can be read meanwhile.

        Raises
        ------
        OSError, WalFailedError
        """
        try:
            self._mark_open()
        except OSError as error:
            if error.errno not in DISK_FULL_ERRNOS:
                raise
            logger.warning("no space to write to %s, only reads are served: %s", self.directory, error)

    def _mark_open(self) -> None:
        with self._lock:
            self._commit(self.snapshot.segments)
        self.wal.remove_before(self._manifest.first_wal_file)

    # Inserting: one thread.

    def append(self, batch: Batch) -> int:
        """Write a batch to the log, behind the names that it may use; returns its sequence.

        See `Wal.append`. When it fails for want of space, names may have been written; nothing uses them yet.
        """
        if not self._is_marked_open:
            try:
                self._mark_open()
            except OSError as error:
                if error.errno not in DISK_FULL_ERRNOS:
                    raise self.wal.fail(f"cannot write to {self.directory}: {error}") from error
                raise DiskFullError(f"no space to write to {self.directory}: {error.strerror}") from error
        self._log_names()
        return self.wal.append(batch)

    def _log_names(self) -> None:
        """Write the names that were given an id since the last time."""
        catalog = self.catalog
        stop = catalog.count
        while catalog.logged < stop:
            names = catalog.names(catalog.logged, stop)
            sizes = np.cumsum(names.lengths, dtype=np.int64)
            count = max(int(np.searchsorted(sizes, WAL_NAMES_BYTES_MAX, "right")), 1)
            self.wal.append_names(catalog.names(catalog.logged, catalog.logged + count))
            catalog.mark_logged(catalog.logged + count)

    def sync(self) -> None:
        """Make every appended batch durable. See `Wal.sync`."""
        self.wal.sync()

    def apply(self, batch: Batch, sequence: int) -> None:
        """Make an appended batch visible, as a whole."""
        self.catalog.mark_visible(self.catalog.logged)
        active = self.snapshot.active
        with active.lock:
            active.insert(batch, sequence)

    def freeze(self) -> bool:
        """Start a new memtable and a new WAL file; the old memtable waits to be flushed.

        Returns
        -------
        bool
            False when the memtable is empty.

        Raises
        ------
        WalFailedError
        """
        active = self.snapshot.active
        if active.is_empty:
            return False
        self.wal.rotate()
        with active.lock:
            active.freeze()
        with self._lock:
            old = self.snapshot
            self.snapshot = Snapshot(old.segments, (*old.frozen, active), active.successor())
        return True

    # Flushing: one thread.

    def flush_oldest(self) -> Work | None:
        """Turn the oldest frozen memtable into segments; None when none waits.

        Raises
        ------
        OSError
            Nothing has changed: it may be tried again.
        """
        frozen = self.snapshot.frozen
        if not frozen:
            return None
        memtable = frozen[0]
        source = memtable.export(self._flush_scratch)
        rows = Columns(source.series_column(), source.timestamp, source.value)
        sequences = (memtable.first_sequence, memtable.last_sequence)
        with self._names_filed() as catalog:
            while True:
                boundaries = self._manifest.boundaries
                parts = list(split(rows, boundaries, self._segment_rows_max))
                entries = self._write(parts, sequences)
                with self._kept_only_when_named(entries):
                    added = self._open(entries)
                    with self._lock:
                        if self._manifest.boundaries == boundaries:
                            self._commit(
                                [*self.snapshot.segments, *added],
                                covered_sequence=memtable.last_sequence,
                                flushed=1,
                                catalog=catalog,
                            )
                            break
                # A compaction has cut a partition meanwhile: cut these rows there, too.
                self._discard(entries)
        self.wal.remove_before(self._manifest.first_wal_file)
        return _work(rows.count, 0, entries)

    @contextlib.contextmanager
    def _names_filed(self) -> Generator[list[CatalogEntry]]:
        """Write the names that the log alone holds, for the manifest that the body publishes to name them.

        All that were logged so far: those of the memtable's points were logged before them. Files grow as
        the levels of a log-structured merge do, so that a name is written again a few times at most.
        """
        old = self._manifest.catalog
        kept = list(old)
        start, stop = self.catalog.filed, self.catalog.logged
        if start == stop:
            yield old
            return
        while kept and kept[-1].count < 2 * (stop - start):
            start -= kept.pop().count
        directory = self.data_directory
        number = self._take_numbers(1)
        path = directory / filenames.catalog_name(number)
        try:
            added = write_file(self.fs, directory, number, self.catalog.names(start, stop))
            yield [*kept, added]
        except WalFailedError:
            raise  # it is not known whether the manifest names it
        except BaseException:
            discard(self.fs, path)
            raise
        self.catalog.filed = stop
        for entry in old[len(kept) :]:
            discard(self.fs, directory / filenames.catalog_name(entry.number))

    # Maintaining: one thread at a time.

    def compact(self, *, everything: bool = False) -> Work | None:
        """Do the next merge; None when there is nothing to gain.

        Parameters
        ----------
        everything : bool
            Bring every partition down to one generation, compressed or not as the setting says, one
            partition a call.

        Raises
        ------
        CorruptionError
            An input failed a checksum: its partition is left alone from now on.
        ClosedError
            The store is being closed: nothing has changed.
        OSError
            Nothing has changed.
        """
        with self._maintenance_lock:
            self._check_wanted()
            chosen = compaction.plan(
                self.snapshot.segments,
                self._manifest.boundaries,
                damaged=self.damaged,
                everything=everything,
                compressed=self._is_compressing,
                partition_rows=self._partition_rows,
            )
            if chosen is None:
                return None
            if not everything:
                self._leave_space_for_inserts(chosen.inputs)
            # Once for the whole merge, so that one generation is of one kind; compressed inputs are checked
            # while they are read, in a cache of the merge's own: what queries use stays in theirs.
            compressed = self._is_compressing
            inputs = compaction.with_cache(chosen.inputs, DecodedCache(MERGE_CACHE_BYTES))
            for segment in inputs:
                self._check_wanted()
                if segment.cache is None:
                    self.check(segment)
            boundary = None
            if chosen.cut:
                with self._noting_damage():
                    boundary = compaction.choose_boundary(inputs, self._partition_rows)
            ranges = [(INT64_MIN, INT64_MAX)]
            if boundary is not None:
                ranges = [(INT64_MIN, boundary - 1), (boundary, INT64_MAX)]
            entries: list[SegmentEntry] = []
            with self._kept_only_when_named(entries):
                for start, end in ranges:
                    with self._noting_damage():
                        for rows in compaction.merged(
                            inputs, self._segment_rows_max, start, end, self._merge_scratch
                        ):
                            self._check_wanted()
                            entries += self._write([rows], chosen.sequences, compressed=compressed)
                added = self._open(entries)
                with self._lock:
                    gone = {id(segment) for segment in chosen.inputs}
                    before = self.snapshot.segments
                    kept = [s for s in before if id(s) not in gone]
                    boundaries = self._manifest.boundaries
                    if boundary is not None:
                        boundaries = sorted({*boundaries, boundary})
                        # What a flush added to the partition meanwhile may lie across the new boundary.
                        kept, moved = self._split_at(kept, boundary, boundaries)
                        entries += moved
                        added += self._open(moved)
                    self._commit([*kept, *added], boundaries=boundaries)
            alive = {id(segment) for segment in self.snapshot.segments}
            self._remove([segment for segment in before if id(segment) not in alive])
            return _work(chosen.rows, len(chosen.inputs), entries)

    def retrain(self, *, stale: bool = False) -> Work | None:
        """Fit segments' models anew with the current `max_error`.

        Parameters
        ----------
        stale : bool
            Only where they were fitted with another one, and where no damage is known.

        Returns
        -------
        Work or None
            None when no segment is stale.

        Raises
        ------
        CorruptionError
            A segment failed a checksum; the others' models are still the old ones.
        ClosedError
            The store is being closed: nothing has changed.
        OSError
            Nothing has changed.
        """
        with self._maintenance_lock:
            self._check_wanted()
            max_error = self.settings.max_error
            old = [s for s in self.snapshot.segments if not stale or self._is_stale(s, max_error)]
            if stale and not old:
                return None
            fitted: dict[int, Segment] = {}
            written: list[Path] = []
            size = 0
            try:
                for segment in old:
                    self._check_wanted()
                    columns = self.read(segment)
                    index = learned_index.fit(
                        columns.series_id,
                        columns.timestamp,
                        max_error,
                        segment.index.binding,
                        (segment.index.timestamp_checksums, segment.index.value_checksums),
                        segment.index.pages,
                    )
                    number = self._take_numbers(1)
                    entry = msgspec.structs.replace(
                        segment.entry,
                        index=write_index(self.fs, self.data_directory, segment.entry.number, number, index),
                    )
                    written.append(self._index_path(entry))
                    size += entry.index.bytes
                    fitted[id(segment)] = segment.with_index(entry, index)
                with self._lock:
                    self._commit([fitted.get(id(s), s) for s in self.snapshot.segments])
            except WalFailedError:
                raise  # it is not known whether the manifest names them
            except BaseException:
                for path in written:
                    discard(self.fs, path)
                raise
            for segment in old:
                discard(self.fs, self._index_path(segment.entry))
            rows = sum(segment.rows for segment in old)
            return Work(rows, rows, size, len(old), len(old))

    def _is_stale(self, segment: Segment, max_error: int) -> bool:
        return segment.index.max_error != max_error and segment.entry.number not in self.damaged

    def _leave_space_for_inserts(self, inputs: Iterable[Segment]) -> None:
        """Refuse a merge of our own accord that would fill the disk, which inserts and flushes need."""
        # Plain, compressed rows take up to so much, with headers and what indexes add.
        needed = sum(
            max(segment.entry.bytes, 0 if self._is_compressing else 17 * segment.rows)
            + segment.entry.index.bytes
            for segment in inputs
        )
        free = self.fs.free_bytes(self.data_directory)
        if free < needed:
            raise OSError(errno.ENOSPC, f"a merge needs {needed} bytes, and {free} are free")

    def check(self, segment: Segment) -> None:
        """Check every block of a segment, and remember when it is damaged.

        Raises
        ------
        CorruptionError
        """
        with self._noting_damage():
            segment.verify_all()

    def read(self, segment: Segment) -> Columns:
        """Read and check all rows of a segment, and remember when it is damaged.

        Raises
        ------
        CorruptionError
        """
        with self._noting_damage():
            return segment.columns()

    @contextlib.contextmanager
    def _noting_damage(self) -> Generator[None]:
        try:
            yield
        except CorruptionError as error:
            number = filenames.number_of(error.path.rpartition("/")[2])
            if number in {segment.entry.number for segment in self.snapshot.segments}:
                self.damaged.add(number)
            raise

    @property
    def _is_compressing(self) -> bool:
        return bool(self.settings.enable_compression)

    def backup(self, target: Path, unix_seconds: float, *, check: bool = False) -> backup.Record:
        """Copy the store as it is now; any thread may call it, and nothing waits for it.

        Everything applied before the call is part of it, and nothing that is appended after its return.

        Parameters
        ----------
        target : Path
            A directory that is not there, or empty; it becomes a data directory of its own.
        unix_seconds : float
            The time of now.
        check : bool
            Check every checksum of the backup before it gets its name.

        Raises
        ------
        AlreadyExistsError, CorruptionError, WalFailedError
        OSError
            There is no backup.
        """
        # With a sync interval, what was acknowledged may not be durable yet.
        self.sync()
        made = backup.Backup(self.fs, target)
        try:
            # A flush or a merge cannot remove a file while its names are taken; they can once they are.
            with self._lock:
                made.pin(self.directory, self._manifest, *self.wal.durable())
            return made.finish(unix_seconds, check=check)
        except BaseException:
            made.discard()
            raise

    def close(self) -> None:
        """Flush everything and mark a clean stop.

        Raises
        ------
        OSError, WalFailedError
            The stop is then not clean; nothing is lost, the next start replays the log.
        """
        self.stop_maintenance()
        with self._maintenance_lock:
            self.freeze()
            while self.flush_oldest() is not None:
                pass
            with self._lock:
                self._commit(self.snapshot.segments, clean=True)
            self.wal.close()
            self._directory_lock.close()

    def stop_maintenance(self) -> None:
        """Let a merge or a refit that is under way give up soon, and begin no other; any thread."""
        self._closing = True

    def release(self) -> None:
        """Give the data directory free, without flushing: as after a crash."""
        self.stop_maintenance()
        # Another process may take the directory at once: a merge or a refit that is under way in some other
        # thread must have given up by then, or it would publish its manifest over the other's.
        with self._maintenance_lock:
            self.wal.close()
            self._directory_lock.close()

    def release_scratch(self) -> None:
        """Give memory back that is kept for the next flush and the next merge; any thread."""
        self._flush_scratch.release()
        self._merge_scratch.release()
        self.snapshot.active.spare.release()

    def _check_wanted(self) -> None:
        if self._closing:
            raise ClosedError(f"{self.directory} is being closed")

    # Figures.

    @property
    def data_bytes(self) -> int:
        """Bytes of live segments and their indexes."""
        return sum(s.entry.bytes + s.entry.index.bytes for s in self.snapshot.segments)

    @property
    def boundaries(self) -> list[int]:
        """Where partitions meet (see `Manifest.boundaries`)."""
        return self._manifest.boundaries

    @property
    def removed_mapped_bytes(self) -> int:
        """Bytes of removed files that a reader still has mapped: disk space that is not free yet."""
        with self._lock:
            self._removed = [(alive, size) for alive, size in self._removed if alive() is not None]
            return sum(size for _, size in self._removed)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of all mapped files, removed ones included."""
        return self.data_bytes + self.removed_mapped_bytes

    def _take_numbers(self, count: int) -> int:
        with self._lock:
            first = self._next_number
            self._next_number += count
            return first

    def _write(
        self, parts: Iterable[Columns], sequences: tuple[int, int], *, compressed: bool = False
    ) -> list[SegmentEntry]:
        entries: list[SegmentEntry] = []
        try:
            for rows in parts:
                number = self._take_numbers(2)
                entries.append(
                    write_segment(
                        self.fs,
                        self.data_directory,
                        (number, number + 1),
                        rows,
                        self.settings.max_error,
                        sequences,
                        compressed=compressed,
                    )
                )
        except BaseException:
            self._discard(entries)
            raise
        return entries

    def _open(self, entries: Iterable[SegmentEntry]) -> list[Segment]:
        """Map what was just written; reads the footers and the indexes back and checks them."""
        try:
            return [open_segment(self.fs, self.data_directory, entry, self.cache) for entry in entries]
        except IndexDamageError as error:
            raise CorruptionError(str(self.data_directory), 0, f"just written: {error}") from error

    @contextlib.contextmanager
    def _kept_only_when_named(self, entries: list[SegmentEntry]) -> Generator[None]:
        """Remove what was written when the manifest does not come to name it: a full disk stays no fuller."""
        try:
            yield
        except WalFailedError:
            raise  # it is not known whether the manifest names them
        except BaseException:
            self._discard(entries)
            raise

    def _split_at(
        self, segments: list[Segment], boundary: int, boundaries: list[int]
    ) -> tuple[list[Segment], list[SegmentEntry]]:
        """Rewrite the segments that lie across a new boundary; the lock is held."""
        kept: list[Segment] = []
        entries: list[SegmentEntry] = []
        for segment in segments:
            entry = segment.entry
            if not entry.first_timestamp < boundary <= entry.last_timestamp:
                kept.append(segment)
                continue
            for rows in split(segment.columns(), boundaries, self._segment_rows_max):
                numbers = (self._next_number, self._next_number + 1)
                self._next_number += 2
                entries.append(
                    write_segment(
                        self.fs,
                        self.data_directory,
                        numbers,
                        rows,
                        self.settings.max_error,
                        (entry.first_sequence, entry.last_sequence),
                        compressed=entry.is_compressed,
                    )
                )
        return kept, entries

    def _commit(
        self,
        segments: Iterable[Segment],
        *,
        boundaries: list[int] | None = None,
        covered_sequence: int | None = None,
        flushed: int = 0,
        catalog: list[CatalogEntry] | None = None,
        clean: bool = False,
    ) -> None:
        """Publish a manifest, then the snapshot that agrees with it; the lock is held."""
        # A manifest names the file that the log goes on in: the next start expects to find it.
        self.wal.make_file()
        ordered = sorted(segments, key=lambda s: (s.entry.last_sequence, s.entry.number))
        old = self._manifest
        covered = old.covered_sequence if covered_sequence is None else covered_sequence
        new = manifest.Manifest(
            version=old.version + 1,
            store=old.store,
            clean=clean,
            next_number=self._next_number,
            first_wal_file=self.wal.first_file_after(covered),
            covered_sequence=covered,
            boundaries=old.boundaries if boundaries is None else boundaries,
            segments=[segment.entry for segment in ordered],
            catalog=old.catalog if catalog is None else catalog,
        )
        try:
            manifest.commit(self.fs, self.directory, new)
        except WalFailedError as error:
            self.wal.fail(str(error))
            raise
        self._manifest = new
        self._is_marked_open = True
        view = self.snapshot
        self.snapshot = Snapshot(tuple(ordered), view.frozen[flushed:], view.active)

    def _remove(self, segments: Iterable[Segment]) -> None:
        """Remove the files of segments that the manifest no longer names."""
        for segment in segments:
            with self._lock:
                self._removed.append((weakref.ref(segment.file.data), segment.entry.bytes))
            self._discard([segment.entry])

    def _discard(self, entries: Iterable[SegmentEntry]) -> None:
        for entry in entries:
            discard(self.fs, self.data_directory / filenames.segment_name(entry.number))
            discard(self.fs, self._index_path(entry))

    def _index_path(self, entry: SegmentEntry) -> Path:
        return self.data_directory / filenames.index_name(entry.number, entry.index.number)


def split(rows: Columns, boundaries: Sequence[int], rows_max: int) -> Iterable[Columns]:
    """Cut rows at the partitions' boundaries, and into parts of at most `rows_max` rows.

    Parameters
    ----------
    rows : Columns
    boundaries : sequence of int
        Ascending.
    rows_max : int

    Yields
    ------
    Columns
        Not empty, in the rows' order.
    """
    if not rows.count:
        return
    first = compaction.partition_of(int(rows.timestamp.min()), boundaries)
    last = compaction.partition_of(int(rows.timestamp.max()), boundaries)
    for partition in range(first, last + 1):
        part = rows
        if first != last:
            low = boundaries[partition - 1] if partition else INT64_MIN
            high = boundaries[partition] - 1 if partition < len(boundaries) else INT64_MAX
            chosen = np.flatnonzero((rows.timestamp >= low) & (rows.timestamp <= high))
            part = Columns(rows.series_id[chosen], rows.timestamp[chosen], rows.value[chosen])
        for start in range(0, part.count, rows_max):
            stop = start + rows_max
            yield Columns(part.series_id[start:stop], part.timestamp[start:stop], part.value[start:stop])


def _work(rows_in: int, segments_in: int, entries: list[SegmentEntry]) -> Work:
    return Work(
        rows_in=rows_in,
        rows_out=sum(entry.rows for entry in entries),
        bytes_written=sum(entry.bytes + entry.index.bytes for entry in entries),
        segments_in=segments_in,
        segments_out=len(entries),
    )
