"""HTTPS on the HTTP port."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import subprocess
import warnings
from typing import TYPE_CHECKING

import orjson
import pytest
from click.testing import CliRunner, Result

from omendb.cli import main
from omendb.config import Settings
from omendb.errors import ConfigError
from omendb.server import tls
from tests.server.clients import Wire, request
from tests.serving import PROGRAM, start_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOKEN = "admin-token-0123456789"


@pytest.fixture
def make_certificate(debian_tool: Callable[[str], str], tmp_path: Path) -> Callable[..., Path]:
    openssl = debian_tool("openssl")

    def make(name: str, *key: str) -> Path:
        """Make NAME.crt and NAME.key."""
        certificate = tmp_path / f"{name}.crt"
        subprocess.run(
            [
                *(openssl, "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=omendb"),
                *(key or ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")),
                *("-addext", "subjectAltName=IP:127.0.0.1"),
                *("-out", certificate, "-keyout", certificate.with_suffix(".key")),
            ],
            check=True,
            capture_output=True,
        )
        return certificate

    return make


def options(certificate: Path) -> list[str]:
    return [f"--tls-certificate={certificate}", f"--tls-key={certificate.with_suffix('.key')}"]


def program(*arguments: object, environment: dict[str, str] | None = None) -> Result:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(main, words, env=environment, prog_name="omendb")


def settings(certificate: object = "", key: object = "") -> Settings:
    return Settings(tls_certificate=str(certificate), tls_key=str(key))


def handshake(port: int, version: ssl.TLSVersion) -> str | None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # or OpenSSL itself refuses what is old
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as secured:
        return secured.version()


@pytest.mark.parametrize("key", [(), ("-newkey", "rsa:2048")], ids=["elliptic curve", "rsa"])
def test_https(
    tmp_path: Path,
    make_certificate: Callable[..., Path],
    key: tuple[str, ...],
) -> None:
    certificate = make_certificate("server", *key)
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens/admin").write_text(f"{TOKEN}\n")
    secured = ["--require-tokens=true", f"--token-dir={tmp_path / 'tokens'}"]
    with start_server(tmp_path / "data", *options(certificate), *secured, ca_file=certificate) as server:
        url = server.url
        assert url.startswith("https://")

        (tmp_path / "points.csv").write_text("series_id,timestamp,value\n1,10,0.5\n")
        where = ("--url", url, "--ca-file", certificate)
        (tmp_path / "token").write_text(f"# admin\n{TOKEN}\n")
        token = ("--token-file", tmp_path / "token")
        assert program("import", tmp_path / "points.csv", *where, *token).exit_code == 0
        queried = program("query", *where, environment={"OMENDB_TOKEN": TOKEN})
        assert queried.output.splitlines()[1:] == ["1,10,0.5"]
        stats = program("stats", "--json", *where, *token)
        assert orjson.loads(stats.output)["record_count"] == 1
        assert program("backup", "b", *where, *token).exit_code == 0

        without = program("query", *where)
        assert without.exit_code == 1
        assert "needs a token" in without.output
        untrusted = program("query", "--url", url, *token)
        assert untrusted.exit_code == 1
        assert "CERTIFICATE_VERIFY_FAILED" in untrusted.output

        assert handshake(server.port, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert handshake(server.port, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        for old in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                handshake(server.port, old)

        with Wire(server.port) as wire:
            wire.send(request("GET", "/health"))
            with contextlib.suppress(http.client.HTTPException, ConnectionError):
                raise AssertionError(wire.reply())
        with Wire(server.metrics_port) as wire:  # plain, for probes and scrapes
            wire.send(request("GET", "/ready"))
            assert wire.reply().status == 200
        with Wire(server.port) as wire:
            assert server.stop() == 0
        assert f" ready http={url} metrics=http://" in server.log.read_text()


def test_files_of_which_one_is_missing() -> None:
    with pytest.raises(ConfigError, match="tls_key='': must be given, too, as tls_certificate is"):
        tls.from_settings(settings("a.crt"))
    with pytest.raises(ConfigError, match="tls_certificate='': must be given, too, as tls_key is"):
        tls.from_settings(settings(key="a.key"))
    with pytest.raises(ConfigError, match=r"tls_certificate='/none\.crt': cannot be read: No such file"):
        tls.from_settings(settings("/none.crt", "/none.key"))
    assert tls.from_settings(settings()) is None


def test_files_that_do_not_belong_together(make_certificate: Callable[..., Path], tmp_path: Path) -> None:
    one, other = make_certificate("one"), make_certificate("other")
    text = tmp_path / "text"
    text.write_text("no certificate\n")

    for certificate, key in ((one, other.with_suffix(".key")), (text, text), (one, one), (one, text)):
        with pytest.raises(
            ConfigError, match=r"is no PEM certificate chain to which the unencrypted PEM key"
        ):
            tls.from_settings(settings(certificate, key))
    assert tls.from_settings(settings(one, one.with_suffix(".key"))) is not None


def test_an_encrypted_key_is_an_error_and_asks_nobody(
    make_certificate: Callable[..., Path], debian_tool: Callable[[str], str], tmp_path: Path
) -> None:
    certificate = make_certificate("locked")
    key = tmp_path / "encrypted.key"
    subprocess.run(
        [
            *(debian_tool("openssl"), "pkey", "-aes256", "-passout", "pass:secret"),
            *("-in", certificate.with_suffix(".key"), "-out", key),
        ],
        check=True,
    )

    run = subprocess.run(
        [
            *(PROGRAM, "serve", f"--data-dir={tmp_path / 'data'}", "--port=0", "--metrics-port=0"),
            *(f"--tls-certificate={certificate}", f"--tls-key={key}"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert run.returncode == 1
    assert "cannot serve HTTPS: tls_certificate=" in run.stdout
    assert "secret" not in run.stdout + run.stderr
