"""Which call goes where: the table of paths and methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from omendb.errors import MethodNotAllowedError, UnknownPathError
from omendb.server.openapi import Description
from omendb.server.request import Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from omendb.metrics import Counter, Metrics
    from omendb.server.handlers import Handlers
    from omendb.server.request import Answer, Request

PATH_SHOWN_MAX = 100


class Route(NamedTuple):
    """One method of one path.

    Attributes
    ----------
    handler : callable
        Takes a `Request`, returns an `Answer`.
    takes_body : bool
        Whether the body is read before the handler is called.
    failures : Counter or None
        What counts the errors of this call.
    takes_encoding : bool
        Whether the handler wants to know how the body is encoded.
    """

    handler: Callable[[Request], Answer]
    takes_body: bool = False
    failures: Counter | None = None
    takes_encoding: bool = False


class Routes:
    """A table of calls. GET answers HEAD too, and every path answers OPTIONS.

    Parameters
    ----------
    calls : dict of str to dict of str to Route
        Routes by path, then method.
    """

    def __init__(self, calls: dict[str, dict[str, Route]]) -> None:
        self._paths: dict[str, dict[str, Route]] = {}
        self._allowed: dict[str, tuple[str, ...]] = {}
        for path, methods in calls.items():
            served = dict(methods)
            if "GET" in served:
                served["HEAD"] = served["GET"]
            allowed = (*served, "OPTIONS")
            served["OPTIONS"] = Route(_options(allowed))
            self._paths[path] = served
            self._allowed[path] = allowed

    def find(self, method: str, path: str) -> Route:
        """Return the route of a request.

        Raises
        ------
        UnknownPathError, MethodNotAllowedError
        """
        methods = self._paths.get(path)
        if methods is None:
            raise UnknownPathError(f"no such path: {path[:PATH_SHOWN_MAX]}")
        route = methods.get(method)
        if route is None:
            allowed = self._allowed[path]
            raise MethodNotAllowedError(f"{path} takes {', '.join(allowed)}, not {method}", allowed)
        return route


def api_routes(handlers: Handlers, metrics: Metrics) -> Routes:
    """Return the calls of the HTTP API."""
    query = Route(handlers.query, failures=metrics.query_failures_total)
    insert = Route(handlers.insert, takes_body=True, failures=metrics.insert_failures_total)
    write = insert._replace(handler=handlers.named.write, takes_encoding=True)
    calls = {
        "/": {"GET": Route(handlers.index)},
        "/insert": {"POST": insert},
        "/write": {"POST": write},
        "/query": {"GET": query},
        "/series": {"GET": Route(handlers.named.series, failures=metrics.query_failures_total)},
        "/admin/stats": {"GET": Route(handlers.stats)},
        "/admin/index-stats": {"GET": Route(handlers.index_stats)},
        "/admin/config": {"GET": Route(handlers.config)},
        "/admin/retrain-index": {"POST": Route(handlers.retrain_index, takes_body=True)},
        "/admin/gc": {"POST": Route(handlers.gc, takes_body=True)},
        "/admin/backup": {"POST": Route(handlers.backup, takes_body=True)},
        "/admin/backups": {"GET": Route(handlers.backups)},
        "/health": {"GET": Route(handlers.alive)},
        "/ready": {"GET": Route(handlers.ready)},
    }
    calls["/openapi.json"] = {"GET": Route(Description(calls).answer)}
    return Routes(calls)


def _options(allowed: tuple[str, ...]) -> Callable[[Request], Answer]:
    response = Response(204, b"", [("allow", ", ".join(allowed))])
    return lambda request: response
