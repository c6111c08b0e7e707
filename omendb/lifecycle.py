"""Where a store stands in its life, shared by the engine and its background threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from omendb.errors import ClosedError, NotReadyError, OmenError, WalFailedError
from omendb.reports import Status

if TYPE_CHECKING:
    from pathlib import Path


class Lifecycle:
    """The phase of one store, and the two events that end it.

    Thread safety: everything may be called from any thread.

    Parameters
    ----------
    path : Path
        The data directory, for messages.

    Attributes
    ----------
    status : Status
        Replaced, never changed.
    failed : threading.Event
        The log has failed: nothing more is acknowledged.
    closing : threading.Event
        The background threads are to finish, and a start that is under way is to be given up.
    """

    def __init__(self, path: Path) -> None:
        self.status = Status("new", "not started", 0.0)
        self.failed = threading.Event()
        self.closing = threading.Event()
        self._path = path
        self._lock = threading.Lock()  # protects changes of the phase; a leaf

    def report(self, message: str, progress: float, phase: str = "starting") -> None:
        """Say how far the start is.

        Raises
        ------
        ClosedError
            The store was closed meanwhile: the start is to be given up.
        """
        with self._lock:
            if not self.closing.is_set():
                self.status = Status(phase, message, progress)
                return
        raise ClosedError(f"{self._path} was closed while it was being opened")

    def set_ready(self) -> None:
        """The start is done."""
        with self._lock:
            if not self.failed.is_set() and not self.closing.is_set():
                self.status = Status("ready", "ready", 1.0)

    def fail(self, error: BaseException) -> None:
        """Take no more inserts: what is on stable storage is no longer known."""
        with self._lock:
            if self.status.phase in ("ready", "starting", "waiting"):
                self.status = Status("failed", str(error), 0.0)
        self.failed.set()

    def close(self) -> bool:
        """Begin to close; False when there is nothing to close, or it was begun before."""
        with self._lock:
            phase = self.status.phase
            self.status = Status("closed", "closed", 0.0)
            self.closing.set()
        return phase not in ("closed", "new")

    def check_ready(self) -> None:
        """Pass when inserts are taken.

        Raises
        ------
        NotReadyError, WalFailedError, ClosedError
        """
        if self.status.phase != "ready":
            raise self.refusal()

    def check_readable(self) -> None:
        """Pass when queries are answered: also after the log has failed.

        Raises
        ------
        NotReadyError, ClosedError
        """
        if self.status.phase not in ("ready", "failed"):
            raise self.refusal()

    def refusal(self) -> OmenError:
        """Return the error that tells why nothing is taken."""
        status = self.status
        if status.phase == "failed":
            return WalFailedError(f"the store has failed and takes no more inserts: {status.message}")
        if status.phase == "closed":
            return ClosedError(f"{self._path} is closed")
        return NotReadyError(f"not ready: {status.message}")
