"""How many connections the HTTP port has: further ones are refused, the existing ones go on.

The HTTP server takes connections by itself and tells of none until it brings a request. So each request is
asked for its connection: one that is known passes (a look into a dictionary); a new one is counted in when
there is room, and refused with 503 when there is none. Who left is found out when the room is used up, by
looking at the sockets of this process. Connections that have never sent anything are found by a thread
that looks four times a second while there could be too many; it closes those beyond the limit that it sees
twice.

Thread safety: everything may be called from any thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from omendb.server.connection import Address, pack, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from omendb.metrics import Counter

LOOK_SECONDS = 0.25
"""How often connections are looked for that have never sent anything."""

_REST = 20
"""How many times as long as a look at all sockets took nobody looks again."""

_FILES = Path("/proc/self/fd")

_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)


class Connections:
    """Counts the connections of one server.

    Parameters
    ----------
    limit : callable
        Returns the setting in force, `max_connections`.
    refused : Counter
        Counts the connections that were refused.
    """

    def __init__(self, limit: Callable[[], int], refused: Counter) -> None:
        self._limit = limit
        self._refused = refused
        self._lock = threading.Lock()  # protects what follows; a leaf
        self._counted: dict[Address, None] = {}
        self._seen: dict[
            str, Address
        ] = {}  # the counted ones that sent a request, as the HTTP server calls them
        self._look_at = 0.0
        self._port = 0
        self._can_tell = True
        self._closed = threading.Event()

    def admit(self, client: str) -> bool:
        """Whether a request is answered; its connection is counted in when it is new.

        Parameters
        ----------
        client : str
            The client's address, as RSGI gives it: ``"127.0.0.1:4711"``, ``"[::1]:4711"``.
        """
        return client in self._seen or self._count_in(client)

    def watch(self, port: int, *, can_tell: bool) -> None:
        """Begin to look for connections to a port.

        Parameters
        ----------
        port : int
        can_tell : bool
            Whether a refusal can be written to a connection that is closed: not under TLS.
        """
        self._port = port
        self._can_tell = can_tell
        threading.Thread(target=self._run, name="omendb-connections", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def _count_in(self, client: str) -> bool:
        key = parse_address(client)
        if key is None:  # a UNIX socket, or a server that does not tell
            return True
        with self._lock:
            if key not in self._counted:
                if len(self._counted) >= self._limit() and self._port and time.monotonic() >= self._look_at:
                    self._look(but=key)
                if len(self._counted) >= self._limit():
                    self._refused.inc()
                    return False
                self._counted[key] = None
            self._seen[client] = key
            return True

    def _run(self) -> None:
        seen_before: set[tuple[int, Address]] = set()
        while not self._closed.wait(max(LOOK_SECONDS, self._look_at - time.monotonic())):
            # Whoever is there before it gets crowded must be known by then: that is why half of it.
            with contextlib.suppress(OSError):  # without a file descriptor to look with: the next time
                if _open_files() <= self._limit() // 2:
                    seen_before = set()
                    continue
                with self._lock:
                    surplus = set(self._look())
                # Who has just come may be a probe that is about to be answered.
                for number, key in surplus & seen_before:
                    self._refuse(number, key)
                seen_before = surplus

    def _look(self, but: Address | None = None) -> list[tuple[int, Address]]:
        """Forget who left, count in who has sent nothing yet; return whom there is no room for.

        The lock is held. `but` is a connection that is about to be counted in by itself.
        """
        started = time.monotonic()
        there = dict(_connections(self._port))
        self._counted = {key: None for key in self._counted if key in there}
        self._seen = {client: key for client, key in self._seen.items() if key in self._counted}
        limit = self._limit()
        surplus: list[tuple[int, Address]] = []
        for key, number in there.items():
            if key in self._counted or key == but:
                continue
            if len(self._counted) < limit:
                self._counted[key] = None
            else:
                surplus.append((number, key))
        now = time.monotonic()
        self._look_at = now + _REST * (now - started)
        return surplus

    def _refuse(self, number: int, key: Address) -> None:
        """Close a connection that has never brought a request."""
        try:
            # The number may pass to another file at any moment, the duplicate cannot.
            handle = socket.socket(fileno=os.dup(number))
        except OSError:
            return
        with handle, contextlib.suppress(OSError):
            host, port = handle.getpeername()[:2]
            if (pack(host), port) != key or handle.getsockname()[1] != self._port:
                return
            with self._lock:
                if key in self._counted:  # room was found for it meanwhile
                    return
            self._refused.inc()
            with contextlib.suppress(OSError):
                if self._can_tell:
                    handle.send(_REFUSAL, socket.MSG_DONTWAIT)
            handle.shutdown(socket.SHUT_RDWR)


def _open_files() -> int:
    # Linux tells their number as the directory's size since 6.2.
    return _FILES.stat().st_size or len(os.listdir(_FILES))  # noqa: PTH208 # by far the cheaper one


def _connections(port: int) -> Iterable[tuple[Address, int]]:
    """Yield the connections of this process to a local port: the client, and the descriptor (3 us each)."""
    for name in os.listdir(_FILES):  # noqa: PTH208
        number = int(name)
        try:
            # With family, type and protocol given it asks for nothing, and `detach` leaves the file open.
            handle = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=number)
        except OSError:  # no socket, or closed meanwhile
            continue
        try:
            local = handle.getsockname()
            if isinstance(local, tuple) and local[1:2] == (port,):
                host, remote_port = handle.getpeername()[:2]
                yield (pack(host), remote_port), number
        except OSError:  # listening, or gone
            pass
        finally:
            handle.detach()
