from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omendb.model import INT64_MAX, INT64_MIN, Columns, Windows
from omendb.server import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from omendb.server.encode import Part

points = st.lists(
    st.tuples(
        st.integers(0, INT64_MAX),
        st.integers(INT64_MIN, INT64_MAX),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
)


class Answer:
    """A source of rows or windows."""

    def __init__(self, whole: Part, cursor: str | None) -> None:
        self._whole = whole
        self._end = cursor
        self.cursor: str | None = None

    def map(self, function: Callable[[Part], Any], rows_max: int, make_arrays: Any = None) -> Iterator[Any]:
        return map(function, self.chunks(rows_max))

    def chunks(self, rows_max: int) -> Iterator[Part]:
        whole = self._whole
        for start in range(0, whole.count, rows_max):
            cut = slice(start, start + rows_max)
            if isinstance(whole, Columns):
                yield Columns(whole.series_id[cut], whole.timestamp[cut], whole.value[cut])
            else:
                columns = {name: column[cut] for name, column in whole.columns.items()}
                yield Windows(whole.series_id[cut], whole.timestamp[cut], columns)
        self.cursor = self._end


def columns_of(given_points: list[tuple[int, int, float]]) -> Columns:
    return Columns(
        np.array([s for s, _, _ in given_points], dtype=np.int64),
        np.array([t for _, t, _ in given_points], dtype=np.int64),
        np.array([v for _, _, v in given_points], dtype=np.float64),
    )


def windows() -> Windows:
    columns = {"mean": np.array([0.5, 1.5, np.nan]), "count": np.array([1, 2, 3])}
    return Windows(np.array([1, 1, 2]), np.array([0, 10, -10]), columns)


def expected(part: Columns, cursor: str | None) -> dict[str, Any]:
    rows = zip(part.series_id.tolist(), part.timestamp.tolist(), part.value.tolist(), strict=True)
    return {
        "count": part.count,
        "rows": [{"series_id": s, "timestamp": t, "value": v} for s, t, v in rows],
        "cursor": cursor,
    }


@given(points, st.integers(1, 4), st.none() | st.just("abc-_"))
def test_rows(given_points: list[tuple[int, int, float]], rows_max: int, cursor: str | None) -> None:
    part = columns_of(given_points)

    whole = encode.whole_rows(part, cursor)
    pieces = b"".join(encode.stream_rows(Answer(part, cursor), part.count, rows_max))

    assert json.loads(whole) == expected(part, cursor)
    assert pieces == whole


@given(points, st.integers(1, 4), st.none() | st.just("abc-_"))
def test_columns(given_points: list[tuple[int, int, float]], rows_max: int, cursor: str | None) -> None:
    part = columns_of(given_points)

    whole = encode.whole_columns(part, None, cursor)
    pieces = b"".join(encode.stream_columns(Answer(part, cursor), None, part.count, rows_max))

    assert json.loads(whole) == {
        "count": part.count,
        "series_id": part.series_id.tolist(),
        "timestamp": part.timestamp.tolist(),
        "value": part.value.tolist(),
        "cursor": cursor,
    }
    assert pieces == whole


@pytest.mark.parametrize("rows_max", [1, 2, 3, 10])
def test_windows_in_pieces(rows_max: int) -> None:
    names = ("mean", "count")

    rows = encode.whole_rows(windows(), None)
    columns = encode.whole_columns(windows(), names, None)

    assert json.loads(rows)["rows"] == [
        {"series_id": 1, "timestamp": 0, "mean": 0.5, "count": 1},
        {"series_id": 1, "timestamp": 10, "mean": 1.5, "count": 2},
        {"series_id": 2, "timestamp": -10, "mean": None, "count": 3},
    ]
    assert json.loads(columns)["columns"] == {"mean": [0.5, 1.5, None], "count": [1, 2, 3]}
    answer = Answer(windows(), None)
    assert b"".join(encode.stream_rows(answer, 3, rows_max)) == rows
    assert b"".join(encode.stream_columns(answer, names, 3, rows_max)) == columns


def test_nothing() -> None:
    assert json.loads(encode.whole_rows(None, None)) == {"count": 0, "rows": [], "cursor": None}
    assert json.loads(encode.whole_columns(None, ("mean",), None)) == {
        "count": 0,
        "series_id": [],
        "timestamp": [],
        "columns": {"mean": []},
        "cursor": None,
    }


def test_read_only_columns_at_any_alignment() -> None:
    raw = np.zeros(8 * 5 + 1, dtype=np.uint8)
    values = raw[1:].view(np.float64)
    values[:] = [1.0, 2.0, 3.0, 4.0, 5.0]
    values.flags.writeable = False
    times = np.arange(5)
    times.flags.writeable = False

    body = encode.whole_rows(Columns(times, times, values), None)

    assert [row["value"] for row in json.loads(body)["rows"]] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_more_rows_than_the_scratch_buffer_keeps() -> None:
    count = 2 * encode.SCRATCH_BYTES_MAX // encode.ROW_BYTES_MAX
    times = np.arange(count)

    body = encode.whole_rows(Columns(times, times, times / 3), None)

    assert json.loads(body)["rows"][-1]["value"] == (count - 1) / 3
