"""Lines for standard output, written by a thread of their own.

Whoever has a line to log appends it to a queue, and never waits: a request must not hang because the
reader of a pipe does. The writer joins what has gathered and writes it with one system call. The queue is
bounded; what does not fit is dropped and counted, and a line says so once the reader is back.

A line may be queued as the parts that it is made of. Made where a request is answered, a query's line cost
it 6 us, because nothing of what formats it is in the processor's caches there; in the writer, one after the
other, about 1 us (measured on a busy machine, `perf/http.py --compare-logs`).

Thread safety: everything may be called from any thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from omendb.metrics import Counter

LINES_MAX = 16_384
"""Lines that may wait: about 3 MB of them, half a second of the busiest server."""

GATHER_SECONDS = 0.02
"""How long lines gather before they are written. At 25,000 a second that is one write for 500 lines."""

BATCH_LINES = 512
"""Lines that are made and written at once: half a millisecond in which nobody else runs Python."""

CLOSE_SECONDS = 2.0
"""How long the end waits for a reader that does not read."""


class LineWriter:
    """Writes lines to a file descriptor.

    Parameters
    ----------
    descriptor : int
        Stays open; it may be a file, a pipe or a terminal, blocking or not.
    written, dropped : Counter
        Count lines.
    tell_dropped : callable, optional
        Makes the line that tells of a number of dropped lines.
    make : callable, optional
        Makes the line of an entry that is no text; None when there is to be none.
    lines_max : int
        Lines that may wait.
    """

    def __init__(
        self,
        descriptor: int,
        written: Counter,
        dropped: Counter,
        tell_dropped: Callable[[int], str] | None = None,
        make: Callable[[Any], str | None] | None = None,
        lines_max: int = LINES_MAX,
    ) -> None:
        self._descriptor = descriptor
        self._written = written
        self._dropped = dropped
        self._tell_dropped = tell_dropped
        self._make = make
        self._told = 0
        self._lines_max = lines_max
        self._lines: deque[object] = deque()
        self._asleep = False
        self._wake = threading.Event()
        self._hurry = threading.Event()  # ends the gathering
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="omendb-log", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, line: object, *, at_once: bool = False) -> None:
        """Queue a line, or drop it when too many wait.

        Parameters
        ----------
        line : object
            Text with its newline; or what `make` makes it from.
        at_once : bool
            Do not wait for others to gather.
        """
        lines = self._lines
        if len(lines) >= self._lines_max:
            self._dropped.inc()
            return
        lines.append(line)
        # The writer sets the flag before it looks at the queue, and here it is read after the queue was
        # filled: one of the two sees the other.
        if self._asleep:
            self._asleep = False
            self._wake.set()
        if at_once:
            self._hurry.set()

    def close(self, timeout: float = CLOSE_SECONDS) -> bool:
        """Write what waits, and end; may be called twice.

        Parameters
        ----------
        timeout : float
            Seconds to wait for a reader that does not read.

        Returns
        -------
        bool
            Whether everything was written; false also when the thread was never started.
        """
        self._closing = True
        self._wake.set()
        self._hurry.set()
        if self._thread.ident is None:
            return False
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._asleep = True
            if not self._lines:
                if self._closing:
                    return
                self._wake.wait()
            self._asleep = False
            self._wake.clear()
            self._hurry.wait(GATHER_SECONDS)
            if not self._closing:
                self._hurry.clear()
            while self._lines:
                self._write_some()

    def _write_some(self) -> None:
        lines, make = self._lines, self._make
        batch: list[str] = []
        # Only this thread takes lines, so that many are there.
        for _ in range(min(len(lines), BATCH_LINES)):
            entry = lines.popleft()
            if isinstance(entry, str):
                batch.append(entry)
            elif make is not None and (line := make(entry)) is not None:
                batch.append(line)
        missing = self._dropped.value - self._told
        if missing and self._tell_dropped is not None:
            # They were the newest: what is in the queue came before them.
            batch.append(self._tell_dropped(missing))
            self._told += missing
        if not batch:
            return
        if _write_all(self._descriptor, "".join(batch).encode("utf-8", "backslashreplace")):
            self._written.inc(len(batch))
        else:
            self._dropped.inc(len(batch))


def _write_all(descriptor: int, data: bytes) -> bool:
    """Write all of `data`, waiting for the reader; return False when there is none any more."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # somebody has made it non-blocking
            with contextlib.suppress(OSError, ValueError):
                select.select([], [descriptor], [])
        except OSError:  # a closed pipe, a full disk: nobody to tell, and the server goes on
            return False
    return True
