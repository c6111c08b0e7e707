"""What is asked for ahead of a scan covers what the scan reads, and is asked for a batch at a time."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

import omendb
from omendb.jit import ahead, layout
from omendb.model import INT64_MAX, INT64_MIN
from omendb.storage import read_ahead
from omendb.storage.fs import OsFileSystem, is_resident, will_need
from omendb.storage.read_ahead import RUNS_MIN, ReadAhead

WAIT_SECONDS = 60
"""A limit against hanging, no promise about speed."""

EVERY_SERIES = np.empty(0, dtype=np.int64)


@pytest.fixture
def asked(monkeypatch):
    """Addresses and sizes that were asked for; nothing counts as being in memory."""
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(read_ahead, "is_resident", lambda address: False)
    monkeypatch.setattr(read_ahead, "will_need", lambda address, size: calls.append((address, size)))
    return calls


@pytest.mark.parametrize("max_error", [0, 3, 64])
def test_ranges_of_models_hold_the_rows_of_the_answer(tmp_path, max_error) -> None:
    rng = np.random.default_rng(7)
    with omendb.open(tmp_path / "db", max_error=max_error) as db:
        for series in range(6):
            gaps = rng.lognormal(1, 1 + series % 3, 4_000).astype(np.int64) + 1
            db.insert(series, np.cumsum(gaps), np.zeros(4_000))
        db.flush()
        (segment,) = db._store.snapshot.segments
        segment.verify_all()
        out = np.empty((100, ahead.RANGE_WIDTH), dtype=np.int64)
        last = int(segment.timestamp.max())
        for _ in range(200):
            start, end = sorted(rng.integers(-10, last, 2).tolist())
            wanted = np.flatnonzero((segment.timestamp >= start) & (segment.timestamp <= end))

            count, _, more = ahead.list_ahead(
                db._store.snapshot.table, EVERY_SERIES, True, start, end, 0, False, 10_000, out
            )

            assert not more
            covered = np.zeros(segment.rows, dtype=bool)
            for _, first, stop in out[:count].tolist():
                covered[first:stop] = True
            assert covered[wanted].all()
            # And not much more: the model is off by its error at either end of each run.
            assert covered.sum() <= len(wanted) + 6 * 2 * (max_error + 3)


def test_scans_ask_as_far_ahead_as_the_setting_says(tmp_path, asked) -> None:
    series, rows = RUNS_MIN, 300
    with omendb.open(tmp_path / "db") as db:
        for series_id in range(series):
            db.insert(series_id, np.arange(rows), np.zeros(rows))
        db.flush()
        (segment,) = db._store.snapshot.segments
        segment.verify_all()
        answers = []
        for prefetch_size in (0, 10, 50):
            asked.clear()
            db.configure(prefetch_size=prefetch_size)

            answers.append(db.aggregate(7, "sum", start=100, end=250))

            assert {size // 8 for _, size in asked} == ({prefetch_size} if prefetch_size else set())
            starts = {address for address, _ in asked}
            if prefetch_size:
                assert len(starts) == 2 * series
                for column in (segment.timestamp, segment.value):
                    assert len([a for a in starts if 0 <= a - column.ctypes.data < column.nbytes]) == series
        for answer in answers:
            np.testing.assert_array_equal(answer.columns["sum"], answers[0].columns["sum"])


def test_what_is_in_memory_is_not_asked_for(tmp_path, asked, monkeypatch) -> None:
    monkeypatch.setattr(read_ahead, "is_resident", lambda address: True)
    with omendb.open(tmp_path / "db") as db:
        for series_id in range(RUNS_MIN):
            db.insert(series_id, np.arange(10), np.zeros(10))
        db.flush()
        db.query()

    assert asked == []


def test_few_runs_are_not_worth_asking(tmp_path, asked) -> None:
    with omendb.open(tmp_path / "db") as db:
        for series_id in range(RUNS_MIN - 1):
            db.insert(series_id, np.arange(10), np.zeros(10))
        db.flush()
        db.query()
        db.query(series_id=3)

    assert asked == []


def test_batches_are_asked_for_one_ahead_of_the_scan(tmp_path, asked, monkeypatch) -> None:
    monkeypatch.setattr(read_ahead, "_RANGES", 10)
    with omendb.open(tmp_path / "db") as db:
        for series_id in range(100):
            db.insert(series_id, np.arange(20), np.zeros(20))
        db.flush()
        table = db._store.snapshot.table
        db._store.snapshot.segments[0].verify_all()
        runs = db._store.snapshot.segments[0].index.runs

        def asked_series() -> int:
            """How many series have been asked for."""
            rows = {(address - int(table[0, layout.TIMESTAMPS])) // 8 for address, _ in asked}
            return sum(row in rows for row in runs[:, layout.RUN_START].tolist())

        scan = ReadAhead((table, EVERY_SERIES, True, INT64_MIN, INT64_MAX), None, 5)
        steps = []
        for reached in (None, INT64_MIN, 0, 9, 10, 11, 29, 30, 99):
            scan.reach(reached)
            steps.append(asked_series())

    # A scan that has come to what was asked for last has the next two batches asked for, from there on.
    assert steps == [10, 10, 10, 10, 30, 30, 50, 50, 51]


def test_what_is_asked_for_comes_into_memory(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        mapped = OsFileSystem().map(path)
        address = mapped.data.ctypes.data
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if is_resident(address + 500_000):
            pytest.skip("this file system keeps files in memory")

        will_need(address + 500_001, 10_000)

        give_up = time.monotonic() + WAIT_SECONDS
        while not (is_resident(address + 500_001) and is_resident(address + 510_000)):
            assert time.monotonic() < give_up
            time.sleep(0.01)
        assert mapped.data[0] == path.read_bytes()[0]
        assert is_resident(address)
