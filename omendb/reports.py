"""What the store tells about itself: the answers of the statistics and maintenance calls."""

from __future__ import annotations

import msgspec


class Status(msgspec.Struct, frozen=True):
    """Where a store stands in its life.

    Attributes
    ----------
    phase : str
        ``new``, ``waiting`` (another process has the directory open), ``starting``, ``ready``, ``failed`` or
        ``closed``.
    message : str
        What is being done, or what went wrong.
    progress : float
        0 to 1 while starting.
    """

    phase: str
    message: str
    progress: float


class Stats(msgspec.Struct, frozen=True):
    """The answer of ``GET /admin/stats``.

    Attributes
    ----------
    record_count : int
        Rows that a query without bounds counts: distinct ``(series_id, timestamp)``.
    series_count : int
    segments : int
    segment_rows : int
        Rows in segments, superseded ones included.
    memtable_rows : int
    memtable_bytes : int
    wal_bytes, wal_files : int
    data_bytes : int
        Segments and learned indexes on disk.
    mapped_bytes : int
        Mapped files, with removed ones that a query still reads.
    removed_mapped_bytes : int
        The latter alone: disk space that is not free yet.
    partitions : int
    first_timestamp, last_timestamp : int or None
        Range of time; None when there are no rows.
    uptime_seconds : float
    version : str
    """

    record_count: int
    series_count: int
    segments: int
    segment_rows: int
    memtable_rows: int
    memtable_bytes: int
    wal_bytes: int
    wal_files: int
    data_bytes: int
    mapped_bytes: int
    removed_mapped_bytes: int
    partitions: int
    first_timestamp: int | None
    last_timestamp: int | None
    uptime_seconds: float
    version: str


class SettingState(msgspec.Struct):
    """One setting of ``GET /admin/config``.

    Attributes
    ----------
    value : int, bool or str
        In force.
    source : str
        Where it comes from: ``call``, ``argument``, ``command_line``, ``environment``, ``directory``,
        ``file`` or ``default``.
    live : bool
        Whether a change applies without a restart.
    pending : int, bool or str
        What a restart would make of it; only when that is another value.
    """

    value: bool | int | str
    source: str
    live: bool
    pending: bool | int | str | msgspec.UnsetType = msgspec.UNSET


class ModelCounts(msgspec.Struct, frozen=True):
    """Runs by the kind of their model.

    Attributes
    ----------
    knots : int
        Uniform knots.
    pieces : int
        Piecewise linear.
    none : int
        Too few rows for a model: searched directly.
    """

    knots: int
    pieces: int
    none: int


class ErrorRows(msgspec.Struct, frozen=True):
    """How far predictions are off, in rows, measured on the data.

    Attributes
    ----------
    max : int
    mean : float
    p99 : int
        Rounded up by 6 % at most.
    """

    max: int
    mean: float
    p99: int


class Retrain(msgspec.Struct, frozen=True):
    """One refit of all models.

    Attributes
    ----------
    unix_seconds : float
        When it ended.
    duration_seconds : float
    """

    unix_seconds: float
    duration_seconds: float


class IndexStats(msgspec.Struct, frozen=True):
    """The answer of ``GET /admin/index-stats``.

    Attributes
    ----------
    efficiency : float
        1 minus the ratio of probes for a lookup, learned over binary search, measured on this data; 0 when
        there is nothing indexed.
    probes_learned, probes_binary : float
        Mean timestamps read for a lookup.
    models : ModelCounts
    pieces, knots : int
    bytes : int
        Run directory and models.
    bytes_per_million_rows : float
    max_error_configured : int
        The setting, in rows.
    max_error_effective : int
        The largest setting that a live model was fitted with.
    error : ErrorRows
        Observed.
    indexed_rows : int
    uncovered_rows : int
        In memtables: no model covers them yet.
    segments : int
    last_retrain : Retrain or None
        None when there was none since the start.
    """

    efficiency: float
    probes_learned: float
    probes_binary: float
    models: ModelCounts
    pieces: int
    knots: int
    bytes: int
    bytes_per_million_rows: float
    max_error_configured: int
    max_error_effective: int
    error: ErrorRows
    indexed_rows: int
    uncovered_rows: int
    segments: int
    last_retrain: Retrain | None


class IndexState(msgspec.Struct, frozen=True):
    """The learned indexes before or after a refit.

    Attributes
    ----------
    max_error : int
        The largest setting that a live model was fitted with.
    bytes : int
    models : ModelCounts
    error : ErrorRows
    indexed_rows : int
    """

    max_error: int
    bytes: int
    models: ModelCounts
    error: ErrorRows
    indexed_rows: int


class RetrainReport(msgspec.Struct, frozen=True):
    """The answer of ``POST /admin/retrain-index``.

    Attributes
    ----------
    before, after : IndexState
    duration_seconds : float
    """

    before: IndexState
    after: IndexState
    duration_seconds: float


class SpaceState(msgspec.Struct, frozen=True):
    """Space used before or after a garbage collection.

    Attributes
    ----------
    segments : int
    rows : int
        Superseded ones included, memtables too.
    disk_bytes : int
        Segments, learned indexes and log.
    mapped_bytes : int
    memory_bytes : int
        Memory that cannot be reclaimed.
    """

    segments: int
    rows: int
    disk_bytes: int
    mapped_bytes: int
    memory_bytes: int


class GcReport(msgspec.Struct, frozen=True):
    """The answer of ``POST /admin/gc``.

    Attributes
    ----------
    before, after : SpaceState
    dropped_rows : int
        Superseded rows that are gone.
    duration_seconds : float
    """

    before: SpaceState
    after: SpaceState
    dropped_rows: int
    duration_seconds: float


class BackupInfo(msgspec.Struct, frozen=True):
    """One entry of ``GET /admin/backups``.

    Attributes
    ----------
    name : str
    path : str
        The directory.
    sequence : int
        It holds the WAL records up to this one.
    rows : int
        Rows of segments and of the log, superseded ones included.
    segments : int
    bytes : int
        Size of its files; those that are hard links take no space of their own while the store has them.
    unix_seconds : float
        When it was taken.
    """

    name: str
    path: str
    sequence: int
    rows: int
    segments: int
    bytes: int
    unix_seconds: float


class BackupReport(BackupInfo, frozen=True):
    """The answer of ``POST /admin/backup``: what was taken, and how.

    Attributes
    ----------
    linked : bool
        The segments are hard links; false when they had to be copied.
    verified : bool
        Every checksum of it was checked.
    duration_seconds : float
    """

    linked: bool
    verified: bool
    duration_seconds: float


class Backups(msgspec.Struct, frozen=True):
    """The answer of ``GET /admin/backups``, oldest first."""

    backups: list[BackupInfo]
