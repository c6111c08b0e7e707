"""The engine: group commit, background work, failures, and what `omendb.open` promises."""

from __future__ import annotations

import threading

import numpy as np
import orjson
import pyarrow as pa
import pytest

import omendb
from omendb.config import Settings
from omendb.engine import Engine
from omendb.errors import (
    ClosedError,
    ConfigError,
    CorruptionError,
    DiskFullError,
    InvalidRequestError,
    LockedError,
    NotReadyError,
    OverloadedError,
    WalFailedError,
)
from omendb.executor import SHARD_ROWS
from omendb.flusher import FROZEN_MAX
from omendb.model import make_batch
from omendb.query import make_range_query
from omendb.server.arrow import ArrowForm
from omendb.server.encode import Form
from omendb.storage import compaction, recovery
from omendb.storage.fs import OsFileSystem
from omendb.storage.store import Store
from tests.storage.faulty_fs import FaultyFileSystem


@pytest.fixture
def db(tmp_path):
    with omendb.open(tmp_path / "db", retrain_threshold=1_000) as opened:
        yield opened


def test_insert_and_query(db) -> None:
    assert db.insert([2, 1, 1], [5, 20, 10], [0.5, 2.0, 1.0]) == 3
    assert db.insert(1, [10, 30], [1.5, 3.0]) == 2

    rows = db.query()

    assert rows.series_id.tolist() == [1, 1, 1, 2]
    assert rows.timestamp.tolist() == [10, 20, 30, 5]
    assert rows.value.tolist() == [1.5, 2.0, 3.0, 0.5]
    assert db.query(start=20, end=30, series_id=1).value.tolist() == [2.0, 3.0]
    assert db.query(limit=2).timestamp.tolist() == [10, 20]
    assert db.query(series_id=[2, 7]).count == 1
    assert db.query(series_id=[]).count == 0


def test_one_segment_answers_without_a_copy(db) -> None:
    db.insert(1, np.arange(500), np.arange(500) / 2)
    db.flush()

    rows = db.query(start=100, end=199, series_id=1)

    assert rows.timestamp.tolist() == list(range(100, 200))
    for column in (rows.series_id, rows.timestamp, rows.value):
        assert not column.flags.owndata
        assert not column.flags.writeable
    whole = db.query(series_id=1)
    assert np.shares_memory(whole.value, rows.value)


def test_views_outlive_gc_and_close(tmp_path) -> None:
    with omendb.open(tmp_path / "db") as db:
        db.insert(1, np.arange(500), np.arange(500) / 2)
        db.flush()
        rows = db.query(series_id=1)
        db.insert(1, np.arange(500), np.zeros(500))
        db.gc()
        assert db.query(series_id=1).value.sum() == 0.0
        assert db.stats().removed_mapped_bytes > 0

    assert rows.value.sum() == sum(n / 2 for n in range(500))


def test_aggregate(db) -> None:
    db.insert(1, [0, 5, 10, 15, 99], [1.0, 3.0, 10.0, 20.0, 7.0])

    windows = db.aggregate(10, ["mean", "count"], start=0, end=50)

    assert windows.timestamp.tolist() == [0, 10]
    assert windows.columns["mean"].tolist() == [2.0, 15.0]
    assert windows.columns["count"].tolist() == [2, 2]
    assert windows.columns["count"].dtype == np.int64
    empty = db.aggregate(10, "sum,stddev", start=1000)
    assert (empty.count, list(empty.columns)) == (0, ["sum", "stddev"])


def test_aggregate_of_all_series_together(db) -> None:
    db.insert([1, 1, 2, 2, 9], [0, 7, 3, 12, 3], [1.0, 3.0, 10.0, 20.0, 4.0])

    windows = db.aggregate(10, ["count", "mean", "first", "last", "stddev"], start=0, by=())

    assert windows.series_id is None
    assert windows.timestamp.tolist() == [0, 10]
    assert windows.columns["count"].tolist() == [4, 1]
    assert windows.columns["mean"].tolist() == [4.5, 20.0]
    assert windows.columns["first"].tolist() == [1.0, 20.0]
    assert windows.columns["last"].tolist() == [3.0, 20.0]
    assert windows.columns["stddev"] == pytest.approx([np.std([1, 3, 10, 4]), 0])
    assert db.aggregate(10, start=0, series_id=[1, 2], by="").columns["mean"].tolist() == [14 / 3, 20]
    assert db.aggregate(10, start=0, limit=1, by=()).timestamp.tolist() == [0]
    empty = db.aggregate(10, "count", start=1000, by=())
    assert (empty.count, empty.series_id, empty.columns["count"].dtype) == (0, None, np.int64)
    with pytest.raises(InvalidRequestError) as error:
        db.aggregate(10, by="value")
    assert error.value.field == "by"


@pytest.mark.parametrize("series_count", [1, 30, 5_000])
def test_large_scans_are_split_and_joined(tmp_path, series_count) -> None:
    rows = 600_000 // series_count
    assert series_count * rows > 2 * SHARD_ROWS
    time = np.tile(np.arange(rows), series_count)
    series = np.repeat(np.arange(series_count), rows)
    value = np.random.default_rng(1).integers(-1000, 1000, len(time)) / 4
    with omendb.open(tmp_path / "db", retrain_threshold=1_000_000) as db:
        first = len(time) // 2
        db.insert(series[:first], time[:first], value[:first])
        db.flush()
        # Rows in memory as well, and one that is newer than what is on disk.
        db.insert(series[first:], time[first:], value[first:])
        db.insert(0, 5, 1e6)
        value[5] = 1e6

        scan = db.scan(make_range_query())
        parts = list(scan.map(lambda part: part, 10_000))
        assert scan.count() == len(time)
        assert max(part.count for part in parts) <= 10_000
        assert (np.concatenate([part.series_id for part in parts]) == series).all()
        assert (np.concatenate([part.timestamp for part in parts]) == time).all()
        assert (np.concatenate([part.value for part in parts]) == value).all()

        step = 20
        windows = db.aggregate(step, "sum,count", start=0)
        cells = value.reshape(series_count, rows)
        edges = np.arange(0, rows, step)
        sums = np.add.reduceat(cells, edges, axis=1)
        assert (windows.series_id == np.repeat(np.arange(series_count), len(edges))).all()
        assert (windows.timestamp == np.tile(edges, series_count)).all()
        # Quarters add up without rounding.
        assert (windows.columns["sum"] == sums.ravel()).all()
        assert windows.columns["count"].sum() == len(time)

        together = db.aggregate(step, "sum,max,first,last", start=0, by=())
        assert (together.timestamp == edges).all()
        assert (together.columns["sum"] == sums.sum(axis=0)).all()
        assert (together.columns["max"] == np.maximum.reduceat(cells, edges, axis=1).max(axis=0)).all()
        assert (together.columns["first"] == cells[0, edges]).all()
        assert (together.columns["last"] == cells[-1, np.append(edges[1:], rows) - 1]).all()


@pytest.mark.parametrize("limit", [None, 250_000])
def test_large_answers_are_the_same_in_every_form(tmp_path, limit) -> None:
    rows = 90_001
    time = np.tile(np.arange(rows) * 1_000 + 1_700_000_000_000, 3)
    series = np.repeat([1, 5, 70], rows)
    value = np.random.default_rng(1).integers(-(10**6), 10**6, len(time)) / 100
    with omendb.open(tmp_path / "db", retrain_threshold=1_000_000) as db:
        db.insert(series[: rows + 7], time[: rows + 7], value[: rows + 7])
        db.flush()
        # Rows in memory as well, and rows on both sides of what they replace.
        db.insert(series[rows - 9 :], time[rows - 9 :], value[rows - 9 :])
        expected = [column[:limit].tolist() for column in (series, time, value)]

        def stream(form) -> bytes:
            scan = db.scan(make_range_query(limit=limit))
            return b"".join(form.stream(scan, len(expected[0]), form.piece_rows))

        columns = orjson.loads(stream(Form(columns=True, aggregates=None)))
        assert [columns["series_id"], columns["timestamp"], columns["value"]] == expected
        assert (columns["cursor"] is None) == (limit is None)
        records = orjson.loads(stream(Form(columns=False, aggregates=None)))["rows"]
        names = ("series_id", "timestamp", "value")
        assert records == [dict(zip(names, row, strict=True)) for row in zip(*expected, strict=True)]
        table = pa.ipc.open_stream(stream(ArrowForm(None))).read_all()
        assert [column.to_pylist() for column in table.columns] == expected


def test_stats_are_exact(db) -> None:
    assert db.stats().record_count == 0
    assert db.stats().first_timestamp is None
    rng = np.random.default_rng(5)
    keys: set[tuple[int, int]] = set()
    for _ in range(8):
        series, times = rng.integers(0, 9, 700), rng.integers(-300, 300, 700)
        db.insert(series, times, rng.normal(size=700))
        keys |= set(zip(series.tolist(), times.tolist(), strict=True))
    db.flush()
    db.insert(3, 10_000, 1.0)
    keys.add((3, 10_000))

    stats = db.stats()

    assert stats.record_count == len(keys) == db.query().count
    assert stats.series_count == 9
    assert stats.memtable_rows == 1
    assert (stats.first_timestamp, stats.last_timestamp) == (min(t for _, t in keys), 10_000)
    assert stats.segment_rows >= stats.record_count - 1


def test_index_stats_tell_what_is_there(db) -> None:
    assert db.index_stats().efficiency == 0.0
    # Far more rows in a run than a search by halving can do in a few probes.
    db.insert(1, np.arange(20_000) * 10, np.zeros(20_000))
    db.insert(2, [0, 1, 2], [1.0, 1.0, 1.0])
    db.flush()
    db.insert(2, 3, 1.0)

    stats = db.index_stats()

    assert 0.5 < stats.efficiency < 1.0
    assert stats.probes_learned < stats.probes_binary
    assert stats.models.knots + stats.models.pieces >= 1
    assert stats.models.none >= 1
    assert stats.indexed_rows == 20_003
    assert stats.uncovered_rows == 1
    assert stats.error.max <= 64
    assert stats.error.mean <= stats.error.p99 <= stats.error.max
    assert stats.bytes_per_million_rows == pytest.approx(stats.bytes / 20_003 * 1e6, rel=1e-3)
    assert stats.last_retrain is None


def test_retrain_keeps_the_bound_that_it_was_given(db) -> None:
    rng = np.random.default_rng(3)
    db.insert(1, np.cumsum(rng.lognormal(3, 2, 30_000).astype(np.int64) + 1), np.zeros(30_000))

    loose = db.retrain(max_error=500)
    tight = db.retrain(max_error=3)

    assert loose.after.error.max <= 500
    assert tight.before.max_error == 500
    assert tight.after.max_error == 3
    assert tight.after.error.max <= 3
    assert tight.after.bytes > tight.before.bytes
    assert db.settings.max_error == 3
    assert db.index_stats().last_retrain is not None
    assert db.query().count == 30_000


def test_gc_reports_what_it_did(db) -> None:
    for _ in range(3):
        db.insert(1, np.arange(500), np.random.default_rng(1).normal(size=500))
        db.flush()

    report = db.gc()

    assert report.before.segments == 3
    assert report.after.segments == 1
    assert report.dropped_rows == 1_000
    assert report.after.rows == 500
    assert report.after.disk_bytes < report.before.disk_bytes
    assert report.after.mapped_bytes < report.before.mapped_bytes
    assert db.gc().dropped_rows == 0


def test_memtables_are_flushed_when_they_are_large(db) -> None:
    for start in range(0, 5_000, 500):
        db.insert(1, np.arange(start, start + 500), np.zeros(500))
    db.flush()

    assert db.stats().segment_rows == 5_000
    assert db.metrics.flush_duration.count >= 3


def test_overwriting_one_key_for_ever_does_not_make_the_log_grow_for_ever(db) -> None:
    for _ in range(12):
        db.insert(1, np.zeros(500, dtype=np.int64), np.arange(500))
    db.flush()

    assert db.query().value.tolist() == [499.0]
    assert db.stats().wal_bytes < 4 * 24 * 1_000


def test_many_writers_are_grouped_and_all_are_stored(db) -> None:
    def write(writer: int) -> None:
        for n in range(50):
            db.insert(writer, n, float(n))
            assert db.query(series_id=writer, start=n, end=n).count == 1

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert db.stats().record_count == 16 * 50
    assert db.metrics.wal_fsync_duration.count <= 16 * 50


def test_a_multi_point_insert_is_seen_whole_or_not_at_all(db) -> None:
    stop = threading.Event()
    torn: list[set[float]] = []

    def read() -> None:
        while not stop.is_set():
            seen = set(db.query(series_id=range(40)).value.tolist())
            if len(seen) > 1:
                torn.append(seen)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for round_number in range(120):
        db.insert(np.repeat(np.arange(40), 5), np.tile(np.arange(5), 40), np.full(200, float(round_number)))
    stop.set()
    for reader in readers:
        reader.join()

    assert torn == []


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((-1, 1, 1.0), "series_id[0]"),
        (([1, -5], [1, 2], [1.0, 2.0]), "series_id[1]"),
        ((1, [1, 2], [1.0]), "timestamp"),
        (([1, 2], [1, 2, 3], [1.0, 2.0, 3.0]), "series_id"),
        ((1, 1.5, 1.0), "timestamp"),
        ((1, 2**63, 1.0), "timestamp"),
        ((1, 1, float("nan")), "value[0]"),
        ((1, [1, 2], [1.0, float("inf")]), "value[1]"),
        ((1, "now", 1.0), "timestamp"),
        ((1, 1, "high"), "value"),
        ((1, [[1]], [[1.0]]), "timestamp"),
    ],
)
def test_bad_points_are_refused_and_nothing_is_stored(db, arguments, field) -> None:
    with pytest.raises(InvalidRequestError) as error:
        db.insert(*arguments)

    assert error.value.field == field
    assert db.stats().record_count == 0


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"start": 2, "end": 1}, "start"),
        ({"start": 2**63}, "start"),
        ({"start": "a"}, "start"),
        ({"series_id": -1}, "series_id"),
        ({"series_id": [1, -2]}, "series_id"),
        ({"series_id": 1.5}, "series_id"),
        ({"limit": 0}, "limit"),
        ({"limit": True}, "limit"),
    ],
)
def test_bad_queries_name_the_argument(db, arguments, field) -> None:
    with pytest.raises(InvalidRequestError) as error:
        db.query(**arguments)

    assert error.value.field == field


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"step": 0}, "step"),
        ({"step": -5}, "step"),
        ({"step": 1, "start": 0, "end": 1_000_000}, "step"),
        ({"step": 1, "agg": "median"}, "agg"),
        ({"step": 1, "agg": "mean,mean"}, "agg"),
        ({"step": 1, "agg": []}, "agg"),
    ],
)
def test_bad_windows_name_the_argument(db, arguments, field) -> None:
    with pytest.raises(InvalidRequestError) as error:
        db.aggregate(**arguments)

    assert error.value.field == field


def test_settings_are_checked(tmp_path) -> None:
    with pytest.raises(ConfigError, match="unknown setting"):
        omendb.open(tmp_path / "db", colour=1)
    with pytest.raises(ConfigError, match="max_error=-1"):
        omendb.open(tmp_path / "db", max_error=-1)


def test_a_directory_has_one_owner_and_a_closed_one_answers_nothing(tmp_path) -> None:
    db = omendb.open(tmp_path / "db")
    with pytest.raises(LockedError):
        omendb.open(tmp_path / "db")
    db.close()
    db.close()
    with pytest.raises(ClosedError):
        db.insert(1, 1, 1.0)
    with pytest.raises(ClosedError):
        db.query()
    with pytest.raises(NotReadyError):
        Engine(tmp_path / "db").query()
    with omendb.open(tmp_path / "db") as again:
        assert again.recovery is not None
        assert again.recovery.clean


def faulty(tmp_path, **settings) -> tuple[Engine, FaultyFileSystem]:
    fs = FaultyFileSystem(OsFileSystem())
    engine = Engine(tmp_path / "db", Settings(**settings), fs=fs)
    engine.start()
    return engine, fs


def test_closing_ends_a_start_that_waits_for_the_lock(tmp_path) -> None:
    with omendb.open(tmp_path / "db") as first:
        second = Engine(tmp_path / "db")
        outcome: list[BaseException] = []

        def start() -> None:
            try:
                second.start(wait_for_lock_seconds=None)
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=start)
        thread.start()
        while second.status.phase != "waiting":
            assert thread.is_alive()
        with pytest.raises(NotReadyError, match="waiting for the lock"):
            second.query()

        second.close()
        thread.join()

        assert [type(error) for error in outcome] == [ClosedError]
        assert second.status.phase == "closed"
        assert not second.failed.is_set()
        assert first.insert(1, 1, 1.0) == 1


def test_closing_while_the_store_is_being_opened_leaves_it_clean(tmp_path, monkeypatch) -> None:
    engine = Engine(tmp_path / "db")
    opened = recovery.open_store

    def open_store(*arguments):
        found = opened(*arguments)
        engine.close()  # as a signal may, at the last moment
        return found

    monkeypatch.setattr("omendb.engine.open_store", open_store)
    with pytest.raises(ClosedError):
        engine.start()
    monkeypatch.undo()

    with omendb.open(tmp_path / "db") as again:
        assert again.recovery.clean


def test_closing_does_not_wait_for_a_merge_to_finish(tmp_path, monkeypatch) -> None:
    """A merge gives up between two of its pieces, and leaves nothing behind."""
    db = omendb.open(tmp_path / "db")
    for start in (0, 1_000):
        db.insert(1, np.arange(start, start + 1_000), np.arange(1_000.0))
        db.flush()
    begun, closing = threading.Event(), threading.Event()
    merged = compaction.merged

    def slow(*arguments):
        begun.set()
        closing.wait()
        yield from merged(*arguments)

    monkeypatch.setattr("omendb.storage.compaction.merged", slow)
    monkeypatch.setattr("omendb.storage.store.Store.stop_maintenance", stopping(closing))
    outcome: list[BaseException] = []

    def collect() -> None:
        try:
            db.gc()
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=collect)
    thread.start()
    begun.wait()
    db.close()
    thread.join()

    assert [type(error) for error in outcome] == [ClosedError]
    with omendb.open(tmp_path / "db") as again:
        assert again.recovery.clean
        assert again.recovery.removed_files == 0
        assert again.query().count == 2_000


def stopping(closing: threading.Event):
    stop = Store.stop_maintenance

    def stop_maintenance(store: Store) -> None:
        stop(store)
        closing.set()

    return stop_maintenance


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_nothing_is_acknowledged_after_the_log_failed(tmp_path, operation) -> None:
    engine, fs = faulty(tmp_path)
    engine.insert(1, 1, 1.0)
    fs.fail(operation, "EIO", only=".wal")
    with pytest.raises(WalFailedError):
        engine.insert(1, 2, 2.0)
    fs.heal()

    assert engine.failed.is_set()
    assert engine.status.phase == "failed"
    with pytest.raises(WalFailedError):
        engine.insert(1, 3, 3.0)
    assert engine.query().timestamp.tolist() == [1]
    with pytest.raises(WalFailedError):
        engine.flush()
    engine.close()
    with omendb.open(tmp_path / "db") as again:
        assert 1 in again.query().timestamp
        assert 3 not in again.query().timestamp


def test_disk_full_refuses_inserts_until_there_is_space(tmp_path) -> None:
    engine, fs = faulty(tmp_path)
    engine.insert(1, 1, 1.0)
    fs.fail("write", "ENOSPC", only=".wal", partial=True)
    for _ in range(3):
        with pytest.raises(DiskFullError):
            engine.insert(1, 2, 2.0)
    assert engine.query().count == 1
    fs.heal()

    engine.insert(1, 3, 3.0)

    assert engine.query().timestamp.tolist() == [1, 3]
    engine.close()
    with omendb.open(tmp_path / "db") as again:
        assert again.query().timestamp.tolist() == [1, 3]


def test_flushes_without_space_hold_inserts_back_at_last_and_come_back(tmp_path) -> None:
    engine, fs = faulty(tmp_path, retrain_threshold=1_000)
    fs.fail("create", "ENOSPC", only=".parquet")
    stored = 0
    with pytest.raises(DiskFullError):
        for stored in range(0, 1_000 * (FROZEN_MAX + 3), 1_000):
            engine.insert(1, np.arange(stored, stored + 1_000), np.zeros(1_000))
    assert stored >= 1_000 * FROZEN_MAX
    assert engine.query().count == stored
    with pytest.raises(DiskFullError):
        engine.flush()
    fs.heal()

    engine.flush()

    engine.insert(1, 10**6, 1.0)
    assert engine.query().count == stored + 1
    engine.close()


def test_damaged_rows_are_an_error_that_names_the_segment_and_others_stay_readable(tmp_path) -> None:
    with omendb.open(tmp_path / "db") as db:
        db.insert(np.repeat([1, 2], 40_000), np.tile(np.arange(40_000), 2), np.ones(80_000))
    path = next((tmp_path / "db" / "data").glob("*.parquet"))
    data = bytearray(path.read_bytes())
    # The middle of the value column: series 2 begins there.
    data[len(data) * 4 // 5] ^= 1
    path.write_bytes(data)

    with omendb.open(tmp_path / "db") as db:
        assert db.query(series_id=1, end=30_000).value.sum() == 30_001
        with pytest.raises(CorruptionError) as error:
            db.query(series_id=2)
        assert error.value.path == str(path)
        with pytest.raises(CorruptionError):
            db.aggregate(100_000, series_id=2)
        db.insert(3, 1, 1.0)
        with pytest.raises(CorruptionError):
            db.retrain()
        assert db.query(series_id=3).count == 1


def test_too_much_memory_refuses_inserts_and_says_when_to_try_again(tmp_path, monkeypatch) -> None:
    from omendb import engine as module

    used = [0]
    monkeypatch.setattr(module, "process_memory", lambda: module_memory(used[0]))
    with omendb.open(tmp_path / "db", max_memory_mb=1_000) as db:
        db.insert(1, 1, 1.0)
        used[0] = 900 << 20
        while db._committer.refusal is None:
            pass
        with pytest.raises(OverloadedError) as error:
            db.insert(1, 2, 1.0)
        assert error.value.retry_after_seconds >= 1
        assert db.query().count == 1
        used[0] = 0
        while db._committer.refusal is not None:
            pass
        db.insert(1, 3, 1.0)


def module_memory(unreclaimable: int):
    from omendb.metrics import ProcessMemory

    return ProcessMemory(unreclaimable, 0)


def test_sync_interval_answers_before_the_sync_and_syncs_soon(tmp_path) -> None:
    engine, fs = faulty(tmp_path, sync_interval_ms=1)
    engine.insert(1, 1, 1.0)
    assert engine.query().count == 1
    store = engine._store
    assert store is not None
    while store.wal.synced_sequence < 1:
        pass
    fs.fail("sync", "EIO", only=".wal")
    engine.insert(1, 2, 1.0)
    engine.failed.wait()
    with pytest.raises(WalFailedError):
        engine.insert(1, 3, 1.0)
    engine.close()


def test_a_batch_that_is_too_large_is_refused(db, monkeypatch) -> None:
    from omendb import committer as module

    monkeypatch.setattr(module, "WAL_ROWS_MAX", 10)
    with pytest.raises(InvalidRequestError, match="too many"):
        db.submit(make_batch(1, np.arange(11), np.zeros(11)), lambda _error: None)
