"""What every command shares: how errors end the program, and the options that say where the data is."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omendb.errors import InvalidRequestError, OmenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from omendb.cli.target import Target

DEFAULT_URL = "http://127.0.0.1:3000"


class Program(click.Group):
    """The group of all commands, in the order in which a newcomer needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of registration; click would sort them."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 # click's own signature
        """Run a command; what OmenDB or the system refuses becomes one line and exit code 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of our output has gone, as in `omendb query | head`: click ends quietly
        except (OmenError, OSError) as error:
            raise click.ClickException(str(error)) from error


def target_options(*, must_exist: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that say where the data is; it receives a `Target` as `target`.

    Parameters
    ----------
    must_exist : bool
        Whether the data directory must be there: a command that only reads must not make an empty one.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option("--url", metavar="URL", help=f"Server to talk to.  [default: {DEFAULT_URL}]")
        @click.option(
            "--data-dir",
            type=click.Path(exists=must_exist, file_okay=False, path_type=Path),
            help="Open this data directory in process instead; no server may be using it.",
        )
        @click.option(
            "--token-file",
            type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
            help="File that begins with the token which the server requires.  [default: the environment's "
            "OMENDB_TOKEN, the token itself]",
        )
        @click.option(
            "--ca-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            envvar="OMENDB_CA_FILE",
            help="Certificates (PEM) to check an https server by.  [default: the system's]",
        )
        @functools.wraps(command)
        def with_target(
            *args: Any,  # noqa: ANN401
            url: str | None,
            data_dir: Path | None,
            token_file: Path | None,
            ca_file: Path | None,
            **kwargs: Any,  # noqa: ANN401
        ) -> None:
            if url is not None and data_dir is not None:
                raise click.UsageError("--url and --data-dir exclude each other.")
            with open_target(url, data_dir, token_file, ca_file) as target:
                command(*args, target=target, **kwargs)

        return with_target

    return decorate


def open_target(
    url: str | None, data_dir: Path | None, token_file: Path | None = None, ca_file: Path | None = None
) -> Target:
    """Return the server at `url`, or the store in `data_dir`, as a context manager.

    Raises
    ------
    InvalidRequestError
        When `url` is no HTTP address, or a file holds no token or certificates.
    """
    if data_dir is not None:
        from omendb.cli.target_store import StoreTarget

        return StoreTarget(data_dir)
    from omendb.cli.target_http import HttpTarget

    return HttpTarget(url or DEFAULT_URL, _token(token_file), ca_file)


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("OMENDB_TOKEN", "").strip() or None
    # As the server reads its files; the first token counts, so that one file may serve both.
    with click.open_file(str(file), encoding="utf-8", errors="replace") as lines:
        for line in lines:
            token = str(line).partition("#")[0].strip()
            if token:
                return token
    raise InvalidRequestError(f"--token-file: there is no token in {file}", "token-file")
