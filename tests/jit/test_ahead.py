"""What is listed ahead of a scan is what the scan reads, whatever room there is for the list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omendb.jit import ahead, layout
from omendb.jit._compile import JIT_DISABLED
from tests.jit import reference_scan as reference
from tests.jit.reference_scan import BLOCK_SHIFT, INT64_MAX, INT64_MIN, Sources

if TYPE_CHECKING:
    from tests.jit.reference_scan import Rows

EXAMPLES = 100 if JIT_DISABLED else 300

Listed = set[tuple[int, int]]


def expected(
    sources: Sources, series: list[int] | None, bounds: tuple[int, int], first_series: int, rows: int
) -> Listed:
    """List each row by itself: the first ones of each run, and the rest of blocks that are not verified."""
    start, end = bounds
    listed: Listed = set()
    if start > end:
        return listed
    for index, runs in enumerate(sources.runs):
        total = int(sources.rows[index, layout.ROWS])
        verified = sources.verified[index]
        for series_id, low, stop, first, last, *_ in runs.tolist():
            if (series is not None and series_id not in series) or series_id < first_series:
                continue
            if first > end or last < start:
                continue
            high = min(stop, low + rows)
            blocks = [row >> BLOCK_SHIFT for row in (low, high - 1)]
            if not verified[blocks[0]]:
                low = blocks[0] << BLOCK_SHIFT
            if not verified[blocks[1]]:
                high = min((blocks[1] + 1) << BLOCK_SHIFT, total)
            listed |= {(index, row) for row in range(low, high)}
    return listed


@settings(max_examples=EXAMPLES)
@given(
    reference.tables(),
    reference.filters,
    reference.bounds(),
    st.none() | reference.series_ids,
    st.integers(1, 40),
    st.integers(6, 12),
    reference.randoms,
)
def test_ranges_agree_with_reference(
    tables: list[Rows],
    series: list[int] | None,
    bounds: tuple[int, int],
    first_series: int | None,
    rows: int,
    room: int,
    random: np.random.Generator,
) -> None:
    sources = Sources(tables, 3, random)
    out = np.full((room, ahead.RANGE_WIDTH), -7, np.int64)
    place, resume, more = first_series or 0, first_series is not None, True
    listed: Listed = set()
    while more:
        count, place, more = ahead.list_ahead(
            sources.rows, reference.filter_of(series), series is None, *bounds, place, resume, rows, out
        )
        resume = True
        for index, start, stop in out[:count].tolist():
            assert 0 <= start < stop <= sources.rows[index, layout.ROWS]
            listed |= {(index, row) for row in range(start, stop)}

    wanted = INT64_MIN if first_series is None else first_series
    assert listed == expected(sources, series, bounds, wanted, rows)


def test_neighbours_are_joined() -> None:
    sources = Sources([{(series, time): 1.0 for series in range(100) for time in range(8)}])
    verified = np.ones(1_000, np.uint8)
    sources.rows[0, layout.VERIFIED] = verified.ctypes.data
    sources.rows[0, layout.BLOCK_SHIFT] = BLOCK_SHIFT
    out = np.zeros((200, ahead.RANGE_WIDTH), np.int64)

    def listed(rows: int) -> list[list[int]]:
        count, _, more = ahead.list_ahead(
            sources.rows, reference.NO_SERIES, True, INT64_MIN, INT64_MAX, 0, False, rows, out
        )
        assert not more
        return out[:count].tolist()

    assert listed(8) == [[0, 0, 800]]
    assert listed(3) == [[0, 8 * series, 8 * series + 3] for series in range(100)]


def test_copies_of_memtables_are_left_out() -> None:
    sources = Sources([{(1, 1): 1.0}])
    out = np.zeros((10, ahead.RANGE_WIDTH), np.int64)

    answer = ahead.list_ahead(sources.rows, reference.NO_SERIES, True, 0, 9, 0, False, 5, out)

    assert answer == (0, 0, False)


def test_one_compilation_serves_all_calls() -> None:
    ahead.warmup()
    if JIT_DISABLED:
        pytest.skip("nothing is compiled")
    assert len(ahead.list_borrowed.signatures) <= 1
