"""The memtable against a dict."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omendb.jit import layout
from omendb.model import INT64_MAX, INT64_MIN, Batch, make_batch
from omendb.storage.memtable import BLOCK_ROWS, Memtable
from omendb.storage.reused import Scratch, Spare
from omendb.storage.source import Source

Point = tuple[int, int, float]
Key = tuple[int, int]

series_ids = st.one_of(st.integers(0, 6), st.sampled_from([2**31, 2**62, INT64_MAX]))
timestamps = st.one_of(
    st.integers(-15, 15), st.sampled_from([INT64_MIN, INT64_MIN + 1, INT64_MAX - 1, INT64_MAX])
)
batches = st.lists(st.lists(st.tuples(series_ids, timestamps, st.floats(-1e9, 1e9)), max_size=25), max_size=4)
reads = st.fixed_dictionaries(
    {
        "series": st.one_of(st.none(), st.lists(series_ids, unique=True, max_size=12).map(sorted)),
        "start": timestamps,
        "end": timestamps,
        "rows_max": st.one_of(st.integers(1, 20), st.just(INT64_MAX)),
        "after": st.one_of(st.none(), st.tuples(series_ids, timestamps)),
    }
)


def tiny() -> Memtable:
    """Make a memtable that must grow and split at once."""
    return Memtable(series_capacity=1, arena_words=16, block_rows=4)


def batch_of(points: list[Point]) -> Batch:
    return make_batch(
        np.array([p[0] for p in points], np.int64),
        np.array([p[1] for p in points], np.int64),
        np.array([p[2] for p in points], np.float64),
    )


def rows_of(source: Source | None) -> list[Point]:
    if source is None:
        return []
    columns = (source.series_column(), source.timestamp, source.value)
    assert source.rows == len(columns[0])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def expected(model: dict[Key, float], read: dict[str, Any]) -> list[Point]:
    return [
        (*key, value)
        for key, value in sorted(model.items())
        if (read["series"] is None or key[0] in read["series"])
        and read["start"] <= key[1] <= read["end"]
        and (read["after"] is None or key > read["after"])
    ]


def do_read(memtable: Memtable, read: dict[str, Any]) -> Source | None:
    series = None if read["series"] is None else np.array(read["series"], np.int64)
    return memtable.read(series, read["start"], read["end"], read["rows_max"], read["after"])


@given(batches, st.lists(reads, max_size=4))
def test_reads_agree_with_a_dict(given_batches: list[list[Point]], given_reads: list) -> None:
    memtable = tiny()
    model: dict[Key, float] = {}
    for sequence, points in enumerate(given_batches, 1):
        memtable.insert(batch_of(points), sequence)
        model.update({(series, time): value for series, time, value in points})

        assert memtable.rows == len(model)
        assert memtable.series_count == len({key[0] for key in model})
        assert memtable.is_empty == (not model)
        assert memtable.first_timestamp == min((key[1] for key in model), default=INT64_MAX)
        assert memtable.last_timestamp == max((key[1] for key in model), default=INT64_MIN)
        for read in given_reads:
            source = do_read(memtable, read)

            rows = expected(model, read)
            assert rows_of(source) == rows[: read["rows_max"]]
            if source is not None:
                assert source.cut == (len(rows) > read["rows_max"])
                assert source.last_key == rows[: read["rows_max"]][-1][:2]
    assert rows_of(memtable.export()) == [(*key, value) for key, value in sorted(model.items())]


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_blocks_of_production_size_split(order: str) -> None:
    count = 5 * BLOCK_ROWS
    times = np.arange(count)
    if order == "descending":
        times = times[::-1]
    elif order == "random":
        times = np.random.default_rng(3).permutation(count)
    memtable = Memtable()

    memtable.insert(make_batch(7, times, times * 0.5), 1)

    source = memtable.export()
    assert source.timestamp.tolist() == list(range(count))
    assert source.value.tolist() == [t * 0.5 for t in range(count)]
    middle = memtable.read(np.array([7]), 200, 299, 1000)
    assert middle is not None
    assert middle.timestamp.tolist() == list(range(200, 300))


def test_many_series_in_random_order() -> None:
    random = np.random.default_rng(5)
    series = random.integers(0, 2**62, 700)
    memtable = tiny()
    for sequence in range(3):
        order = random.permutation(len(series))
        times = np.full(len(series), sequence)
        memtable.insert(Batch(series[order], times, order + sequence / 10), sequence)

    source = memtable.export()

    ids = np.unique(series)
    assert source.series_column().tolist() == np.repeat(ids, 3).tolist()
    assert source.timestamp.tolist() == [0, 1, 2] * len(ids)
    ascending = np.argsort(series)
    expected_values = (ascending[:, None] + np.array([0.0, 0.1, 0.2])).ravel()
    assert source.value.tolist() == expected_values.tolist()


def test_the_sorted_order_follows_new_series() -> None:
    memtable = tiny()
    seen = []
    for sequence, series in enumerate((5, 9, 1, 7, 0, 10)):
        memtable.insert(batch_of([(series, 0, 1.0)]), sequence)
        seen.append(series)

        assert memtable.export().series_column().tolist() == sorted(seen)


def test_a_source_describes_its_rows_by_address() -> None:
    memtable = Memtable()
    memtable.insert(batch_of([(4, 30, 1.0), (2, 10, 2.0), (4, -5, 3.0)]), 1)

    source = memtable.export()

    row = source.row
    assert row.shape == (layout.SOURCE_WIDTH,)
    assert row[layout.ROWS] == 3
    assert row[layout.RUN_COUNT] == 2
    assert list((ctypes.c_int64 * 3).from_address(int(row[layout.TIMESTAMPS]))) == [10, -5, 30]
    assert list((ctypes.c_double * 3).from_address(int(row[layout.VALUES]))) == [2.0, 3.0, 1.0]
    records = (ctypes.c_int64 * (2 * layout.RUN_WIDTH)).from_address(int(row[layout.RUNS]))
    assert list(records) == source.runs.ravel().tolist()
    assert records[layout.RUN_WIDTH + layout.RUN_SERIES] == 4
    assert (row[layout.FIRST_SERIES], row[layout.LAST_SERIES]) == (2, 4)
    assert (row[layout.FIRST_TIMESTAMP], row[layout.LAST_TIMESTAMP]) == (-5, 30)
    again = Source(source.runs, source.timestamp, source.value)
    assert again.row.tolist() == row.tolist()


def test_rows_that_were_read_do_not_change_with_later_inserts() -> None:
    memtable = tiny()
    memtable.insert(batch_of([(1, 1, 1.0)]), 1)
    source = memtable.read(None, INT64_MIN, INT64_MAX, 10)

    memtable.insert(batch_of([(1, 1, 2.0), (1, 0, 3.0)]), 2)

    assert rows_of(source) == [(1, 1, 1.0)]
    assert memtable.rows == 2


def test_an_empty_memtable_reads_and_exports_nothing() -> None:
    memtable = Memtable()

    assert memtable.read(None, INT64_MIN, INT64_MAX, 10) is None
    assert memtable.read(np.array([3]), INT64_MIN, INT64_MAX, 10) is None
    source = memtable.export()
    assert source.rows == 0
    assert source.series_column().tolist() == []
    assert source.row[layout.ROWS] == 0
    assert source.row[layout.FIRST_TIMESTAMP] > source.row[layout.LAST_TIMESTAMP]
    assert memtable.is_empty
    assert (memtable.first_sequence, memtable.last_sequence) == (0, 0)


def test_sequences_are_those_of_the_first_and_the_last_batch() -> None:
    memtable = Memtable()

    for sequence in (5, 6, 9):
        memtable.insert(batch_of([(1, sequence, 0.0)]), sequence)

    assert (memtable.first_sequence, memtable.last_sequence) == (5, 9)


def test_a_batch_may_join_several_records_of_the_log() -> None:
    memtable = Memtable()

    memtable.insert(batch_of([(1, 1, 0.0), (1, 2, 0.0)]), 8, 3)
    memtable.insert(batch_of([(1, 3, 0.0)]), 12, 9)

    assert (memtable.first_sequence, memtable.last_sequence) == (3, 12)


def test_series_ids_are_those_of_all_series() -> None:
    memtable = tiny()
    memtable.insert(batch_of([(series, 0, 0.0) for series in (8, 3, 5, 3)]), 1)

    assert sorted(memtable.series_ids().tolist()) == [3, 5, 8]


def test_a_batch_may_come_in_any_kind_of_array() -> None:
    memtable = Memtable()
    frozen = batch_of([(1, 1, 1.0), (2, 2, 2.0)])
    for column in frozen:
        column.flags.writeable = False
    strided = Batch(*(np.repeat(column, 2)[::2] for column in batch_of([(3, 3, 3.0), (4, 4, 4.0)])))
    raw = bytearray(8 * 3 + 1)
    unaligned = np.frombuffer(raw, np.int64, 3, offset=1)
    unaligned[:] = (5, 5, 0)
    odd = Batch(unaligned[:1], unaligned[1:2], unaligned[2:].view(np.float64))

    for sequence, batch in enumerate((frozen, strided, odd)):
        memtable.insert(batch, sequence)

    assert rows_of(memtable.export()) == [
        (1, 1, 1.0),
        (2, 2, 2.0),
        (3, 3, 3.0),
        (4, 4, 4.0),
        (5, 5, 0.0),
    ]
    assert batch_of([(1, 1, 1.0)]).series_id.flags.writeable  # the caller's arrays stay as they are


def test_a_frozen_memtable_takes_no_points_and_is_read_without_the_lock() -> None:
    memtable = tiny()
    memtable.insert(batch_of([(s, t, s * 100.0 + t) for t in range(9) for s in range(40)]), 1)
    with memtable.lock:
        memtable.freeze()
    rows = rows_of(memtable.export())
    failures = []

    def read() -> None:
        for _ in range(20):
            if rows_of(memtable.read(None, INT64_MIN, INT64_MAX, 10_000)) != rows:
                failures.append("all series")
            if rows_of(memtable.read(np.array([7]), 2, 3, 10)) != [(7, 2, 702.0), (7, 3, 703.0)]:
                failures.append("one series")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    with pytest.raises(AssertionError):
        memtable.insert(batch_of([(1, 1, 1.0)]), 2)


def test_it_starts_small_and_stays_small_for_many_series() -> None:
    memtable = Memtable()
    assert memtable.bytes < 1 << 20
    count = 1 << 14

    memtable.insert(Batch(np.arange(count), np.zeros(count, np.int64), np.zeros(count)), 1)

    assert memtable.rows == count
    assert memtable.bytes <= 300 * count  # 144 each, less than doubled by the arrays' growth


def test_a_successor_begins_with_room_and_without_rows() -> None:
    memtable = Memtable(block_rows=8)
    batch = Batch(np.arange(3_000) % 700, np.arange(3_000), np.full(3_000, 0.5))
    memtable.insert(batch, 1)

    successor = memtable.successor()

    assert successor.is_empty
    assert successor.bytes < memtable.bytes
    successor.insert(batch, 2)
    assert rows_of(successor.export()) == rows_of(memtable.export())
    assert successor.first_sequence == 2


def test_memory_is_used_again_when_nobody_reads_it_any_more() -> None:
    first = Memtable()
    first.insert(Batch(np.zeros(5_000, np.int64), np.arange(5_000), np.full(5_000, 1.5)), 1)
    second = first.successor()
    reader, arena = first, first._arena
    expected = rows_of(first.export())
    del first
    second.insert(Batch(np.zeros(5_000, np.int64), np.arange(5_000), np.full(5_000, 2.5)), 2)
    third = second.successor()
    assert third._arena is not arena
    assert rows_of(reader.export()) == expected

    del reader
    fourth = third.successor()

    assert fourth._arena is arena
    # What is left of the others' rows is nobody's.
    fourth.insert(Batch(np.ones(300, np.int64), np.arange(300), np.full(300, 3.5)), 3)
    assert rows_of(fourth.export()) == [(1, time, 3.5) for time in range(300)]
    assert len(rows_of(second.export())) == 5_000


def test_an_arena_that_does_not_fit_is_not_taken() -> None:
    spare = Spare()
    assert spare.take(100) is None
    for size, is_taken in ((99, False), (100, True), (400, True), (401, False)):
        spare.put(np.empty(size, np.int64))
        assert (spare.take(100) is not None) is is_taken
        assert spare.take(100) is None
    spare.put(np.empty(100, np.int64))
    spare.release()
    assert spare.take(100) is None


def test_scratch_gives_the_same_arrays_again_until_it_is_released() -> None:
    scratch = Scratch()
    before = scratch.columns(50)
    again = scratch.columns(30)
    assert [len(column) for column in again] == [30, 30, 30]
    assert all(np.shares_memory(a, b) for a, b in zip(before, again, strict=True))
    assert not np.shares_memory(again[0], again[1])
    for columns in (scratch.columns(51), (scratch.release(), scratch.columns(50))[1]):
        assert not np.shares_memory(before[0], columns[0])
