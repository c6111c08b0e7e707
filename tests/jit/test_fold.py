"""Folded windows are those of all points together, whatever came in which part."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omendb.jit import fold
from omendb.jit._compile import JIT_DISABLED
from tests.jit import reference_scan as reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.jit.reference_scan import Rows, WindowRow

EXAMPLES = 100 if JIT_DISABLED else 400


class Table:
    """A table, and its slots."""

    def __init__(self, capacity: int) -> None:
        self.integers = np.zeros((fold.INTEGERS, capacity), np.int64)
        self.floats = np.zeros((fold.FLOATS, capacity))
        self.slots = np.full(1 << capacity.bit_length(), fold.SLOT_FREE, np.int64)
        self.size = 0

    def add(self, integers: NDArray[np.int64], floats: NDArray[np.float64], variance: bool = True) -> int:
        taken, self.size = fold.fold_windows(
            integers,
            floats,
            integers.shape[1],
            variance,
            self.slots,
            self.size,
            self.integers,
            self.floats,
        )
        return taken

    def rows(self) -> list[tuple[list[int], list[float]]]:
        size = self.size
        order = np.argsort(self.integers[fold.WINDOW, :size])
        return list(zip(self.integers[:, order].T.tolist(), self.floats[:, order].T.tolist(), strict=True))


def columns(rows: list[WindowRow]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    integers = [(row.first_timestamp, row.count, row.first_at, row.last_at) for row in rows]
    floats = [(row.total, row.lowest, row.highest, row.first, row.last, row.squares) for row in rows]
    return (
        np.ascontiguousarray(np.array(integers, np.int64).reshape(-1, fold.INTEGERS).T),
        np.ascontiguousarray(np.array(floats, np.float64).reshape(-1, fold.FLOATS).T),
    )


def merged(rows: Rows, origin: int, step: int) -> list[tuple[list[int], list[float]]]:
    """Aggregate the points of all series together."""
    groups: dict[int, list[tuple[int, int, float]]] = {}
    for (series_id, timestamp), value in rows.items():
        groups.setdefault((timestamp - origin) // step, []).append((timestamp, series_id, value))
    answer = []
    for index, points in sorted(groups.items()):
        points.sort()
        values = [value for *_, value in points]
        mean = math.fsum(values) / len(values)
        answer.append(
            (
                [max(reference.INT64_MIN, origin + index * step), len(points), points[0][0], points[-1][0]],
                [
                    math.fsum(values),
                    min(values),
                    max(values),
                    values[0],
                    values[-1],
                    math.fsum((value - mean) ** 2 for value in values),
                ],
            )
        )
    return answer


@settings(max_examples=EXAMPLES)
@given(
    tables=reference.tables(),
    origin=reference.timestamps,
    step=st.sampled_from([1, 5, 30, 2**40, 2**62]),
    parts=st.integers(1, 4),
)
def test_folded_windows_are_those_of_all_points(
    tables: list[Rows], origin: int, step: int, parts: int
) -> None:
    rows = reference.select(tables, None, reference.INT64_MIN, reference.INT64_MAX)
    windows = reference.aggregate(rows, origin, step)
    whole = Table(max(len(windows), 1))
    share = -(-len(windows) // parts)

    for part in range(parts):
        table = Table(max(len(windows), 1))
        given = columns(windows[part * share : (part + 1) * share])
        assert table.add(*given) == given[0].shape[1]
        size = table.size
        found = (np.ascontiguousarray(table.integers[:, :size]), np.ascontiguousarray(table.floats[:, :size]))
        assert whole.add(*found) == size

    expected = merged(rows, origin, step)
    assert [integers for integers, _ in whole.rows()] == [integers for integers, _ in expected]
    # All is exact with whole numbers but the squares, which divide.
    assert [floats[:-1] for _, floats in whole.rows()] == [floats[:-1] for _, floats in expected]
    squares = [floats[-1] for _, floats in whole.rows()]
    assert squares == pytest.approx([floats[-1] for _, floats in expected], rel=1e-9, abs=1e-6)


def test_a_full_table_says_how_far_it_came() -> None:
    rows = {(1, time): float(time) for time in range(5)} | {(2, 1): 9.0}
    integers, floats = columns(reference.aggregate(rows, 0, 1))
    table = Table(3)

    assert table.add(integers, floats) == 3
    assert table.size == 3
    assert table.add(integers[:, 5:].copy(), floats[:, 5:].copy()) == 1
    assert table.rows()[1] == ([1, 2, 1, 1], [10.0, 1.0, 9.0, 1.0, 9.0, 32.0])


def test_of_equal_timestamps_the_first_value_is_the_first_rows_and_the_last_the_last_ones() -> None:
    rows = {(series_id, 7): float(series_id) for series_id in (3, 5, 9)}
    table = Table(4)

    table.add(*columns(reference.aggregate(rows, 0, 10)))

    [(integers, floats)] = table.rows()
    assert integers == [0, 3, 7, 7]
    assert (floats[fold.FIRST], floats[fold.LAST]) == (3.0, 9.0)


def test_windows_that_are_not_neighbours_are_found_too() -> None:
    random = np.random.default_rng(1)
    table = Table(1_000)
    times = random.permutation(1_000) * 2**40

    for series_id in range(3):
        order = random.permutation(times)
        rows = [reference.aggregate({(series_id, int(time)): 1.0}, 0, 1)[0] for time in order]
        assert table.add(*columns(rows)) == 1_000

    assert table.size == 1_000
    assert (table.integers[fold.COUNT] == 3).all()
