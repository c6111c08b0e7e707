"""`omendb serve`: the server, in this process until it is told to stop."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omendb.config import SPECS
from omendb.settings_source import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from omendb.config import Settings, Spec, Value

SYSTEM_DATA_DIR = Path("/var/lib/omendb")
LOCAL_DATA_DIR = Path("omendb-data")
CONFIG_DIR = Path("/etc/omendb/config")


def _setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option a setting, so that a new setting needs no line here."""
    for spec in reversed(SPECS.values()):
        kind, metavar = _click_type(spec)
        command = click.option(
            f"--{spec.name.replace('_', '-')}", type=kind, metavar=metavar, help=option_help(spec)
        )(command)
    return command


def _click_type(spec: Spec) -> tuple[click.ParamType[Any], str | None]:
    if spec.kind == "integer":
        return click.IntRange(spec.low, spec.high), "N"
    if spec.kind == "boolean":
        return click.BOOL, "true|false"
    if spec.kind == "choice":
        return click.Choice(spec.choices), None
    return click.STRING, "PATH"


def option_help(spec: Spec) -> str:
    """Return what the help says about a setting."""
    words = ("true", "false") if spec.kind == "boolean" else ("More", "Less")
    effects = [
        f"{word}: {effect}" for word, effect in zip(words, (spec.more, spec.less), strict=True) if effect
    ]
    default = str(spec.default).lower() if spec.kind == "boolean" else spec.default
    return f"{' '.join((spec.help, *effects))}  [default: {default if default != '' else 'empty'}]"


@click.command("serve")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="OMENDB_DATA_DIR",
    help=f"Where the data is kept.  [default: {SYSTEM_DATA_DIR} when it exists and is writable, "
    f"else ./{LOCAL_DATA_DIR}]",
)
@click.option(
    "--host",
    default="0.0.0.0",  # noqa: S104 # a server in a container must listen on all of its addresses
    envvar="OMENDB_HOST",
    show_default=True,
    help="Address to listen on.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=3000,
    envvar="OMENDB_PORT",
    show_default=True,
    help="Port of the HTTP API.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=9090,
    envvar="OMENDB_METRICS_PORT",
    show_default=True,
    help="Port of /metrics and /health.",
)
@click.option(
    "--config-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=CONFIG_DIR,
    envvar="OMENDB_CONFIG_DIR",
    show_default=True,
    help="Directory of settings, one file a key, as a ConfigMap mounts; changes apply without a restart.",
)
@click.option(
    "--config-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="OMENDB_CONFIG_FILE",
    help="TOML file of settings; read at the start.",
)
@_setting_options
def serve_command(
    *,
    data_dir: Path | None,
    host: str,
    port: int,
    metrics_port: int,
    config_dir: Path,
    config_file: Path | None,
    **settings: Value | None,
) -> None:
    """Start the server. SIGTERM or Ctrl-C stop it cleanly; kill -9 loses no acknowledged point.

    Every option can be given by the environment too, as OMENDB_ and its name in capitals:
    OMENDB_RETRAIN_THRESHOLD=20000, OMENDB_DATA_DIR=/data. Settings (from --max-error on) come from the
    command line, else the environment, else a file of --config-dir (max_error), else --config-file.

    \b
    Examples:
      omendb serve
      omendb serve --data-dir /data --port 8080 --max-memory-mb 4096
    """
    from omendb.server.process import leave, leave_on_signals

    leave_on_signals()
    path = data_dir or default_data_dir()
    chosen = load(settings, directory=config_dir, file=config_file)
    from omendb.engine import Engine
    from omendb.server.serve import run

    # For a person only: standard output is the log, and its readers count on the form of its lines.
    shown = sys.stdout.isatty() and chosen.settings.log_format == "text"
    if shown:
        click.echo(f"OmenDB keeps its data in {path}. Starting ...")

    def greet(port: int, metrics_port: int) -> None:
        if shown:
            click.echo(greeting(host, port, metrics_port, chosen.settings))

    leave(run(Engine(path, chosen), host, port, metrics_port, on_ready=greet))


def default_data_dir() -> Path:
    """Return the system's data directory when there is one to write to, else one below the current."""
    if SYSTEM_DATA_DIR.is_dir() and os.access(SYSTEM_DATA_DIR, os.W_OK):
        return SYSTEM_DATA_DIR
    return LOCAL_DATA_DIR


def greeting(host: str, port: int, metrics_port: int, settings: Settings) -> str:
    """Return the text that tells where the server listens, with one insert and one query to try."""
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if settings.tls_certificate else "http"
    token = " -H 'Authorization: Bearer TOKEN'" if settings.require_tokens else ""
    near = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(shown, shown)  # noqa: S104 # compared, not bound
    return (
        f"OmenDB listens on {scheme}://{shown}:{port}, metrics on http://{shown}:{metrics_port}/metrics.\n"
        "Insert a point:\n"
        f"  curl {scheme}://{near}:{port}/insert{token} -H 'Content-Type: application/json' "
        """-d '{"series_id": 1, "timestamp": 1700000000000, "value": 20.5}'\n"""
        "Query it:\n"
        f"  curl{token} '{scheme}://{near}:{port}/query?series_id=1'"
    )
