"""The TCP connection under an RSGI response: how much the client has taken, and how to break it off.

RSGI's transport takes whatever it is given, without bound, and ends every body as if it were complete
(both measured with granian 2.8.7: 500 MB queued for a client that does not read; an exception in the
middle of a stream gives a well-formed answer). A server that streams big answers needs the opposite of
both. The socket is in this process, so it can be found by its addresses and asked, or shut.

Linux only, as is the rest of the server. Where the socket cannot be found, a stream is not paced and an
error ends it without the end of its JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from functools import lru_cache
from pathlib import Path
from time import monotonic

from omendb.server.request import DisconnectedError

BACKLOG_BYTES_MAX = 4 << 20
"""How far a stream may run ahead of its client."""

STALL_SECONDS = 30.0
"""A client that takes nothing for so long has left."""

_WAIT_SECONDS_MIN = 0.001
_WAIT_SECONDS_MAX = 0.05

_TCP_INFO_BYTES = 256
_OPEN_STATES = (b"\x01", b"\x08")  # tcpi_state: established, or closed by the client for sending only
_BYTES_ACKED_OFFSET = 120  # struct tcp_info of linux/tcp.h: tcpi_bytes_acked, since Linux 4.1


Address = tuple[bytes, int]
"""One end of a connection: an IP address, as `pack` gives it, and a port."""


class Connection:
    """A second handle of a connection's socket. Close it after use: an open one keeps the port busy.

    Parameters
    ----------
    handle : socket.socket
        A duplicate: closing it leaves the connection open.
    """

    def __init__(self, handle: socket.socket) -> None:
        self._socket = handle

    def acknowledged_bytes(self) -> int | None:
        """Return how many bytes the client has acknowledged so far; None where the kernel cannot tell."""
        info = self._info()
        if len(info) < _BYTES_ACKED_OFFSET + 8:
            return None
        (count,) = struct.unpack_from("=Q", info, _BYTES_ACKED_OFFSET)
        return int(count)

    def is_open(self) -> bool:
        """Whether the connection can still carry an answer."""
        return self._info()[:1] in _OPEN_STATES

    def _info(self) -> bytes:
        try:
            return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return b""

    def abort(self) -> None:
        """Break the connection off. Nothing can be sent on it any more, not even the end of a body."""
        with contextlib.suppress(OSError):  # it is gone already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the handle back."""
        self._socket.close()


def find(client: str, server: str) -> Connection | None:
    """Find the connection of this process between two addresses (about 2 us an open file).

    Parameters
    ----------
    client, server : str
        As RSGI gives them: ``"127.0.0.1:4711"``, ``"[::1]:4711"``.

    Returns
    -------
    Connection or None

    Notes
    -----
    A server that listens on all addresses is given as ``"0.0.0.0:3000"`` or ``"[::]:3000"``, whichever of
    them the client has called: then the port must do.
    """
    remote, local = parse_address(client), parse_address(server)
    if remote is None or local is None:
        return None
    on_any = not any(local[0])
    for entry in Path("/proc/self/fd").iterdir():
        number = int(entry.name)
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            # Duplicate first, look then: the number may pass to another file at any moment, the
            # duplicate cannot.
            handle = socket.socket(fileno=os.dup(number))
        except OSError:
            continue
        try:
            if _is_between(handle, remote, local, on_any=on_any):
                return Connection(handle)
        except OSError:  # listening, or gone
            pass
        handle.close()
    return None


def has_left(client: str, server: str) -> bool:
    """Whether there is no connection between two addresses any more (about 2 us an open file).

    Parameters
    ----------
    client, server : str
        As for `find`. Of addresses that it cannot take apart this is False.
    """
    if parse_address(client) is None or parse_address(server) is None:
        return False
    connection = find(client, server)
    if connection is None:
        return True
    connection.close()
    return False


class Pacer:
    """Holds a stream back until its client has taken most of what was sent.

    Parameters
    ----------
    connection : Connection

    Notes
    -----
    The kernel is asked only when the client may be too far behind by what was known last: it answers when
    it has done with what it copies for this socket, and all who wait for the GIL wait with it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._start = self._acknowledged = connection.acknowledged_bytes()
        self._sent = 0

    async def sent(self, count: int) -> None:
        """Count bytes that were handed over, and wait while too many are on their way.

        Raises
        ------
        DisconnectedError
            When the client left, or takes nothing any more.
        """
        self._sent += count
        if self._start is None or self._acknowledged is None:
            return
        if self._sent - (self._acknowledged - self._start) <= BACKLOG_BYTES_MAX:
            return
        wait = _WAIT_SECONDS_MIN
        taken = -1
        since = monotonic()
        while True:
            acknowledged = self._acknowledged = self._connection.acknowledged_bytes()
            if acknowledged is None:
                return
            backlog = self._sent - (acknowledged - self._start)
            if backlog <= BACKLOG_BYTES_MAX:
                return
            if acknowledged != taken:
                taken, since = acknowledged, monotonic()
            elif monotonic() - since > STALL_SECONDS:
                raise DisconnectedError(f"the client took nothing for {STALL_SECONDS:g} seconds")
            if not self._connection.is_open():
                raise DisconnectedError("the client left")
            await asyncio.sleep(wait)
            wait = min(2 * wait, _WAIT_SECONDS_MAX)


def _is_between(handle: socket.socket, remote: Address, local: Address, *, on_any: bool) -> bool:
    own = handle.getsockname()
    if not isinstance(own, tuple) or own[1:2] != (local[1],):
        return False
    host, port = handle.getpeername()[:2]
    return port == remote[1] and pack(host) == remote[0] and (on_any or pack(own[0]) == local[0])


def parse_address(text: str) -> Address | None:
    """Take an address apart as RSGI gives it; None when it is none of a TCP connection."""
    host, _, port = text.rpartition(":")
    if not port.isdigit():
        return None
    try:
        return pack(host.removeprefix("[").removesuffix("]")), int(port)
    except OSError:
        return None


@lru_cache(maxsize=4_096)
def pack(host: str) -> bytes:
    """Return the bytes of an IP address: 4 also of an IPv4 client of a socket that listens on both, or 16.

    Raises
    ------
    OSError
        When it is none.
    """
    host = host.partition("%")[0]
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    packed = socket.inet_pton(socket.AF_INET6, host)
    return packed[12:] if packed[:12] == b"\0" * 10 + b"\xff\xff" else packed
