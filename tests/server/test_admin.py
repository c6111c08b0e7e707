from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from omendb.config import SPECS

if TYPE_CHECKING:
    from tests.server.clients import AsgiClient, Reply, RsgiClient
    from tests.server.fake_engine import FakeEngine

    Client = RsgiClient | AsgiClient


def test_stats(client: Client) -> None:
    client.call("POST", "/insert", b'{"series_id":1,"timestamp":[1,2],"value":[1,2]}')

    reply = client.call("GET", "/admin/stats")

    assert reply.status == 200
    assert reply.json["record_count"] == 2


def test_index_stats(client: Client) -> None:
    assert client.call("GET", "/admin/index-stats").json["max_error"] == 64


def test_config(client: Client, engine: FakeEngine) -> None:
    engine.settings = engine.settings.with_changes(max_error=50, enable_simd=False)

    settings = client.call("GET", "/admin/config").json

    assert settings.keys() == SPECS.keys()
    assert settings["max_error"] == {"value": 50, "source": "argument", "live": True}
    assert settings["enable_simd"] == {"value": False, "source": "argument", "live": True}
    assert settings["token_dir"] == {"value": "/etc/omendb/tokens", "source": "default", "live": False}


@pytest.mark.parametrize(("body", "max_error"), [(None, None), (b"{}", None), (b'{"max_error":0}', 0)])
def test_retrain(client: Client, body: bytes | None, max_error: int | None) -> None:
    reply = client.call("POST", "/admin/retrain-index", body)

    assert reply.status == 200
    assert reply.json["max_error"] == max_error


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"max_error":-1}', "max_error"),
        (b'{"max_error":1.5}', "max_error"),
        (b'{"max_error":99999999999999999999}', "max_error"),
        (b'{"max_errors":1}', "max_errors"),
        (b"[]", None),
        (b"nonsense", None),
    ],
)
def test_retrain_refuses(client: Client, engine: FakeEngine, body: bytes, field: str | None) -> None:
    reply = client.call("POST", "/admin/retrain-index", body)

    assert reply.status == 400
    assert reply.error.get("field") == field
    assert engine.admin_calls == 0


@pytest.mark.parametrize("body", [None, b"{}"])
def test_gc(client: Client, engine: FakeEngine, body: bytes | None) -> None:
    assert client.call("POST", "/admin/gc", body).json["calls"] == 1
    assert engine.admin_calls == 1


def test_gc_takes_no_arguments(client: Client, engine: FakeEngine) -> None:
    assert client.call("POST", "/admin/gc", b'{"x":1}').error["field"] == "x"
    assert engine.admin_calls == 0


def test_one_call_at_a_time_and_the_others_go_on(client: Client, engine: FakeEngine) -> None:
    engine.may_admin.clear()
    replies: list[Reply] = []

    def collect() -> None:
        replies.append(client.call("POST", "/admin/gc"))

    callers = [threading.Thread(target=collect) for _ in range(3)]
    for caller in callers:
        caller.start()
    inserted = client.call("POST", "/insert", b'{"series_id":1,"timestamp":1,"value":1}')
    queried = client.call("GET", "/query")
    assert not replies

    engine.may_admin.set()
    for caller in callers:
        caller.join()

    assert (inserted.status, queried.status) == (200, 200)
    assert [reply.status for reply in replies] == [200, 200, 200]
    assert engine.admin_calls == 3
    assert engine.admin_running_max == 1


def test_index_names_the_calls(client: Client) -> None:
    reply = client.call("GET", "/")

    assert reply.json["name"] == "OmenDB"
    assert reply.json["version"]
    assert "POST /insert" in reply.json["calls"]
