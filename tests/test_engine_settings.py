"""Changes of settings while the store is open, and what they do at once."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest

import omendb
from omendb.config import Settings
from omendb.errors import ConfigError, CorruptionError
from omendb.jit import window
from omendb.model import make_batch
from omendb.settings_source import load
from omendb.storage.store import Store
from tests.configmap import ConfigMapMount

WAIT_SECONDS = 120
"""A limit against hanging, no promise about speed."""


def test_compression_applies_to_what_gc_writes_from_then_on(tmp_path) -> None:
    with omendb.open(tmp_path / "db") as db:
        db.insert(1, np.arange(20_000), np.arange(20_000) % 50 / 4)
        db.gc()
        expected = db.query(series_id=1)
        plain = db.gc().after.disk_bytes

        db.configure(enable_compression=True)
        compressed = db.gc().after.disk_bytes
        found = db.query(series_id=1)
        text = db.metrics.render().decode()

        assert compressed < plain / 4
        np.testing.assert_array_equal(found.timestamp, expected.timestamp)
        np.testing.assert_array_equal(found.value, expected.value)
        figures = dict(
            line.split() for line in text.splitlines() if line.startswith("omendb_") and "{" not in line
        )
        assert float(figures["omendb_segment_plain_bytes"]) == 0
        assert float(figures["omendb_segment_compressed_rows"]) == 20_000
        assert float(figures["omendb_decoded_cache_misses_total"]) == 3
        assert 0 < float(figures["omendb_decoded_cache_bytes"]) <= 20_000 * 16 + 50 * 8
        assert "# TYPE omendb_decoded_cache_hits_total counter" in text

        db.configure(enable_compression=False)
        assert db.gc().after.disk_bytes == plain
        assert db.gc().before.disk_bytes == plain


def test_max_memory_bounds_the_cache_of_decoded_rows(tmp_path) -> None:
    with omendb.open(tmp_path / "db", max_memory_mb=4_000) as db:
        db._watch_memory(db._store)
        assert db._store.cache.limit_bytes == 1_000 << 20
        db.configure(max_memory_mb=100_000)
        db._watch_memory(db._store)
        assert db._store.cache.limit_bytes == 25_000 << 20


def wait_until(holds) -> None:
    give_up = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < give_up, "did not come to pass"
        time.sleep(0.01)


@pytest.fixture
def db(tmp_path):
    with omendb.open(tmp_path / "db") as opened:
        yield opened


def fill(db, rows: int = 30_000) -> None:
    rng = np.random.default_rng(3)
    db.insert(1, np.cumsum(rng.lognormal(3, 2, rows).astype(np.int64) + 1), np.zeros(rows))
    db.flush()


def test_new_max_error_refits_in_the_background(db) -> None:
    fill(db)
    assert db.index_stats().last_retrain is None

    db.configure(max_error=3)

    assert db.settings.max_error == 3
    assert db.index_stats().max_error_configured == 3
    wait_until(lambda: db.index_stats().max_error_effective == 3)
    stats = db.index_stats()
    assert stats.error.max <= 3
    assert stats.last_retrain is not None
    assert db.metrics.retrain_duration.count == 1
    assert db.query().count == 30_000


def test_index_stats_tell_the_old_bound_until_the_refit_is_done(db, monkeypatch) -> None:
    fill(db)
    asked, may_go_on = threading.Event(), threading.Event()
    retrain = Store.retrain

    def held(store, **options):
        asked.set()
        assert may_go_on.wait(WAIT_SECONDS)
        return retrain(store, **options)

    monkeypatch.setattr(Store, "retrain", held)

    db.configure(max_error=3)
    assert asked.wait(WAIT_SECONDS)
    during = db.index_stats()
    may_go_on.set()

    assert (during.max_error_configured, during.max_error_effective) == (3, 64)
    wait_until(lambda: db.index_stats().max_error_effective == 3)


def test_every_error_of_the_runbooks_formula_is_taken(db) -> None:
    fill(db, 5_000)
    record_count = db.stats().record_count

    db.configure(max_error=record_count // 10_000)

    assert db.settings.max_error == 0
    wait_until(lambda: db.index_stats().max_error_effective == 0)
    assert db.index_stats().error.max == 0


def test_models_of_an_earlier_start_are_refitted(tmp_path) -> None:
    with omendb.open(tmp_path / "db", max_error=500) as db:
        fill(db)
    with omendb.open(tmp_path / "db", max_error=3) as db:
        wait_until(lambda: db.index_stats().max_error_effective == 3)
        assert db.index_stats().error.max <= 3


def test_models_that_agree_with_the_setting_are_left_alone(tmp_path) -> None:
    with omendb.open(tmp_path / "db", max_error=500) as db:
        fill(db)
        names = sorted(path.name for path in (tmp_path / "db/data").iterdir())
        assert db._store.retrain(stale=True) is None
    with omendb.open(tmp_path / "db", max_error=500) as db:
        assert db._store.retrain(stale=True) is None
        assert db.index_stats().last_retrain is None
    assert sorted(path.name for path in (tmp_path / "db/data").iterdir()) == names


def test_refit_leaves_a_damaged_segment_alone_and_fits_the_others(tmp_path, caplog) -> None:
    with omendb.open(tmp_path / "db", max_error=500) as db:
        fill(db)
        db.insert(1, np.arange(100), np.ones(100))
        db.flush()
        numbers = [segment.entry.number for segment in db._store.snapshot.segments]
        files = [segment.path for segment in db._store.snapshot.segments]
        offset = db._store.snapshot.segments[0].entry.value_offset
    assert len(files) == 2
    damaged = bytearray(files[0].read_bytes())
    damaged[offset] ^= 1
    files[0].write_bytes(damaged)

    with omendb.open(tmp_path / "db", max_error=3) as db:
        wait_until(lambda: "refit leaves damaged data alone" in caplog.text)
        wait_until(
            lambda: {s.entry.number: s.index.max_error for s in db._store.snapshot.segments}[numbers[1]] == 3
        )
        with pytest.raises(CorruptionError):
            db.index_stats()


def test_lower_retrain_threshold_flushes_what_is_above_it_at_once(db) -> None:
    db.insert(1, np.arange(5_000), np.zeros(5_000))
    assert db.index_stats().uncovered_rows == 5_000

    db.configure(retrain_threshold=1_000)

    wait_until(lambda: db.index_stats().uncovered_rows == 0)


def test_interval_of_0_syncs_at_once_and_from_then_on(tmp_path) -> None:
    with omendb.Engine(tmp_path / "db", Settings(sync_interval_ms=3_600_000)) as db:
        syncs: list[int] = []
        sync = db._store.sync
        db._store.sync = lambda: (syncs.append(1), sync())
        db.insert(1, 1, 1.0)
        assert not syncs

        db.configure(sync_interval_ms=0)

        assert len(syncs) == 1
        db.insert(1, 2, 1.0)
        assert len(syncs) == 2
        db.configure(sync_interval_ms=3_600_000)
        db.insert(1, 3, 1.0)
        assert len(syncs) == 2


def test_memory_limit_and_flush_interval_apply(db) -> None:
    # A limit that this process is beyond already: inserts are refused, until it is raised again.
    db.configure(max_memory_mb=1)
    wait_until(lambda: db._committer.refusal is not None)
    with pytest.raises(omendb.OmenError, match="memory is short"):
        db.insert(1, 1, 1.0)
    db.configure(max_memory_mb=0)
    wait_until(lambda: db._committer.refusal is None)
    db.insert(1, 1, 1.0)

    db.configure(flush_interval_ms=1_000)
    wait_until(lambda: db.index_stats().uncovered_rows == 0)


def test_smaller_batch_size_makes_smaller_commits(db) -> None:
    def largest_commit(count: int) -> int:
        first = threading.Event()
        release = threading.Event()
        sizes: list[int] = []
        append = db._store.append

        def held(batch):
            sizes.append(len(batch.timestamp))
            first.set()
            assert release.wait(WAIT_SECONDS)
            return append(batch)

        db._store.append = held
        done = threading.Semaphore(0)
        for index in range(count):
            db.submit(make_batch(1, np.arange(10) + index, np.zeros(10)), lambda _: done.release())
            if index == 0:
                assert first.wait(WAIT_SECONDS)
        release.set()
        for _ in range(count):
            assert done.acquire(timeout=WAIT_SECONDS)
        db._store.append = append
        return max(sizes)

    assert largest_commit(20) == 190
    db.configure(batch_size=50)
    assert largest_commit(20) == 50


def test_what_is_wrong_changes_nothing(db) -> None:
    with pytest.raises(ConfigError, match="max_error=-1"):
        db.configure(batch_size=5, max_error=-1)

    assert db.settings == Settings()


def test_retrain_with_another_error_is_a_change_of_the_setting(db, caplog) -> None:
    caplog.set_level(logging.INFO)
    fill(db)

    db.retrain(max_error=3)

    state = db.configuration()["max_error"]
    assert (state.value, state.source, state.live) == (3, "call", True)
    assert "config changed max_error 64 -> 3 source=call" in caplog.text


def test_mounted_directory_is_followed(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    mount = ConfigMapMount(tmp_path / "config", {"max_error": "500", "batch_size": "none"})
    source = load({}, {}, tmp_path / "config")
    with omendb.Engine(tmp_path / "db", source) as db:
        fill(db)
        assert db.settings.max_error == 500
        assert gauge(db, "omendb_config_last_reload_successful") == 0
        assert gauge(db, "omendb_config_reload_failures_total") == 1
        assert gauge(db, "omendb_config_last_reload_success_timestamp_seconds") == 0

        mount.write({"max_error": "3"})

        wait_until(lambda: db.index_stats().max_error_effective == 3)
        assert gauge(db, "omendb_config_last_reload_successful") == 1
        assert gauge(db, "omendb_config_reload_failures_total") == 1
        assert gauge(db, "omendb_config_last_reload_success_timestamp_seconds") > 1e9
        assert "config changed max_error 500 -> 3 source=directory" in caplog.text


def gauge(db, name: str) -> float:
    lines = db.metrics.render().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_enable_simd_chooses_the_kernel_and_changes_no_bit(db, monkeypatch) -> None:
    rng = np.random.default_rng(5)
    db.insert(1, np.arange(10_000), rng.normal(0, 1e6, 10_000))
    chosen: list[bool] = []
    kernel = window.scan_windows

    def spied(*arguments):
        chosen.append(arguments[7])
        return kernel(*arguments)

    monkeypatch.setattr(window, "scan_windows", spied)
    answers = []
    for simd in (True, False):
        db.configure(enable_simd=simd)
        answers.append(db.aggregate(333, ("sum", "min", "max", "stddev")))

        assert chosen
        assert set(chosen) == {simd}
        chosen.clear()

    vector, scalar = answers
    for name, column in vector.columns.items():
        assert column.tobytes() == scalar.columns[name].tobytes()
