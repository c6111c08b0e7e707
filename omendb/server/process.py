"""What a server asks of the operating system: its name, its memory, its addresses."""

from __future__ import annotations

import ctypes
import gc
import socket

_PR_SET_NAME = 15


def set_process_name(name: str) -> None:
    """Name the process as `ps`, `top` and `pgrep` show it, also when it was started as ``python -m``.

    Parameters
    ----------
    name : str
        At most 15 characters.

    Notes
    -----
    Call it in the main thread, whose name is the process's.
    """
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def settle() -> None:
    """Take everything that exists now out of the garbage collector's sight.

    The compiler leaves 130,000 objects behind that live as long as the process. Looking through them stops
    all threads for 60 ms and more (measured), every time a collection of the oldest generation is due.
    """
    gc.collect()
    gc.freeze()


def resolve(host: str) -> str:
    """Return an IP address of `host`, which may be one already.

    Raises
    ------
    OSError
        When the name is not known.
    """
    (*_, address), *_ = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(address[0])


def check_port_is_free(address: str, port: int) -> None:
    """Make sure that nobody listens on a port.

    The HTTP server sets ``SO_REUSEPORT``: a second server on the same port would start, and take half of
    the connections of the first.

    Raises
    ------
    OSError
        When somebody does, or the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended do not count
        probe.bind((address, port))
