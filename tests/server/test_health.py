from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from omendb.errors import WalFailedError
from omendb.reports import Status
from omendb.server.app import Application
from tests.server.clients import AsgiClient
from tests.server.fake_engine import FakeEngine

if TYPE_CHECKING:
    from tests.server.clients import RsgiClient

    Client = RsgiClient | AsgiClient

DATA_CALLS = [
    ("POST", "/insert"),
    ("GET", "/query"),
    ("GET", "/admin/stats"),
    ("GET", "/admin/index-stats"),
    ("POST", "/admin/retrain-index"),
    ("POST", "/admin/gc"),
]


def test_ready(client: Client) -> None:
    assert client.call("GET", "/health").json == {"alive": True}
    assert client.call("GET", "/ready").json == {"ready": True}
    assert client.call("HEAD", "/ready").status == 200


def test_while_starting(client: Client, engine: FakeEngine) -> None:
    engine.status = Status("starting", "replaying the log", 0.25)

    ready = client.call("GET", "/ready")

    assert client.call("GET", "/health").status == 200
    assert ready.status == 503
    assert ready.headers["retry-after"] == "1"
    assert ready.json == {
        "ready": False,
        "phase": "starting",
        "message": "replaying the log",
        "progress": 0.25,
    }


@pytest.mark.parametrize(("method", "target"), DATA_CALLS)
def test_data_waits_for_the_start(client: Client, engine: FakeEngine, method: str, target: str) -> None:
    engine.status = Status("starting", "replaying the log", 0.25)

    reply = client.call(method, target, b"{}" if method == "POST" else None)

    assert reply.status == 503
    assert reply.error["code"] == "not_ready"
    assert "replaying the log (25%)" in reply.error["message"]
    assert reply.headers["retry-after"] == "1"


def test_after_a_failure(client: Client, engine: FakeEngine) -> None:
    engine.status = Status("failed", "sync failed", 0.0)
    engine.submit_error = WalFailedError("sync failed")

    ready = client.call("GET", "/ready")
    insert = client.call("POST", "/insert", b'{"series_id":1,"timestamp":1,"value":1}')

    assert (ready.status, ready.json["phase"]) == (503, "failed")
    assert (insert.status, insert.error["code"]) == (503, "storage_failed")


def test_while_stopping(client: Client) -> None:
    client.application.health.stopping = True

    ready = client.call("GET", "/ready")

    assert (ready.status, ready.json["phase"]) == (503, "stopping")
    # What still comes is served.
    assert client.call("GET", "/query").status == 200


class TestLifespan:
    async def _live(self, application: Application) -> list[str]:
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
        sent: list[str] = []

        async def receive() -> dict[str, str]:
            return next(messages)

        async def send(message: dict[str, str]) -> None:
            sent.append(message["type"])
            if message["type"] == "lifespan.startup.complete":
                while application.engine.status.phase in ("new", "starting"):
                    pass

        await application({"type": "lifespan"}, receive, send)  # type: ignore[arg-type]
        return sent

    def test_starts_and_closes_the_engine_that_it_owns(self) -> None:
        engine = FakeEngine()
        client = AsgiClient(Application(engine, owns_engine=True))  # type: ignore[arg-type]

        sent = client.loop_thread.run(self._live(client.application))

        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert engine.closed.is_set()
        client.close()

    def test_leaves_an_engine_alone_that_it_does_not_own(self, engine: FakeEngine) -> None:
        client = AsgiClient(Application(engine))  # type: ignore[arg-type]

        client.loop_thread.run(self._live(client.application))

        assert engine.status.phase == "ready"
        assert client.application.health.stopping
        client.close()


def test_websockets_are_closed(asgi: AsgiClient) -> None:
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    asgi.loop_thread.run(asgi.application({"type": "websocket"}, None, send))  # type: ignore[arg-type]

    assert sent == [{"type": "websocket.close", "code": 1000}]
