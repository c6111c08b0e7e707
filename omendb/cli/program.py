"""What every command shares: how errors end the program, and the options that say where the data is."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omendb.errors import OmenError

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
    """Give a command the options --url and --data-dir; it receives a `Target` as `target`.

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
        @functools.wraps(command)
        def with_target(
            *args: Any,  # noqa: ANN401
            url: str | None,
            data_dir: Path | None,
            **kwargs: Any,  # noqa: ANN401
        ) -> None:
            if url is not None and data_dir is not None:
                raise click.UsageError("--url and --data-dir exclude each other.")
            with open_target(url, data_dir) as target:
                command(*args, target=target, **kwargs)

        return with_target

    return decorate


def open_target(url: str | None, data_dir: Path | None) -> Target:
    """Return the server at `url`, or the store in `data_dir`, as a context manager.

    Raises
    ------
    InvalidRequestError
        When `url` is no HTTP address.
    """
    if data_dir is not None:
        from omendb.cli.target_store import StoreTarget

        return StoreTarget(data_dir)
    from omendb.cli.target_http import HttpTarget

    return HttpTarget(url or DEFAULT_URL)
