"""A fake engine, and the server around it in both forms."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from omendb.config import Settings
from omendb.server.app import Application
from tests.server.clients import AsgiClient, RsgiClient
from tests.server.fake_engine import FakeEngine

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    engine = FakeEngine(Settings(max_body_bytes=200_000, body_timeout_ms=1_000))
    engine.start()
    yield engine
    for event in (engine.may_start, engine.may_commit, engine.may_admin):
        event.set()
    engine.close()


@pytest.fixture
def rsgi(engine: FakeEngine) -> Iterator[RsgiClient]:
    client = RsgiClient(Application(engine))
    yield client
    client.close()


@pytest.fixture(params=["127.0.0.1", "0.0.0.0", "::"])  # as `omendb serve` does by default
def rsgi_anywhere(request: pytest.FixtureRequest, engine: FakeEngine) -> Iterator[RsgiClient]:
    """A server whose connections have another address than the one that it listens on, or the same."""
    if request.param == "::":
        try:
            socket.create_server(("::", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6")
    client = RsgiClient(Application(engine), request.param)
    yield client
    client.close()


@pytest.fixture
def asgi(engine: FakeEngine) -> Iterator[AsgiClient]:
    client = AsgiClient(Application(engine))
    yield client
    client.close()


@pytest.fixture(params=["rsgi", "asgi"])
def client(request: pytest.FixtureRequest) -> RsgiClient | AsgiClient:
    """Each way into the application."""
    made = request.getfixturevalue(request.param)
    assert isinstance(made, RsgiClient | AsgiClient)
    return made
