"""TLS of the HTTP port: certificate and key from files, read once at the start."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omendb.errors import ConfigError

if TYPE_CHECKING:
    from omendb.config import Settings


class Tls(NamedTuple):
    """A certificate chain and its private key, both PEM files that belong together."""

    certificate: Path
    key: Path


def from_settings(settings: Settings) -> Tls | None:
    """Return the files that the settings name, checked; None when they name none.

    Raises
    ------
    ConfigError
        One of the two is missing, cannot be read, or they do not belong together.
    """
    named = {"tls_certificate": settings.tls_certificate, "tls_key": settings.tls_key}
    if not any(named.values()):
        return None
    for name, path in named.items():
        if not path:
            other = next(other for other in named if other != name)
            raise ConfigError(name, path, f"must be given, too, as {other} is")
    for name, path in named.items():
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(name, path, f"cannot be read: {error.strerror}") from error
    tls = Tls(Path(settings.tls_certificate), Path(settings.tls_key))
    try:
        # Without a password of its own OpenSSL would ask for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key, password="")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigError(
            "tls_certificate",
            settings.tls_certificate,
            f"is no PEM certificate chain to which the unencrypted PEM key {tls.key} belongs: {reason}",
        ) from error
    return tls
