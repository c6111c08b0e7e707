"""Shards together hold exactly the rows of the scan they were cut from, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from omendb.jit import layout, split
from omendb.jit._compile import JIT_DISABLED
from omendb.jit.split import SHARD_END, SHARD_FIRST_SERIES, SHARD_LAST_SERIES, SHARD_ROWS, SHARD_START
from tests.jit import reference_scan as reference
from tests.jit.reference_scan import INT64_MAX, INT64_MIN, Sources

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.jit.reference_scan import Key, Rows

EXAMPLES = 100 if JIT_DISABLED else 400

steps = st.one_of(st.just(0), st.integers(1, 30), st.sampled_from([2**40, INT64_MAX]))


def cut(
    sources: Sources,
    series: list[int] | None,
    bounds: tuple[int, int],
    after: Key | None,
    grid: tuple[int, int],
    rows: int,
    capacity: int,
) -> tuple[list[list[int]], int]:
    shards = np.full((capacity, split.SHARD_WIDTH), -7, np.int64)
    count, total = split.split_scan(
        sources.rows,
        reference.filter_of(series),
        series is None,
        *bounds,
        *(after or (0, 0)),
        after is not None,
        *grid,
        rows,
        shards,
    )
    assert 0 <= count <= capacity
    return shards[:count].tolist(), int(total)


def narrowed(sources: Sources, shard: list[int]) -> NDArray[np.int64]:
    out = np.zeros_like(sources.rows)
    split.narrow_sources(sources.rows, shard[SHARD_FIRST_SERIES], shard[SHARD_LAST_SERIES], out)
    return out


@settings(max_examples=EXAMPLES)
@given(
    tables=reference.tables(),
    series=reference.filters,
    bounds=reference.bounds(),
    after=st.none() | st.tuples(reference.series_ids, reference.timestamps),
    grid=st.tuples(reference.timestamps, steps),
    rows=st.integers(1, 50),
    capacity=st.sampled_from([1, 2, 3, 100]),
    random=st.none() | reference.randoms,
)
def test_shards_hold_each_row_once_and_in_order(
    tables: list[Rows],
    series: list[int] | None,
    bounds: tuple[int, int],
    after: Key | None,
    grid: tuple[int, int],
    rows: int,
    capacity: int,
    random: np.random.Generator | None,
) -> None:
    expected = reference.select(tables, series, *bounds, after)
    sources = Sources(tables, random=random)

    shards, total = cut(sources, series, bounds, after, grid, rows, capacity)

    assert total >= len(expected)
    found: Rows = {}
    wanted = sorted(expected)
    for shard in shards:
        first, last = shard[SHARD_FIRST_SERIES], shard[SHARD_LAST_SERIES]
        low, high = shard[SHARD_START], shard[SHARD_END]
        assert first <= last
        assert bounds[0] <= low <= high <= bounds[1]
        assert first == last or (low, high) == bounds
        inside = {key: expected[key] for key in wanted if first <= key[0] <= last and low <= key[1] <= high}
        assert len(inside) <= shard[SHARD_ROWS]
        assert not found.keys() & inside.keys()
        found |= inside
        if grid[1]:
            # No window is in two shards.
            origin, step = grid
            for edge in (high, low - 1):
                if bounds[0] <= edge < bounds[1] and (first, edge) != after:
                    assert (edge + 1 - origin) % step == 0
    assert list(found.items()) == [(key, expected[key]) for key in wanted]


@settings(max_examples=EXAMPLES)
@given(
    tables=reference.tables(),
    bounds=reference.bounds(),
    span=st.tuples(reference.series_ids, reference.series_ids).map(sorted),
)
def test_narrowed_sources_hold_a_span_of_series(
    tables: list[Rows], bounds: tuple[int, int], span: list[int]
) -> None:
    sources = Sources(tables)
    shard = [*span, *bounds, 0]

    sources.rows[:] = narrowed(sources, shard)
    rows = reference.scan(sources, None, *bounds, 7)

    expected = reference.select(tables, None, *bounds)
    assert rows == [(*key, value) for key, value in expected.items() if span[0] <= key[0] <= span[1]]


def test_many_small_series_share_a_shard() -> None:
    sources = Sources([{(series_id, 5): 1.0 for series_id in range(100)}])

    shards, total = cut(sources, None, (INT64_MIN, INT64_MAX), None, (0, 0), 10, 50)

    assert total == 100
    assert [shard[:2] for shard in shards] == [[first, first + 9] for first in range(0, 100, 10)]


def test_a_long_series_is_cut_where_its_rows_are() -> None:
    # Most rows lie in a small part of the time.
    times = [*range(0, 100_000, 1_000), *range(100_000, 100_900)]
    sources = Sources([{(3, timestamp): 1.0 for timestamp in times}])

    shards, _ = cut(sources, [3], (INT64_MIN, INT64_MAX), None, (0, 0), 100, 50)

    rows = [
        sum(shard[SHARD_START] <= timestamp <= shard[SHARD_END] for timestamp in times) for shard in shards
    ]
    assert len(rows) == 10
    assert max(rows) <= 101


def test_narrowing_leaves_the_given_sources_alone() -> None:
    sources = Sources([{(series_id, 5): 1.0 for series_id in range(9)}])
    before = sources.rows.copy()

    out = narrowed(sources, [3, 4, 0, 9, 0])

    assert (sources.rows == before).all()
    assert out[0, layout.RUN_COUNT] == 2
    assert out[0, layout.FIRST_SERIES] == 3
