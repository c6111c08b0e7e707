"""What the tests of the commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from omendb.cli import main
from tests.cli.fake_server import FakeServer, fake_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as server:
        yield server


@pytest.fixture
def omendb() -> Callable[..., Result]:
    """Return a function that runs the program in this process."""

    def run(*arguments: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(
            main, [str(argument) for argument in arguments], input=stdin, prog_name="omendb"
        )

    return run
