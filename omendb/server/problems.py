"""Errors as HTTP answers: the one place that maps classes of errors to statuses.

An error that no class of `omendb.errors` describes is a bug: the client learns nothing but that, and the
log gets the traceback.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from omendb import errors
from omendb.server.request import JSON, Response

if TYPE_CHECKING:
    from omendb.server.request import Headers

logger = logging.getLogger(__name__)

STATUSES: dict[type[BaseException], int] = {
    errors.InvalidRequestError: 400,
    errors.ConfigError: 400,
    errors.UnauthorizedError: 401,
    errors.ForbiddenError: 403,
    errors.UnknownPathError: 404,
    errors.MethodNotAllowedError: 405,
    errors.RequestTimeoutError: 408,
    errors.AlreadyExistsError: 409,
    errors.PayloadTooLargeError: 413,
    errors.OverloadedError: 503,
    errors.TooManyConnectionsError: 503,
    errors.NotReadyError: 503,
    errors.ClosedError: 503,
    errors.LockedError: 503,
    errors.WalFailedError: 503,
    errors.DiskFullError: 507,
    errors.CorruptionError: 500,
    errors.OmenError: 500,
    BaseException: 500,
}

RETRY_SECONDS = 1
"""When to come back after an error that says no time of its own."""

_encode = msgspec.json.Encoder().encode


class Problem(msgspec.Struct, omit_defaults=True):
    """The inside of an error's body.

    Attributes
    ----------
    code : str
        Stable, machine-readable.
    message : str
        For people.
    field : str, optional
        The part of the request that is refused.
    """

    code: str
    message: str
    field: str | None = None


def status_of(error: BaseException) -> int:
    """Return the status of the nearest class of `error` that has one."""
    for kind in type(error).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    raise AssertionError("BaseException is in the table")


def code_of(error: BaseException) -> str:
    """Return the stable name of the kind of error."""
    return error.code if isinstance(error, errors.OmenError) else "internal_error"


def to_response(error: BaseException) -> Response:
    """Make the answer of an error; log the error when it is not one of `omendb.errors`."""
    status = status_of(error)
    if not isinstance(error, errors.OmenError):
        logger.error("unexpected error while handling a request", exc_info=error)
        problem = Problem(code_of(error), "internal error; the server's log has the details")
        return Response(status, _encode({"error": problem}))
    if status == 500:
        logger.error("%s: %s", error.code, error)
    problem = Problem(error.code, str(error), _field(error))
    return Response(status, _encode({"error": problem}), [*JSON, *_headers(error, status)])


def _field(error: errors.OmenError) -> str | None:
    if isinstance(error, errors.InvalidRequestError):
        return error.field
    if isinstance(error, errors.ConfigError):
        return error.key
    return None


def _headers(error: errors.OmenError, status: int) -> Headers:
    if isinstance(error, errors.MethodNotAllowedError):
        return [("allow", ", ".join(error.allowed))]
    if isinstance(error, errors.UnauthorizedError):
        why = ', error="invalid_token"' if error.given else ""
        return [("www-authenticate", f'Bearer realm="omendb"{why}')]
    if isinstance(error, errors.ForbiddenError):
        why = f'error="insufficient_scope", scope="{error.role}"'
        return [("www-authenticate", f'Bearer realm="omendb", {why}')]
    if isinstance(error, errors.TooManyConnectionsError):
        return [("retry-after", str(error.retry_after_seconds)), ("connection", "close")]
    if isinstance(error, errors.OverloadedError):
        return [("retry-after", str(error.retry_after_seconds))]
    if status == 503:
        return [("retry-after", str(RETRY_SECONDS))]
    if status in (408, 413):
        # What is left of the body is still on its way: the connection cannot be used again.
        return [("connection", "close")]
    return []
