"""Lookups find exactly what NumPy finds, with any model, in any place in memory."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omendb.jit import layout, pla, search
from omendb.jit._compile import JIT_DISABLED
from tests.jit import reference_index as reference
from tests.jit.reference_index import EXAMPLES, INT64_MAX, INT64_MIN, Source, Table

BATCH = 20 if JIT_DISABLED else 100
seeds = st.integers(0, 2**32)


def check_lookups(source: Source, keys: Table) -> None:
    """Compare every kind of lookup with the reference."""
    table = source.table
    bounds = [reference.lower_bound(table, *key) for key in keys.pairs()]
    rows = [reference.lookup(table, *key) for key in keys.pairs()]
    found = np.full(len(rows), -7, np.int64)

    search.lookup_batch(source.row, keys.series, keys.timestamp, found)
    assert found.tolist() == rows
    search.lower_bound_batch(source.row, keys.series, keys.timestamp, found)
    assert found.tolist() == bounds
    assert [search.lookup(source.row, *key) for key in keys.pairs()] == rows
    for (series_id, timestamp), bound in zip(keys.pairs(), bounds, strict=True):
        run = search.find_run(source.row, series_id)
        assert run == np.searchsorted(source.models.runs[:, layout.RUN_SERIES], series_id)
        if run < len(source.models.runs) and source.models.runs[run, layout.RUN_SERIES] == series_id:
            assert search.lower_bound(source.row, run, timestamp) == bound


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables, reference.max_errors, reference.kinds, seeds)
def test_lookups_agree_with_reference(table: Table, max_error: int, kind: int, seed: int) -> None:
    source = Source(table, pla.fit(*table, max_error, kind=kind))

    check_lookups(source, reference.targets(table, np.random.default_rng(seed), BATCH))


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables, seeds)
def test_lookups_without_models_agree_with_reference(table: Table, seed: int) -> None:
    source = Source(table, reference.without_models(pla.fit(*table, 64)))

    check_lookups(source, reference.targets(table, np.random.default_rng(seed), BATCH))


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables, reference.kinds, seeds)
def test_lookups_are_exact_with_any_model(table: Table, kind: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    models = pla.fit(*table, 64, kind=kind)
    models.knots[:] = random.integers(-(2**31), 2**31, len(models.knots))
    models.series_knots[:] = random.integers(-(2**31), 2**31, len(models.series_knots))
    slopes = random.choice([0.0, -1.0, 1e300, np.inf, np.nan, 1e-9], len(models.pieces))
    models.pieces[:, layout.PIECE_SLOPE] = slopes.view(np.int64)
    models.pieces[:, layout.PIECE_ROW] = random.integers(-(2**62), 2**62, len(models.pieces))
    models.runs[:, layout.RUN_ERROR] = random.integers(0, 2**31, len(models.runs))

    with np.errstate(all="ignore"):
        check_lookups(Source(table, models), reference.targets(table, random, BATCH))


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables, reference.kinds, seeds)
@example(reference.make_table([(0, "regular", 375, 0), (1, "extremes", 16, 0)]), 0, 149)
def test_damaged_timestamps_do_not_lead_out_of_the_run(table: Table, kind: int, seed: int) -> None:
    source = Source(table, pla.fit(*table, 64, kind=kind))
    random = np.random.default_rng(seed)
    keys = reference.targets(table, random, BATCH)
    source.column.flags.writeable = True
    source.column[:] = random.choice([INT64_MIN, 0, reference.EPOCH, INT64_MAX], len(source.column))
    bounds = np.empty(BATCH, np.int64)
    rows = np.empty(BATCH, np.int64)

    search.lower_bound_batch(source.row, *keys, bounds)
    search.lookup_batch(source.row, *keys, rows)

    for (series_id, timestamp), bound, row in zip(keys.pairs(), bounds, rows, strict=True):
        start, stop = reference.run_rows(table, series_id)
        assert start <= bound <= stop
        # The first timestamp of a run is known from its record.
        assert row == -1 or timestamp in (source.column[row], table.timestamp[start])
        assert row == -1 or start <= row < stop
        _, row_start, row_stop = search.locate(source.row, series_id, timestamp, INT64_MAX)
        assert (row_start, row_stop) == (0, 0) or start <= row_start <= row_stop <= stop


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables, reference.max_errors, seeds)
def test_locate_agrees_with_reference(table: Table, max_error: int, seed: int) -> None:
    source = Source(table, pla.fit(*table, max_error))
    random = np.random.default_rng(seed)
    starts = reference.targets(table, random, BATCH)
    ends = reference.targets(table, random, BATCH).timestamp.tolist()

    for (series_id, start), end in zip(starts.pairs(), ends, strict=True):
        for bounds in ((start, end), (start, start), (INT64_MIN, end), (start, INT64_MAX)):
            found = search.locate(source.row, series_id, *bounds)
            assert found == reference.locate(table, series_id, *bounds)


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables, seeds)
def test_binary_lookups_agree_with_reference(table: Table, seed: int) -> None:
    keys = reference.targets(table, np.random.default_rng(seed), BATCH)
    columns = (reference.as_mapped(table.series), reference.as_mapped(table.timestamp))
    expected = [reference.lookup(table, *key) for key in keys.pairs()]
    found = np.empty(len(expected), np.int64)

    search.binary_lookup_batch(*columns, *keys, found)

    assert found.tolist() == expected
    assert [search.binary_lookup(*columns, *key) for key in keys.pairs()] == expected


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(st.integers(INT64_MIN, INT64_MAX), min_size=1, max_size=40, unique=True),
    st.integers(1, 3),
    st.data(),
)
def test_gallop_and_bisect_agree_with_reference(numbers: list[int], stride: int, data: st.DataObject) -> None:
    keys = np.array(sorted(numbers), np.int64)
    spaced = np.repeat(keys, stride)
    high = data.draw(st.integers(0, len(keys)))
    low = data.draw(st.integers(0, high))
    guess = data.draw(st.integers(-100, 100) | st.sampled_from([INT64_MIN, INT64_MAX]))
    target = data.draw(st.integers(INT64_MIN, INT64_MAX) | st.sampled_from(numbers))
    expected = low + int(np.searchsorted(keys[low:high], target))

    found, probes = search.gallop(spaced.ctypes.data, stride, low, high, guess, target)
    bisected, steps = search.bisect(spaced.ctypes.data, stride, low, high, target)

    assert found == bisected == expected
    assert 0 <= probes <= 2 * max(high - low, 1).bit_length() + 2
    assert 0 <= steps <= (high - low).bit_length()


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("writeable", [True, False])
def test_batches_of_any_length(count: int, writeable: bool) -> None:
    table = reference.make_table([(7, "jitter", 100, 1), (9, "lognormal", 100, 2), (12, "one", 1, 3)])
    source = Source(table, pla.fit(*table, 64))
    keys = reference.targets(table, np.random.default_rng(count), count)
    for column in (*keys, source.row):
        column.flags.writeable = writeable

    check_lookups(source, keys)


@pytest.mark.parametrize("spread", [1, 3, 2**40, 2**57])
def test_find_run_among_many_series(spread: int) -> None:
    random = np.random.default_rng(spread)
    ids = np.unique(random.integers(0, 64 * spread, 64))
    # A lone far id spoils the knots of the others: they must stay exact.
    for series in (ids, np.append(ids, INT64_MAX), np.append(0, ids + (INT64_MAX - ids[-1]))):
        series = np.unique(series)
        table = Table(series, np.zeros(len(series), np.int64))
        source = Source(table, pla.fit(*table, 64))

        for series_id in series.tolist():
            for near in (series_id - 1, series_id, min(series_id + 1, INT64_MAX)):
                assert search.find_run(source.row, near) == np.searchsorted(series, near)


def test_empty_source() -> None:
    none = np.empty(0, np.int64)
    source = Source(Table(none, none), pla.fit(none, none, 64))

    check_lookups(source, Table(np.array([0, INT64_MAX]), np.array([INT64_MIN, INT64_MAX])))
    assert search.locate(source.row, 0, INT64_MIN, INT64_MAX) == (-1, 0, 0)


def test_empty_run_is_not_read() -> None:
    # Its address is 0: reading a row would end the process.
    runs = np.array([[3, 0, 0, 0, 0, 0, layout.KIND_NONE, 0]], np.int64)
    row = np.zeros(layout.SOURCE_WIDTH, np.int64)
    row[[layout.RUN_COUNT, layout.RUNS]] = 1, runs.ctypes.data
    row[[layout.FIRST_SERIES, layout.LAST_SERIES]] = 3
    found = np.empty(3, np.int64)
    keys = np.full(3, 3), np.array([INT64_MIN, 0, INT64_MAX])

    search.lookup_batch(row, *keys, found)
    assert found.tolist() == [-1, -1, -1]
    search.lower_bound_batch(row, *keys, found)
    assert found.tolist() == [0, 0, 0]
    assert search.locate(row, 3, INT64_MIN, INT64_MAX) == (0, 0, 0)
    assert search.lookup(row, 3, 0) == -1


def test_batches_from_several_threads() -> None:
    table = reference.make_table([(series, "jitter", 150, series) for series in range(10)])
    source = Source(table, pla.fit(*table, 64))
    rows = np.arange(len(table.series))
    results = [np.empty_like(rows) for _ in range(4)]
    threads = [
        threading.Thread(target=search.lookup_batch, args=(source.row, *table, result)) for result in results
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(np.array_equal(result, rows) for result in results)


def test_warmup() -> None:
    search.warmup()
