"""The one place that every request of the HTTP port passes, before anything of its body is read.

Health and readiness are always answered. Everything else needs a connection that counts
(`omendb.server.connections`) and, with `require_tokens`, a token with the call's role
(`omendb.server.tokens`). Roles follow from method and path, so that a new call has one from the start.

Thread safety: everything may be called from any thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omendb.errors import TooManyConnectionsError
from omendb.server.connections import Connections
from omendb.server.tokens import Role, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from omendb.engine import Engine
    from omendb.server.routes import Route, Routes

OPEN_PATHS = frozenset(("/health", "/ready"))
"""What probes ask for: neither a token nor the number of connections may make a healthy server look ill."""

_READ_PATHS = frozenset(("/query",))
_READ_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
_ADMIN_PREFIX = "/admin/"


def role_of(method: str, path: str) -> Role:
    """Return the role that a call needs.

    Parameters
    ----------
    method : str
        In capitals.
    path : str
        Not one of `OPEN_PATHS`.
    """
    if path.startswith(_ADMIN_PREFIX):
        return Role.ADMIN
    if method in _READ_METHODS or path in _READ_PATHS:
        return Role.READ
    return Role.WRITE


class Entrance:
    """Lets requests in.

    Parameters
    ----------
    engine : Engine
        Whose settings and metrics are used.
    """

    def __init__(self, engine: Engine) -> None:
        metrics = engine.metrics
        self.connections = Connections(
            lambda: engine.settings.max_connections, metrics.connections_refused_total
        )
        self._engine = engine
        self._tokens = Tokens(lambda: engine.settings, metrics.auth_failures_total)
        self._admit = self.connections.admit

    def pass_rsgi(self, routes: Routes, method: str, path: str, scope: Any) -> Route:  # noqa: ANN401
        """Return the route of an RSGI request.

        Raises
        ------
        TooManyConnectionsError, UnauthorizedError, ForbiddenError, UnknownPathError, MethodNotAllowedError
        """
        if path not in OPEN_PATHS:
            client = scope.client
            if not self._admit(client):
                limit = self._engine.settings.max_connections
                raise TooManyConnectionsError(
                    f"the server has all of its {limit} connections (max_connections)"
                )
            if self._engine.settings.require_tokens:
                self._tokens.check(role_of(method, path), scope.headers.get("authorization"), client)
        return routes.find(method, path)

    def pass_asgi(
        self, routes: Routes, method: str, path: str, authorization: Callable[[], str | None], client: str
    ) -> Route:
        """Return the route of an ASGI request; its server sees to the number of connections.

        Raises
        ------
        UnauthorizedError, ForbiddenError, UnknownPathError, MethodNotAllowedError
        """
        if path not in OPEN_PATHS and self._engine.settings.require_tokens:
            self._tokens.check(role_of(method, path), authorization(), client)
        return routes.find(method, path)
