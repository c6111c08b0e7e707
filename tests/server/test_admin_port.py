from __future__ import annotations

import http.client
import socket
from typing import TYPE_CHECKING

import pytest

from omendb.reports import Status
from omendb.server import admin_port
from omendb.server.admin_port import AdminPort
from omendb.server.health import Health
from tests.server.clients import TIMEOUT_SECONDS, Reply, Wire, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.server.clients import RsgiClient
    from tests.server.fake_engine import FakeEngine


@pytest.fixture
def port(engine: FakeEngine) -> Iterator[AdminPort]:
    port = AdminPort("127.0.0.1", 0, engine.metrics, Health(engine))  # type: ignore[arg-type]
    port.start()
    yield port
    port.close()


def call(port: AdminPort, method: str, target: str, body: bytes | None = None) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, names, response.read())
    finally:
        connection.close()


def samples(reply: Reply) -> dict[str, float]:
    lines = [line for line in reply.body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics_tell_what_the_server_did(port: AdminPort, rsgi: RsgiClient, engine: FakeEngine) -> None:
    engine.metrics.watch_port(rsgi.port)
    body = b'{"series_id":1,"timestamp":[1,2,3],"value":[1,2,3]}'
    rsgi.call("POST", "/insert", body)
    rsgi.call("POST", "/insert", b"nonsense")
    rsgi.call("GET", "/query")
    rsgi.call("GET", "/query?limit=0")
    with rsgi.connect() as wire:
        wire.send(request("GET", "/health"))
        wire.reply()

        reply = call(port, "GET", "/metrics")

    assert reply.status == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(reply)
    assert found["omendb_inserts_total"] == 3
    assert found["omendb_insert_failures_total"] == 1
    assert found["omendb_query_failures_total"] == 1
    assert found["omendb_insert_duration_seconds_count"] == 1
    assert found["omendb_query_duration_seconds_count"] == 1
    assert found["omendb_query_duration_seconds_sum"] > 0
    assert found['omendb_query_duration_seconds_bucket{le="+Inf"}'] == 1
    assert 'omendb_query_duration_seconds_bucket{le="0.0001"}' in found
    assert found["omendb_insert_batch_size_sum"] == 3
    assert found["omendb_active_connections"] >= 1
    assert 0 < found["omendb_memory_usage_bytes"] < found["omendb_memory_limit_bytes"]
    assert found["omendb_mapped_resident_bytes"] > 0
    assert any(name.startswith("omendb_build_info{version=") for name in found)


def test_health_and_ready_are_those_of_the_other_port(port: AdminPort, engine: FakeEngine) -> None:
    assert call(port, "GET", "/health").json == {"alive": True}
    assert call(port, "GET", "/ready").json == {"ready": True}

    engine.status = Status("starting", "replaying the log", 0.5)

    reply = call(port, "GET", "/ready")
    assert (reply.status, reply.json["progress"]) == (503, 0.5)
    assert reply.headers["retry-after"] == "1"


def test_head_and_options(port: AdminPort) -> None:
    head = call(port, "HEAD", "/health")
    options = call(port, "OPTIONS", "/metrics")

    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "14")
    assert (options.status, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/query", 404),
        ("POST", "/metrics", 405),
        ("PUT", "/ready", 405),
    ],
)
def test_errors_have_the_same_shape(port: AdminPort, method: str, target: str, status: int) -> None:
    reply = call(port, method, target, b"x" if method in ("POST", "PUT") else None)

    assert reply.status == status
    assert set(reply.error) == {"code", "message"}
    assert call(port, "GET", "/health").status == 200


def test_a_query_string_changes_nothing(port: AdminPort) -> None:
    assert call(port, "GET", "/metrics?name[]=omendb_inserts_total").status == 200


def test_connections_are_kept(port: AdminPort) -> None:
    with Wire(port.port) as wire:
        for _ in range(3):
            wire.send(request("GET", "/ready"))
            assert wire.reply().status == 200


def test_a_connection_that_is_not_kept_says_so(port: AdminPort) -> None:
    # A pool of connections would use it again otherwise, while it is being closed.
    with Wire(port.port) as wire:
        wire.send(request("GET", "/ready", "connection: close"))

        assert wire.reply().headers["connection"] == "close"
        assert wire.at_end()


def test_the_longest_idle_of_too_many_connections_is_closed(
    port: AdminPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_port, "CONNECTIONS_MAX", 3)
    with Wire(port.port) as first, Wire(port.port) as idle, Wire(port.port) as third:
        for wire in (first, idle, third, first):
            wire.send(request("GET", "/ready"))
            assert wire.reply().status == 200

        assert call(port, "GET", "/health").status == 200

        assert idle.at_end()
        for wire in (first, third):
            wire.send(request("GET", "/ready"))
            assert wire.reply().status == 200


def test_garbage_does_no_harm(port: AdminPort) -> None:
    with Wire(port.port) as wire:
        wire.send(b"\x00\xff\r\n\r\n")
        wire.socket.shutdown(1)
        while wire.socket.recv(1000):
            pass

    assert call(port, "GET", "/health").status == 200


def test_a_taken_port_is_an_error(port: AdminPort, engine: FakeEngine) -> None:
    with pytest.raises(OSError, match="in use"):
        AdminPort("127.0.0.1", port.port, engine.metrics, Health(engine))  # type: ignore[arg-type]


def test_a_closed_port_is_free(engine: FakeEngine) -> None:
    port = AdminPort("127.0.0.1", 0, engine.metrics, Health(engine))  # type: ignore[arg-type]
    port.start()
    number = port.port

    port.close()

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", number))
