"""Answers that are too large for one piece."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from omendb.errors import CorruptionError
from omendb.model import Columns
from omendb.server import connection, encode, large_query
from omendb.server.work import QUERIES_MAX
from tests.server.clients import AsgiExchange, RsgiClient, Wire, request

if TYPE_CHECKING:
    from tests.server.clients import AsgiClient
    from tests.server.fake_engine import FakeEngine

    Client = RsgiClient | AsgiClient

ROWS = 100_000


@pytest.fixture
def many(engine: FakeEngine) -> FakeEngine:
    fill(engine, ROWS)
    return engine


def fill(engine: FakeEngine, count: int) -> None:
    time = np.arange(count)
    engine.load(Columns(time // 50_000, time, time / 7))


@pytest.mark.usefixtures("many")
class TestWholeAnswers:
    def test_rows(self, client: Client) -> None:
        reply = client.call("GET", "/query")

        assert reply.status == 200
        assert "content-length" not in reply.headers
        assert reply.json["count"] == len(reply.json["rows"]) == ROWS
        assert reply.json["rows"][77_777] == {
            "series_id": 1,
            "timestamp": 77_777,
            "value": 77_777 / 7,
        }
        assert reply.json["cursor"] is None

    def test_columns(self, client: Client) -> None:
        reply = client.call("GET", "/query?format=columns")

        assert reply.json["count"] == ROWS
        assert reply.json["series_id"] == [0] * 50_000 + [1] * 50_000
        assert reply.json["timestamp"] == list(range(ROWS))
        assert reply.json["value"] == (np.arange(ROWS) / 7).tolist()
        assert reply.json["cursor"] is None

    @pytest.mark.parametrize("form", ["rows", "columns"])
    def test_windows(self, client: Client, form: str) -> None:
        reply = client.call("GET", f"/query?start=0&step=2&agg=count,mean&format={form}")

        assert reply.status == 200
        means = (
            [row["mean"] for row in reply.json["rows"]] if form == "rows" else reply.json["columns"]["mean"]
        )
        assert len(means) == ROWS // 2
        assert means[100] == pytest.approx(200.5 / 7)

    def test_few_windows_over_many_rows_are_one_piece(self, client: Client) -> None:
        reply = client.call("GET", f"/query?start=0&step={ROWS}&agg=count&series_id=0")

        assert reply.json["rows"] == [{"series_id": 0, "timestamp": 0, "count": 50_000}]
        assert reply.headers["content-length"] == str(len(reply.body))

    def test_limited(self, client: Client) -> None:
        first = client.call("GET", "/query?limit=60000").json
        rest = client.call("GET", f"/query?limit=60000&cursor={first['cursor']}").json

        assert (first["count"], rest["count"]) == (60_000, 40_000)
        assert first["rows"][-1]["timestamp"] + 1 == rest["rows"][0]["timestamp"]
        assert rest["cursor"] is None

    def test_limited_columns(self, client: Client) -> None:
        first = client.call("GET", "/query?limit=60000&format=columns").json
        rest = client.call("GET", f"/query?format=columns&cursor={first['cursor']}").json

        assert first["timestamp"] + rest["timestamp"] == list(range(ROWS))

    def test_the_connection_goes_on(self, rsgi: RsgiClient, many: FakeEngine) -> None:
        with rsgi.connect() as wire:
            for _ in range(3):
                wire.send(request("GET", "/query"))
                assert wire.reply().json["count"] == ROWS
        assert many.metrics.query_duration.count == 3

    def test_head(self, client: Client) -> None:
        reply = client.call("HEAD", "/query")

        assert (reply.status, reply.body) == (200, b"")


def corruption() -> CorruptionError:
    return CorruptionError("data/0001.parquet", 4096, "checksum does not match")


class TestErrors:
    def test_at_once_get_their_status(self, client: Client, many: FakeEngine) -> None:
        many.chunk_error = corruption()

        reply = client.call("GET", "/query")

        assert (reply.status, reply.error["code"]) == (500, "data_corrupted")

    @pytest.mark.parametrize("form", ["rows", "columns"])
    def test_in_the_middle_break_the_connection(self, rsgi: RsgiClient, many: FakeEngine, form: str) -> None:
        many.chunk_error = corruption()
        many.chunk_error_after = 6

        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            rsgi.call("GET", f"/query?format={form}")

        assert many.metrics.query_failures_total.value == 1
        many.chunk_error = None
        assert rsgi.call("GET", "/query").json["count"] == ROWS

    def test_in_the_middle_never_end_an_asgi_answer(self, asgi: AsgiClient, many: FakeEngine) -> None:
        many.chunk_error = corruption()
        many.chunk_error_after = 6
        exchange = AsgiExchange("GET", "/query", None, [b""])

        with pytest.raises(CorruptionError):
            asgi.loop_thread.run(exchange.run(asgi.application))

        assert exchange.sent[-1]["more_body"]
        with pytest.raises(json.JSONDecodeError):
            json.loads(b"".join(message.get("body", b"") for message in exchange.sent))

    def test_end_without_the_end_of_the_json_when_the_socket_is_not_found(
        self, rsgi: RsgiClient, many: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "find", lambda client, server: None)
        many.chunk_error = corruption()
        many.chunk_error_after = 6

        reply = rsgi.call("GET", "/query")

        with pytest.raises(json.JSONDecodeError):
            json.loads(reply.body)


def test_a_slow_client_holds_the_server_back(rsgi: RsgiClient, engine: FakeEngine) -> None:
    fill(engine, 600_000)
    piece_bytes = encode.PIECE_ROWS * 60
    # Beyond what is on its way: pieces being sent, as many waiting, one being made, and the sockets' buffers.
    # The first ones are made twice, to see whether the answer is a short one.
    made_twice = large_query.KEPT_ROW_BYTES_MAX // (24 * encode.PIECE_ROWS) + 1
    pieces_max = 2 * large_query.PIECES_AT_ONCE + 1 + made_twice
    ahead_max = connection.BACKLOG_BYTES_MAX + pieces_max * piece_bytes + (1 << 20)
    with Wire(rsgi.port, receive_buffer=65_536) as wire:
        wire.send(request("GET", "/query"))
        received, end = 0, b""
        while not end.endswith(b"0\r\n\r\n"):
            piece = wire.socket.recv(1 << 20)
            assert piece
            received += len(piece)
            end = end[-10:] + piece[-10:]
            assert engine.chunks_made * piece_bytes - received <= ahead_max

    assert received > 30_000_000


def test_clients_that_leave_give_their_turns_back(rsgi: RsgiClient, many: FakeEngine) -> None:
    fill(many, 300_000)
    for _ in range(QUERIES_MAX + 4):
        with rsgi.connect() as wire:
            wire.send(request("GET", "/query"))
            assert wire.socket.recv(100)

    assert rsgi.call("GET", "/query").json["count"] == 300_000
    assert many.metrics.query_failures_total.value == 0
