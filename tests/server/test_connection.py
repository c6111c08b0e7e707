from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from omendb.server import connection
from omendb.server.connection import BACKLOG_BYTES_MAX, Pacer
from omendb.server.request import DisconnectedError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's and the server's end of a connection."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family) as listener:
        try:
            listener.bind((request.param, 0))
        except OSError:
            pytest.skip("no IPv6")
        listener.listen()
        with socket.socket(family) as client:
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            with server:
                yield client, server


def text(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def test_finds_the_servers_end(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair

    found = connection.find(text(server.getpeername()), text(server.getsockname()))

    assert found is not None
    before = found.acknowledged_bytes()
    server.sendall(b"x" * 1000)
    assert client.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
    assert before is not None
    while (after := found.acknowledged_bytes()) == before:
        pass
    assert after == before + 1000
    found.close()
    server.sendall(b"goes on")
    assert client.recv(100) == b"goes on"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # nothing listens on it
def test_finds_the_end_of_a_server_that_listens_on_all_addresses(
    pair: tuple[socket.socket, socket.socket], host: str
) -> None:
    client, server = pair
    remote, port = text(client.getsockname()), server.getsockname()[1]

    found = connection.find(remote, text((host, port)))

    assert found is not None
    found.close()
    assert connection.find(remote, text((host, port + 1))) is None


def test_finds_an_ipv4_client_of_a_socket_that_listens_on_both() -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server, address = listener.accept()
            with server:
                assert address[0] == "::ffff:127.0.0.1"
                for host in (address[0], "127.0.0.1"):
                    found = connection.find(text((host, address[1])), f"[::]:{port}")
                    assert found is not None
                    found.close()
            assert client.recv(1) == b""


def test_tells_who_has_left(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    addresses = text(server.getpeername()), text(server.getsockname())
    assert not connection.has_left(*addresses)

    client.close()
    server.close()

    assert connection.has_left(*addresses)
    assert not connection.has_left("unix:", addresses[1])  # not to be known


def test_aborting_breaks_the_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    found = connection.find(text(server.getpeername()), text(server.getsockname()))
    assert found is not None
    assert found.is_open()

    found.abort()

    with pytest.raises(BrokenPipeError):
        server.sendall(b"the end of a body")
    assert not found.is_open()
    found.abort()  # once more does no harm
    found.close()
    assert client.recv(100) == b""


@pytest.mark.parametrize("address", ["127.0.0.1:1", "", "nonsense", "[::1]:1"])
def test_finds_nothing_where_nothing_is(address: str) -> None:
    assert connection.find(address, "127.0.0.1:3000") is None


class FakeConnection:
    def __init__(self, acknowledged: list[int | None]) -> None:
        self._acknowledged = acknowledged
        self.reads = 0
        self.open = True

    def acknowledged_bytes(self) -> int | None:
        self.reads += 1
        return self._acknowledged.pop(0) if len(self._acknowledged) > 1 else self._acknowledged[0]

    def is_open(self) -> bool:
        return self.open


def test_the_pacer_waits_until_the_client_has_taken_enough() -> None:
    fake = FakeConnection([100, 100, 100, 100 + BACKLOG_BYTES_MAX, 101 + BACKLOG_BYTES_MAX])

    asyncio.run(Pacer(fake).sent(2 * BACKLOG_BYTES_MAX + 1))  # type: ignore[arg-type]

    assert fake.reads == 5


def test_the_pacer_asks_only_when_the_client_may_be_too_far_behind() -> None:
    fake = FakeConnection([7, 7 + BACKLOG_BYTES_MAX])

    async def send() -> list[int]:
        pacer, reads = Pacer(fake), []  # type: ignore[arg-type]
        for count in (BACKLOG_BYTES_MAX, 1, BACKLOG_BYTES_MAX - 1):
            await pacer.sent(count)
            reads.append(fake.reads)
        return reads

    assert asyncio.run(send()) == [1, 2, 2]


def test_the_pacer_gives_a_client_up_that_left() -> None:
    fake = FakeConnection([0])
    fake.open = False

    with pytest.raises(DisconnectedError, match="left"):
        asyncio.run(Pacer(fake).sent(BACKLOG_BYTES_MAX + 1))  # type: ignore[arg-type]


def test_the_pacer_gives_a_client_up_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.0)

    with pytest.raises(DisconnectedError, match="took nothing"):
        asyncio.run(Pacer(FakeConnection([0])).sent(BACKLOG_BYTES_MAX + 1))  # type: ignore[arg-type]


def test_the_pacer_lets_everything_through_where_the_kernel_cannot_tell() -> None:
    asyncio.run(Pacer(FakeConnection([None])).sent(1 << 40))  # type: ignore[arg-type]
