"""Bearer tokens with roles, from files as a Secret mounts them.

A directory holds the files ``read``, ``write`` and ``admin``; each lists tokens, one a line, and what comes
after a ``#`` is a comment. A token may stand in several files. The files are looked at again every second
while requests come, so that a new Secret (the kubelet swaps a symlink) and a removed token count at once.
What cannot be read allows nothing.

Tokens are kept as SHA-256 digests, and a token is compared with all of them in constant time. A header that
was accepted is remembered as it is: finding it again costs a look into a dictionary, whose hash is keyed by
a secret of the process, so that the time it takes tells nothing about a token.

Thread safety: everything may be called from any thread.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import logging
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from omendb.errors import ForbiddenError, UnauthorizedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from omendb.config import Settings
    from omendb.metrics import LabeledCounter

logger = logging.getLogger("omendb.auth")

RELOAD_SECONDS = 1.0

SHORT_TOKEN = 16
"""Tokens of fewer characters are accepted with a warning: they can be guessed."""

LOGGED_PER_SECOND_MAX = 10
"""Refusals beyond it are counted, and the next line says how many: a log must not be filled from outside."""

_ACCEPTED_MAX = 256  # ways to write a header with the same token have no end
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1


class Role(enum.IntEnum):
    """What a token allows: bits, so that several roles are one number.

    Not an `enum.IntFlag`, whose operators cost more than all the rest of a request's check.
    """

    READ = 1
    WRITE = 2
    ADMIN = 4


FILES = {
    "read": Role.READ,
    "write": Role.WRITE,
    "admin": Role.READ | Role.WRITE | Role.ADMIN,
}
"""What the tokens of each file allow."""

_Signature = tuple[tuple[int, int, int] | None, ...]


class Tokens:
    """Decides which requests are allowed.

    Parameters
    ----------
    settings : callable
        Returns the settings in force: `require_tokens` and `token_dir`.
    failures : LabeledCounter
        Counts refusals by ``reason``: ``missing``, ``malformed``, ``unknown``, ``role``, ``no_tokens``.
    clock : callable, optional
        Monotonic seconds.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        failures: LabeledCounter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._failures = failures
        self._clock = clock
        self._lock = threading.Lock()  # protects a reload, and what limits the log; a leaf
        self._directory = ""
        self._signature: _Signature | None = None
        self._reload_at = -float("inf")
        self._roles: dict[bytes, int] = {}
        self._accepted: dict[str, int] = {}
        self._logged_second = -1
        self._logged = 0
        self._unlogged = 0
        if self.required:
            self._reload_when_due()

    @property
    def required(self) -> bool:
        """Whether requests need a token."""
        return self._settings().require_tokens

    def check(self, role: Role, authorization: str | None, client: str) -> None:
        """Pass when the header of a request allows what it asks for.

        Parameters
        ----------
        role : Role
            What the call needs: one role.
        authorization : str or None
            The header, as it came.
        client : str
            The client's address, for the log.

        Raises
        ------
        UnauthorizedError
            There is no token, or not one of ours.
        ForbiddenError
            The token has not got the role.
        """
        if self._clock() >= self._reload_at:
            self._reload_when_due()
        roles = self._accepted.get(authorization) if authorization is not None else None
        if roles is None:
            roles = self._recognise(authorization, client)
        if not roles & role:
            self._refused("role", client)
            name = role.name.lower()
            raise ForbiddenError(f"the token does not have the role {name}", name)

    def _recognise(self, authorization: str | None, client: str) -> int:
        """Return the roles of the token in a header."""
        if not self._roles:
            self._refused("no_tokens", client)
            raise UnauthorizedError("the server requires a token, and has none that it could accept")
        if authorization is None:
            self._refused("missing", client)
            raise UnauthorizedError("this call needs a token: `Authorization: Bearer TOKEN`")
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not _TOKEN.fullmatch(token):
            self._refused("malformed", client)
            raise UnauthorizedError("the header must read `Authorization: Bearer TOKEN`", given=True)
        known = self._roles
        digest = hashlib.sha256(token.encode()).digest()
        roles = 0
        for one, allowed in known.items():  # all of them: the time must not tell which one matches
            if hmac.compare_digest(one, digest):
                roles |= allowed
        if not roles:
            self._refused("unknown", client)
            raise UnauthorizedError("the token is not known here", given=True)
        with self._lock:
            if known is self._roles and len(self._accepted) < _ACCEPTED_MAX:
                self._accepted[authorization] = roles
        return roles

    def _refused(self, reason: str, client: str) -> None:
        self._failures.inc(reason)
        second = int(self._clock())
        with self._lock:
            if second != self._logged_second:
                self._logged_second, self._logged = second, 0
            if self._logged >= LOGGED_PER_SECOND_MAX:
                self._unlogged += 1
                return
            self._logged += 1
            unlogged, self._unlogged = self._unlogged, 0
        more = f" ({unlogged} more were not logged)" if unlogged else ""
        logger.warning("auth refused reason=%s client=%s%s", reason, client, more)

    def _reload_when_due(self) -> None:
        with self._lock:
            now = self._clock()
            if now < self._reload_at:
                return
            self._reload_at = now + RELOAD_SECONDS
            directory = self._settings().token_dir
            signature = _look(Path(directory))
            if (directory, signature) == (self._directory, self._signature):
                return
            self._directory, self._signature = directory, signature
            self._roles, self._accepted = _load(Path(directory)), {}
            if not self._roles:
                logger.error(
                    "auth require_tokens is on, but there is no token in %s: nothing is allowed", directory
                )
            else:
                logger.info("auth %d tokens loaded from %s", len(self._roles), directory)


def _look(directory: Path) -> _Signature:
    """Return what changes when one of the files does, through whatever symlinks."""
    found: list[tuple[int, int, int] | None] = []
    for name in FILES:
        try:
            status = (directory / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _load(directory: Path) -> dict[bytes, int]:
    """Read the files; return the roles of each token by its digest."""
    roles: dict[bytes, int] = {}
    for name, allowed in FILES.items():
        path = directory / name
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            logger.error("auth cannot read %s, its tokens allow nothing: %s", path, _reason(error))  # noqa: TRY400
            continue
        for number, line in enumerate(text.splitlines(), 1):
            token = line.partition("#")[0].strip()
            if not token:
                continue
            if not _TOKEN.fullmatch(token):
                logger.error("auth %s, line %d: not a token that a header can carry, left out", path, number)
                continue
            if len(token) < SHORT_TOKEN:
                logger.warning(
                    "auth %s, line %d: a token of fewer than %d characters", path, number, SHORT_TOKEN
                )
            digest = hashlib.sha256(token.encode()).digest()
            roles[digest] = roles.get(digest, 0) | allowed
    return roles


def _reason(error: OSError | UnicodeDecodeError) -> str:
    # A decoding error's own text shows bytes of the file.
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror or "unknown"
