"""The error catalogue: every error that OmenDB raises on purpose.

Facts are attributes, so that callers can act on them; the message is for people. Status codes do not
stand here: `omendb.server.problems` maps classes to statuses, and is the only place that does.
"""

from __future__ import annotations


class OmenError(Exception):
    """Base class of every error that OmenDB raises on purpose.

    Attributes
    ----------
    code : str
        Stable, machine-readable name of the kind of error.
    """

    code = "internal_error"


class InvalidRequestError(OmenError, ValueError):
    """An argument that cannot be accepted.

    Parameters
    ----------
    message : str
        What is wrong, with the value that was given.
    field : str, optional
        Where it is wrong: ``"limit"``, ``"[3].timestamp"``, ``"value[7]"``.
    """

    code = "invalid_request"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnknownPathError(OmenError):
    """A request for a path that is not served."""

    code = "not_found"


class MethodNotAllowedError(OmenError):
    """A request with a method that its path does not take; `allowed` lists those it takes."""

    code = "method_not_allowed"

    def __init__(self, message: str, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed


class AlreadyExistsError(OmenError):
    """Something of the given name is there already; nothing was changed."""

    code = "already_exists"


class PayloadTooLargeError(OmenError):
    """A request body beyond `max_body_bytes`."""

    code = "payload_too_large"


class RequestTimeoutError(OmenError):
    """A request body that did not arrive in time."""

    code = "request_timeout"


class OverloadedError(OmenError):
    """Too much work or memory in use; the same request may succeed after `retry_after_seconds`."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TooManyConnectionsError(OverloadedError):
    """A connection beyond `max_connections`; those before it go on."""

    code = "too_many_connections"


class UnauthorizedError(OmenError):
    """A request without a token, or with one that is not known (`given`)."""

    code = "unauthorized"

    def __init__(self, message: str, *, given: bool = False) -> None:
        super().__init__(message)
        self.given = given


class ForbiddenError(OmenError):
    """A request whose token does not have the role that the call needs."""

    code = "forbidden"

    def __init__(self, message: str, role: str) -> None:
        super().__init__(message)
        self.role = role


class NotReadyError(OmenError):
    """The store is still recovering, or is closing."""

    code = "not_ready"


class DiskFullError(OmenError):
    """No space for the write-ahead log: nothing was stored; inserts return when space does."""

    code = "disk_full"


class WalFailedError(OmenError):
    """A write or sync of the write-ahead log failed: nothing more is acknowledged by this process."""

    code = "storage_failed"


class CorruptionError(OmenError):
    """Stored bytes that do not match their checksum or their format.

    Parameters
    ----------
    path : str
        The file.
    offset : int
        First byte of the damaged part.
    reason : str
        What does not match.
    """

    code = "data_corrupted"

    def __init__(self, path: str, offset: int, reason: str) -> None:
        super().__init__(f"{path}: offset {offset}: {reason}")
        self.path = path
        self.offset = offset
        self.reason = reason


class LockedError(OmenError):
    """Another process owns the data directory."""

    code = "locked"


class ClosedError(OmenError):
    """The database was closed."""

    code = "closed"


class ConfigError(OmenError, ValueError):
    """A setting that cannot be accepted.

    Parameters
    ----------
    key : str
        The setting's name.
    value : object
        What was given.
    reason : str
        Why it is refused, with the range that is accepted.
    """

    code = "invalid_setting"

    def __init__(self, key: str, value: object, reason: str) -> None:
        super().__init__(f"{key}={value!r}: {reason}")
        self.key = key
        self.value = value
        self.reason = reason
