from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omendb.errors import InvalidRequestError
from omendb.model import INT64_MAX, INT64_MIN
from omendb.server import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omendb.model import Batch

points = st.lists(
    st.tuples(
        st.integers(0, INT64_MAX),
        st.integers(INT64_MIN, INT64_MAX),
        st.floats(allow_nan=False, allow_infinity=False),
    )
)


def rows(batch: Batch) -> list[tuple[int, int, float]]:
    assert batch.series_id.dtype == batch.timestamp.dtype == np.int64
    assert batch.value.dtype == np.float64
    return list(zip(batch.series_id.tolist(), batch.timestamp.tolist(), batch.value.tolist(), strict=True))


@pytest.fixture(params=["msgspec", "kernel"], autouse=True, scope="module")
def _decoder(request: pytest.FixtureRequest) -> Iterator[None]:
    """Decode small bodies too with either decoder."""
    with pytest.MonkeyPatch.context() as patch:
        size = 0 if request.param == "kernel" else 1 << 62
        patch.setattr(wire, "KERNEL_BYTES_MIN", size)
        yield


def decoded(body: bytes) -> Batch | None:
    """Decode; None when it is refused."""
    try:
        return wire.decode_points(body)
    except InvalidRequestError:
        return None


@given(points)
def test_arrays_come_back_as_they_went(given_points: list[tuple[int, int, float]]) -> None:
    body = json.dumps([{"series_id": s, "timestamp": t, "value": v} for s, t, v in given_points]).encode()

    assert rows(wire.decode_points(body)) == given_points


@given(points)
def test_columns_come_back_as_they_went(given_points: list[tuple[int, int, float]]) -> None:
    columns = {
        "series_id": [s for s, _, _ in given_points],
        "timestamp": [t for _, t, _ in given_points],
        "value": [v for _, _, v in given_points],
    }

    assert rows(wire.decode_points(json.dumps(columns).encode())) == given_points


@given(points.filter(bool))
def test_objects_come_back_as_they_went(given_points: list[tuple[int, int, float]]) -> None:
    series_id, timestamp, value = given_points[0]
    body = json.dumps({"value": value, "series_id": series_id, "timestamp": timestamp}).encode()

    assert rows(wire.decode_points(body)) == given_points[:1]


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_decoded_or_refused(body: bytes) -> None:
    batch = decoded(body)

    assert batch is None or len(batch.series_id) == len(batch.timestamp) == len(batch.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
almost_points = st.fixed_dictionaries(
    {},
    optional={
        "series_id": st.integers() | json_values,
        "timestamp": st.integers() | st.lists(st.integers()) | json_values,
        "value": st.floats() | st.lists(st.floats()) | json_values,
        "x": json_values,
    },
)


@given(almost_points | st.lists(almost_points) | json_values)
def test_any_json_is_decoded_or_refused(value: object) -> None:
    batch = decoded(json.dumps(value).encode())

    if batch is not None:
        assert len(batch.series_id) == len(batch.timestamp) == len(batch.value)
        assert np.isfinite(batch.value).all()
        assert (batch.series_id >= 0).all()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty"),
        (b"\x1f\x8b\x08", "the body is compressed; send it as plain JSON"),
        (b"{", "JSON is malformed: it ends too early"),
        (b"{}", "series_id is missing"),
        (b'{"series_id":1,"tag":1}', "tag is not a known field"),
        (b'{"series_id":1,"timestamp":"1"}', "expected int or array, got str"),
        (
            b'{"series_id":1,"timestamp":[1,2],"value":[1]}',
            "columns differ in length: timestamp has 2, value has 1",
        ),
    ],
)
def test_messages_say_what_is_wrong(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        wire.decode_points(body)

    assert str(caught.value) == message


def test_retrain_body() -> None:
    assert wire.decode_retrain(b"").max_error is None
    assert wire.decode_retrain(b'{"max_error":null}').max_error is None
    assert wire.decode_retrain(b'{"max_error":7}').max_error == 7
