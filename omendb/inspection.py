"""Figures of a store: exact counts, and what its learned indexes do on the data that they index."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from omendb.executor import Scan
from omendb.jit import layout, pla
from omendb.metrics import process_memory
from omendb.query import RangeQuery
from omendb.reports import ErrorRows, IndexState, IndexStats, ModelCounts, Retrain, SpaceState, Stats

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from omendb.storage.fs import FileSystem
    from omendb.storage.segment import Segment
    from omendb.storage.snapshot import Snapshot
    from omendb.storage.store import Store


class _Observed(NamedTuple):
    """What was measured of one segment's index, or of several together.

    Attributes
    ----------
    rows : int
        Rows whose prediction was compared: those of runs that have a model.
    error_sum, error_max : int
        In rows.
    errors : ndarray of int64, shape (pla.ERROR_BINS,)
        Histogram of the errors.
    lookups, probes_learned, probes_binary : int
        Of a sample of keys: how many, and what looking them all up reads.
    """

    rows: int
    error_sum: int
    error_max: int
    errors: NDArray[np.int64]
    lookups: int
    probes_learned: int
    probes_binary: int


_LOOKUPS = 10_000  # sampled in each segment


def record_stats(store: Store, uptime_seconds: float, version: str) -> Stats:
    """Make the answer of ``GET /admin/stats``.

    Raises
    ------
    CorruptionError
    """
    snapshot = store.snapshot
    first, last = _time_range(snapshot)
    return Stats(
        record_count=Scan(snapshot, RangeQuery()).count(),
        series_count=_series_count(snapshot),
        segments=len(snapshot.segments),
        segment_rows=snapshot.segment_rows,
        memtable_rows=snapshot.memtable_rows,
        memtable_bytes=sum(memtable.bytes for memtable in snapshot.memtables),
        wal_bytes=store.wal.bytes,
        wal_files=store.wal.file_count,
        data_bytes=store.data_bytes,
        mapped_bytes=store.mapped_bytes,
        removed_mapped_bytes=store.removed_mapped_bytes,
        partitions=len(store.boundaries) + 1,
        first_timestamp=first,
        last_timestamp=last,
        uptime_seconds=uptime_seconds,
        version=version,
    )


def index_state(store: Store) -> IndexState:
    """Measure the live indexes, as a refit reports them before and after.

    Raises
    ------
    CorruptionError
    """
    segments = store.snapshot.segments
    return IndexState(
        max_error=max((segment.index.max_error for segment in segments), default=0),
        bytes=sum(segment.index.model_bytes for segment in segments),
        models=_models(segments),
        error=_error(_observe(store, segments)),
        indexed_rows=sum(segment.rows for segment in segments),
    )


def index_stats(store: Store, max_error: int, last_retrain: Retrain | None) -> IndexStats:
    """Make the answer of ``GET /admin/index-stats``.

    Parameters
    ----------
    store : Store
    max_error : int
        The setting.
    last_retrain : Retrain or None

    Raises
    ------
    CorruptionError
    """
    snapshot = store.snapshot
    segments = snapshot.segments
    observed = _observe(store, segments)
    rows = sum(segment.rows for segment in segments)
    size = sum(segment.index.model_bytes for segment in segments)
    lookups = max(observed.lookups, 1)
    learned, binary = observed.probes_learned / lookups, observed.probes_binary / lookups
    return IndexStats(
        efficiency=round(1.0 - learned / binary, 4) if binary else 0.0,
        probes_learned=round(learned, 3),
        probes_binary=round(binary, 3),
        models=_models(segments),
        pieces=sum(len(segment.index.pieces) for segment in segments),
        knots=sum(len(segment.index.knots) for segment in segments),
        bytes=size,
        bytes_per_million_rows=round(size * 1e6 / rows, 1) if rows else 0.0,
        max_error_configured=max_error,
        max_error_effective=max((segment.index.max_error for segment in segments), default=max_error),
        error=_error(observed),
        indexed_rows=rows,
        uncovered_rows=snapshot.memtable_rows,
        segments=len(segments),
        last_retrain=last_retrain,
    )


def space_state(store: Store) -> SpaceState:
    """Say how much space the store takes now."""
    snapshot = store.snapshot
    return SpaceState(
        segments=len(snapshot.segments),
        rows=snapshot.segment_rows + snapshot.memtable_rows,
        disk_bytes=store.data_bytes + store.wal.bytes,
        mapped_bytes=store.mapped_bytes,
        memory_bytes=process_memory().unreclaimable,
    )


def disk_gauges(fs: FileSystem, path: Path) -> list[tuple[str, str, float]]:
    """Return the gauges of the disk under the data directory."""
    return [
        ("omendb_disk_free_bytes", "Space that the data directory can still take.", fs.free_bytes(path)),
        ("omendb_disk_bytes", "Size of the file system of the data directory.", fs.total_bytes(path)),
    ]


def gauges(store: Store) -> list[tuple[str, str, float]]:
    """Return the store's gauges, for `omendb.metrics.Metrics.add_gauges`; cheap."""
    snapshot = store.snapshot
    segments = snapshot.segments
    measured = [one for segment in segments if isinstance(one := segment.observed, _Observed)]
    rows = sum(one.rows for one in measured)
    return [
        ("omendb_segments", "Live segments.", len(snapshot.segments)),
        ("omendb_segment_rows", "Rows in segments, superseded ones included.", snapshot.segment_rows),
        ("omendb_memtable_rows", "Rows that no segment holds yet.", snapshot.memtable_rows),
        (
            "omendb_memtable_bytes",
            "Memory of the memtables.",
            sum(memtable.bytes for memtable in snapshot.memtables),
        ),
        ("omendb_wal_bytes", "Bytes of the write-ahead log.", store.wal.bytes),
        ("omendb_wal_files", "Files of the write-ahead log.", store.wal.file_count),
        ("omendb_data_bytes", "Bytes of live segments and learned indexes.", store.data_bytes),
        ("omendb_mapped_bytes", "Bytes of mapped files, removed ones included.", store.mapped_bytes),
        (
            "omendb_removed_mapped_bytes",
            "Bytes of removed files that a query still has mapped.",
            store.removed_mapped_bytes,
        ),
        ("omendb_named_series", "Series that have a name.", store.catalog.visible),
        ("omendb_catalog_bytes", "Memory of the names of series, as allocated.", store.catalog.memory_bytes),
        ("omendb_damaged_segments", "Segments that failed a checksum.", len(store.damaged)),
        (
            "omendb_index_bytes",
            "Bytes of the learned indexes.",
            sum(segment.index.model_bytes for segment in segments),
        ),
        (
            "omendb_index_pieces",
            "Lines of piecewise-linear models.",
            sum(len(segment.index.pieces) for segment in segments),
        ),
        (
            "omendb_index_knots",
            "Entries of the tables of uniform knots.",
            sum(len(segment.index.knots) for segment in segments),
        ),
        (
            "omendb_index_runs",
            "Runs: series of a segment, counted for each segment.",
            sum(len(segment.index.runs) for segment in segments),
        ),
        (
            "omendb_index_max_error_rows",
            "The largest max_error that a live model was fitted with.",
            max((segment.index.max_error for segment in segments), default=0),
        ),
        (
            "omendb_index_error_max_rows",
            "Rows by which a model mispredicts at most, where it was measured.",
            max((one.error_max for one in measured), default=0),
        ),
        (
            "omendb_index_error_mean_rows",
            "Rows by which models mispredict on average, where it was measured.",
            sum(one.error_sum for one in measured) / rows if rows else 0.0,
        ),
        (
            "omendb_index_measured_rows",
            "Rows of models whose error was measured, by /admin/index-stats or a retrain.",
            rows,
        ),
    ]


def compression_gauges(store: Store) -> list[tuple[str, str, float]]:
    """Return the figures of compressed segments, for `omendb.metrics.Metrics.add_gauges`; cheap."""
    plain = compressed = compressed_rows = 0
    for segment in store.snapshot.segments:
        if segment.entry.is_compressed:
            compressed += segment.entry.bytes
            compressed_rows += segment.rows
        else:
            plain += segment.entry.bytes
    cache = store.cache.figures()
    return [
        ("omendb_segment_plain_bytes", "Bytes of live segments that are not compressed.", plain),
        ("omendb_segment_compressed_bytes", "Bytes of live segments that are compressed.", compressed),
        ("omendb_segment_compressed_rows", "Rows in compressed segments.", compressed_rows),
        ("omendb_decoded_cache_bytes", "Memory of the decoded rows of compressed segments.", cache.bytes),
        ("omendb_decoded_cache_limit_bytes", "Bytes that the decoded rows may take.", cache.limit_bytes),
        (
            "omendb_decoded_cache_hits_total",
            "Steps of queries over compressed segments that had to decode nothing.",
            cache.hits,
        ),
        ("omendb_decoded_cache_misses_total", "Blocks of 8,192 rows that were decoded.", cache.misses),
        (
            "omendb_decoded_cache_evictions_total",
            "Decoded blocks whose memory was taken back.",
            cache.evictions,
        ),
    ]


def _observe(store: Store, segments: Iterable[Segment]) -> _Observed:
    """Measure segments, and sum up."""
    whole = _Observed(0, 0, 0, np.zeros(pla.ERROR_BINS, dtype=np.int64), 0, 0, 0)
    for segment in segments:
        one = segment.observed
        if not isinstance(one, _Observed):
            # Measured once for a segment and its index, which never change; reads every timestamp.
            columns = store.read(segment)
            row = segment.row_over(columns.timestamp, columns.value)
            errors = np.zeros(pla.ERROR_BINS, dtype=np.int64)
            rows, error_sum, error_max = pla.measure_errors(row, errors)
            one = _Observed(rows, error_sum, error_max, errors, *pla.count_probes(row, _LOOKUPS))
            segment.observed = one
        whole = _Observed(
            whole.rows + one.rows,
            whole.error_sum + one.error_sum,
            max(whole.error_max, one.error_max),
            whole.errors + one.errors,
            whole.lookups + one.lookups,
            whole.probes_learned + one.probes_learned,
            whole.probes_binary + one.probes_binary,
        )
    return whole


def _error(observed: _Observed) -> ErrorRows:
    return ErrorRows(
        max=observed.error_max,
        mean=round(observed.error_sum / max(observed.rows, 1), 4),
        # A bin of the histogram may reach beyond the largest error.
        p99=min(pla.histogram_quantile(observed.errors, 0.99), observed.error_max),
    )


def _models(segments: Iterable[Segment]) -> ModelCounts:
    counts = np.zeros(3, dtype=np.int64)
    for segment in segments:
        kinds = segment.index.runs[:, layout.RUN_SHAPE] & 0xFF
        counts += np.bincount(kinds, minlength=3)[:3]
    return ModelCounts(
        knots=int(counts[layout.KIND_KNOTS]),
        pieces=int(counts[layout.KIND_PIECES]),
        none=int(counts[layout.KIND_NONE]),
    )


def _series_count(snapshot: Snapshot) -> int:
    ids = [segment.index.runs[:, layout.RUN_SERIES] for segment in snapshot.segments]
    ids += [memtable.series_ids() for memtable in snapshot.frozen]
    with snapshot.active.lock:
        ids.append(snapshot.active.series_ids())
    return len(np.unique(np.concatenate(ids)))


def _time_range(snapshot: Snapshot) -> tuple[int | None, int | None]:
    first = [segment.entry.first_timestamp for segment in snapshot.segments]
    last = [segment.entry.last_timestamp for segment in snapshot.segments]
    for memtable in snapshot.memtables:
        if not memtable.is_empty:
            first.append(memtable.first_timestamp)
            last.append(memtable.last_timestamp)
    return (min(first), max(last)) if first else (None, None)
