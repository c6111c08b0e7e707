"""Answers as Arrow streams: what pyarrow reads from them, and that they are what pyarrow would write."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from omendb.errors import CorruptionError
from omendb.model import Columns, Windows
from omendb.server.arrow import CURSOR_KEY, MEDIA_TYPE, PIECE_ROWS, ArrowForm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.server.clients import AsgiClient, RsgiClient
    from tests.server.fake_engine import FakeEngine

    Client = RsgiClient | AsgiClient

ROWS = 100_000


@pytest.fixture
def many(engine: FakeEngine) -> FakeEngine:
    time = np.arange(ROWS)
    engine.load(Columns(time // 50_000, time, time / 7))
    return engine


def read(body: bytes) -> tuple[Any, str | None]:
    """Return the table, and the cursor."""
    batches, cursor = [], None
    reader = pa.ipc.open_stream(body)
    while True:
        try:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
        except StopIteration:
            break
        batch.validate(full=True)
        batches.append(batch)
        assert cursor is None, "batches follow the one with the cursor"
        if metadata is not None:
            assert batch.num_rows == 0
            cursor = metadata[CURSOR_KEY].decode()
    return pa.Table.from_batches(batches, reader.schema), cursor


@pytest.mark.usefixtures("many")
class TestAnswers:
    def test_rows(self, client: Client) -> None:
        reply = client.call("GET", "/query?format=arrow")

        assert reply.status == 200
        assert reply.headers["content-type"] == MEDIA_TYPE
        table, cursor = read(reply.body)
        assert cursor is None
        assert [(field.name, str(field.type), field.nullable) for field in table.schema] == [
            ("series_id", "int64", False),
            ("timestamp", "int64", False),
            ("value", "double", False),
        ]
        assert table["series_id"].to_pylist() == [0] * 50_000 + [1] * 50_000
        assert table["timestamp"].to_pylist() == list(range(ROWS))
        assert table["value"].to_pylist() == (np.arange(ROWS) / 7).tolist()

    def test_few_rows(self, client: Client) -> None:
        reply = client.call("GET", "/query?format=arrow&start=7&end=9")

        assert reply.headers["content-length"] == str(len(reply.body))
        assert read(reply.body)[0].to_pylist() == [
            {"series_id": 0, "timestamp": time, "value": time / 7} for time in (7, 8, 9)
        ]

    def test_no_rows(self, client: Client) -> None:
        table, cursor = read(client.call("GET", "/query?format=arrow&series_id=9").body)

        assert (table.num_rows, cursor) == (0, None)
        assert table.schema.names == ["series_id", "timestamp", "value"]

    @pytest.mark.parametrize("step", [2, 10_000])
    def test_windows(self, client: Client, step: int) -> None:
        reply = client.call("GET", f"/query?format=arrow&start=0&step={step}&agg=mean,count")

        table, _ = read(reply.body)
        assert table.schema.names == ["series_id", "timestamp", "mean", "count"]
        assert str(table.schema.field("count").type) == "int64"
        assert table.num_rows == ROWS // step
        assert set(table["count"].to_pylist()) == {step}
        assert table["mean"][1].as_py() == pytest.approx((step + (step - 1) / 2) / 7)

    def test_windows_of_all_series(self, client: Client) -> None:
        table, _ = read(client.call("GET", "/query?format=arrow&start=0&step=100000&agg=count&by=").body)

        assert table.to_pylist() == [{"timestamp": 0, "count": ROWS}]

    @pytest.mark.parametrize("limit", [10, PIECE_ROWS, 60_000])
    def test_the_cursor_comes_last(self, client: Client, limit: int) -> None:
        found, cursor = read(client.call("GET", f"/query?format=arrow&limit={limit}").body)

        assert found.num_rows == limit
        assert cursor is not None
        rest, cursor = read(client.call("GET", f"/query?format=arrow&cursor={cursor}").body)
        assert cursor is None
        assert found["timestamp"].to_pylist() + rest["timestamp"].to_pylist() == list(range(ROWS))

    def test_readers_that_know_nothing_of_cursors_read_the_rows(self, client: Client) -> None:
        body = client.call("GET", "/query?format=arrow&limit=10").body

        assert pa.ipc.open_stream(body).read_all().num_rows == 10


def test_a_failure_at_once_gets_its_status(client: Client, many: FakeEngine) -> None:
    many.chunk_error = CorruptionError("data/0001.parquet", 4096, "checksum does not match")

    reply = client.call("GET", "/query?format=arrow")

    assert (reply.status, reply.error["code"]) == (500, "data_corrupted")


def test_a_failure_in_the_middle_breaks_the_connection(rsgi: RsgiClient, many: FakeEngine) -> None:
    many.chunk_error = CorruptionError("data/0001.parquet", 4096, "checksum does not match")
    many.chunk_error_after = 3

    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        rsgi.call("GET", "/query?format=arrow")


@pytest.mark.parametrize("count", [1, 2, 7, 1_000])
@pytest.mark.parametrize("by_series", [True, False])
def test_a_stream_is_byte_for_byte_what_pyarrow_writes(count: int, by_series: bool) -> None:
    time = np.arange(count)
    columns = {"count": time + 1, "sum": time / 3, "stddev": np.full(count, np.nan)}
    part = Windows(time // 2 if by_series else None, time, columns)

    body = ArrowForm(tuple(columns), by_series).whole(part, None)

    arrays = ({"series_id": time // 2} if by_series else {}) | {"timestamp": time} | columns
    fields = [pa.field(name, pa.from_numpy_dtype(array.dtype), False) for name, array in arrays.items()]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema(fields)) as writer:
        writer.write_batch(pa.record_batch(list(arrays.values()), schema=pa.schema(fields)))
    assert body == sink.getvalue().to_pybytes()


class Filled:
    """A source that fills the arrays it is given as far as it likes, or has arrays of its own."""

    cursor = None

    def __init__(self, counts: list[int], *, elsewhere: bool = False) -> None:
        self._counts = counts
        self._elsewhere = elsewhere

    def map(
        self, function: Callable[[Columns], Any], rows_max: int, make_arrays: Any = None
    ) -> Iterator[Any]:
        first = 0
        for count in self._counts:
            series, timestamp, value = make_arrays(rows_max)
            if self._elsewhere:
                series, timestamp, value = series.copy(), timestamp.copy(), value.copy()
            timestamp[:count] = np.arange(first, first + count)
            series[:count] = timestamp[:count] // 10
            value[:count] = timestamp[:count] / 7
            yield function(Columns(series[:count], timestamp[:count], value[:count]))
            first += count


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("counts", [[5], [64, 64], [64, 1, 63, 64], [1, 1, 1]])
def test_rows_that_were_scanned_into_a_batch(counts: list[int], elsewhere: bool) -> None:
    pieces = list(ArrowForm(None).stream(Filled(counts, elsewhere=elsewhere), 0, 64))

    table, _ = read(b"".join(pieces))
    time = np.arange(sum(counts))
    assert table["series_id"].to_pylist() == (time // 10).tolist()
    assert table["timestamp"].to_pylist() == time.tolist()
    assert table["value"].to_pylist() == (time / 7).tolist()
