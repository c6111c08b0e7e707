"""Queries and their cursors: what is refused, and that a cursor continues its own query only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omendb.errors import InvalidRequestError
from omendb.model import INT64_MAX, INT64_MIN
from omendb.query import (
    WINDOWS_MAX,
    decode_cursor,
    encode_cursor,
    make_range_query,
    make_window_query,
)

int64 = st.integers(INT64_MIN, INT64_MAX)


@given(identity=st.integers(0, 2**32 - 1), series_id=st.integers(0, INT64_MAX), timestamp=int64)
def test_a_cursor_comes_back_as_it_was(identity, series_id, timestamp) -> None:
    cursor = encode_cursor(identity, (series_id, timestamp))

    assert cursor.isascii()
    assert not set(cursor) & set("+/=&?# ")
    assert decode_cursor(cursor, identity) == (series_id, timestamp)


@given(cursor=st.one_of(st.text(max_size=60), st.binary(max_size=60).map(lambda b: b.decode("latin-1"))))
def test_anything_else_is_refused(cursor) -> None:
    with pytest.raises(InvalidRequestError) as error:
        decode_cursor(cursor, 1)

    assert error.value.field == "cursor"


def test_every_changed_character_is_noticed() -> None:
    cursor = encode_cursor(7, (1, 2))
    for at, old in enumerate(cursor):
        for new in "Aaz09-_":
            # The last character has bits that belong to no byte.
            if new != old and at < len(cursor) - 1:
                with pytest.raises(InvalidRequestError):
                    decode_cursor(cursor[:at] + new + cursor[at + 1 :], 7)


@pytest.mark.parametrize(
    "other",
    [{"start": 1}, {"end": 5}, {"series_id": 3}, {"series_id": [1, 2, 3]}, {}],
)
def test_a_cursor_belongs_to_its_query(other) -> None:
    query = make_range_query(start=0, end=9, series_id=[1, 2])
    cursor = encode_cursor(query.identity, (1, 5))

    again = make_range_query(start=0, end=9, series_id=[2, 1, 1], limit=77, cursor=cursor)

    assert again.after == (1, 5)
    with pytest.raises(InvalidRequestError, match="another query"):
        make_range_query(
            cursor=cursor, **{"start": 0, "end": 9, "series_id": [1, 2], **other} if other else {}
        )
    with pytest.raises(InvalidRequestError, match="another query"):
        make_window_query(10, start=0, end=9, series_id=[1, 2], cursor=cursor)


def test_series_are_sorted_and_each_taken_once() -> None:
    query = make_range_query(series_id=[5, 1, 5, 3])

    assert query.series is not None
    assert query.series.tolist() == [1, 3, 5]
    assert make_range_query(series_id=np.int64(4)).series.tolist() == [4]
    assert make_range_query(series_id=np.array([2], dtype=np.uint64)).series.tolist() == [2]


def test_windows_are_bounded_and_aligned() -> None:
    query = make_window_query(10, "mean,count", start=3, end=99)
    assert (query.origin, query.aggregates) == (3, ("mean", "count"))
    assert make_window_query(10).origin == 0
    make_window_query(1, start=0, end=WINDOWS_MAX - 1)
    with pytest.raises(InvalidRequestError, match="windows"):
        make_window_query(1, start=0, end=WINDOWS_MAX)
    with pytest.raises(InvalidRequestError, match="windows"):
        make_window_query(2, start=INT64_MIN, end=INT64_MAX)
    make_window_query(INT64_MAX, start=INT64_MIN, end=INT64_MAX)


def test_windows_are_by_series_or_by_nothing() -> None:
    assert make_window_query(10).by == ("series_id",)
    assert make_window_query(10, by="series_id").by == ("series_id",)
    assert make_window_query(10, by="").by == make_window_query(10, by=()).by == ()


@pytest.mark.parametrize("by", ["series", "series_id,timestamp", "series_id,series_id", ("value",)])
def test_windows_by_anything_else_are_refused(by) -> None:
    with pytest.raises(InvalidRequestError) as error:
        make_window_query(10, by=by)

    assert error.value.field == "by"


def test_a_cursor_belongs_to_what_the_windows_are_by() -> None:
    cursor = encode_cursor(make_window_query(10, by="").identity, (0, 30))

    assert make_window_query(10, by="", cursor=cursor).after == (0, 30)
    with pytest.raises(InvalidRequestError):
        make_window_query(10, cursor=cursor)
