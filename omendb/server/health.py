"""Whether the server is alive and ready: the same answers on both ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from omendb.errors import NotReadyError
from omendb.server.request import JSON, Response

if TYPE_CHECKING:
    from omendb.engine import Engine

ALIVE = Response(200, b'{"alive":true}')
READY = Response(200, b'{"ready":true}')

RETRY_SECONDS = 1

_encode = msgspec.json.Encoder().encode


class NotReady(msgspec.Struct):
    """The body of ``/ready`` while it is 503.

    Attributes
    ----------
    ready : bool
        False.
    phase : str
        As in the engine's status, or ``"stopping"``.
    message : str
        What the server is doing.
    progress : float
        0 to 1 while starting.
    """

    ready: bool
    phase: str
    message: str
    progress: float


class Health:
    """What the probes see. Safe in any thread.

    Parameters
    ----------
    engine : Engine

    Attributes
    ----------
    stopping : bool
        Set when the server was told to stop: load balancers should look elsewhere while it finishes.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.stopping = False

    def alive(self) -> Response:
        """Answer ``GET /health``: the process answers, whatever the store does."""
        return ALIVE

    def ready(self) -> Response:
        """Answer ``GET /ready``: recovered and writable, or how far it is."""
        status = self._engine.status
        if status.phase == "ready" and not self.stopping:
            return READY
        if self.stopping:
            body = NotReady(False, "stopping", "the server is stopping", status.progress)
        else:
            body = NotReady(False, status.phase, status.message, status.progress)
        return Response(503, _encode(body), [*JSON, ("retry-after", str(RETRY_SECONDS))])

    def require_started(self) -> None:
        """Refuse a call while the store is starting; what it cannot do later, the engine refuses itself.

        Raises
        ------
        NotReadyError
        """
        status = self._engine.status
        if status.phase in ("new", "waiting", "starting"):
            raise NotReadyError(f"not ready: {status.message} ({status.progress:.0%})")
