"""Scans answer with the newest row of every key, in order, whole, and from verified rows only."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omendb.jit import layout, merge
from omendb.jit._compile import JIT_DISABLED
from tests.jit import reference_scan as reference
from tests.jit.reference_scan import INT64_MAX, INT64_MIN, NO_SERIES, Sources

if TYPE_CHECKING:
    from pathlib import Path

    from tests.jit.reference_scan import Key, Rows

EXAMPLES = 200 if JIT_DISABLED else 500
SOURCES_MANY = 70  # more than two groups of cursors

offsets = st.sampled_from([0, 4])


def as_rows(rows: Rows) -> list[tuple[int, int, float]]:
    return [(*key, value) for key, value in rows.items()]


@settings(max_examples=EXAMPLES)
@given(reference.tables(), reference.filters, reference.bounds(), offsets, st.integers(1, 40))
def test_scan_agrees_with_reference(
    tables: list[Rows], series: list[int] | None, bounds: tuple[int, int], offset: int, capacity: int
) -> None:
    sources = Sources(tables, offset)

    rows = reference.scan(sources, series, *bounds, capacity)

    assert rows == as_rows(reference.select(tables, series, *bounds))


@settings(max_examples=EXAMPLES)
@given(reference.tables(), reference.filters, reference.bounds(), st.data())
def test_scan_resumes_after_any_key(
    tables: list[Rows], series: list[int] | None, bounds: tuple[int, int], data: st.DataObject
) -> None:
    keys = sorted({key for table in tables for key in table})
    anywhere = st.tuples(reference.series_ids, reference.timestamps)
    after: Key = data.draw(st.sampled_from(keys) | anywhere if keys else anywhere)
    sources = Sources(tables)

    rows = reference.scan(sources, series, *bounds, 10_000, after)

    expected = reference.select(tables, series, *bounds, after)
    assert rows == as_rows(expected)
    assert reference.count(sources, series, *bounds, after) == len(expected)


@settings(max_examples=EXAMPLES)
@given(
    reference.tables(), reference.filters, reference.bounds(), offsets, st.integers(1, 40), reference.randoms
)
def test_scan_uses_verified_rows_only(
    tables: list[Rows],
    series: list[int] | None,
    bounds: tuple[int, int],
    offset: int,
    capacity: int,
    random: np.random.Generator,
) -> None:
    sources = Sources(tables, offset, random)

    rows = reference.scan(sources, series, *bounds, capacity)

    assert rows == as_rows(reference.select(tables, series, *bounds))


def bound_rows(sources: Sources, series: list[int] | None, bounds: tuple[int, int]) -> int:
    return merge.bound_rows(
        sources.rows,
        reference.filter_of(series),
        series is None,
        *bounds,
        0,
        0,
        False,
        INT64_MAX,
        merge.CHECK_WIDEN,
    )


@settings(max_examples=EXAMPLES)
@given(reference.tables(), reference.filters, reference.bounds(), offsets)
def test_count_and_bound_agree_with_reference(
    tables: list[Rows], series: list[int] | None, bounds: tuple[int, int], offset: int
) -> None:
    sources = Sources(tables, offset)

    count = reference.count(sources, series, *bounds)
    bound = bound_rows(sources, series, bounds)

    assert count == len(reference.select(tables, series, *bounds))
    assert bound == sum(len(reference.select([table], series, *bounds)) for table in tables)


@settings(max_examples=EXAMPLES)
@given(reference.tables(), reference.filters, reference.bounds(), reference.randoms, st.booleans())
def test_count_and_bound_use_verified_rows_only(
    tables: list[Rows],
    series: list[int] | None,
    bounds: tuple[int, int],
    random: np.random.Generator,
    go_on: bool,
) -> None:
    sources = Sources(tables, random=random)

    bound = bound_rows(sources, series, bounds)
    count = reference.count(sources, series, *bounds, go_on=go_on)

    assert count == len(reference.select(tables, series, *bounds))
    assert bound >= count  # whatever the damage was


@settings(max_examples=EXAMPLES // 4)
@given(reference.randoms, st.sampled_from([1, 10, 1_000]), st.booleans())
def test_scan_of_many_sources(random: np.random.Generator, times: int, every_series: bool) -> None:
    tables: list[Rows] = []
    for index in range(SOURCES_MANY):
        ids = random.integers(0, 12, random.integers(0, 12)).tolist()
        stamps = random.integers(0, times, len(ids)).tolist()
        tables.append({key: float(index) for key in zip(ids, stamps, strict=True)})
    series = None if every_series else [1, 3, 4, 5, 30]
    sources = Sources(tables)

    rows = reference.scan(sources, series, 0, times, 7)

    expected = reference.select(tables, series, 0, times)
    assert rows == as_rows(expected)
    assert reference.count(sources, series, 0, times) == len(expected)


@settings(max_examples=EXAMPLES // 4)
@given(reference.randoms, st.integers(2, 6), st.sampled_from([1, 5, 40, 200]))
def test_merge_of_long_ranges(random: np.random.Generator, source_count: int, stretch: int) -> None:
    # Stretches around the lengths at which the merge changes between blocks, batches and single rows.
    row_count = 300 if JIT_DISABLED else 3_000
    owners = np.repeat(random.integers(0, source_count, row_count), stretch)[:row_count]
    tables: list[Rows] = [{} for _ in range(source_count)]
    for timestamp, owner in enumerate(owners.tolist()):
        tables[owner][3, timestamp] = float(owner)
        if random.integers(10) == 0:
            other = int(random.integers(source_count))
            tables[other][3, timestamp] = float(other)
    sources = Sources(tables, 4)

    rows = reference.scan(sources, None, INT64_MIN, INT64_MAX, 1_000)

    assert rows == as_rows(reference.select(tables, None, INT64_MIN, INT64_MAX))
    assert reference.count(sources, None, INT64_MIN, INT64_MAX) == row_count


def test_no_sources() -> None:
    sources = Sources([])

    assert reference.scan(sources, None, INT64_MIN, INT64_MAX, 3) == []
    assert reference.count(sources, [1, 2], INT64_MIN, INT64_MAX) == 0


def test_later_source_wins() -> None:
    sources = Sources([{(1, 5): 1.0}, {(1, 5): 2.0}, {(1, 5): 3.0}])

    assert reference.scan(sources, None, 5, 5, 1) == [(1, 5, 3.0)]


def test_keys_at_the_extremes() -> None:
    table = {
        (series_id, timestamp): 1.0
        for series_id in (0, INT64_MAX)
        for timestamp in (INT64_MIN, INT64_MAX - 1, INT64_MAX)
    }
    sources = Sources([table, table])

    assert reference.scan(sources, None, INT64_MAX, INT64_MAX, 1) == [
        (0, INT64_MAX, 1.0),
        (INT64_MAX, INT64_MAX, 1.0),
    ]
    assert reference.scan(sources, [INT64_MAX], INT64_MIN, INT64_MIN, 1) == [(INT64_MAX, INT64_MIN, 1.0)]
    assert reference.scan(sources, None, INT64_MIN, INT64_MAX, 9, (INT64_MAX, INT64_MAX)) == []


def test_empty_range_and_empty_filter() -> None:
    sources = Sources([{(1, 5): 1.0}])

    assert reference.scan(sources, None, 6, 4, 1) == []
    assert reference.scan(sources, [], 0, 9, 1) == []


@pytest.mark.parametrize("follower", [(1, 6), (2, 0)])
def test_output_is_full_only_if_rows_follow(follower: Key) -> None:
    out = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1)
    superseded = Sources([{(1, 5): 1.0}, {(1, 5): 2.0}])
    followed = Sources([{(1, 5): 1.0}, {(1, 5): 2.0, follower: 3.0}])

    last = merge.scan_rows(superseded.rows, NO_SERIES, True, 0, 9, 0, 0, False, *out)
    full = merge.scan_rows(followed.rows, NO_SERIES, True, 0, 9, 0, 0, False, *out)

    assert last == (1, layout.STATUS_DONE, 0, 0, 0)
    assert full == (1, layout.STATUS_FULL, 0, 0, 0)


def test_output_without_room_says_whether_rows_exist() -> None:
    sources = Sources([{(1, 5): 1.0}])
    out = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)

    assert merge.scan_rows(sources.rows, NO_SERIES, True, 0, 9, 0, 0, False, *out)[1] == layout.STATUS_FULL
    assert merge.scan_rows(sources.rows, NO_SERIES, True, 6, 9, 0, 0, False, *out)[1] == layout.STATUS_DONE


def test_columns_in_a_read_only_map(tmp_path: Path) -> None:
    timestamps, values = np.arange(100), np.arange(100) / 4
    path = tmp_path / "segment"
    path.write_bytes(b"PAR1" + timestamps.tobytes() + values.tobytes())
    sources = Sources([{(1, timestamp): 0.0 for timestamp in range(100)}])
    with path.open("rb") as file:
        # A kernel that wrote would end the process; the columns start at 4 mod 8.
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    sources.rows[0, layout.TIMESTAMPS] = mapped.ctypes.data + 4
    sources.rows[0, layout.VALUES] = mapped.ctypes.data + 4 + 800

    rows = reference.scan(sources, [1], 10, 89, 33)
    windows = reference.scan_windows(sources, [1], 10, 89, 10, 80, 1)

    assert rows == [(1, timestamp, timestamp / 4) for timestamp in range(10, 90)]
    assert windows[0].total == sum(range(10, 90)) / 4


def unverified(row_count: int) -> Sources:
    """One run of consecutive timestamps, no block of which is verified, and none damaged."""
    sources = Sources([{(1, timestamp): 1.0 for timestamp in range(row_count)}])
    sources.verified[0][:] = 0
    sources.rows[0, layout.VERIFIED] = sources.verified[0].ctypes.data
    sources.rows[0, layout.BLOCK_SHIFT] = reference.BLOCK_SHIFT
    return sources


def test_small_output_asks_for_few_rows() -> None:
    sources = unverified(200)
    out = np.zeros(5, np.int64), np.zeros(5, np.int64), np.zeros(5)

    answer = merge.scan_rows(sources.rows, NO_SERIES, True, 50, INT64_MAX, 0, 0, False, *out)

    assert answer == (0, layout.STATUS_VERIFY, 0, 49, 56)


def test_count_of_whole_runs_asks_for_nothing() -> None:
    sources = unverified(200)

    whole = merge.count_rows(sources.rows, NO_SERIES, True, 0, 199, 0, 0, False)
    part = merge.count_rows(sources.rows, NO_SERIES, True, 50, 199, 0, 0, False)

    assert whole == (200, layout.STATUS_DONE, 0, 0, 0)
    assert part[:3] == (0, layout.STATUS_VERIFY, 0)


def test_damage_that_leads_a_search_astray_asks_for_the_run() -> None:
    sources = unverified(64)
    timestamps = sources._timestamps[0]
    timestamps[16:48] = 100  # so that the bound is found at row 16 ...
    sources.verified[0][3:5] = 1  # ... which counts as verified: rows 12 to 19
    timestamps[16:20] = [16, 17, 18, 19]
    out = np.zeros(64, np.int64), np.zeros(64, np.int64), np.zeros(64)

    rows = reference.scan(sources, None, 30, 33, 10)
    answer = merge.scan_rows(sources.rows, NO_SERIES, True, 0, 63, 0, 0, False, *out)

    assert rows == [(1, timestamp, 1.0) for timestamp in range(30, 34)]
    assert answer[1] == layout.STATUS_VERIFY  # the rest of the run has not been asked for


@pytest.mark.parametrize(("low", "high"), [(29, 34), (31, 34), (30, 33), (30, 35), (40, 34)])
def test_bounds_between_wrong_rows_ask_for_the_run(low: int, high: int) -> None:
    sources = unverified(64)
    sources.verified[0][6:12] = 1  # rows 24 to 47
    arguments = (sources.rows, 0, 0, low, high, False, 30, 33)

    edges = merge.check_range(*arguments, merge.CHECK_EDGES)
    rows = merge.check_range(*arguments, merge.CHECK_ALL)
    right = merge.check_range(sources.rows, 0, 0, 30, 34, False, 30, 33, merge.CHECK_ALL)

    assert edges == rows == (0, 64)
    assert right == (0, 0)
    sources.verified[0][:] = 1
    assert merge.check_range(*arguments, merge.CHECK_ALL) == (0, 0)


def test_bound_stops_above_its_limit() -> None:
    sources = Sources([{(series_id, 0): 1.0 for series_id in range(100)}])

    bound = merge.bound_rows(sources.rows, NO_SERIES, True, 0, 9, 0, 0, False, 10, merge.CHECK_WIDEN)

    assert bound == 11


def test_series_of_a_row() -> None:
    sources = Sources([{(2, 0): 1.0, (2, 1): 1.0, (9, 0): 1.0}])

    assert [merge.find_series(sources.rows, 0, row) for row in range(3)] == [2, 2, 9]


def test_read_only_arguments() -> None:
    sources = Sources([{(1, 5): 1.0}, {(2, 5): 2.0}])
    series = np.array([1])
    out = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1)
    sources.rows.flags.writeable = False
    series.flags.writeable = False

    answer = merge.scan_rows(sources.rows, series, False, 0, 9, 0, 0, False, *out)

    assert answer == (1, layout.STATUS_DONE, 0, 0, 0)


def test_one_compilation_serves_all_calls() -> None:
    merge.warmup()
    if JIT_DISABLED:
        pytest.skip("nothing is compiled")
    for kernel in (merge.scan_borrowed, merge.count_borrowed, merge.bound_borrowed, merge.find_series):
        assert len(kernel.signatures) <= 1  # 0 where it came out of the cache inside its caller
