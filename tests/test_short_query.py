"""Short queries are answered in one kernel call: with the same bytes as by the scans that stream large ones."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import omendb
from omendb import executor, short_query
from omendb.errors import CorruptionError
from omendb.model import AGGREGATES
from omendb.query import RangeQuery, WindowQuery, make_range_query, make_window_query
from omendb.server import encode

ROWS_MAX = executor.CHUNK_ROWS


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """Three segments and a memtable that overlap, with repeated keys and values of every form."""
    rng = np.random.default_rng(7)
    with omendb.open(tmp_path_factory.mktemp("short") / "db", max_error=4) as engine:
        for part in range(4):
            count = 400
            values = rng.normal(size=count) * 10.0 ** rng.integers(-12, 14, count)
            values[::3] = np.round(values[::3], 2)
            values[::7] = rng.integers(-5, 5, len(values[::7]))
            engine.insert(rng.integers(0, 6, count) ** 3, rng.integers(-300, 300, count), values)
            if part < 3:
                engine.flush()
        yield engine


def scanned(engine, query: RangeQuery | WindowQuery, *, columns: bool) -> tuple[bytes, str | None]:
    names = None if isinstance(query, RangeQuery) else query.aggregates
    scan = engine.scan(query) if isinstance(query, RangeQuery) else engine.window_scan(query)
    parts = list(scan.chunks(ROWS_MAX))
    assert len(parts) < 2
    part = parts[0] if parts else None
    return encode.Form(columns, names).whole(part, scan.cursor), scan.cursor


def at_once(engine, query: RangeQuery | WindowQuery, *, columns: bool) -> bytes:
    names = None if isinstance(query, RangeQuery) else query.aggregates
    answer = engine.answer_short(query, columns=columns)
    assert answer is not None
    return encode.short(answer, names, columns=columns)


RANGES = {
    "start": st.none() | st.integers(-320, 320),
    "length": st.none() | st.integers(0, 640),
    "series_id": st.none() | st.integers(0, 130) | st.lists(st.integers(0, 130), max_size=4),
    "limit": st.none() | st.integers(1, 50),
    "columns": st.booleans(),
}


@given(**RANGES)
@settings(max_examples=200, deadline=None)
def test_rows_are_those_of_a_scan(db, start, length, series_id, limit, columns) -> None:
    end = None if start is None or length is None else start + length
    cursor = None
    for _ in range(60):
        query = make_range_query(start, end, series_id, limit, cursor)
        wanted, cursor = scanned(db, query, columns=columns)
        assert at_once(db, query, columns=columns) == wanted
        if cursor is None:
            return
    assert limit is not None


@given(
    **RANGES,
    step=st.integers(1, 700),
    agg=st.lists(st.sampled_from(AGGREGATES), min_size=1, unique=True),
)
@settings(max_examples=200, deadline=None)
def test_windows_are_those_of_a_scan(db, start, length, series_id, limit, columns, step, agg) -> None:
    end = None if start is None or length is None else start + length
    cursor = None
    for _ in range(60):
        query = make_window_query(step, agg, start, end, series_id, limit, cursor)
        wanted, cursor = scanned(db, query, columns=columns)
        assert at_once(db, query, columns=columns) == wanted
        if cursor is None:
            return
    assert limit is not None


def test_a_query_that_touches_more_rows_is_left_to_a_scan(tmp_path) -> None:
    count = short_query.SHORT_ROWS + 1
    with omendb.open(tmp_path / "db") as db:
        db.insert(1, np.arange(count), np.zeros(count))
        db.flush()
        assert db.answer_short(make_range_query(), columns=True) is None
        assert db.answer_short(make_window_query(count), columns=True) is None
        db.query()  # a bound is loose over rows that were never read
        # As many as there is room for.
        for query in (make_range_query(end=count - 2), make_range_query(limit=count - 1)):
            answer = db.answer_short(query, columns=False)
            assert answer is not None
            assert answer.rows == count - 1
            assert len(answer.text) == len(scanned(db, query, columns=False)[0]) - len(
                encode.short(answer._replace(text=b""), None, columns=False)
            )
        whole = db.answer_short(make_window_query(count, "count", end=count - 2), columns=False)
        assert whole is not None
        assert bytes(whole.text) == b'{"series_id":1,"timestamp":0,"count":%d}' % (count - 1)


def test_damage_is_an_error_and_never_a_value(tmp_path) -> None:
    with omendb.open(tmp_path / "db") as db:
        db.insert(1, np.arange(1_000), np.ones(1_000))
        db.flush()
    (file,) = (tmp_path / "db" / "data").glob("*.parquet")
    data = bytearray(file.read_bytes())
    at = data.find(np.ones(10).tobytes())
    data[at] ^= 1
    file.write_bytes(data)
    with omendb.open(tmp_path / "db") as db:
        for query in (make_range_query(series_id=1), make_window_query(10, series_id=1)):
            with pytest.raises(CorruptionError, match=file.name):
                db.answer_short(query, columns=True)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_short_query_of_rows_that_were_never_read_is_answered_at_once(tmp_path, compressed) -> None:
    """Its ends are proven on the way: else every reader would wait in a queue right after a merge."""
    count = 5 * short_query.SHORT_ROWS
    rng = np.random.default_rng(5)
    times = np.cumsum(rng.integers(1, 9, count))
    with omendb.open(tmp_path / "db", max_error=4, enable_compression=compressed) as db:
        for part in np.array_split(np.arange(count), 3):
            db.insert(1, times[part], part % 100)
            db.flush()
        db.gc()
    for at in (0, 7, count // 2, count - 1_000):
        first, last = int(times[at]), int(times[at + 999])
        with omendb.open(tmp_path / "db") as db:
            rows = db.answer_short(make_range_query(first, last, 1), columns=False)
            assert rows is not None
            assert rows.rows == 1_000
        with omendb.open(tmp_path / "db") as db:
            window = make_window_query(last + 1, ("count", "sum"), first, last, 1)
            windows = db.answer_short(window, columns=False)
            assert windows is not None
            total = float((np.arange(at, at + 1_000) % 100).sum())
            assert bytes(windows.text) == b'{"series_id":1,"timestamp":%d,"count":1000,"sum":%.1f}' % (
                window.origin,
                total,
            )

        with omendb.open(tmp_path / "db") as db:
            scan = db.scan(make_range_query(first, last, 1))
            assert scan.row_bound > short_query.SHORT_ROWS
            scan.prove(500)
            assert scan.row_bound > short_query.SHORT_ROWS  # more than asked about: nothing was read
            scan.prove(2_000)
            assert scan.row_bound == 1_000
        for by in ("series_id", ()):
            with omendb.open(tmp_path / "db") as db:
                window_scan = db.window_scan(make_window_query(10, "sum", first, last, 1, by=by))
                assert window_scan.row_bound > short_query.SHORT_ROWS
                window_scan.prove(2_000)
                assert window_scan.row_bound == 1_000


def test_damaged_timestamps_of_a_long_run_are_an_error_or_left_to_a_scan(tmp_path) -> None:
    """The estimate that lets rows be looked at which were never read is believed only when they prove it."""
    count = 3 * short_query.SHORT_ROWS
    rng = np.random.default_rng(6)
    times = np.cumsum(rng.integers(1, 9, count))
    with omendb.open(tmp_path / "db", max_error=4) as db:
        db.insert(1, times, np.arange(count))
        db.flush()
    (file,) = (tmp_path / "db" / "data").glob("*.parquet")
    whole = file.read_bytes()
    begin = whole.find(times[:4].astype("<i8").tobytes())
    assert begin >= 0
    outcomes = dict.fromkeys(("right", "error", "left"), 0)
    for _ in range(60):
        data = bytearray(whole)
        block = int(rng.integers(0, count - 2_000))
        for row in range(block, block + int(rng.integers(1, 2_000))):
            data[begin + 8 * row + int(rng.integers(0, 8))] ^= int(rng.integers(1, 256))
        file.write_bytes(data)
        at = int(np.clip(block + rng.integers(-1_000, 2_500), 0, count - 1_000))
        query = make_range_query(int(times[at]), int(times[at + 999]), 1)
        with omendb.open(tmp_path / "db") as db:
            try:
                answer = db.answer_short(query, columns=False)
            except CorruptionError:
                outcomes["error"] += 1
                continue
            outcomes["left" if answer is None else "right"] += 1
            if answer is not None:
                rows = orjson.loads(b"[%b]" % answer.text)
                assert [row["timestamp"] for row in rows] == times[at : at + 1_000].tolist()
                assert [row["value"] for row in rows] == list(range(at, at + 1_000))
    assert outcomes["error"], outcomes
    assert outcomes["right"], outcomes
