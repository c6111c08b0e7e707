"""A randomised model test: the store beside a dict, through everything that may happen to a store.

One rule, one thing that an application, an operator or a crash does. After each the store must answer as
the dict does. Run more of it with ``HYPOTHESIS_PROFILE=thorough``.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from omendb import executor, merged
from omendb.config import Settings
from omendb.executor import Scan
from omendb.merged import window_scan
from omendb.model import AGGREGATES, INT64_MAX, INT64_MIN, make_batch
from omendb.query import make_range_query, make_window_query
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store
from omendb.workers import Workers

# Few series and a narrow range of time, so that keys meet; now and then the ends of the range.
series_ids = st.one_of(st.integers(0, 5), st.sampled_from([2**40, 2**63 - 1]))
timestamps = st.one_of(
    st.integers(0, 60),
    st.integers(-1000, 1000),
    st.sampled_from([INT64_MIN, INT64_MIN + 1, INT64_MAX - 1, INT64_MAX]),
)
values = st.one_of(
    st.integers(-1000, 1000).map(lambda n: n / 4), st.floats(allow_nan=False, allow_infinity=False, width=32)
)
points = st.lists(st.tuples(series_ids, timestamps, values), min_size=1, max_size=40)
bounds = st.tuples(st.none() | timestamps, st.none() | timestamps).map(
    lambda b: b if None in b else (min(b), max(b))
)
# So small that shards, slabs and tables of a few rows meet all their edges.
sizes = st.sampled_from([1, 3, 20])
filters = st.none() | st.lists(series_ids, min_size=1, max_size=4)


class StoreModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="omendb-model-"))
        self.expected: dict[tuple[int, int], float] = {}
        self.held: list = []
        self.settings = Settings(max_error=4)
        self.workers = Workers(2)

    @initialize(max_error=st.sampled_from([0, 1, 8, 64, 1_000_000]))
    def start(self, max_error) -> None:
        self.settings = Settings(max_error=max_error)
        self.store = self.open()

    def open(self):
        # Small, so that a few hundred points make several segments and partitions.
        store, _ = open_store(
            OsFileSystem(), self.directory, self.settings, partition_rows=150, segment_rows_max=60
        )
        return store

    @rule(rows=points)
    def insert(self, rows) -> None:
        batch = make_batch(*(list(column) for column in zip(*rows, strict=True)))
        sequence = self.store.append(batch)
        self.store.sync()
        self.store.apply(batch, sequence)
        for series_id, timestamp, value in rows:
            self.expected[series_id, timestamp] = value

    @rule(
        series_id=series_ids,
        start=st.integers(0, 500),
        count=st.integers(1, 200),
        step=st.sampled_from([1, 3]),
    )
    def insert_regular(self, series_id, start, count, step) -> None:
        times = [start + step * n for n in range(count)]
        self.insert([(series_id, time, time / 2) for time in times])

    @rule()
    def freeze(self) -> None:
        self.store.freeze()

    @rule()
    def flush(self) -> None:
        self.store.freeze()
        while self.store.flush_oldest() is not None:
            pass

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule()
    def gc(self) -> None:
        self.flush()
        while self.store.compact(everything=True) is not None:
            pass
        segments = self.store.snapshot.segments
        assert {s.entry.is_compressed for s in segments} <= {self.settings.enable_compression}

    @rule(compressed=st.booleans())
    def switch_compression(self, compressed) -> None:
        self.settings = self.settings.with_changes(enable_compression=compressed)
        self.store.settings = self.settings

    @rule(max_error=st.sampled_from([0, 2, 16, 100]))
    def retrain(self, max_error) -> None:
        self.settings = self.settings.with_changes(max_error=max_error)
        self.store.settings = self.settings
        self.store.retrain()

    @rule(clean=st.booleans())
    def reopen(self, clean) -> None:
        if clean:
            self.store.close()
        else:
            self.store.wal.close()
            self.store.release()
        self.store = self.open()

    @rule()
    def hold(self) -> None:
        """Keep a query open across what comes next; its answer stays that of its moment."""
        if len(self.held) < 3:
            self.held.append((Scan(self.store.snapshot, make_range_query()), dict(self.expected)))

    @rule()
    def finish_held(self) -> None:
        while self.held:
            scan, expected = self.held.pop()
            assert rows_of(scan.chunks(17)) == sorted((*key, value) for key, value in expected.items())

    @rule(bounds=bounds, series=filters, rows_max=st.sampled_from([1, 7, 1000]))
    def query(self, bounds, series, rows_max) -> None:
        scan = Scan(self.store.snapshot, make_range_query(*bounds, series))
        expected = self.select(bounds, series)

        assert scan.row_bound >= len(expected)
        assert scan.count() == len(expected)
        assert rows_of(scan.chunks(rows_max)) == expected
        assert scan.cursor is None

    @rule(bounds=bounds, series=filters, size=sizes, rows_max=st.sampled_from([1, 7, 1000]))
    def query_in_threads(self, bounds, series, size, rows_max) -> None:
        expected = self.select(bounds, series)
        with split_into(size):
            scan = Scan(self.store.snapshot, make_range_query(*bounds, series), self.workers)
            assert scan.count() == len(expected)
            parts = list(scan.map(lambda part: rows_of([part]), rows_max))

        assert all(0 < len(part) <= rows_max for part in parts)
        assert list(itertools.chain.from_iterable(parts)) == expected

    @rule(bounds=bounds, series=series_ids)
    def query_without_copy(self, bounds, series) -> None:
        columns = Scan(self.store.snapshot, make_range_query(*bounds, series)).columns()

        assert rows_of([columns]) == self.select(bounds, [series])

    @rule(bounds=bounds, series=filters, limit=st.integers(1, 30), data=st.data())
    def query_in_pages(self, bounds, series, limit, data) -> None:
        """Follow cursors, while compaction goes on between the pages."""
        expected = self.select(bounds, series)
        found: list = []
        cursor = None
        for page in range(20):
            scan = Scan(self.store.snapshot, make_range_query(*bounds, series, limit, cursor))
            rows = rows_of(scan.chunks())
            assert len(rows) <= limit
            found += rows
            cursor = scan.cursor
            if cursor is None:
                break
            if page < 3:
                data.draw(st.sampled_from([self.compact, self.flush, self.freeze]))()

        if cursor is None:
            assert found == expected
        else:
            assert found == expected[: len(found)]

    @rule(
        bounds=bounds,
        series=filters,
        step=st.one_of(st.integers(1, 50), st.sampled_from([1000, 2**40, INT64_MAX])),
        limit=st.none() | st.integers(1, 10),
        by=st.sampled_from(["series_id", ""]),
        size=st.none() | sizes,
    )
    def windows(self, bounds, series, step, limit, by, size) -> None:
        start, end = bounds
        if start is not None and end is not None and (end - start) // step >= 1_000_000:
            return
        expected = self.expected_windows(bounds, series, step, by)
        found: list = []
        cursor = None
        while True:
            query = make_window_query(step, AGGREGATES, start, end, series, limit, cursor, by)
            with split_into(size):
                scan = window_scan(self.store.snapshot, query, None if size is None else self.workers)
                for part in scan.map(lambda part: part, 5):
                    assert 0 < part.count <= 5
                    columns = [part.columns[name].tolist() for name in AGGREGATES]
                    ids = [0] * part.count if part.series_id is None else part.series_id.tolist()
                    found += zip(ids, part.timestamp.tolist(), *columns, strict=True)
            cursor = scan.cursor
            if cursor is None:
                break

        assert [row[:3] for row in found] == [row[:3] for row in expected]
        for row, wanted in zip(found, expected, strict=True):
            scale = max(1.0, *(abs(x) for x in wanted[3:]))
            assert all(
                math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-6 * scale)
                for a, b in zip(row, wanted, strict=True)
            )

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "store"):
            assert Scan(self.store.snapshot, make_range_query()).count() == len(self.expected)

    def teardown(self) -> None:
        self.finish_held()
        if hasattr(self, "store"):
            assert rows_of(Scan(self.store.snapshot, make_range_query()).chunks()) == self.select(
                (None, None), None
            )
            self.store.release()
        self.workers.close()
        shutil.rmtree(self.directory)

    def select(self, bounds, series) -> list:
        low = INT64_MIN if bounds[0] is None else bounds[0]
        high = INT64_MAX if bounds[1] is None else bounds[1]
        return sorted(
            (*key, value)
            for key, value in self.expected.items()
            if low <= key[1] <= high and (series is None or key[0] in series)
        )

    def expected_windows(self, bounds, series, step, by) -> list:
        origin = bounds[0] or 0
        windows: dict[tuple[int, int], list[tuple[int, int, float]]] = {}
        for series_id, timestamp, value in self.select(bounds, series):
            window = max(origin + (timestamp - origin) // step * step, INT64_MIN)
            key = (series_id if by else 0, window)
            windows.setdefault(key, []).append((timestamp, series_id, value))
        answer = []
        for key, points in sorted(windows.items()):
            # Of equal times the first one is the lowest series, and the last one the highest.
            v = [value for *_, value in sorted(points)]
            answer.append(
                (*key, len(v), sum(v), min(v), max(v), sum(v) / len(v), v[0], v[-1], float(np.std(v)))
            )
        return answer


@contextlib.contextmanager
def split_into(size):
    """Let whatever has more than `size` rows or windows be worked on in parts."""
    with pytest.MonkeyPatch.context() as patch:
        if size is not None:
            patch.setattr(executor, "SPLIT_ROWS", 0)
            patch.setattr(executor, "SHARD_ROWS", size)
            patch.setattr(executor, "ROW_SHARD_ROWS", size)
            patch.setattr(merged, "SHARD_ROWS", size)
            patch.setattr(merged, "TABLE_WINDOWS_MAX", size)
            patch.setattr(merged, "BATCH_WINDOWS", size)
        yield


def rows_of(chunks) -> list:
    rows: list = []
    for chunk in chunks:
        rows += zip(chunk.series_id.tolist(), chunk.timestamp.tolist(), chunk.value.tolist(), strict=True)
    return rows


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(
    max_examples=max(settings().max_examples // 2, 40), stateful_step_count=60, deadline=None
)
