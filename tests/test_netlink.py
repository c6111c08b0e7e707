"""The kernel's count of connections is that of `/proc/net/tcp`, without what is closed."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from omendb import metrics, netlink

if TYPE_CHECKING:
    from collections.abc import Callable


def becomes(look: Callable[[], object], expected: object) -> bool:
    """Look more than once: a list of sockets is not of one moment while others come and go."""
    return any(look() == expected for _ in range(100))


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_established_connections_are_counted(family: int, host: str) -> None:
    try:
        listener = socket.create_server((host, 0), family=family, backlog=600)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    port = listener.getsockname()[1]
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        assert netlink.established_connections(port) == 0
        for _ in range(500):  # more than one message of the kernel
            stack.enter_context(socket.create_connection((host, port)))
            stack.enter_context(listener.accept()[0])

        assert becomes(lambda: netlink.established_connections(port), 500)

    assert becomes(lambda: netlink.established_connections(port), 0)


def test_proc_is_read_where_the_kernel_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            monkeypatch.setattr(netlink.socket, "socket", refused)
            assert netlink.established_connections(port) is None
            found = metrics.Metrics()
            found.watch_port(port)
            assert becomes(lambda: b"omendb_active_connections 1.0\n" in found.render(), True)
