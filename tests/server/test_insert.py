from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest

from omendb.errors import DiskFullError, OverloadedError, WalFailedError
from omendb.server import handlers
from tests.server.clients import RsgiClient, request

if TYPE_CHECKING:
    from tests.server.clients import AsgiClient
    from tests.server.fake_engine import FakeEngine

    Client = RsgiClient | AsgiClient

POINT = b'{"series_id":1,"timestamp":10,"value":1.5}'


@pytest.mark.parametrize(
    ("body", "points"),
    [
        (POINT, {(1, 10): 1.5}),
        (b' [{"value":2,"series_id":3,"timestamp":-4}]', {(3, -4): 2.0}),
        (
            b'[{"series_id":1,"timestamp":1,"value":1},{"series_id":1,"timestamp":1,"value":2}]',
            {(1, 1): 2.0},
        ),
        (b'{"series_id":7,"timestamp":[1,2],"value":[0.5,1e3]}', {(7, 1): 0.5, (7, 2): 1000.0}),
        (b'{"series_id":[1,2],"timestamp":[1,2],"value":[3,4]}', {(1, 1): 3.0, (2, 2): 4.0}),
        (
            b'{"series_id":9223372036854775807,"timestamp":-9223372036854775808,"value":-0.0}',
            {(2**63 - 1, -(2**63)): 0.0},
        ),
    ],
)
def test_stores_each_form_of_body(
    client: Client, engine: FakeEngine, body: bytes, points: dict[tuple[int, int], float]
) -> None:
    reply = client.call("POST", "/insert", body)

    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["inserted"] >= len(points)
    assert engine.points == points


@pytest.mark.parametrize("body", [b"[]", b'{"series_id":[],"timestamp":[],"value":[]}'])
def test_nothing_to_insert_is_no_error(client: Client, engine: FakeEngine, body: bytes) -> None:
    reply = client.call("POST", "/insert", body)

    assert (reply.status, reply.json) == (200, {"inserted": 0})
    assert engine.points == {}


@pytest.fixture
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read bodies of this size in threads already."""
    monkeypatch.setattr(handlers, "INLINE_BODY_BYTES", 1_000)


@pytest.mark.usefixtures("_threads")
def test_stores_a_body_that_is_read_in_a_thread(client: Client, engine: FakeEngine) -> None:
    times = list(range(9_000))
    body = json.dumps({"series_id": 1, "timestamp": times, "value": times}).encode()

    reply = client.call("POST", "/insert", body)

    assert reply.json == {"inserted": len(times)}
    assert len(engine.points) == len(times)


@pytest.mark.usefixtures("_threads")
def test_refuses_a_bad_body_that_is_read_in_a_thread(client: Client, engine: FakeEngine) -> None:
    times = list(range(9_000))
    body = json.dumps({"series_id": 1, "timestamp": times, "value": [*times[:-1], "x"]}).encode()

    reply = client.call("POST", "/insert", body)

    assert (reply.status, reply.error["field"]) == (400, "value[8999]")
    assert engine.points == {}


def test_answers_only_after_the_commit(rsgi: RsgiClient, engine: FakeEngine) -> None:
    engine.may_commit.clear()
    with rsgi.connect() as wire:
        wire.send(request("POST", "/insert", f"content-length: {len(POINT)}", body=POINT))
        engine.submitted.acquire()
        wire.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            wire.socket.recv(1)
        wire.socket.setblocking(True)

        engine.may_commit.set()

        assert wire.reply().json == {"inserted": 1}


def test_answers_all_inserts_of_a_group(rsgi: RsgiClient, engine: FakeEngine) -> None:
    engine.may_commit.clear()
    wires = [rsgi.connect() for _ in range(100)]
    for index, wire in enumerate(wires):
        body = b'{"series_id":%d,"timestamp":1,"value":1}' % index
        wire.send(request("POST", "/insert", f"content-length: {len(body)}", body=body))
    for _ in wires:
        engine.submitted.acquire()

    engine.may_commit.set()

    for wire in wires:
        assert wire.reply().json == {"inserted": 1}
        wire.close()
    assert len(engine.points) == 100
    assert engine.metrics.inserts_total.value == 100


def test_tells_when_points_are_not_synced_yet(client: Client, engine: FakeEngine) -> None:
    engine.settings = engine.settings.with_changes(sync_interval_ms=500)

    reply = client.call("POST", "/insert", POINT)

    assert reply.json == {"inserted": 1, "synced_within_ms": 500}


@pytest.mark.parametrize(("before", "after"), [(0, 500), (500, 0)])
def test_tells_it_when_the_interval_changes_on_the_way(
    rsgi: RsgiClient, engine: FakeEngine, before: int, after: int
) -> None:
    engine.settings = engine.settings.with_changes(sync_interval_ms=before)
    engine.may_commit.clear()
    with rsgi.connect() as wire:
        wire.send(request("POST", "/insert", f"content-length: {len(POINT)}", body=POINT))
        engine.submitted.acquire()

        engine.settings = engine.settings.with_changes(sync_interval_ms=after)
        engine.may_commit.set()

        assert wire.reply().json == {"inserted": 1, "synced_within_ms": 500}


def test_answers_pipelined_inserts_in_order(rsgi: RsgiClient, engine: FakeEngine) -> None:
    bodies = [
        b'[{"series_id":1,"timestamp":1,"value":1},{"series_id":1,"timestamp":2,"value":2}]',
        b"{}",
        POINT,
    ]
    with rsgi.connect() as wire:
        wire.send(
            b"".join(request("POST", "/insert", f"content-length: {len(body)}", body=body) for body in bodies)
        )

        replies = [wire.reply() for _ in bodies]

    assert [reply.status for reply in replies] == [200, 400, 200]
    assert replies[0].json == {"inserted": 2}
    assert len(engine.points) == 3


def test_many_clients_on_kept_connections(rsgi: RsgiClient, engine: FakeEngine) -> None:
    failures: list[object] = []

    def insert(series_id: int) -> None:
        with rsgi.connect() as wire:
            for time in range(50):
                body = b'{"series_id":%d,"timestamp":%d,"value":1}' % (series_id, time)
                wire.send(request("POST", "/insert", f"content-length: {len(body)}", body=body))
                reply = wire.reply()
                if (reply.status, reply.body) != (200, b'{"inserted":1}'):
                    failures.append(reply)

    threads = [threading.Thread(target=insert, args=(series_id,)) for series_id in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    assert len(engine.points) == 400


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (OverloadedError("memory is short", retry_after_seconds=7), 503, "7"),
        (DiskFullError("no space"), 507, None),
        (WalFailedError("sync failed"), 503, "1"),
    ],
)
@pytest.mark.parametrize("where", ["submit_error", "commit_error"])
def test_tells_the_engines_errors(
    client: Client,
    engine: FakeEngine,
    where: str,
    error: OverloadedError,
    status: int,
    retry_after: str | None,
) -> None:
    setattr(engine, where, error)

    reply = client.call("POST", "/insert", POINT)

    assert reply.status == status
    assert reply.headers.get("retry-after") == retry_after
    assert reply.error == {"code": error.code, "message": str(error)}
    assert engine.metrics.insert_failures_total.value == 1
    assert engine.metrics.inserts_total.value == 0


def test_a_client_that_leaves_before_the_answer_does_no_harm(rsgi: RsgiClient, engine: FakeEngine) -> None:
    engine.may_commit.clear()
    with rsgi.connect() as wire:
        wire.send(request("POST", "/insert", f"content-length: {len(POINT)}", body=POINT))
        engine.submitted.acquire()

    engine.may_commit.set()

    assert rsgi.call("POST", "/insert", POINT).json == {"inserted": 1}


def test_half_closed_connection_is_all_or_nothing(rsgi: RsgiClient, engine: FakeEngine) -> None:
    with rsgi.connect() as wire:
        wire.send(request("POST", "/insert", f"content-length: {len(POINT)}", body=POINT))
        wire.socket.shutdown(1)

    assert rsgi.call("GET", "/health").status == 200
    assert engine.points in ({}, {(1, 10): 1.5})
