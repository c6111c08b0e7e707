"""`max_connections` and `session_timeout_seconds`: real connections to a real server."""

from __future__ import annotations

import contextlib
import resource
import time
from typing import TYPE_CHECKING

import pytest

from omendb.metrics import Counter
from omendb.server.connections import Connections
from tests.server.clients import Wire, request
from tests.serving import start_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.server.clients import Reply, RsgiClient
    from tests.server.fake_engine import FakeEngine

HEALTH = request("GET", "/health")
INDEX = request("GET", "/")


@pytest.fixture
def wires(rsgi: RsgiClient) -> Iterator[Wires]:
    opened = Wires(rsgi.port)
    yield opened
    opened.close()


class Wires:
    def __init__(self, port: int) -> None:
        self._port = port
        self._stack = contextlib.ExitStack()

    def open(self) -> Wire:
        return self._stack.enter_context(Wire(self._port))

    def close(self) -> None:
        self._stack.close()


def ask(wire: Wire, what: bytes = INDEX) -> Reply:
    wire.send(what)
    return wire.reply()


def limit(engine: FakeEngine, count: int) -> None:
    engine.settings = engine.settings.with_changes(max_connections=count)


def test_further_connections_are_refused_and_existing_ones_go_on(wires: Wires, engine: FakeEngine) -> None:
    limit(engine, 3)
    existing = [wires.open() for _ in range(3)]
    assert [ask(wire).status for wire in existing] == [200, 200, 200]

    further = wires.open()
    reply = ask(further)

    assert reply.status == 503
    assert reply.error["code"] == "too_many_connections"
    assert "max_connections" in reply.error["message"]
    assert reply.headers["retry-after"] == "1"
    assert further.at_end()
    assert engine.metrics.connections_refused_total.value == 1
    assert [ask(wire).status for wire in existing] == [200, 200, 200]


def test_whoever_leaves_makes_room(wires: Wires, rsgi: RsgiClient, engine: FakeEngine) -> None:
    limit(engine, 2)
    assert [ask(wires.open()).status for _ in range(2)] == [200, 200]
    assert ask(wires.open()).status == 503

    wires.close()

    # The server must have seen the end of the others.
    while ask(wires.open()).status != 200:
        pass


def test_the_limit_is_live(wires: Wires, engine: FakeEngine) -> None:
    limit(engine, 2)
    existing = [wires.open() for _ in range(2)]
    assert [ask(wire).status for wire in existing] == [200, 200]
    assert ask(wires.open()).status == 503

    limit(engine, 4)
    existing += [wires.open() for _ in range(2)]
    assert [ask(wire).status for wire in existing] == [200] * 4
    assert ask(wires.open()).status == 503

    limit(engine, 1)
    assert [ask(wire).status for wire in existing] == [200] * 4
    assert ask(wires.open()).status == 503


def test_probes_are_answered_when_there_is_no_room(wires: Wires, engine: FakeEngine) -> None:
    limit(engine, 1)
    assert ask(wires.open()).status == 200

    assert ask(wires.open(), HEALTH).status == 200
    assert ask(wires.open()).status == 503


def test_connections_that_never_send_anything_count(wires: Wires, engine: FakeEngine) -> None:
    limit(engine, 4)
    first = wires.open()
    assert ask(first).status == 200
    silent = [wires.open() for _ in range(20)]

    # All but three are closed; which ones the server decides.
    closed = 0
    while closed < 17:
        time.sleep(0.01)
        closed = engine.metrics.connections_refused_total.value
    left = []
    for wire in silent:
        wire.socket.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            data = wire.socket.recv(1_000)
            assert not data or data.startswith(b"HTTP/1.1 503 ")
            continue
        wire.socket.settimeout(30)
        left.append(wire)

    assert len(left) == 3
    assert [ask(wire).status for wire in (first, *left)] == [200] * 4
    assert ask(wires.open()).status == 503
    assert engine.metrics.connections_refused_total.value == 18


def test_a_server_that_does_not_tell_addresses_has_no_limit() -> None:
    connections = Connections(lambda: 1, Counter("refused_total", ""))

    assert all(connections.admit(client) for client in ("", "unix:", "nobody"))


@pytest.mark.parametrize(
    ("one", "same"),
    [("[::ffff:10.0.0.1]:80", "10.0.0.1:80"), ("[fe80::1%2]:80", "[fe80::1%eth0]:80")],
)
def test_an_address_is_known_in_each_of_its_forms(one: str, same: str) -> None:
    connections = Connections(lambda: 1, Counter("refused_total", ""))

    assert connections.admit(one)
    assert connections.admit(same)
    assert not connections.admit("10.0.0.1:81")


def test_a_thousand_connections_and_then_two(tmp_path: Path) -> None:
    """What an operator tries: 1,200 clients at the default limit, then a higher one without a restart."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4_096:
        pytest.skip(f"only {hard} files may be open here (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with (
            start_server(tmp_path / "data", "--max-connections=1000") as server,
            contextlib.closing(Wires(server.port)) as wires,
        ):
            replies = [(wire, ask(wire).status) for wire in (wires.open() for _ in range(1_200))]

            served = [wire for wire, status in replies if status == 200]
            assert len(served) == 1_000
            assert [status for _, status in replies[1_000:]] == [503] * 200
            assert all(ask(wire, INDEX).status == 200 for wire in served)
            with Wire(server.metrics_port) as wire:
                assert ask(wire, HEALTH).status == 200
            with Wire(server.metrics_port) as wire:
                text = ask(wire, request("GET", "/metrics")).body.decode()
            assert "omendb_connections_refused_total 200.0" in text
            assert ask(wires.open(), request("GET", "/ready")).status == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_idle_connections_are_closed_after_the_session_timeout(tmp_path: Path) -> None:
    with start_server(tmp_path / "data", "--session-timeout-seconds=1") as server:
        with Wire(server.port) as used, Wire(server.port) as silent, Wire(server.port) as slow:
            assert ask(used).status == 200
            slow.send(INDEX[:10])

            assert used.at_end()
            assert silent.at_end()
            assert slow.at_end()
        assert server.get("/query")["count"] == 0
