"""Models keep their error bound on any data, and say truly how far off they are."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omendb.errors import OmenError
from omendb.jit import layout, pla, search
from tests.jit import reference_index as reference
from tests.jit.reference_index import EXAMPLES, INT64_MAX, INT64_MIN, Source, Table

seeds = st.integers(0, 2**32)


def kind_counts(models: pla.Models) -> list[int]:
    return np.bincount(models.runs[:, layout.RUN_SHAPE] & 0xFF, minlength=3).tolist()


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables, reference.max_errors)
def test_error_stays_within_the_bound(table: Table, max_error: int) -> None:
    models = pla.fit(*table, max_error)

    for run, errors in reference.errors(models, table).items():
        assert models.runs[run, layout.RUN_ERROR] == max(errors)
        assert max(errors) <= max_error


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables, reference.max_errors, reference.kinds)
def test_runs_describe_the_rows(table: Table, max_error: int, kind: int) -> None:
    models = pla.fit(*table, max_error, kind=kind)

    series, starts = np.unique(table.series, return_index=True)
    stops = np.append(starts, len(table.series))[1:].astype(int)
    runs = models.runs
    assert runs[:, layout.RUN_SERIES].tolist() == series.tolist()
    assert runs[:, layout.RUN_START].tolist() == starts.tolist()
    assert runs[:, layout.RUN_STOP].tolist() == stops.tolist()
    assert runs[:, layout.RUN_FIRST].tolist() == table.timestamp[starts].tolist()
    assert runs[:, layout.RUN_LAST].tolist() == table.timestamp[stops - 1].tolist()
    few = stops - starts <= pla.ROWS_WITHOUT_MODEL
    found = runs[:, layout.RUN_SHAPE] & 0xFF
    assert ((found == layout.KIND_NONE) == few).all()
    if kind != layout.KIND_NONE:
        assert (found[~few] == kind).all()
    assert len(runs) == 0 or runs.ctypes.data % 64 == 0
    assert all(array.flags.c_contiguous for array in models[:4])


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables, reference.max_errors)
def test_knots_count_rows(table: Table, max_error: int) -> None:
    models = pla.fit(*table, max_error, kind=layout.KIND_KNOTS)

    stored: list[int] = []
    for record in models.runs:
        shape = int(record[layout.RUN_SHAPE])
        if shape & 0xFF == layout.KIND_KNOTS:
            stamps = table.timestamp[record[layout.RUN_START] : record[layout.RUN_STOP]]
            knots = reference.knots_of(stamps, (shape >> 8) & 0xFF)
            assert record[layout.RUN_MODEL] == len(stored)
            assert shape >> 32 == len(knots) - 1
            assert len(knots) - 1 <= max(2, len(stamps) // 24)
            stored += knots
    assert models.knots.tolist() == stored


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables, reference.max_errors)
def test_pieces_partition_the_run(table: Table, max_error: int) -> None:
    models = pla.fit(*table, max_error, kind=layout.KIND_PIECES)

    stored = 0
    for run, record in enumerate(models.runs):
        shape = int(record[layout.RUN_SHAPE])
        if shape & 0xFF != layout.KIND_PIECES:
            continue
        assert record[layout.RUN_MODEL] == stored
        pieces = models.pieces[stored : stored + (shape >> 32)]
        stored += len(pieces)
        start, stop = record[[layout.RUN_START, layout.RUN_STOP]]
        rows = pieces[:, layout.PIECE_ROW]
        assert rows[0] == 0
        assert (np.diff(rows) >= 2).all()
        assert rows[-1] < stop - start
        assert (table.timestamp[start + rows] == pieces[:, layout.PIECE_FIRST]).all()
        slopes = pieces[:, layout.PIECE_SLOPE].copy().view(np.float64)
        assert (np.isfinite(slopes) & (slopes >= 0.0)).all()
        assert max(reference.errors(models, table)[run]) <= max_error
    assert stored == len(models.pieces)


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables)
def test_series_knots_count_runs(table: Table) -> None:
    models = pla.fit(*table, 64)

    series = models.runs[:, layout.RUN_SERIES]
    if len(series) == 0:
        assert len(models.series_knots) == 0
        return
    span = int(series[-1]) - int(series[0])
    assert models.series_shift == reference.shift_of(span, 2 * len(series))
    assert models.series_knots.tolist() == reference.knots_of(series, models.series_shift)


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables, reference.max_errors)
def test_place_in_memory_does_not_matter(table: Table, max_error: int) -> None:
    mapped = reference.as_mapped(table.series), reference.as_mapped(table.timestamp)

    models = pla.fit(*table, max_error)
    same = pla.fit(*mapped, max_error)

    assert all(np.array_equal(one, two) for one, two in zip(models, same, strict=True))
    assert table.series.flags.writeable


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables.filter(lambda table: len(table.series) > 1), seeds)
def test_any_violation_of_the_order_is_found(table: Table, seed: int) -> None:
    random = np.random.default_rng(seed)
    row = int(random.integers(1, len(table.series)))
    if table.series[row] != table.series[row - 1]:
        table.series[row - 1 :] = table.series[row - 1 :][::-1].copy()  # series fall
        steps = np.flatnonzero(np.diff(table.series) < 0) + 1
        expected = {int(step) for step in steps}
    else:
        # A repeated or an earlier timestamp.
        table.timestamp[row] = table.timestamp[row - int(random.random() < 0.5)]
        table.timestamp[row] = min(table.timestamp[row], table.timestamp[row - 1])
        expected = {row}

    with pytest.raises(pla.UnsortedError) as caught:
        pla.fit(*table, 64)

    assert caught.value.row in expected
    assert isinstance(caught.value, OmenError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 66, 127, 128, 129, 300])
def test_detect_runs_around_its_stride(rows: int) -> None:
    for cut in range(1, rows, 7):
        series = np.repeat(np.array([3, 8]), [cut, rows - cut])
        starts, unsorted_row = pla.detect_runs(series)
        assert (starts.tolist(), unsorted_row) == ([0, cut, rows], -1)

        starts, unsorted_row = pla.detect_runs(series[::-1].copy())
        assert (len(starts), unsorted_row) == (0, rows - cut)
    starts, unsorted_row = pla.detect_runs(np.full(rows, INT64_MAX))
    assert (starts.tolist(), unsorted_row) == ([0, rows], -1)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 2**31))
def test_choose_shift_agrees_with_reference(span: int, buckets_max: int) -> None:
    assert pla.choose_shift(np.uint64(span), buckets_max) == reference.shift_of(span, buckets_max)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 63), st.integers(0, 2**31 - 1))
def test_knot_offset_rounds_down(distance: int, shift: int, rows: int) -> None:
    inside = distance % (1 << shift)

    offset = search.knot_offset(np.uint64(distance), shift, rows)

    exact = inside * rows >> shift
    assert 0 <= exact - offset <= 1
    assert offset <= rows
    if shift <= 31:
        assert offset == exact


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(INT64_MIN, INT64_MAX), st.integers(INT64_MIN, INT64_MAX))
def test_elapsed_is_exact(one: int, other: int) -> None:
    assert int(search.elapsed(max(one, other), min(one, other))) == abs(one - other)


@settings(max_examples=EXAMPLES, deadline=None)
@given(reference.tables, reference.max_errors, reference.kinds)
def test_measure_agrees_with_reference(table: Table, max_error: int, kind: int) -> None:
    source = Source(table, pla.fit(*table, max_error, kind=kind))
    errors = sorted(chain.from_iterable(reference.errors(source.models, table).values()))

    quality = pla.measure(source.row, 50)

    if not errors:
        assert quality[:3] == (0.0, 0.0, 0.0)
        return
    exact = errors[-(-99 * len(errors) // 100) - 1]
    assert quality.error_max == errors[-1]
    assert quality.error_mean == sum(errors) / len(errors)
    assert exact <= quality.error_p99 <= max(exact, exact * 17 // 16)
    assert quality.probes_binary <= len(table.series).bit_length()
    assert quality.probes_learned >= 1.0


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**31))
def test_error_bins_hold_their_errors(error: int) -> None:
    histogram = np.zeros(pla.ERROR_BINS, np.int64)
    histogram[pla.error_bin(error)] += 1

    upper = pla.histogram_quantile(histogram, 0.99)

    assert error <= upper <= (error if error < 64 else error * 17 // 16)


def test_measure_of_nothing() -> None:
    none = np.empty(0, np.int64)
    source = Source(Table(none, none), pla.fit(none, none, 0))

    assert pla.measure(source.row) == (0.0, 0.0, 0.0, 0.0, 0.0)


def test_learned_index_saves_probes() -> None:
    table = reference.make_table([(series, "jitter", 150, series) for series in range(20)])
    source = Source(table, pla.fit(*table, 64))

    quality = pla.measure(source.row, 500)

    assert quality.probes_learned < 0.7 * quality.probes_binary


def test_regular_series_become_one_line() -> None:
    table = reference.make_table([(1, "regular", 2_000, 1), (2, "jitter", 2_000, 2)])

    models = pla.fit(*table, 64)

    assert kind_counts(models) == [0, 0, 2]
    assert len(models.pieces) == 2
    assert len(models.knots) == 0


def test_short_series_keep_knots_where_a_line_saves_nothing() -> None:
    table = reference.make_table([(1, "regular", 200, 1), (2, "jitter", 200, 2)])

    models = pla.fit(*table, 64)

    assert kind_counts(models) == [0, 2, 0]


def test_outlier_does_not_cost_knots() -> None:
    table = reference.make_table([(1, "outlier", 1_000, 1)])

    models = pla.fit(*table, 64)

    assert kind_counts(models) == [0, 0, 1]
    assert len(models.pieces) == 2


def test_irregular_series_get_knots() -> None:
    random = np.random.default_rng(5)
    stamps = np.cumsum(1 + random.lognormal(0.0, 2.0, 2_000) * 1e9).astype(np.int64)

    models = pla.fit(np.full(2_000, 4), stamps, 64)

    assert kind_counts(models) == [0, 1, 0]
    assert len(models.knots) <= 2_000 // 24 + 1


def test_small_error_makes_knots_dense_or_lines() -> None:
    random = np.random.default_rng(5)
    stamps = np.cumsum(1 + random.lognormal(0.0, 2.0, 2_000) * 1e9).astype(np.int64)
    sizes = []
    for max_error in (64, 4, 1, 0):
        models = pla.fit(np.full(2_000, 4), stamps, max_error)
        sizes.append(models.knots.nbytes + models.pieces.nbytes)
        assert models.runs[0, layout.RUN_ERROR] <= max_error

    assert sizes == sorted(sizes)
    assert sizes[-1] <= 2_000 // 2 * 8 * layout.PIECE_WIDTH + 24


def test_warmup() -> None:
    pla.warmup()
