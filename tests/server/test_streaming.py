"""Answers that are too large for one piece."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from omendb.errors import CorruptionError
from omendb.model import Columns
from omendb.server import connection, encode, large_query
from omendb.server.work import QUERIES_MAX, Turns
from tests.server.clients import TIMEOUT_SECONDS, AsgiExchange, RsgiClient, Wire, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server.clients import AsgiClient
    from tests.server.fake_engine import FakeEngine

    Client = RsgiClient | AsgiClient

ROWS = 100_000


def wait_until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + TIMEOUT_SECONDS
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.005)


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
    def test_in_the_middle_break_the_connection(
        self, rsgi_anywhere: RsgiClient, many: FakeEngine, form: str
    ) -> None:
        many.chunk_error = corruption()
        many.chunk_error_after = 6

        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            rsgi_anywhere.call("GET", f"/query?format={form}")

        assert many.metrics.query_failures_total.value == 1
        many.chunk_error = None
        assert rsgi_anywhere.call("GET", "/query").json["count"] == ROWS

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


def test_a_slow_client_holds_the_server_back(rsgi_anywhere: RsgiClient, engine: FakeEngine) -> None:
    fill(engine, 600_000)
    piece_bytes = encode.PIECE_ROWS * 60
    # Beyond what is on its way: pieces being sent, as many waiting, one being made, and the sockets' buffers.
    # The first ones are made twice, to see whether the answer is a short one.
    made_twice = large_query.KEPT_ROW_BYTES_MAX // (24 * encode.PIECE_ROWS) + 1
    pieces_max = 2 * large_query.PIECES_AT_ONCE + 1 + made_twice
    ahead_max = connection.BACKLOG_BYTES_MAX + pieces_max * piece_bytes + (1 << 20)
    with Wire(rsgi_anywhere.port, receive_buffer=65_536) as wire:
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


def test_a_client_on_the_port_of_one_who_left_is_left_alone(
    rsgi_anywhere: RsgiClient, many: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query waits, its client leaves, another one gets the port: the answer must not break that one off."""
    waits, goes_on, ended = (threading.Event() for _ in range(3))
    begin, close = large_query._begin, large_query.QueryPieces.close

    def begin_late(*arguments: Any) -> Any:
        waits.set()
        assert goes_on.wait(TIMEOUT_SECONDS)
        return begin(*arguments)

    def close_and_tell(pieces: large_query.QueryPieces, error: BaseException | None = None) -> None:
        close(pieces, error)
        ended.set()

    monkeypatch.setattr(large_query, "_begin", begin_late)
    monkeypatch.setattr(large_query.QueryPieces, "close", close_and_tell)
    with socket.socket() as probe:  # what `connect` chooses may be in use towards another server
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Wire(rsgi_anywhere.port, source_port=port) as leaver:
        leaver.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        leaver.send(request("GET", "/query"))
        assert waits.wait(TIMEOUT_SECONDS)
    with Wire(rsgi_anywhere.port, source_port=port) as other:
        other.send(request("GET", "/health"))
        assert other.reply().status == 200
        goes_on.set()
        assert ended.wait(TIMEOUT_SECONDS)
        assert rsgi_anywhere.call("GET", "/query").json["count"] == ROWS  # in the same loop, so afterwards

        other.send(request("GET", "/health"))
        assert other.reply().status == 200
    assert many.metrics.query_failures_total.value == 0


def test_a_query_whose_client_left_before_its_turn_is_not_begun(
    rsgi_anywhere: RsgiClient, many: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    begun: list[object] = []
    ended: list[int] = []
    waiting: list[object] = []
    begin, end, take = large_query._begin, large_query.Noted.end, Turns.take

    def begin_late(*arguments: Any) -> Any:
        begun.append(arguments)
        assert goes_on.wait(TIMEOUT_SECONDS)
        return begin(*arguments)

    def end_and_tell(noted: large_query.Noted, rows: int, error: BaseException | None) -> None:
        end(noted, rows, error)
        ended.append(rows)

    monkeypatch.setattr(large_query, "_begin", begin_late)

    async def take_and_tell(turns: Turns) -> bool:
        waiting.append(turns)
        return await take(turns)

    monkeypatch.setattr(large_query.Noted, "end", end_and_tell)
    monkeypatch.setattr(Turns, "take", take_and_tell)
    with contextlib.ExitStack() as stack:
        stack.callback(goes_on.set)
        holders = [stack.enter_context(Wire(rsgi_anywhere.port)) for _ in range(QUERIES_MAX)]
        for wire in holders:
            wire.send(request("GET", "/query"))
        leavers = [stack.enter_context(Wire(rsgi_anywhere.port)) for _ in range(5)]
        for wire in leavers:
            wire.send(request("GET", "/query"))
        stays = stack.enter_context(Wire(rsgi_anywhere.port))
        stays.send(request("GET", "/query"))
        wait_until(lambda: len(waiting) == QUERIES_MAX + 6)
        addresses = [f"127.0.0.1:{wire.socket.getsockname()[1]}" for wire in leavers]
        for wire in leavers:
            wire.close()
        for address in addresses:
            wait_until(partial(connection.has_left, address, f"127.0.0.1:{rsgi_anywhere.port}"))
        goes_on.set()

        for wire in (*holders, stays):
            assert wire.reply().json["count"] == ROWS
        assert len(begun) == QUERIES_MAX + 1
        assert ended.count(0) == 5
        assert many.metrics.query_failures_total.value == 0
