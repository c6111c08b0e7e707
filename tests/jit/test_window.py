"""Window aggregates agree with a plain computation, over all of int64, however rows are spread."""

from __future__ import annotations

import math
import os
import platform
import struct
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omendb.jit import layout, window
from omendb.jit._compile import JIT_DISABLED
from tests.jit import reference_scan as reference
from tests.jit.reference_scan import INT64_MAX, INT64_MIN, NO_SERIES, Sources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.jit.reference_scan import Rows, WindowRow

EXAMPLES = 200 if JIT_DISABLED else 500

origins = st.one_of(reference.timestamps, st.integers(INT64_MIN, INT64_MAX))
steps = st.one_of(st.integers(1, 12), st.sampled_from([100, 2**40, 2**60, 2**62, INT64_MAX - 1, INT64_MAX]))
any_int64 = st.one_of(reference.timestamps, st.integers(INT64_MIN, INT64_MAX))


def check(rows: list[WindowRow], expected: list[WindowRow], variance: bool = True) -> None:
    """Compare: all is exact with whole numbers but the squares, which divide."""
    assert [row[:-1] for row in rows] == [row[:-1] for row in expected]
    if variance:
        squares = [row.squares for row in rows]
        assert squares == pytest.approx([row.squares for row in expected], rel=1e-9, abs=1e-6)


@settings(max_examples=EXAMPLES)
@given(
    reference.tables(),
    reference.filters,
    reference.bounds(),
    origins,
    steps,
    st.integers(1, 30),
    st.booleans(),
)
def test_windows_agree_with_reference(
    tables: list[Rows],
    series: list[int] | None,
    bounds: tuple[int, int],
    origin: int,
    step: int,
    capacity: int,
    variance: bool,
) -> None:
    sources = Sources(tables, 4)

    rows = reference.scan_windows(sources, series, *bounds, origin, step, capacity, variance)

    expected = reference.aggregate(reference.select(tables, series, *bounds), origin, step)
    check(rows, expected, variance)


@settings(max_examples=EXAMPLES)
@given(
    reference.tables(),
    reference.filters,
    reference.bounds(),
    origins,
    steps,
    st.integers(1, 30),
    reference.randoms,
)
def test_windows_use_verified_rows_only(
    tables: list[Rows],
    series: list[int] | None,
    bounds: tuple[int, int],
    origin: int,
    step: int,
    capacity: int,
    random: np.random.Generator,
) -> None:
    sources = Sources(tables, random=random)

    rows = reference.scan_windows(sources, series, *bounds, origin, step, capacity)

    expected = reference.aggregate(reference.select(tables, series, *bounds), origin, step)
    check(rows, expected)


@settings(max_examples=EXAMPLES // 4)
@given(
    reference.randoms,
    st.integers(1, 4),
    st.sampled_from([1, 7, 50, 700]),
    st.sampled_from([1, 9, 100, 1_500, 10_000]),
)
def test_windows_over_long_ranges(
    random: np.random.Generator, source_count: int, stretch: int, step: int
) -> None:
    # More rows than the scratch holds, so that windows span several fillings of it.
    row_count = 1_500 if JIT_DISABLED else 4_000
    owners = np.repeat(random.integers(0, source_count, row_count), stretch)[:row_count]
    stamps = np.cumsum(random.integers(1, 4, row_count))
    tables: list[Rows] = [{} for _ in range(source_count)]
    for timestamp, owner in zip(stamps.tolist(), owners.tolist(), strict=True):
        tables[owner][3, timestamp] = float(random.integers(-1_000, 1_000))
    sources = Sources(tables)

    rows = reference.scan_windows(sources, None, INT64_MIN, INT64_MAX, 5, step, 100)

    expected = reference.aggregate(reference.select(tables, None, INT64_MIN, INT64_MAX), 5, step)
    check(rows, expected)


@settings(max_examples=EXAMPLES)
@given(any_int64, origins, steps)
def test_window_bounds_agree_with_reference(timestamp: int, origin: int, step: int) -> None:
    first, last = window.window_bounds(timestamp, origin, step)

    exact = origin + (timestamp - origin) // step * step
    assert (first, last) == (max(exact, INT64_MIN), min(exact + step - 1, INT64_MAX))


@settings(max_examples=EXAMPLES)
@given(any_int64, steps, st.one_of(st.integers(0, 100), st.integers(0, 2**62)))
def test_advance_agrees_with_reference(last: int, step: int, count: int) -> None:
    assert window.advance_windows(last, step, count) == min(last + step * count, INT64_MAX)


@settings(max_examples=EXAMPLES)
@given(
    st.lists(st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf, -np.inf]), min_size=1, max_size=40),
    st.booleans(),
)
def test_reduction_agrees_with_numpy(values: list[float], simd: bool) -> None:
    column = reference.place(np.array(values), 4)

    total, lowest, highest = window.reduce_values(column.ctypes.data, 0, len(values), simd)

    numbers = column[~np.isnan(column)]
    with np.errstate(invalid="ignore"):
        assert total == pytest.approx(float(np.sum(column)), rel=1e-9, abs=1e-6, nan_ok=True)
    expected = (numbers.min(), numbers.max()) if len(numbers) else (np.nan, np.nan)
    assert (lowest, highest) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


# Any bits at all: signed zeros, subnormal numbers, infinities, and every NaN.
any_double = st.floats() | st.sampled_from(
    [0.0, -0.0, 5e-324, -5e-324, np.inf, -np.inf, np.nan, 1e308, -1e308]
)


def bits(numbers: Sequence[float]) -> bytes:
    """Return the bytes of numbers; all NaN are one, as nobody reads the bits of a NaN."""
    return b"".join(struct.pack("<d", math.nan if number != number else number) for number in numbers)


@settings(max_examples=EXAMPLES)
@given(st.lists(any_double, min_size=1, max_size=70), st.integers(0, 9), st.integers(1, 7))
def test_both_kernels_give_the_same_bits(values: list[float], skip: int, offset: int) -> None:
    column = reference.place(np.array(values), offset)
    row = min(skip, len(values) - 1)
    address = column.ctypes.data

    assert bits(window.reduce_values(address, row, len(values), True)) == bits(
        window.reduce_values(address, row, len(values), False)
    )
    for mean in (values[-1], 0.5, math.nan):
        assert bits([window.square_deviations(address, row, len(values), mean, True)]) == bits(
            [window.square_deviations(address, row, len(values), mean, False)]
        )


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_scans_with_both_kernels_give_the_same_windows(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 200))
    numbers = data.draw(st.lists(st.floats(-1e9, 1e9), min_size=count, max_size=count))
    sources = Sources([{(1, timestamp): number for timestamp, number in enumerate(numbers)}])
    step = data.draw(st.integers(1, 100))

    vector, scalar = (
        reference.scan_windows(sources, [1], INT64_MIN, INT64_MAX, 0, step, 300, simd=simd)
        for simd in (True, False)
    )

    assert vector == scalar


def test_the_vector_kernel_uses_vectors_and_the_other_one_does_not() -> None:
    if JIT_DISABLED or platform.machine() != "x86_64":
        pytest.skip("the names of instructions are those of compiled x86-64")
    code = (
        "from omendb.jit import window\n"
        "window.reduce_values(0, 0, 0, True)\n"
        "window.reduce_lanes(0, 0, 0)\n"
        "for kernel in (window.reduce_values, window.reduce_lanes):\n"
        "    (text,) = kernel.inspect_asm().values()\n"
        "    print('addpd' in text and 'minpd' in text and 'maxpd' in text)\n"
    )
    with tempfile.TemporaryDirectory() as cache:  # what comes out of a cache has no text
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )

    assert done.stdout.split() == ["True", "False"]


@settings(max_examples=EXAMPLES)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.sampled_from([0.0, 1e9, -1e12]), st.booleans()
)
def test_squares_are_stable_far_from_zero(values: list[float], shift: float, simd: bool) -> None:
    column = np.array(values) + shift

    mean = float(np.sum(column)) / len(column)
    squares = window.square_deviations(column.ctypes.data, 0, len(column), mean, simd)

    exact = math.fsum(column.tolist()) / len(column)
    expected = math.fsum((value - exact) ** 2 for value in column.tolist())
    assert squares == pytest.approx(expected, rel=1e-6, abs=1e-3)


def test_windows_before_the_origin() -> None:
    sources = Sources([{(1, timestamp): float(timestamp) for timestamp in (-11, -10, -1, 0, 9, 10)}])

    rows = reference.scan_windows(sources, None, INT64_MIN, INT64_MAX, 0, 10, 10)

    assert [(row.first_timestamp, row.count) for row in rows] == [(-20, 1), (-10, 2), (0, 2), (10, 1)]


def test_first_window_is_cut_to_int64() -> None:
    table = {(1, INT64_MIN): 1.0, (1, INT64_MIN + 4): 2.0, (1, INT64_MIN + 5): 3.0}
    sources = Sources([table])

    rows = reference.scan_windows(sources, None, INT64_MIN, INT64_MAX, INT64_MIN + 5, 10, 1)

    assert [(row.first_timestamp, row.count) for row in rows] == [(INT64_MIN, 2), (INT64_MIN + 5, 1)]


def test_windows_as_long_as_int64() -> None:
    sources = Sources([{(1, timestamp): 1.0 for timestamp in (INT64_MIN, -1, 0, INT64_MAX - 1, INT64_MAX)}])

    rows = reference.scan_windows(sources, None, INT64_MIN, INT64_MAX, 0, INT64_MAX, 1)

    assert [(row.first_timestamp, row.count) for row in rows] == [
        (INT64_MIN, 1),
        (-INT64_MAX, 1),
        (0, 2),
        (INT64_MAX, 1),
    ]


def test_start_cuts_the_window_but_not_its_name() -> None:
    sources = Sources([{(1, timestamp): 1.0 for timestamp in range(30)}])

    rows = reference.scan_windows(sources, None, 7, 22, 0, 10, 10)

    assert [(row.first_timestamp, row.count) for row in rows] == [(0, 3), (10, 10), (20, 3)]


def test_long_gaps_between_windows() -> None:
    sources = Sources([{(1, 2**power): 1.0 for power in range(62)}])

    rows = reference.scan_windows(sources, None, INT64_MIN, INT64_MAX, 0, 1, 2)

    assert [row.first_timestamp for row in rows] == [2**power for power in range(62)]


@pytest.mark.parametrize("source_count", [1, 2])
def test_nan_reaches_the_sum_and_not_the_extremes(source_count: int) -> None:
    tables: list[Rows] = [{} for _ in range(source_count)]
    for timestamp, value in enumerate((1.0, np.nan, 3.0, np.nan)):
        tables[timestamp % source_count][1, timestamp] = value
    sources = Sources(tables)

    both = reference.scan_windows(sources, None, 0, 3, 0, 4, 1)[0]
    only = reference.scan_windows(sources, None, 3, 3, 0, 4, 1)[0]

    assert math.isnan(both.total)
    assert math.isnan(both.squares)
    assert (both.lowest, both.highest, both.count) == (1.0, 3.0, 4)
    assert math.isnan(only.lowest)
    assert math.isnan(only.highest)


def test_small_output_asks_for_few_rows() -> None:
    sources = Sources([{(1, timestamp): 1.0 for timestamp in range(400)}])
    sources.verified[0][:] = 0
    sources.rows[0, layout.VERIFIED] = sources.verified[0].ctypes.data
    sources.rows[0, layout.BLOCK_SHIFT] = reference.BLOCK_SHIFT
    integers = [np.zeros(3, np.int64) for _ in range(3)]
    floats = [np.zeros(3) for _ in range(6)]

    answer = window.scan_windows(
        sources.rows,
        NO_SERIES,
        True,
        0,
        INT64_MAX,
        0,
        10,
        True,
        0,
        0,
        False,
        False,
        False,
        *integers,
        *floats,
        *integers[:2],
    )

    assert answer[:3] == (0, layout.STATUS_VERIFY, 0)
    assert answer[4] - answer[3] <= 50


def test_one_compilation_serves_all_calls() -> None:
    window.warmup()
    if JIT_DISABLED:
        pytest.skip("nothing is compiled")
    assert len(window.scan_borrowed.signatures) <= 1  # 0 where it came out of the cache inside its caller
