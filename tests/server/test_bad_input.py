"""Input that must be refused: with the right status, naming the place, storing nothing, and going on."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from tests.server.clients import AsgiExchange, RsgiClient, chunked, request

if TYPE_CHECKING:
    from tests.server.clients import AsgiClient
    from tests.server.fake_engine import FakeEngine

    Client = RsgiClient | AsgiClient

POINT = b'{"series_id":1,"timestamp":10,"value":1.5}'

BODIES = {
    "empty body": (b"", None),
    "only space": (b"  \n", None),
    "not JSON": (b"series_id=1&timestamp=2&value=3", None),
    "not UTF-8": (b'{"series_id":1,"timestamp":2,"value":3,"\xff":1}', None),
    "not UTF-8 in a value": (b'{"series_id":1,"timestamp":2,"value":"\xff"}', "value"),
    "half a character": (b'{"series_id":1,"timestamp":2,"value":3,"\\ud800":1}', None),
    "compressed": (gzip.compress(POINT), None),
    "cut off": (POINT[:-1], None),
    "something after it": (POINT + b" 1", None),
    "two objects": (POINT + b"\n" + POINT, None),
    "a string": (b'"1"', None),
    "a number": (b"1", None),
    "null": (b"null", None),
    "NaN": (b'{"series_id":1,"timestamp":2,"value":NaN}', None),
    "Infinity": (b'{"series_id":1,"timestamp":2,"value":-Infinity}', None),
    "trailing comma": (b"[" + POINT + b",]", None),
    "array in array": (b"[[" + POINT + b"]]", "[0]"),
    "deep nesting": (b"[" * 10_000, "[0]"),
    "number in array": (b"[" + POINT + b",3]", "[1]"),
    "value too large": (b'{"series_id":1,"timestamp":2,"value":1e400}', "value"),
    "value is null": (b'{"series_id":1,"timestamp":2,"value":null}', "value"),
    "value is a string": (b'{"series_id":1,"timestamp":2,"value":"3"}', "value"),
    "value is an object": (b'{"series_id":1,"timestamp":2,"value":{}}', "value"),
    "value is a bool": (b'{"series_id":1,"timestamp":2,"value":true}', "value"),
    "timestamp is a string": (b'{"series_id":1,"timestamp":"2","value":3}', "timestamp"),
    "timestamp is a float": (b'{"series_id":1,"timestamp":2.5,"value":3}', "timestamp"),
    "timestamp beyond int64": (
        b'{"series_id":1,"timestamp":9223372036854775808,"value":3}',
        "timestamp",
    ),
    "timestamp below int64": (
        b'{"series_id":1,"timestamp":-9223372036854775809,"value":3}',
        "timestamp",
    ),
    "timestamp of 100 digits": (
        b'{"series_id":1,"timestamp":' + b"9" * 100 + b',"value":3}',
        "timestamp",
    ),
    "series_id beyond int64": (
        b'{"series_id":9223372036854775808,"timestamp":1,"value":3}',
        "series_id",
    ),
    "series_id negative": (b'{"series_id":-1,"timestamp":2,"value":3}', "series_id"),
    "series_id is a bool": (b'{"series_id":true,"timestamp":2,"value":3}', "series_id"),
    "series_id missing": (b'{"timestamp":2,"value":3}', "series_id"),
    "timestamp missing": (b'{"series_id":2,"value":3}', "timestamp"),
    "value missing": (b'{"series_id":2,"timestamp":3}', "value"),
    "unknown field": (b'{"series_id":1,"timestamp":2,"value":3,"tags":{}}', "tags"),
    "no field": (b"{}", "series_id"),
    "the fourth of an array": (
        b"[" + (POINT + b",") * 3 + b'{"series_id":1,"timestamp":"x","value":3}]',
        "[3].timestamp",
    ),
    "missing in an array": (b"[" + POINT + b',{"series_id":1,"timestamp":1}]', "[1].value"),
    "unknown in an array": (b"[" + POINT + b"," + POINT[:-1] + b',"x":1}]', "[1].x"),
    "negative in an array": (
        b"[" + POINT + b',{"series_id":-5,"timestamp":1,"value":1}]',
        "[1].series_id",
    ),
    "in a column": (b'{"series_id":1,"timestamp":[1,2,"x"],"value":[1,2,3]}', "timestamp[2]"),
    "negative in a column": (
        b'{"series_id":[1,-1],"timestamp":[1,2],"value":[1,2]}',
        "series_id[1]",
    ),
    "too large in a column": (b'{"series_id":1,"timestamp":[1,2],"value":[1,1e999]}', "value[1]"),
    "null in a column": (b'{"series_id":1,"timestamp":[1,2],"value":[null,1]}', "value[0]"),
    "values too few": (b'{"series_id":1,"timestamp":[1,2],"value":[1]}', "value"),
    "series too many": (b'{"series_id":[1,2,3],"timestamp":[1,2],"value":[1,2]}', "series_id"),
    "one value for many": (b'{"series_id":1,"timestamp":[1,2],"value":1}', "value"),
    "many values for one": (b'{"series_id":1,"timestamp":1,"value":[1]}', "value"),
    "many series for one": (b'{"series_id":[1],"timestamp":1,"value":1}', "series_id"),
}


@pytest.mark.parametrize(("body", "field"), BODIES.values(), ids=BODIES.keys())
def test_refuses_body(client: Client, engine: FakeEngine, body: bytes, field: str | None) -> None:
    reply = client.call("POST", "/insert", body)

    assert reply.status == 400
    assert reply.error["code"] == "invalid_request"
    assert reply.error.get("field") == field
    assert reply.error["message"]
    assert "Traceback" not in reply.error["message"]
    assert engine.points == {}
    assert engine.metrics.insert_failures_total.value == 1
    assert client.call("POST", "/insert", POINT).json == {"inserted": 1}


QUERIES = {
    "unknown parameter": ("serie=1", "serie"),
    "no value": ("series_id=", "series_id"),
    "no equals sign": ("start", "start"),
    "start is no integer": ("start=yesterday", "start"),
    "start is a float": ("start=1.5", "start"),
    "start with an underscore": ("start=1_000", "start"),
    "start with a space": ("start=%201", "start"),
    "start in other digits": ("start=%D9%A1", "start"),
    "start twice": ("start=1&start=2", "start"),
    "end beyond int64": ("end=9223372036854775808", "end"),
    "end of 1000 digits": ("end=" + "9" * 1000, "end"),
    "start after end": ("start=2&end=1", "start"),
    "series_id negative": ("series_id=-1", "series_id"),
    "series_id in a list": ("series_id=1,x", "series_id"),
    "series_id list with a hole": ("series_id=1,,2", "series_id"),
    "limit zero": ("limit=0", "limit"),
    "limit negative": ("limit=-5", "limit"),
    "cursor of nonsense": ("cursor=!!!", "cursor"),
    "cursor damaged": ("cursor=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "cursor"),
    "cursor not ASCII": ("cursor=%C3%A9", "cursor"),
    "format": ("format=csv", "format"),
    "step zero": ("step=0", "step"),
    "step negative": ("step=-10", "step"),
    "step is no integer": ("step=1h", "step"),
    "unknown aggregate": ("step=10&agg=median", "agg"),
    "aggregate twice": ("step=10&agg=mean,mean", "agg"),
    "agg without step": ("agg=mean", "agg"),
    "too many windows": ("start=0&end=1000000&step=1", "step"),
}


@pytest.mark.parametrize(("query", "field"), QUERIES.values(), ids=QUERIES.keys())
def test_refuses_query(client: Client, engine: FakeEngine, query: str, field: str) -> None:
    reply = client.call("GET", f"/query?{query}")

    assert reply.status == 400
    assert reply.error["code"] == "invalid_request"
    assert reply.error["field"] == field
    assert engine.metrics.query_failures_total.value == 1
    assert client.call("GET", "/query").status == 200


def test_refuses_cursor_of_another_query(client: Client) -> None:
    for time in range(3):
        client.call("POST", "/insert", b'{"series_id":1,"timestamp":%d,"value":1}' % time)
    cursor = client.call("GET", "/query?limit=1").json["cursor"]

    reply = client.call("GET", f"/query?start=1&cursor={cursor}")

    assert (reply.status, reply.error["field"]) == (400, "cursor")


@pytest.mark.parametrize("target", ["/nope", "/insert/", "/Query", "//query", "/admin", "/a%00b"])
def test_unknown_path(client: Client, target: str) -> None:
    reply = client.call("GET", target)

    assert reply.status == 404
    assert reply.error["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("GET", "/insert", "POST, OPTIONS"),
        ("HEAD", "/insert", "POST, OPTIONS"),
        ("PUT", "/insert", "POST, OPTIONS"),
        ("POST", "/query", "GET, HEAD, OPTIONS"),
        ("DELETE", "/query", "GET, HEAD, OPTIONS"),
        ("GET", "/admin/gc", "POST, OPTIONS"),
        ("BREW", "/health", "GET, HEAD, OPTIONS"),
    ],
)
def test_method_not_allowed(client: Client, method: str, target: str, allowed: str) -> None:
    reply = client.call(method, target, b"" if method == "POST" else None)

    assert reply.status == 405
    assert reply.headers["allow"] == allowed
    if method != "HEAD":
        assert reply.error["code"] == "method_not_allowed"


@pytest.mark.parametrize("target", ["/insert?fsync=0", "/admin/stats?x=1", "/admin/gc?dry=1"])
def test_refuses_parameters_that_a_call_does_not_have(client: Client, target: str) -> None:
    method = "GET" if "stats" in target else "POST"

    reply = client.call(method, target, POINT if "insert" in target else None)

    assert reply.status == 400


class TestBodyTooLarge:
    def test_by_its_length_before_it_is_sent(self, rsgi: RsgiClient, engine: FakeEngine) -> None:
        with rsgi.connect() as wire:
            wire.send(request("POST", "/insert", "content-length: 200001"))

            reply = wire.reply()

            assert reply.status == 413
            assert reply.error["code"] == "payload_too_large"
            assert reply.headers["connection"] == "close"
            assert wire.at_end()
        assert engine.metrics.insert_failures_total.value == 1

    def test_without_a_go_ahead(self, rsgi: RsgiClient) -> None:
        with rsgi.connect() as wire:
            wire.send(request("POST", "/insert", "expect: 100-continue", "content-length: 1000000000000"))

            assert wire.reply().status == 413

    def test_while_it_comes_in_chunks(self, rsgi: RsgiClient, engine: FakeEngine) -> None:
        with rsgi.connect() as wire:
            wire.send(request("POST", "/insert", "transfer-encoding: chunked"))
            wire.send(*chunked([b" " * 50_000] * 4))
            wire.send(*chunked([b" "]))

            reply = wire.reply()

            assert reply.status == 413
            assert reply.headers["connection"] == "close"
            assert wire.at_end()
        assert engine.points == {}
        assert rsgi.call("POST", "/insert", POINT).status == 200

    def test_exactly_the_limit_is_read(self, client: Client) -> None:
        assert client.call("POST", "/insert", POINT.ljust(200_000)).status == 200

    def test_through_asgi(self, asgi: AsgiClient, engine: FakeEngine) -> None:
        announced = AsgiExchange("POST", "/insert", {"content-length": "200001"}, [], hangs=True)
        in_pieces = AsgiExchange("POST", "/insert", None, [b" " * 100_000] * 3, hangs=True)

        for exchange in (announced, in_pieces):
            asgi.loop_thread.run(exchange.run(asgi.application))

        assert announced.reply.status == in_pieces.reply.status == 413
        assert engine.points == {}


class TestBodyThatNeverEnds:
    @pytest.mark.parametrize("sent", [b"", POINT[:20]])
    def test_of_known_length(self, rsgi: RsgiClient, engine: FakeEngine, sent: bytes) -> None:
        with rsgi.connect() as wire:
            wire.send(request("POST", "/insert", f"content-length: {len(POINT)}", body=sent))

            reply = wire.reply()

            assert reply.status == 408
            assert reply.error["code"] == "request_timeout"
            assert reply.headers["connection"] == "close"
            assert wire.at_end()
        assert engine.points == {}
        assert engine.metrics.insert_failures_total.value == 1

    def test_in_chunks(self, rsgi: RsgiClient, engine: FakeEngine) -> None:
        with rsgi.connect() as wire:
            wire.send(request("POST", "/insert", "transfer-encoding: chunked"))
            wire.send(*chunked([POINT]))  # complete as JSON, but not as a body

            reply = wire.reply()

            assert reply.status == 408
            assert wire.at_end()
        assert engine.points == {}

    def test_many_at_once_do_not_keep_others_out(self, rsgi: RsgiClient, engine: FakeEngine) -> None:
        wires = [rsgi.connect() for _ in range(200)]
        for wire in wires:
            wire.send(request("POST", "/insert", "content-length: 100", body=b"{"))

        assert rsgi.call("POST", "/insert", POINT).status == 200
        for wire in wires:
            assert wire.reply().status == 408
            wire.close()
        assert engine.metrics.insert_failures_total.value == 200

    def test_through_asgi(self, asgi: AsgiClient, engine: FakeEngine) -> None:
        exchange = AsgiExchange("POST", "/insert", None, [POINT], hangs=True)

        asgi.loop_thread.run(exchange.run(asgi.application))

        assert exchange.reply.status == 408
        assert engine.points == {}


class TestBodyCutShort:
    def test_of_known_length(self, rsgi: RsgiClient, engine: FakeEngine) -> None:
        with rsgi.connect() as wire:
            wire.send(request("POST", "/insert", f"content-length: {len(POINT) + 1}", body=POINT))
            wire.socket.shutdown(1)

            assert wire.reply().status == 400
        assert engine.points == {}

    def test_in_chunks(self, rsgi: RsgiClient, engine: FakeEngine) -> None:
        with rsgi.connect() as wire:
            wire.send(request("POST", "/insert", "transfer-encoding: chunked"))
            wire.send(*chunked([POINT]))
            wire.socket.shutdown(1)

            assert wire.reply().status == 400
        assert engine.points == {}

    def test_in_chunks_that_are_none(self, rsgi: RsgiClient, engine: FakeEngine) -> None:
        with rsgi.connect() as wire:
            wire.send(request("POST", "/insert", "transfer-encoding: chunked"))
            wire.send(*chunked([POINT]), b"zz\r\n")

            assert wire.reply().status == 400
        assert engine.points == {}

    def test_through_asgi(self, asgi: AsgiClient, engine: FakeEngine) -> None:
        exchange = AsgiExchange("POST", "/insert", None, [POINT], leaves=True)

        asgi.loop_thread.run(exchange.run(asgi.application))

        assert exchange.reply.status == 400
        assert engine.points == {}


def test_body_in_chunks_is_read(rsgi: RsgiClient, engine: FakeEngine) -> None:
    with rsgi.connect() as wire:
        wire.send(request("POST", "/insert", "transfer-encoding: chunked"))
        wire.send(*chunked([POINT[:7], POINT[7:20], POINT[20:]]), b"0\r\n\r\n")

        assert wire.reply().json == {"inserted": 1}
        # The connection goes on.
        wire.send(request("GET", "/health"))
        assert wire.reply().status == 200


def test_body_without_length_is_empty(rsgi: RsgiClient) -> None:
    with rsgi.connect() as wire:
        wire.send(request("POST", "/insert"))

        reply = wire.reply()

    assert (reply.status, reply.error["message"]) == (400, "the body is empty")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /insert HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /insert HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
    ],
)
def test_what_is_not_http_ends_its_connection_only(rsgi: RsgiClient, garbage: bytes) -> None:
    with rsgi.connect() as wire:
        wire.send(garbage)
        wire.socket.shutdown(1)
        while wire.socket.recv(65_536):
            pass

    assert rsgi.call("GET", "/health").status == 200


def test_unexpected_errors_tell_the_client_nothing(
    client: Client, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.submit_error = ZeroDivisionError("secret")  # type: ignore[assignment]

    reply = client.call("POST", "/insert", POINT)

    assert reply.status == 500
    assert reply.error == {
        "code": "internal_error",
        "message": "internal error; the server's log has the details",
    }
    assert "ZeroDivisionError: secret" in caplog.text
