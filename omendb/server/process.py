"""What a server asks of the operating system: its name, its memory, its addresses."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Generator
    from types import FrameType
    from typing import NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_PR_SET_NAME = 15

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_KEPT_BLOCK_BYTES_MAX = 1 << 20
_KEPT_BYTES_MAX = 8 << 20
_POOLS_MAX = 4


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


def raise_file_limit() -> int:
    """Allow this process as many open files as the system lets it; return their number.

    A connection is an open file, and so is a segment; many systems begin with 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # some systems have a limit below the limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft


def keep_freed_memory() -> None:
    """Let the C library (glibc) keep what the pieces of large answers are made of, and few pools of it.

    By default it asks the system for every block of 128 KiB and more, and gives it back at once: each of its
    pages costs a fault again, a third of the CPU time of a large answer. What is kept is bounded by the
    number of pools, and `omendb.storage.fs.release_memory` gives it back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES_MAX)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES_MAX)
        mallopt(_M_ARENA_MAX, _POOLS_MAX)


def leave_on_signals() -> None:
    """End the process with 0 when it is told to stop before there is anything to stop.

    Notes
    -----
    Call it first, in the main thread: what the server is made of takes a second and more to import. Without
    a handler SIGTERM ends a process with an error, and does nothing at all to the first one of a container.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        leave(0)

    for number in STOP_SIGNALS:
        signal.signal(number, handle)


def call_on_signals(loop: AbstractEventLoop, callback: Callable[[signal.Signals], None]) -> None:
    """Call back in a loop when the process is told to stop; in the main thread.

    The loop's own `add_signal_handler` would give the signals back their deadly meaning when it closes, and
    a second SIGTERM would then end a process that has stopped in order with an error.

    A signal that comes again before the loop has got round to the first is the same signal: with a callback
    for each, somebody who repeats it faster than it is answered would keep the loop from everything else.
    """
    pending: set[int] = set()
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)

    def wake() -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(reading, 4_096)

    def deliver(number: int) -> None:
        pending.discard(number)
        callback(signal.Signals(number))

    def handle(number: int, frame: FrameType | None) -> None:
        if number not in pending and not loop.is_closed():
            pending.add(number)
            loop.call_soon_threadsafe(deliver, number)

    # A signal that another thread gets must wake the loop, too.
    loop.add_reader(reading, wake)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in STOP_SIGNALS:
        signal.signal(number, handle)


@contextlib.contextmanager
def starting_batch_threads() -> Generator[None]:
    """Have the threads that are started inside scheduled as batch work, until they call `be_interactive`.

    Notes
    -----
    Linux lets a thread that is woken take the processor from the one that wakes it, unless the woken one is
    batch work (SCHED_BATCH of sched(7)). The HTTP server's network thread is woken with every answer. When
    it takes the processor each time, the thread that answers is stopped ten thousand times a second, and each
    answer is sent by itself; as batch work it sends those that have gathered. The shares stay the same.
    """
    before = _set_policy(os.SCHED_BATCH)
    try:
        yield
    finally:
        if before:
            be_interactive()


def be_interactive() -> None:
    """Let the calling thread be scheduled as threads usually are."""
    _set_policy(os.SCHED_OTHER)


def _set_policy(policy: int) -> bool:
    try:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError:  # a sandbox may forbid it: nothing depends on it but speed
        return False
    return True


def leave(status: int) -> NoReturn:
    """End the process now, with what was printed and logged.

    The interpreter's own end would wait for threads whose work was given up, and take the ground from under
    others that run on until the last moment (the HTTP server's, which are not Python's): a process that has
    stopped in order must not end with a signal.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            stream.flush()
    os._exit(status)


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
